"""Controls: slots that tell nothing of the clip, and patches by chance."""

from typing import Any

import pytest
import torch

from llava_soundclip import SoundCLIP, patch
from llava_soundclip.controls import RandomSubstituter, fill
from llava_soundclip.presets import PRESETS
from llava_soundclip.substitution import AudioTokenSubstituter
from tests.conftest import WIDTH, TinyEncoder, build_tiny_llava
from tests.hosts.families import RATE, K, make_inputs, make_sounds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_has_the_sounds_norm_and_nothing_else_of_it(dtype: torch.dtype) -> None:
    f_a = (torch.randn(200, 256, generator=torch.Generator().manual_seed(0)) * 7).to(dtype)
    noise = fill(f_a, "noise")
    assert noise.dtype == dtype
    torch.testing.assert_close(noise.float().norm(dim=1), f_a.float().norm(dim=1), rtol=2e-2, atol=0)
    cosines = torch.nn.functional.cosine_similarity(noise.float(), f_a.float())
    assert abs(cosines.mean()) < 3 / (200 * 256) ** 0.5 and cosines.std() == pytest.approx(1 / 16, rel=0.2)
    assert len(noise.unique(dim=0)) == 200


def test_the_same_sound_has_the_same_noise_in_any_batch() -> None:
    f_a = torch.randn(5, 32)
    for row in range(5):
        alone = fill(f_a[row : row + 1] * (1 + 1e-6), "noise")
        torch.testing.assert_close(fill(f_a, "noise")[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_other_fillings() -> None:
    f_a = torch.randn(3, 8)
    assert torch.equal(fill(f_a, "zero"), torch.zeros(3, 8))
    assert fill(f_a, None) is f_a and fill(f_a, "random") is f_a


def test_random_patches_are_each_as_likely() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, audio = torch.randn(600, 13, 16, generator=generator), torch.randn(600, 16, generator=generator)
    selection = RandomSubstituter(3).select(tokens, audio)
    assert selection.mask.sum(1).eq(3).all() and (selection.kept.diff(dim=1) > 0).all()
    shares = selection.mask.float().mean(0)
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 600) ** 0.5
    expected = AudioTokenSubstituter(3).select(tokens, audio)
    assert torch.equal(selection.similarity, expected.similarity)
    assert torch.equal(RandomSubstituter(3).select(tokens[:1], audio[:1]).kept, selection.kept[:1])


def test_random_patches_are_candidates_as_far_as_there_are_any() -> None:
    tokens, audio = torch.randn(50, 10, 8), torch.randn(50, 8)
    candidates = torch.zeros(50, 9, dtype=torch.bool)
    candidates[:, [1, 4, 7]] = True
    assert (RandomSubstituter(2).select(tokens, audio, candidates).mask & ~candidates).sum() == 0
    assert RandomSubstituter(5).select(tokens, audio, candidates).mask[:, [1, 4, 7]].all()


@pytest.mark.parametrize("tokens", ["zero", "drop"])
def test_a_model_reads_what_the_control_says(tiny_llava: Any, tokens: Any) -> None:
    soundclip = patch(tiny_llava, TinyEncoder(), k=K, tokens=tokens)
    pixels, sounds = make_inputs([1, 1])["pixel_values"], make_sounds(2)

    def read(control: Any) -> torch.Tensor:
        soundclip.control = control
        with torch.no_grad():
            return soundclip.visual_tokens(pixels, sounds, sampling_rate=RATE)

    usual = read(None)
    found = {control: read(control) for control in ("noise", "zero", "random")}
    assert torch.equal(read(None), usual)
    for visual in found.values():
        assert visual.shape == usual.shape and not torch.equal(visual, usual)
    assert torch.equal(found["random"][:, 0], usual[:, 0])
    # A zero vector in the slot: what the mm_projector makes of nothing but its biases.
    nothing = tiny_llava.model.multi_modal_projector(torch.zeros(1, 1, WIDTH))
    torch.testing.assert_close(found["zero"][:, :1], nothing.expand(2, -1, -1))
    with pytest.raises(ValueError, match="control must be one of 'noise', 'zero', 'random' or None"):
        soundclip.control = "silence"  # type: ignore[assignment]


def test_presets_are_what_patch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_soundclip import patching

    model = build_tiny_llava(image_size=130)  # 169 patches: the presets keep 150
    loaded: list[str] = []
    monkeypatch.setattr(patching, "load_encoder", lambda name, **_: loaded.append(name) or TinyEncoder())
    for name, preset in PRESETS.items():
        if preset.alignment == "raw":
            soundclip: SoundCLIP = patch(model, preset=name)
            assert loaded[-1] == preset.encoder
            assert (soundclip.alignment, soundclip.k) == (preset.alignment, preset.k)
        else:
            with pytest.raises(ValueError, match="alignment='projected' needs a trained projector"):
                patch(model, preset=name)
    with pytest.raises(ValueError, match="preset must be one of 'cross_modal_retrieval'"):
        patch(model, preset="singing")


@pytest.mark.parametrize(
    "given",
    [
        {"encoder": "whisperclip"},
        {"alignment": "raw"},
        {"k": 150},
        {"encoder": "clap"},
        {"alignment": 0},
        {"k": 0},
        {"encoder": "whisperclip", "alignment": "raw", "k": 150},
    ],
    ids=str,
)
def test_a_preset_stands_alone(tiny_llava: Any, given: dict[str, Any]) -> None:
    """What was given counts, not its value: the default, written out, contradicts a preset as any other."""
    with pytest.raises(ValueError, match="sets encoder, alignment and k: give either the preset or these"):
        patch(tiny_llava, preset="cross_modal_retrieval", **given)


def test_the_defaults_of_patch_are_the_papers_captioning_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_soundclip import patching

    loaded: list[str] = []
    monkeypatch.setattr(patching, "load_encoder", lambda name, **_: loaded.append(name) or TinyEncoder())
    soundclip = patch(build_tiny_llava(image_size=130))
    preset = PRESETS["dense_captioning"]
    assert (loaded, soundclip.alignment, soundclip.k) == ([preset.encoder], preset.alignment, preset.k)
    for name in ("encoder", "alignment", "k"):
        assert f"Default: {getattr(preset, name)!r}.".replace("'", '"') in patch.__doc__
