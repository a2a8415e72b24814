"""Fusions, pooling, windows and options, on drawn weights small enough to take milliseconds."""

import subprocess
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.whisper import WhisperCLIPEncoder, WhisperEncoder
from tests.encoders.fake_whisper import weights, write_openai

RATE = 16_000
WINDOW = 30 * RATE
LAYERS = 3


@pytest.fixture(params=["transformers", "openai"])
def backend(request) -> str:
    if request.param == "openai":
        pytest.importorskip("whisper")
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_openai(tmp_path_factory.mktemp("whisper") / "tiny.pt", weights(n_layer=LAYERS))


@lru_cache
def encoder(cls: type = WhisperCLIPEncoder, **options: Any) -> Any:
    return cls(weights(n_layer=LAYERS), cls.options(**options)).eval().requires_grad_(False)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def assert_close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).norm() <= tolerance * b.norm()


def test_what_an_encoder_says_of_itself(checkpoint, backend):
    loaded = load_encoder("whisperclip", checkpoint=checkpoint, backend=backend)
    assert (loaded.name, loaded.sampling_rate, loaded.dim, loaded.n_layer) == (
        "whisperclip",
        RATE,
        32,
        LAYERS,
    )
    assert loaded.signature() == {
        "encoder": "whisperclip",
        "checkpoint": weights(n_layer=LAYERS).identity,
        "fusion": "average_all",
        "pooling": "valid",
        "window": "padded",
    }
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    last = load_encoder("whisperclip", checkpoint=checkpoint, fusion="last_n", n=2, window="clip")
    assert (last.signature()["fusion"], last.signature()["window"]) == ("last_n:2", "clip")
    plain = load_encoder("whisper", checkpoint=checkpoint, pooling="all").signature()
    assert (plain["encoder"], plain["pooling"], "fusion" in plain) == ("whisper", "all", False)


def test_vectors_are_float32_rows(backend):
    vectors = encoder(backend=backend).embed([sound(4000), sound(9000)], RATE)
    assert (vectors.shape, vectors.dtype) == ((2, 32), torch.float32)
    assert not vectors.requires_grad
    assert encoder(backend=backend).embed([], RATE).shape == (0, 32)
    assert encoder(backend=backend).layer_means([], RATE).shape == (0, LAYERS, 32)
    moved = WhisperCLIPEncoder(weights(n_layer=LAYERS)).to("meta")
    assert moved.layer_means([], RATE).device.type == "meta"


@pytest.mark.parametrize(
    ("fusion", "n", "rows"),
    [
        ("average_all", None, [0, 1, 2]),
        ("final_only", None, [2]),
        ("middle_only", None, [0]),  # block 3 // 2, counted from 1
        ("last_n", 1, [2]),
        ("last_n", 2, [1, 2]),
        ("last_n", 3, [0, 1, 2]),
        ("weighted_sum", None, [0, 1, 2]),  # zeros weigh all alike
    ],
)
def test_fusions(checkpoint, fusion, n, rows):
    loaded = load_encoder("whisperclip", checkpoint=checkpoint, fusion=fusion, n=n)
    means = loaded.layer_means([sound(8000)], RATE)
    assert means.shape == (1, LAYERS, 32)
    assert_close(loaded.embed([sound(8000)], RATE)[0], sum(means[0, row] for row in rows) / len(rows), 1e-6)


def test_middle_of_an_even_number_of_blocks():
    even = WhisperCLIPEncoder(weights(n_layer=4))
    even.set_fusion("middle_only")
    assert torch.equal(even.embed([sound(800)], RATE), even.layer_means([sound(800)], RATE)[:, 1])
    one = WhisperCLIPEncoder(weights(n_layer=1))
    one.set_fusion("middle_only")
    assert torch.equal(one.embed([sound(800)], RATE), one.layer_means([sound(800)], RATE)[:, 0])


def test_whisper_is_the_last_block_after_the_final_norm(backend):
    plain = encoder(WhisperEncoder, backend=backend, window="clip")
    *_, last = plain.tower.states(module_mel(sound(3200)), 10)
    assert_close(plain.embed([sound(3200)], RATE), plain.tower.ln_post(last).mean(1))
    assert not torch.allclose(plain.embed([sound(3200)], RATE), plain.layer_means([sound(3200)], RATE)[:, -1])


