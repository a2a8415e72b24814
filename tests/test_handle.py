"""The handle's smaller promises: defaults, devices, and what `caption`, `trace` and `visual_tokens` pass on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from llava_soundclip import Projector, SoundCLIP, patch, patching
from llava_soundclip.media import load_frame
from tests.conftest import (
    WIDTH,
    TinyEncoder,
    build_tiny_llava,
    build_tiny_llava_next,
    build_tiny_processor,
)
from tests.hosts.reference import algorithm_1, pad_or_cut
from tests.media.making import write_film

RATE = 16_000
SOUND = np.sin(np.arange(8000, dtype=np.float32) * 0.1)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("film") / "film.mkv")


@pytest.fixture
def soundclip() -> SoundCLIP:
    model = build_tiny_llava()
    return patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def stub_generate(soundclip: SoundCLIP, *words: int) -> list[dict[str, Any]]:
    """Let the model write these words, and return the list of what it is called with."""
    calls: list[dict[str, Any]] = []

    def generate(**kwargs: Any) -> Tensor:
        calls.append({**kwargs, "heard": soundclip.hearing()})
        return torch.cat([kwargs["input_ids"], torch.tensor([words] * len(kwargs["input_ids"]))], 1)

    soundclip.model.generate = generate
    return calls


class TestDevices:
    @pytest.fixture
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A model that says that it is on another device."""
        model = build_tiny_llava()
        monkeypatch.setattr(type(model), "device", torch.device("meta"))
        return model

    def test_an_encoder_is_loaded_where_the_model_is(
        self, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = []

        def load(name: str, **options: Any) -> TinyEncoder:
            loaded.append((name, options))
            return TinyEncoder()

        monkeypatch.setattr(patching, "load_encoder", load)
        patch(elsewhere, "clap", k=4, checkpoint="x")
        patch(elsewhere, k=4, device="cuda:3")
        assert loaded == [
            ("clap", {"checkpoint": "x", "device": torch.device("meta")}),
            ("whisperclip", {"device": "cuda:3"}),
        ]

    def test_a_projectors_file_is_loaded_to_where_the_model_is(self, elsewhere: Any, tmp_path: Path) -> None:
        Projector(16, WIDTH, 8).save_pretrained(tmp_path)
        soundclip = patch(elsewhere, TinyEncoder(), k=4, projector=str(tmp_path), alignment="projected")
        assert all(weight.is_meta for weight in soundclip.projector.parameters())


class TestCaption:
    def test_defaults(self, soundclip: SoundCLIP, film: Path) -> None:
        calls = stub_generate(soundclip, 5)
        assert soundclip.caption(film) == "w5"
        soundclip.caption(film, max_new_tokens=3, do_sample=False, num_beams=2)
        middle = soundclip.processor(
            images=load_frame(film, time="middle"),
            text=f"USER: <image>\n{SoundCLIP.prompt} ASSISTANT:",
            return_tensors="pt",
        )
        for call in calls:
            assert torch.equal(call["input_ids"], middle["input_ids"])
            assert torch.equal(call["pixel_values"], middle["pixel_values"])
            assert len(call["heard"].embeddings) == 1
        first, second = calls
        assert first["max_new_tokens"] == 128 and "do_sample" not in first
        assert (second["max_new_tokens"], second["do_sample"], second["num_beams"]) == (3, False, 2)

    def test_special_tokens_and_the_prompt_are_left_out(self, soundclip: SoundCLIP, film: Path) -> None:
        stub_generate(soundclip, 1, 7, 0, 9, 2)  # <s> w7 <pad> w9 </s>
        assert soundclip.caption(film, "w8 <image>") == "w7 w9"
        assert soundclip.caption([film], "w8 <image>") == ["w7 w9"]
        assert soundclip.caption((film, film), "w8 <image>") == ["w7 w9"] * 2

    def test_generates_dictionaries_as_well(self, soundclip: SoundCLIP, film: Path) -> None:
        options = {"max_new_tokens": 6, "do_sample": False}
        plain = soundclip.caption(film, "w8 <image>", **options)
        assert soundclip.caption(film, "w8 <image>", return_dict_in_generate=True, **options) == plain

    def test_floats_get_the_models_dtype(self, film: Path) -> None:
        model = build_tiny_llava().to(torch.bfloat16)
        soundclip = patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))
        calls = stub_generate(soundclip, 5)
        soundclip.caption(film)
        [call] = calls
        assert call["pixel_values"].dtype == torch.bfloat16 and call["input_ids"].dtype == torch.int64


