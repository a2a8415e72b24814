"""The miniature: a small LLaVA of real parts that runs anywhere and hears real sounds.

Whisper tiny.en and SmolLM2-135M-Instruct are used as they are. The vision tower, two mm_projectors and the
SoundCLIP projector were trained by the scripts in `recipes/miniature`; `weights/demo/README.md` is their card.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from llava_soundclip.patching import SoundCLIP

MMProjector = Literal["prepared", "stock"]
PROMPT = "What do you hear and see?"
STOCK_PROMPT = "What do you see?"  # all that the stock mm_projector was ever asked
K = 18  # patches that keep their value, of 36
WINDOW = "clip"  # Whisper hears the sound alone, without the padding to 30 s
CACHE_VARIABLE = "LLAVA_SOUNDCLIP_CACHE"

__all__ = ["CACHE_VARIABLE", "PROMPT", "K", "load_demo"]


@overload
def load_demo(
    patched: Literal[True] = True,
    *,
    mm_projector: MMProjector = ...,
    hub: bool = ...,
    cache: str | Path | None = ...,
    **patch_options: Any,
) -> SoundCLIP: ...


@overload
def load_demo(
    patched: Literal[False],
    *,
    mm_projector: MMProjector = ...,
    hub: bool = ...,
    cache: str | Path | None = ...,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]: ...


def load_demo(
    patched: bool = True,
    *,
    mm_projector: MMProjector = "prepared",
    hub: bool = False,
    cache: str | Path | None = None,
    **patch_options: Any,
) -> SoundCLIP | tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the miniature. The first call assembles it in the cache, later ones take a few seconds.

    Args:
        patched: give the handle of the patched model, ready to caption; else the stock model and processor.
        mm_projector: "prepared" was trained to listen to the CLS slot, without ever hearing a sound; "stock" as
            LLaVA-1.5's is, on patches alone. The card compares them.
        hub: take Whisper and SmolLM2 from a hub instead of the two pip packages.
        cache: folder for the assembled model; by default the environment variable LLAVA_SOUNDCLIP_CACHE,
            else `~/.cache/llava_soundclip`.
        **patch_options: for `patch`, such as `k=`, `tokens=` or `alignment=`.

    Returns:
        A `SoundCLIP`, or the model and its processor.

    Raises:
        FileNotFoundError: a pip package is missing; the message has the pip line.
        ValueError: a package's file is not the one that the miniature was trained with, or an unknown
            mm_projector.
    """
    if mm_projector not in get_args(MMProjector):
        known = ", ".join(map(repr, get_args(MMProjector)))
        raise ValueError(f"mm_projector must be one of {known}, not {mm_projector!r}")
    from llava_soundclip.demo import assemble

    if patch_options and not patched:
        raise TypeError(f"{', '.join(patch_options)}: these are for patch(), but patched=False was asked for")
    weights = weights_folder()
    name = f"demo-{assemble.fingerprint(weights, hub)}"
    folder = assemble.assemble(cache_folder(cache) / name, weights, hub)

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder)
    if mm_projector == "stock":
        from safetensors.torch import load_file

        state = load_file(weights / assemble.MM_PROJECTOR.format("stock"))
        model.model.multi_modal_projector.load_state_dict(state)
    processor = AutoProcessor.from_pretrained(folder)
    if not patched:
        return model, processor
    from llava_soundclip.patching import patch

    options: dict[str, Any] = {"encoder": "whisperclip", "k": K, "processor": processor} | patch_options
    if options["encoder"] in ("whisper", "whisperclip"):
        checkpoint = assemble.WHISPER_HUB_ID if hub else assemble.package_file(*assemble.WHISPER_FILE).parent
        options = {"checkpoint": checkpoint, "window": WINDOW} | options
    if options["encoder"] == "whisperclip":  # another encoder is raw, unless a projector is given for it
        options = {"projector": weights / "projector", "alignment": "projected"} | options
    soundclip = patch(model, **options)
    soundclip.prompt = PROMPT if mm_projector == "prepared" else STOCK_PROMPT
    return soundclip


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where what is assembled lies: `cache`, else what the environment variable says, else the home's."""
    return Path(cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llava_soundclip")


def weights_folder() -> Path:
    """Find the trained weights: inside the installed package, or at the root of the repository beside it.

    Raises:
        FileNotFoundError: if they are in neither.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "weights" / "demo", package.parent / "weights" / "demo")
    for place in places:
        if (place / "tower.safetensors").is_file():
            return place
    raise FileNotFoundError(f"the demo's weights are neither in {places[0]} nor in {places[1]}")