def module_mel(waveform: np.ndarray) -> torch.Tensor:
    from llava_soundclip.encoders.whisper.mel import log_mel

    return log_mel(torch.from_numpy(waveform), 80, 21)[None]


def test_weighted_sum_is_learned():
    learned = WhisperCLIPEncoder(weights(n_layer=LAYERS))
    learned.set_fusion("weighted_sum")
    means = learned.layer_means([sound(8000), sound(3000)], RATE)
    learned.fuse(means).square().sum().backward()
    assert learned.layer_weights.grad.abs().sum() > 0

    values = torch.tensor([1.0, -2.0, 0.5])
    learned.set_layer_weights(values)
    expected = sum(p * means[:, row] for row, p in enumerate(values.softmax(0)))
    assert_close(learned.embed([sound(8000), sound(3000)], RATE), expected, 1e-6)
    for wrong in (torch.zeros(LAYERS + 1), torch.zeros(1, LAYERS), torch.tensor([0.0, float("nan"), 0.0])):
        with pytest.raises(ValueError, match=r"expected \(3,\) finite values"):
            learned.set_layer_weights(wrong)


def assert_batch_equals_singles(tested: Any, lengths: list[int]) -> None:
    sounds = [sound(length, seed) for seed, length in enumerate([*lengths, lengths[0], 1])]
    batch = tested.embed(sounds, RATE)
    assert batch.isfinite().all()
    for vector, single in zip(batch, sounds, strict=True):
        assert_close(vector[None], tested.embed([single], RATE))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=5))
def test_a_batch_equals_single_runs(lengths):
    assert_batch_equals_singles(encoder(window="clip"), lengths)


@pytest.mark.parametrize("pooling", ["valid", "all"])
def test_a_padded_batch_equals_single_runs(pooling):
    assert_batch_equals_singles(encoder(pooling=pooling), [33, 8000, 40_001, 479_999])


@pytest.mark.parametrize("options", [{}, {"window": "clip"}, {"pooling": "all"}], ids=str)
def test_a_long_sound_is_averaged_over_its_windows(options, backend):
    tested = encoder(backend=backend, **options)
    long = sound(2 * WINDOW + 3217)
    parts = [long[:WINDOW], long[WINDOW : 2 * WINDOW], long[2 * WINDOW :]]
    tokens = torch.tensor([1500.0, 1500.0, 11.0])
    expected = (tested.embed(parts, RATE) * tokens[:, None]).sum(0) / tokens.sum()
    assert_close(tested.embed([sound(500), long], RATE)[1], expected)


def test_one_sample_above_the_window():
    parts = encoder().embed([sound(WINDOW + 1)[:WINDOW], sound(WINDOW + 1)[WINDOW:]], RATE)
    assert_close(encoder().embed([sound(WINDOW + 1)], RATE)[0], (1500 * parts[0] + parts[1]) / 1501)


def test_trim_keeps_the_first_window():
    trimmed = encoder(long="trim").embed([sound(WINDOW + 9000)], RATE)
    assert_close(trimmed, encoder().embed([sound(WINDOW + 9000)[:WINDOW]], RATE), 1e-6)


@pytest.mark.parametrize(("window", "largest"), [("padded", 2), ("clip", 20)])
def test_memory_is_bounded(monkeypatch, window, largest):
    tested = encoder(window=window)
    batches = []

    def states(mel: torch.Tensor, tokens: int) -> Any:
        batches.append(len(mel))
        return [torch.zeros(len(mel), tokens, 32)] * (LAYERS + 1)

    monkeypatch.setattr(tested.tower, "states", states)
    tested.embed([sound(48_000)] * 81, RATE)
    assert max(batches) == largest
    assert sum(batches) == 81


def test_channels_are_averaged_and_rates_converted():
    from llava_soundclip.media import resample

    stereo = np.stack([sound(44_100), 0.3 * sound(44_100, 1)])
    mono = resample(stereo, 44_100, RATE).mean(0)
    assert_close(encoder().embed([stereo], 44_100), encoder().embed([mono], RATE))


