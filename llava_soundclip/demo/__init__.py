"""The miniature: a small LLaVA of real parts that runs anywhere and hears real sounds.

Whisper tiny.en and SmolLM2-135M-Instruct are used as they are. The vision tower, the mm_projector and the
SoundCLIP projector were trained by the scripts beside the weights; `weights/demo/README.md` is their card.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from llava_soundclip.patching import SoundCLIP

PROMPT = "What do you hear and see?"
K = 18  # patches that keep their value, of 36
CACHE_VARIABLE = "LLAVA_SOUNDCLIP_CACHE"

__all__ = ["CACHE_VARIABLE", "PROMPT", "K", "load_demo"]


@overload
def load_demo(
    patched: Literal[True] = True, *, hub: bool = ..., cache: str | Path | None = ..., **patch_options: Any
) -> SoundCLIP: ...


@overload
def load_demo(
    patched: Literal[False], *, hub: bool = ..., cache: str | Path | None = ...
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]: ...


def load_demo(
    patched: bool = True, *, hub: bool = False, cache: str | Path | None = None, **patch_options: Any
) -> SoundCLIP | tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the miniature. The first call assembles it in the cache, later ones take a few seconds.

    Args:
        patched: give the handle of the patched model, ready to caption; else the stock model and processor.
        hub: take Whisper and SmolLM2 from a hub instead of the two pip packages.
        cache: folder for the assembled model; by default the environment variable LLAVA_SOUNDCLIP_CACHE,
            else `~/.cache/llava_soundclip`.
        **patch_options: for `patch`, such as `k=`, `tokens=` or `alignment=`.

    Returns:
        A `SoundCLIP`, or the model and its processor.

    Raises:
        FileNotFoundError: a pip package is missing; the message has the pip line.
        ValueError: a package's file is not the one that the miniature was trained with.
    """
    from llava_soundclip.demo import assemble

    if patch_options and not patched:
        raise TypeError(f"{', '.join(patch_options)}: these are for patch(), but patched=False was asked for")
    weights = _weights()
    root = Path(cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llava_soundclip")
    folder = assemble.assemble(root / f"demo-{assemble.fingerprint(weights, hub)}", weights, hub)

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    if not patched:
        return model, processor
    from llava_soundclip.patching import patch

    checkpoint = assemble.WHISPER_HUB_ID if hub else assemble.package_file(*assemble.WHISPER_FILE).parent
    options = {
        "encoder": "whisperclip",
        "checkpoint": checkpoint,
        "projector": weights / "projector",
        "alignment": "projected",
        "k": K,
        "processor": processor,
    }
    soundclip = patch(model, **(options | patch_options))
    soundclip.prompt = PROMPT
    return soundclip


def _weights() -> Path:
    """Find the trained weights: inside the installed package, or at the root of the repository beside it."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "weights" / "demo", package.parent / "weights" / "demo")
    for place in places:
        if (place / "tower.safetensors").is_file():
            return place
    raise FileNotFoundError(f"the demo's weights are neither in {places[0]} nor in {places[1]}")
