"""CLAP without ../shared: the spectrogram, laion_clap's own numbers, every file format, and sounds of any length."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava_soundclip.encoders.clap import CLAPEncoder, frontend, towers
from llava_soundclip.encoders.clap import encoder as module
from llava_soundclip.encoders.clap.encoder import CLAPOptions
from llava_soundclip.encoders.clap.frontend import crop_starts, fused_input, log_mel, quantised, repeat_pad
from llava_soundclip.encoders.clap.weights import KNOWN, CLAPWeights, clap_shapes, read_checkpoint
from tests.encoders.fake_clap import (
    BASE,
    GOLDEN_CASES,
    SMALL,
    TINY,
    golden_sound,
    import_laion,
    weights,
    write_clap,
    write_transformers,
)
from tests.encoders.fake_whisper import write_openai
from tests.hub_server import HubServer

RATE = 48_000
WINDOW = 480_000
GOLDENS = load_file(Path(__file__).parents[1] / "data" / "clap.safetensors")


@lru_cache
def encoder(fused: bool = False, backend: str = "transformers", dtype: str = "float32") -> CLAPEncoder:
    return CLAPEncoder(weights(fused=fused), CLAPOptions(backend=backend, dtype=dtype))


def sound(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def assert_close(ours: Tensor, golden: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == golden.shape
    assert (ours - golden).norm() <= tolerance * golden.norm()


@pytest.fixture(params=["transformers", "laion"])
def backend(request) -> str:
    if request.param == "laion":
        import_laion()
    return request.param


# The spectrogram


def reference(signal: np.ndarray, fused: bool) -> np.ndarray:
    """(frames, 64) in float64: a frame every 480 samples, by the definitions."""
    padded = np.pad(signal.astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = [padded[i : i + 1024] * window for i in range(0, len(padded) - 1023, 480)]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2

    def to_mel(hertz: float) -> float:
        if fused:
            return 2595.0 * np.log10(1.0 + hertz / 700.0)
        return hertz * 3 / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) * 27 / np.log(6.4)

    def to_hertz(mel: float) -> float:
        if fused:
            return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)

    edges = [to_hertz(mel) for mel in np.linspace(to_mel(50.0), to_mel(14_000.0), 66)]
    bins = np.arange(513) * 48_000 / 1024
    columns = []
    for low, peak, high in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.maximum(np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)), 0)
        columns.append(power @ triangle * (1.0 if fused else 2.0 / (high - low)))
    return 10 * np.log10(np.maximum(np.stack(columns, axis=1), 1e-10))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("samples", [513, 960, 12_345, WINDOW])
def test_log_mel_by_its_definition(samples, fused):
    signal = sound(samples, 1) * np.linspace(0.01, 1, samples, dtype=np.float32)
    ours = log_mel(torch.from_numpy(signal), fused=fused)
    assert ours.shape == (samples // 480 + 1, 64)
    assert np.abs(ours.numpy() - reference(signal, fused)).max() < 2e-3


def test_log_mel_in_parts(monkeypatch):
    signal = torch.from_numpy(sound(100_000))
    whole = log_mel(signal, fused=True)
    monkeypatch.setattr(frontend, "_FRAMES_AT_ONCE", 7)
    assert (log_mel(signal, fused=True) - whole).abs().max() < 1e-4


def test_samples_of_16_bits():
    values = torch.tensor([-2.0, -1.0, -1.9 / 32767, -0.9 / 32767, 0.0, 1.9 / 32767, 0.5, 1.5])
    expected = torch.tensor([-32767.0, -32767, -1, 0, 0, 1, 16383, 32767]) / 32767
    assert torch.equal(quantised(values), expected)


@pytest.mark.parametrize("samples", [1, 7, 100_001, 240_000, 240_001, WINDOW])
def test_repeats_and_then_zeros(samples):
    signal = torch.arange(1, samples + 1).float()
    padded = repeat_pad(signal)
    whole = WINDOW // samples
    assert torch.equal(padded[: whole * samples].view(whole, samples), signal.expand(whole, -1))
    assert padded.shape == (WINDOW,)
    assert not padded[whole * samples :].any()


@pytest.mark.parametrize(
    ("frames", "starts"),
    [(1002, (0, 1, 0)), (1003, (0, 1, 2)), (1101, (0, 51, 100)), (3001, (0, 1000, 2000))],
)
def test_crops(frames, starts):
    assert crop_starts(frames) == starts
    parts = np.array_split(np.arange(frames - 1000), 3)
    assert all(start in (part if len(part) else [0]) for start, part in zip(starts, parts, strict=True))


@pytest.mark.parametrize(
    ("samples", "longer"), [(9, False), (WINDOW, False), (WINDOW + 479, False), (WINDOW + 480, True)]
)
def test_longer_is_a_frame_longer(samples, longer):
    mels, said = fused_input(torch.from_numpy(sound(samples)))
    assert (mels.shape, said) == ((4, 1001, 64), longer)
    assert longer != torch.equal(mels[0], mels[1])
    if samples > WINDOW:
        whole = log_mel(torch.from_numpy(sound(samples)), fused=True)
        assert torch.equal(mels[1], whole[:1001])


# laion_clap's numbers


def compare(case: str, backend: str = "transformers") -> None:
    """Every stage that is stored, whatever library runs."""
    name, fused, _ = GOLDEN_CASES[case]
    tested = CLAPEncoder(weights(fused=fused), CLAPOptions(backend=backend))
    kept: dict[str, Tensor] = {}

    def keep(stage: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            kept[stage] = (output[0] if isinstance(output, tuple) else output)[0].mean(0)

        return hook

    def keep_both(module: Any, args: Any, output: Tensor) -> None:
        kept["audio_branch"], kept["projected"] = args[0][0], output[0]

    branch = tested.tower.branch
    branch.patch_embed.register_forward_hook(keep("patch_embed_mean"))
    for i, layer in enumerate(branch.layers):
        layer.register_forward_hook(keep(f"layer{i}_mean"))
    tested.tower.projection.register_forward_hook(keep_both)
    kept["embedding"] = tested.embed([golden_sound(name)], RATE)[0]
    for stage, value in kept.items():
        assert_close(value, GOLDENS[f"{case}/{stage}"])
    assert len(kept) == 8

    mel = tested._input(torch.from_numpy(golden_sound(name)), crops=None)[0]
    assert (mel.mean(-1)[:, ::10] - GOLDENS[f"{case}/over_frequency"]).abs().max() < 2e-3
    assert (mel.mean(-2) - GOLDENS[f"{case}/over_time"]).abs().max() < 2e-3


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_the_originals_numbers(case, backend):
    assert GOLDEN_CASES["fused-long"][2] == crop_starts(1131)
    compare(case, backend)


def symmetric_window(monkeypatch):
    monkeypatch.setattr(torch, "hann_window", partial(torch.hann_window, periodic=False))


def filters_from_0_hertz(monkeypatch):
    monkeypatch.setattr(frontend, "_LOWEST", 0.0)
    monkeypatch.setattr(frontend, "_mel_filters", frontend._mel_filters.__wrapped__)


def other_filters(monkeypatch):
    original = frontend._mel_filters
    monkeypatch.setattr(frontend, "_mel_filters", lambda fused: original(not fused))


def no_quantisation(monkeypatch):
    monkeypatch.setattr(module, "quantised", lambda waveform: waveform.clamp(-1, 1))


def rounded_quantisation(monkeypatch):
    monkeypatch.setattr(module, "quantised", lambda waveform: (waveform * 32_767).round() / 32_767)


def zeros_only(monkeypatch):
    monkeypatch.setattr(frontend, "repeat_pad", lambda x: F.pad(x, (0, WINDOW - len(x))))


def zeros_in_front(monkeypatch):
    def padded(signal: Tensor) -> Tensor:
        repeated = signal.repeat(WINDOW // len(signal))
        return F.pad(repeated, (WINDOW - len(repeated), 0))

    monkeypatch.setattr(frontend, "repeat_pad", padded)


def repeated_to_the_end(monkeypatch):
    monkeypatch.setattr(frontend, "repeat_pad", lambda x: x.repeat(WINDOW // len(x) + 1)[:WINDOW])


def no_floor(monkeypatch):
    monkeypatch.setattr(frontend, "_FLOOR", 0.0)


def lower_floor(monkeypatch):
    monkeypatch.setattr(frontend, "_FLOOR", 1e-12)


def zeros_at_the_ends(monkeypatch):
    original = F.pad
    monkeypatch.setattr(F, "pad", lambda x, widths, mode="constant": original(x, widths))


def called_longer(monkeypatch):
    monkeypatch.setattr(module, "fused_input", lambda signal, crops: (fused_input(signal, crops)[0], True))


def never_longer(monkeypatch):
    monkeypatch.setattr(module, "fused_input", lambda signal, crops: (fused_input(signal, crops)[0], False))


def no_smoothing(monkeypatch):
    original = F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda *x, **options: original(*x, **{**options, "antialias": False})
    )


def not_normalised(monkeypatch):
    monkeypatch.setattr(F, "normalize", lambda x, dim: x)


@pytest.mark.parametrize(
    ("mistake", "case"),
    [
        (symmetric_window, "chirp"),
        (filters_from_0_hertz, "chirp"),
        (other_filters, "chirp"),
        (other_filters, "fused-chirp"),
        (no_quantisation, "quiet"),
        (rounded_quantisation, "quiet"),
        (zeros_only, "chirp"),
        (zeros_in_front, "chirp"),
        (repeated_to_the_end, "chirp"),
        (no_floor, "silence"),
        (lower_floor, "silence"),
        (zeros_at_the_ends, "chirp"),
        (called_longer, "fused-chirp"),
        (never_longer, "fused-long"),
        (no_smoothing, "fused-long"),
        (not_normalised, "chirp"),
    ],
)
def test_mistakes_are_caught(monkeypatch, mistake, case):
    mistake(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):  # a vector of NaN is refused before it is compared
        compare(case)


# Sounds of any length


@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_equals_single_runs(fused, backend):
    lengths = [1, 777, 48_000, WINDOW, WINDOW + 100, 2 * WINDOW + 30_001, 99_999]
    sounds = [sound(length, seed) for seed, length in enumerate(lengths)] + [np.zeros(5000, np.float32)]
    tested = encoder(fused, backend)
    batch = tested.embed(sounds, RATE)
    assert (batch.shape, batch.dtype, batch.requires_grad) == ((8, SMALL["dim"]), torch.float32, False)
    assert torch.allclose(batch.norm(dim=-1), torch.ones(8))
    for vector, single in zip(batch, sounds, strict=True):
        assert (tested.embed([single], RATE)[0] - vector).abs().max() < 1e-5
    assert tested.embed([], RATE).shape == (0, SMALL["dim"])


def test_a_long_sound_is_averaged_over_its_windows():
    long = sound(3 * WINDOW - 5000)  # almost 30 s
    parts = encoder().embed([long[:WINDOW], long[WINDOW : 2 * WINDOW], long[2 * WINDOW :]], RATE)
    expected = parts[0] * WINDOW + parts[1] * WINDOW + parts[2] * (WINDOW - 5000)
    assert_close(encoder().embed([sound(500), long], RATE)[1], F.normalize(expected, dim=-1))


def test_a_long_sound_is_heard_to_its_end():
    long = sound(3 * WINDOW)
    other = np.concatenate([long[: 3 * WINDOW - 20_000], np.zeros(20_000, np.float32)])
    for fused in (False, True):
        vectors = encoder(fused).embed([long, other, long], RATE)
        assert_close(vectors[0], vectors[2], 1e-6)
        assert (vectors[0] - vectors[1]).norm() > 1e-4


@pytest.mark.parametrize("fused", [False, True])
def test_memory_is_bounded(monkeypatch, fused):
    sizes = []

    def forward(self: Any, mel: Tensor, longer: Tensor) -> Tensor:
        sizes.append(len(mel))
        return torch.ones(len(mel), SMALL["dim"])

    monkeypatch.setattr(towers.TransformersTower, "forward", forward)
    monkeypatch.setattr(module, "plain_input", lambda signal: torch.zeros(1, 1001, 64))
    encoder(fused).embed([sound(1000)] * 9 + [sound(20 * WINDOW)], RATE)
    assert max(sizes) == 2
    assert sum(sizes) == (10 if fused else 29)


def test_channels_are_averaged_and_rates_converted():
    from llava_soundclip.media import resample

    stereo = np.stack([sound(44_100), 0.3 * sound(44_100, 1)])
    mono = resample(stereo, 44_100, RATE).mean(0)
    assert_close(encoder().embed([stereo], 44_100), encoder().embed([mono], RATE))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_half_precision(dtype, error, fused, backend):
    sounds = [golden_sound("chirp"), golden_sound("long"), golden_sound("silence")]
    half = encoder(fused, backend, dtype)
    assert half.tower.branch.patch_embed.proj.weight.dtype == getattr(torch, dtype)
    assert half.tower.first_norm.running_mean.dtype == torch.float32
    vectors = half.embed(sounds, RATE)
    assert vectors.dtype == torch.float32
    for ours, exact in zip(vectors, encoder(fused, backend).embed(sounds, RATE), strict=True):
        assert_close(ours, exact, error)
    converted = CLAPEncoder(weights(fused=fused), CLAPOptions(backend=backend)).to(getattr(torch, dtype))
    assert torch.equal(converted.embed(sounds, RATE), vectors)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "cosine"), [("float16", 0.99999), ("bfloat16", 0.9997)])
@pytest.mark.parametrize("fused", [False, True])
def test_half_precision_at_full_size(dtype, cosine, fused):
    full = weights(TINY, fused=fused)
    sounds = [golden_sound("chirp"), golden_sound("long")]
    exact = CLAPEncoder(full).embed(sounds, RATE)
    half = CLAPEncoder(full, CLAPOptions(dtype=dtype)).embed(sounds, RATE)
    assert torch.cosine_similarity(exact, half).min() > cosine


def test_it_stays_in_evaluation_mode(backend):
    tested = CLAPEncoder(weights(), CLAPOptions(backend=backend)).train()
    before = tested.embed([sound(9000)], RATE)
    assert torch.equal(tested.embed([sound(9000)], RATE), before)
    assert_close(before, encoder().embed([sound(9000)], RATE))


def test_copies(backend):
    original = CLAPEncoder(weights(), CLAPOptions(backend=backend))
    expected = original.embed([sound(9000)], RATE)
    copied = copy.deepcopy(original)
    original.to(torch.bfloat16)
    assert torch.equal(copied.embed([sound(9000)], RATE), expected)
    if backend == "transformers":
        assert torch.equal(pickle.loads(pickle.dumps(copied)).embed([sound(9000)], RATE), expected)


def test_nothing_is_left_on_meta_or_of_the_random_numbers(backend):
    state = torch.random.get_rng_state()
    tested = CLAPEncoder(weights(), CLAPOptions(backend=backend))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in tested.state_dict().values())
    assert not any(buffer.is_meta for buffer in tested.buffers())


def test_the_resize_falls_back_to_the_cpu_on_mps():
    """There is none here: a stand-in says that it is on one."""
    on_cpu = torch.ones(1, 1, 4, 4)
    standing_in = SimpleNamespace(device=torch.device("mps"), cpu=lambda: on_cpu)
    patches = torch.nn.Conv2d(1, 1, 1).half()
    given = []

    def original(mel: Tensor) -> Tensor:
        given.append(mel)
        return mel * 3

    image = towers._fold(original, patches, standing_in)
    assert given[0] is on_cpu
    assert (image.dtype, image.device) == (torch.float16, patches.weight.device)
    towers._fold(original, patches, on_cpu * 2)
    assert torch.equal(given[1], on_cpu * 2)
    for fused in (False, True):
        branch = encoder(fused).tower.branch
        assert branch.reshape_mel2img.func is towers._fold


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fused", [False, True])
def test_on_a_gpu(fused, backend):
    sounds = [sound(5000), sound(WINDOW + 70_000)]
    moved = CLAPEncoder(weights(fused=fused), CLAPOptions(backend=backend)).to("cuda")
    vectors = moved.embed(sounds, RATE)
    assert vectors.device.type == "cuda"
    assert_close(vectors.cpu(), encoder(fused).embed(sounds, RATE), 1e-3)


# Checkpoints

WRITERS = {
    "LAION's .pt": lambda folder, w: write_clap(folder / "x.pt", w),
    "LAION's .pt, with a numpy number": lambda folder, w: write_clap(
        folder / "x.pt", w, metric=np.float64(0.9)
    ),
    "transformers": lambda folder, w: write_transformers(folder, w),
    "transformers, the file": lambda folder, w: write_transformers(folder, w) / "model.safetensors",
    "transformers, pytorch_model.bin": lambda folder, w: write_transformers(folder, w, pickled=True),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_formats_give_the_same(tmp_path, writer, fused):
    original = weights(fused=fused)
    read = read_checkpoint(WRITERS[writer](tmp_path, original))
    assert read.state.keys() == original.state.keys()
    for name, tensor in original.state.items():
        assert torch.equal(read.state[name], tensor), name
    assert read.identity == original.identity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "fused", "variant"),
    [(TINY, False, "htsat-tiny"), (TINY, True, "htsat-tiny-fused"), (BASE, False, "htsat-base")],
)
def test_formats_at_full_size(tmp_path, sizes, fused, variant):
    full = weights(sizes, fused=fused)
    vectors, identities = [], set()
    for writer in ("LAION's .pt", "transformers", "transformers, pytorch_model.bin"):
        folder = tmp_path / writer.replace(" ", "-")
        folder.mkdir()
        loaded = CLAPEncoder.load(checkpoint=WRITERS[writer](folder, full))
        vectors.append(loaded.embed([golden_sound("chirp")], RATE))
        identities.add(loaded.checkpoint)
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    (identity,) = identities
    assert identity.rpartition("-")[0] == variant


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("audio_only", [False, True])
def test_folder_that_transformers_wrote(tmp_path, fused, audio_only):
    from transformers import (
        ClapAudioConfig,
        ClapAudioModelWithProjection,
        ClapConfig,
        ClapModel,
        ClapTextConfig,
    )

    sizes = {
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "depths": [1, 2, 1, 1],
        "num_attention_heads": [2, 4, 4, 8],
        "enable_fusion": fused,
        "projection_dim": 24,
    }
    torch.manual_seed(0)
    if audio_only:
        model = ClapAudioModelWithProjection(ClapAudioConfig(**sizes))
    else:
        text = ClapTextConfig(
            vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
        model = ClapModel(
            ClapConfig(audio_config=sizes, text_config=text.to_dict(), projection_dim=24, hidden_size=128)
        )
    model.eval().save_pretrained(tmp_path)
    loaded = CLAPEncoder.load(checkpoint=tmp_path)
    mels = [loaded._input(torch.from_numpy(sound(n)), None) for n in (90_000, WINDOW + 48_000 * fused)]
    mel, longer = torch.stack([mel for mel, _ in mels]), torch.tensor([longer for _, longer in mels])
    with torch.no_grad():
        pooled = model.audio_model(input_features=mel, is_longer=longer[:, None]).pooler_output
        assert_close(loaded.tower(mel, longer), model.audio_projection(pooled), 1e-6)


@pytest.mark.parametrize(
    ("sizes", "fused", "variant"),
    [
        (TINY, False, "htsat-tiny"),
        (TINY, True, "htsat-tiny-fused"),
        (BASE, False, "htsat-base"),
        (BASE, True, "htsat-base-fused"),
        (SMALL, False, "htsat-16x5"),
    ],
)
def test_variant_is_read_from_the_weights(sizes, fused, variant):
    state = {
        name: torch.empty(shape, device="meta") for name, shape in clap_shapes(**sizes, fused=fused).items()
    }
    read = CLAPWeights(Path("x"), state)
    assert (read.variant, read.fused) == (variant, fused)
    assert {name: getattr(read, name) for name in sizes} == sizes


def test_identity_tells_trainings_apart():
    name = "audio_branch.layers.3.blocks.0.mlp.fc2.weight"
    tuned = replace(weights(), state={**weights().state, name: weights().state[name] * 1.01})
    assert weights().identity == weights().identity != tuned.identity != weights(seed=1).identity


def test_what_an_encoder_says_of_itself(tmp_path, backend):
    loaded = CLAPEncoder.load(checkpoint=write_clap(tmp_path / "x.pt"), backend=backend)
    assert (loaded.name, loaded.sampling_rate, loaded.dim) == ("clap", RATE, SMALL["dim"])
    assert loaded.checkpoint == weights().identity
    assert loaded.signature() == {"encoder": "clap", "checkpoint": weights().identity}
    assert CLAPEncoder.card.source == "Hub: laion/clap-htsat-unfused"


@pytest.mark.parametrize("fused", [False, True])
def test_backends_give_the_same_numbers(fused):
    import_laion()
    sounds = [sound(30_000), sound(WINDOW + 50_000)]
    assert_close(encoder(fused, "laion").embed(sounds, RATE), encoder(fused).embed(sounds, RATE), 1e-5)


class Hostile:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["x.pt", "pytorch_model.bin"])
def test_code_is_not_run(tmp_path, name):
    harm = tmp_path / "harm"
    write_clap(tmp_path / name, metric=Hostile(harm))
    with pytest.raises(ValueError, match=f"{name} holds more than tensors.*refused"):
        read_checkpoint(tmp_path / name if name == "x.pt" else tmp_path)
    assert not harm.exists()


@pytest.mark.parametrize("part", [0, 0.001, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("writer", ["LAION's .pt", "transformers", "transformers, pytorch_model.bin"])
def test_cut_files(tmp_path, writer, part):
    checkpoint = WRITERS[writer](tmp_path, weights())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=file.name):
        read_checkpoint(checkpoint)


BRANCH = "audio_branch."


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{BRANCH}patch_embed.proj.weight": None}, "holds no CLAP"),
        ({f"{BRANCH}patch_embed.proj.weight": torch.zeros(3)}, "holds no CLAP"),
        ({"audio_projection.2.weight": None}, "holds no CLAP"),
        ({f"{BRANCH}norm.bias": None}, r"norm.bias is missing, expected \(128,\)"),
        ({f"{BRANCH}norm.bias": torch.zeros(31)}, r"norm.bias is \(31,\), expected \(128,\)"),
        ({f"{BRANCH}norm.bias": torch.zeros(128, dtype=torch.int8)}, "aren't floats"),
        ({f"{BRANCH}layers.4.blocks.0.norm1.bias": torch.zeros(16)}, "expected no such tensor"),
        ({f"{BRANCH}layers.1.blocks.3.norm1.bias": torch.zeros(32)}, "doesn't hold a whole CLAP"),
        ({f"{BRANCH}patch_embed.fusion_model.local_att.0.bias": torch.zeros(4)}, "25 tensors differ"),
        (
            {
                f"{BRANCH}layers.0.blocks.{i}.attn.relative_position_bias_table": torch.zeros(225, 3)
                for i in (0, 1)
            },
            r"\(3, 4, 4, 8\) attention heads don't divide",
        ),
        (
            {f"{BRANCH}layers.0.blocks.0.attn.relative_position_bias_table": torch.tensor(1.0)},
            r"relative_position_bias_table is \(\), expected",
        ),
        (
            {f"{BRANCH}layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(225, 0)},
            "attention heads don't divide|tensors differ",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_other_tensors_than_claps(tmp_path, tensors, message):
    path = write_clap(tmp_path / "x.pt")
    content = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        if tensor is None:
            del content["state_dict"][f"module.{name}"]
        else:
            content["state_dict"][f"module.{name}"] = tensor
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"x\.pt.*({message})"):
        read_checkpoint(path)


@pytest.mark.parametrize("value", [None, torch.zeros(5, 7)])
def test_a_query_alone(tmp_path, value):
    file = write_transformers(tmp_path, weights()) / "model.safetensors"
    state = load_file(file)
    name = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.key.weight"
    del state[name]
    save_file(state if value is None else {**state, name: value}, file)
    with pytest.raises(ValueError, match="attn.qkv.weight is missing"):
        read_checkpoint(tmp_path)


def test_foreign_files(tmp_path):
    from tests.encoders.fake_whisper import weights as whisper_weights

    def refused(checkpoint: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_checkpoint(checkpoint)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds none of model.safetensors, .*, pytorch_model.bin")
    refused(
        write_openai(tmp_path / "whisper.pt", whisper_weights()), "whisper.pt holds no CLAP: expected LAION's"
    )
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    refused(tmp_path / "tensor.pt", "tensor.pt holds a Tensor")
    (tmp_path / "note.pt").write_text("not a checkpoint")
    refused(tmp_path / "note.pt", "note.pt")
    refused("nothing", "unknown CLAP checkpoint 'nothing': give one of 630k-audioset-best.pt")
    with pytest.raises(FileNotFoundError, match="no CLAP checkpoint at"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def test_names_and_hub_ids(hub, tmp_path):
    laion = {name: write_clap(tmp_path / name, weights(seed=i)).read_bytes() for i, name in enumerate(KNOWN)}
    hub.commit("lukewys/laion_clap", laion)
    for i, name in enumerate(KNOWN):
        assert read_checkpoint(name).identity == weights(seed=i).identity
    pickled = write_transformers(tmp_path / "bin", weights(seed=8), pickled=True) / "pytorch_model.bin"
    hub.commit("laion/clap-htsat-unfused", {"pytorch_model.bin": pickled.read_bytes(), "config.json": b"{}"})
    by_none = CLAPEncoder.load(checkpoint=None, backend=None, device=None, dtype=None)
    assert CLAPEncoder.load().checkpoint == by_none.checkpoint == weights(seed=8).identity
    file = write_transformers(tmp_path / "new", weights(fused=True)) / "model.safetensors"
    hub.commit("laion/clap-htsat-fused", {"model.safetensors": file.read_bytes()})
    assert CLAPEncoder.load(checkpoint="laion/clap-htsat-fused").fused


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "backend='jax' is unknown; known: transformers, laion"),
        ({"dtype": "int8"}, "dtype='int8' is unknown; known: float32, float16, bfloat16"),
        ({"dtype": torch.int64}, "dtype='int64' is unknown"),
        ({"checkpoint": "htsat"}, "unknown CLAP checkpoint 'htsat'"),
    ],
    ids=str,
)
def test_bad_options_are_named_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=message):
        CLAPEncoder.load(**{"checkpoint": "nobody/knows-this", **options})


def test_a_missing_laion_clap_speaks_up(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("laion_clap.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "laion_clap", None)
    with pytest.raises(ImportError, match=r"pip install 'llava-soundclip\[clap\]'"):
        CLAPEncoder.load(checkpoint="nobody/knows-this", backend="laion")


def test_laion_clap_itself_can_be_imported_afterwards():
    import_laion()
    assert "laion_clap" not in sys.modules
    assert "laion_clap.clap_module" not in sys.modules


def test_importing_loads_no_library():
    code = "import sys, llava_soundclip.encoders.clap; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"transformers", "laion_clap", "huggingface_hub", "av"} & set(loaded.split())