@pytest.mark.parametrize("samples", [1, 2, 319, 320, 321, WINDOW - 1])
def test_any_length(samples, backend):
    for window in ("padded", "clip"):
        assert encoder(backend=backend, window=window).embed([sound(samples)], RATE).isfinite().all()


def test_silence_is_finite():
    assert encoder().embed([np.zeros(16_000, np.float32)], RATE).isfinite().all()


@pytest.mark.parametrize(("window", "pooling"), [("padded", "valid"), ("padded", "all"), ("clip", "valid")])
def test_backends_give_the_same_numbers(window, pooling):
    pytest.importorskip("whisper")
    sounds = [sound(300), sound(52_345)]
    ours, theirs = (
        encoder(backend=backend, window=window, pooling=pooling).layer_means(sounds, RATE)
        for backend in ("transformers", "openai")
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_half_precision(checkpoint, backend, dtype, tolerance):
    half = load_encoder("whisperclip", checkpoint=checkpoint, backend=backend, dtype=dtype, window="clip")
    assert half.tower.encoder.conv1.weight.dtype == getattr(torch, dtype)
    vector = half.embed([sound(5000)], RATE)
    assert vector.dtype == torch.float32
    assert_close(vector, encoder(backend=backend, window="clip").embed([sound(5000)], RATE), tolerance)
    same = load_encoder("whisperclip", checkpoint=checkpoint, backend=backend, window="clip")
    assert torch.equal(same.to(getattr(torch, dtype)).embed([sound(5000)], RATE), vector)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(checkpoint, backend):
    moved = load_encoder("whisperclip", checkpoint=checkpoint, backend=backend, device="cuda")
    vectors = moved.embed([sound(5000), sound(WINDOW + 700)], RATE)
    assert vectors.device.type == "cuda"
    assert_close(
        vectors.cpu(), encoder(backend=backend).embed([sound(5000), sound(WINDOW + 700)], RATE), 1e-3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "backend='jax' is unknown; known: transformers, openai"),
        ({"pooling": "max"}, "pooling='max' is unknown; known: valid, all"),
        ({"window": "long"}, "window='long' is unknown; known: padded, clip"),
        ({"long": "cut"}, "long='cut' is unknown; known: windows, trim"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; known: float32, float16, bfloat16"),
        ({"dtype": torch.int64}, "dtype='int64' is unknown"),
        ({"fusion": "sum"}, "fusion='sum' is unknown; known: average_all, final_only, middle_only, last_n"),
        ({"fusion": "last_n"}, "needs n"),
        ({"fusion": "last_n", "n": 0}, "needs n"),
        ({"fusion": "last_n", "n": True}, "needs n"),
        ({"fusion": "last_n", "n": 1.5}, "needs n"),
        ({"n": 2}, 'n=2 is for fusion="last_n" only'),
        ({"window": "clip", "pooling": "all"}, 'use pooling="valid"'),
    ],
    ids=str,
)
def test_bad_options_are_named_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        load_encoder("whisperclip", checkpoint="nobody/knows-this", **options)


def test_more_blocks_than_there_are(checkpoint):
    with pytest.raises(ValueError, match="n=4 is above the 3 blocks"):
        load_encoder("whisperclip", checkpoint=checkpoint, fusion="last_n", n=4)


def test_bad_sounds_are_named():
    with pytest.raises(ValueError, match="sound 1"):
        encoder().embed([sound(10), np.array([np.nan], np.float32)], RATE)
    with pytest.raises(ValueError, match="sound 0"):
        encoder().layer_means([np.zeros(0, np.float32)], RATE)


def test_a_missing_openai_whisper_speaks_up(monkeypatch, checkpoint):
    monkeypatch.setitem(sys.modules, "whisper", None)
    with pytest.raises(ImportError, match=r"pip install 'llava-soundclip\[whisper\]'"):
        load_encoder("whisper", checkpoint=checkpoint, backend="openai")


def test_importing_loads_no_library():
    code = "import sys, llava_soundclip.encoders.whisper; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"transformers", "whisper", "huggingface_hub", "av"} & set(loaded.split())