class TestTrace:
    def expected(self, tokens: Tensor, k: int, sound: np.ndarray) -> list[int]:
        embedding = TinyEncoder().embed([sound], RATE)[0]
        return algorithm_1(tokens, pad_or_cut(embedding, tokens.shape[1]), k)[1]

    def test_a_sound_with_a_picture(self, soundclip: SoundCLIP, picture: Image.Image) -> None:
        trace = soundclip.trace(SOUND, picture, sampling_rate=RATE)
        pixels = soundclip.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        tokens = soundclip.host.tower_tokens(pixels)[0]
        assert np.flatnonzero(trace.kept).tolist() == self.expected(tokens, 4, SOUND)
        cosines = torch.nn.functional.cosine_similarity(
            tokens[1:], pad_or_cut(TinyEncoder().embed([SOUND], RATE)[0], WIDTH)[None]
        )
        np.testing.assert_allclose(trace.similarity, cosines.reshape(3, 3).detach().numpy(), atol=1e-5)

    def test_the_frame_is_the_one_that_was_asked_for(self, soundclip: SoundCLIP, film: Path) -> None:
        for time in ("first", "middle"):
            pixels = soundclip.processor.image_processor(load_frame(film, time=time))["pixel_values"]
            frame = np.asarray(soundclip.trace(film, frame=time).frame, dtype=float)
            mean, std = (
                soundclip.processor.image_processor.image_mean,
                soundclip.processor.image_processor.image_std,
            )
            shown = (np.asarray(pixels[0]).transpose(1, 2, 0) * std + mean) * 255
            np.testing.assert_allclose(frame, shown, atol=1)

    def test_controls_replace_the_sound(self, soundclip: SoundCLIP, picture: Image.Image) -> None:
        heard = soundclip.trace(SOUND, picture, sampling_rate=RATE)
        soundclip.control = "zero"
        silent = soundclip.trace(SOUND, picture, sampling_rate=RATE)
        assert not silent.similarity.any() and np.flatnonzero(silent.kept).tolist() == [0, 1, 2, 3]
        soundclip.control = "noise"
        noisy = soundclip.trace(SOUND, picture, sampling_rate=RATE)
        assert not np.allclose(noisy.similarity, heard.similarity, atol=0.01)

    def test_tiles_show_the_whole_picture(self, picture: Image.Image) -> None:
        model = build_tiny_llava_next()
        soundclip = patch(model, TinyEncoder(), k=4, processor=build_tiny_processor(model))
        wide = picture.resize((60, 30))
        trace = soundclip.trace(SOUND, wide, sampling_rate=RATE)
        pixels = soundclip.processor.image_processor(wide, return_tensors="pt")["pixel_values"]
        assert pixels.ndim == 5 and len(pixels[0]) > 1
        tokens = soundclip.host.tower_tokens(pixels[0, :1])[0]
        assert np.flatnonzero(trace.kept).tolist() == self.expected(tokens, 4, SOUND)


@pytest.mark.parametrize("tokens", ["zero", "drop"])
def test_visual_tokens_are_what_the_language_model_reads(
    soundclip: SoundCLIP, picture: Image.Image, tokens: Any
) -> None:
    soundclip.tokens = tokens
    pixels = soundclip.processor.image_processor([picture, picture.rotate(90)], return_tensors="pt")
    pixels = pixels["pixel_values"]
    with torch.no_grad():
        found = soundclip.visual_tokens(pixels, [SOUND, -SOUND], sampling_rate=RATE)
        states = soundclip.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        for row, sound, visual in zip(states, (SOUND, -SOUND), found, strict=True):
            embedding = TinyEncoder().embed([sound], RATE)[0]
            edited, kept = algorithm_1(row, pad_or_cut(embedding, WIDTH), 4)
            if tokens == "drop":
                edited = edited[[0, *(1 + patch for patch in kept)]]
            torch.testing.assert_close(visual, soundclip.model.model.multi_modal_projector(edited))
    assert len(found[0]) == soundclip.visual_tokens_per_image() == (10 if tokens == "zero" else 5)
    with pytest.raises(ValueError, match="sampling_rate"):
        soundclip.visual_tokens(pixels, [SOUND, SOUND])


def test_a_processor_is_loaded_once_and_its_code_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    model = build_tiny_llava()
    processor, loaded = build_tiny_processor(model), []

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        loaded.append((args, kwargs))
        return processor

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", from_pretrained)
    model.config._name_or_path = "user/llava"
    soundclip = patch(model, TinyEncoder(), k=4)
    assert soundclip.processor is None and not loaded
    assert soundclip.load_processor() is soundclip.load_processor() is soundclip.processor is processor
    assert loaded == [(("user/llava",), {"trust_remote_code": False})]


class BlocksEncoder(TinyEncoder):
    """An encoder whose blocks are fused with learned weights."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def signature(self) -> dict[str, str]:
        return {**super().signature(), "fusion": "weighted_sum"}

    def set_layer_weights(self, layer_weights: Tensor) -> None:
        self.given.append(layer_weights)


def test_an_encoder_gets_the_layer_weights_of_its_projector() -> None:
    trained = Projector(16, WIDTH, 8, fusion="weighted_sum", layers=3).train()
    encoder = BlocksEncoder()
    soundclip = patch(build_tiny_llava(), encoder, k=4, projector=trained, alignment="projected")
    assert len(encoder.given) == 1 and encoder.given[0] is trained.layer_weights
    assert soundclip.projector is trained and not trained.training
    other = BlocksEncoder()
    patch(build_tiny_llava(), other, k=4, projector=Projector(16, WIDTH, 8))
    assert not other.given


def test_a_k_above_the_patches_is_found_before_the_encoder_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "load_encoder", lambda *_, **__: pytest.fail("the encoder was loaded"))
    with pytest.raises(ValueError, match="k is 10, but an image has only 9 patches"):
        patch(build_tiny_llava(), k=10)
    with pytest.raises(ValueError, match="k is 150, but an image has only 9 patches"):
        patch(build_tiny_llava())


def test_it_prints_whose_projector_it_has() -> None:
    for encoder, words in ((None, "for any encoder"), ("tiny", "for tiny")):
        projector = Projector(16, WIDTH, 8, encoder=encoder)
        assert f"projector: {words})" in repr(
            patch(build_tiny_llava(), TinyEncoder(), k=4, projector=projector)
        )
