"""Loading a LLaVA by its name, with or without patching it. The miniature is one of the names."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import torch

from llava_soundclip._quiet import quiet_loading
from llava_soundclip.alignment.build import check_alignment
from llava_soundclip.demo import PROMPT, STOCK_PROMPT, WINDOW, K, MMProjector
from llava_soundclip.demo.parts import (
    DEMO,
    SMOLLM2,
    WHISPER,
    cache_folder,
    find_part,
    is_packaged,
    weights_folder,
)
from llava_soundclip.encoders import encoder_class
from llava_soundclip.encoders.base import check_dtype
from llava_soundclip.hosts import supported_models
from llava_soundclip.patching import SoundCLIP, patch
from llava_soundclip.pretrained import load_pretrained
from llava_soundclip.running import default_device
from llava_soundclip.substitution import check_k

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


def load_llava(
    model_id: str, *, device: str | None = None, dtype: str = "auto", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """Load a LLaVA and its processor.

    Args:
        model_id: Hub id or folder.
        device: such as "cuda:1", or "auto" to spread the model over devices; by default the accelerator, if there is
            one.
        dtype: "auto" for the dtype in which it was saved, or "float32", "float16", "bfloat16".
        trust_remote_code: whether Python code in the folder or repository may be run.

    Returns:
        The model and its processor.

    Raises:
        TypeError: if `patch` doesn't support the model; raised before its weights are downloaded.
        OSError: if the model can't be found or reached.
        ValueError: if its files are damaged, or need code of their own that may not be run.
    """
    import transformers

    trust = {"trust_remote_code": trust_remote_code}
    named = load_pretrained(transformers.AutoConfig, model_id, **trust).architectures
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    # Models of the original package aren't loaded here; a program that loads one can patch it.
    supported = [name for name in supported_models() if hasattr(transformers, name)]
    known = [name for name in architectures if name in supported]
    cls = getattr(transformers, known[0] if known else "AutoModelForImageTextToText")
    if not known and not trust_remote_code:
        raise TypeError(
            f"{model_id} is a {' or '.join(architectures) or 'model without a name'}; "
            f"supported are {', '.join(supported)}"
        )
    # A large model takes a while, so its progress bar stays if somebody may watch.
    with nullcontext() if sys.stderr.isatty() else quiet_loading():
        model = load_pretrained(
            cls, model_id, dtype=dtype, device_map=device or default_device(), **({} if known else trust)
        )
    return model.eval(), load_pretrained(transformers.AutoProcessor, model_id, **trust)


def heard_with(
    model: str,
    *,
    encoder: str | None = None,
    alignment: str | float | None = None,
    k: int | None = None,
    tokens: str | None = None,
) -> dict[str, Any]:
    """The encoder, alignment, k and tokens of `load_soundclip` for these options, without loading anything."""
    encoder = encoder or "whisperclip"
    is_ready = model == DEMO and encoder == "whisperclip"  # the miniature has a projector for it
    return {
        "encoder": encoder,
        "alignment": ("projected" if is_ready else "raw") if alignment is None else alignment,
        "k": (K if model == DEMO else 150) if k is None else k,
        "tokens": tokens or "zero",
    }


def load_soundclip(
    model: str = DEMO,
    *,
    device: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    **patch_options: Any,
) -> SoundCLIP:
    """Load a LLaVA and patch it.

        soundclip = load_soundclip("llava-hf/llava-1.5-7b-hf", encoder="clap", k=15)
        soundclip.caption("clip.mp4")

    Args:
        model: Hub id or folder of a LLaVA, or "demo" for the miniature.
        device: as in `load_llava`.
        dtype: as in `load_llava`.
        trust_remote_code: as in `load_llava`.
        **patch_options: for `patch`, or for `load_demo`.

    Raises:
        TypeError, ValueError, OSError, ImportError: as in `load_llava`, `patch` and `load_demo`. A wrong encoder,
            alignment, k, dtype or device is found before the model is loaded.
    """
    if isinstance(patch_options.get("encoder"), str):
        encoder_class(patch_options["encoder"])
    if "alignment" in patch_options:
        check_alignment(patch_options["alignment"])
    if "k" in patch_options:
        check_k(patch_options["k"])
    if dtype != "auto":
        check_dtype(dtype)
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch finds no CUDA device here")
    if model == DEMO:
        soundclip = load_demo(**patch_options)
        soundclip.model.to(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))
        return soundclip
    loaded, processor = load_llava(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    return patch(loaded, processor=processor, **patch_options)


@overload
def load_demo(
    patched: Literal[True] = True,
    *,
    mm_projector: MMProjector = ...,
    hub: bool | None = ...,
    cache: str | Path | None = ...,
    **patch_options: Any,
) -> SoundCLIP: ...


@overload
def load_demo(
    patched: Literal[False],
    *,
    mm_projector: MMProjector = ...,
    hub: bool | None = ...,
    cache: str | Path | None = ...,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]: ...


def load_demo(
    patched: bool = True,
    *,
    mm_projector: MMProjector = "prepared",
    hub: bool | None = None,
    cache: str | Path | None = None,
    **patch_options: Any,
) -> SoundCLIP | tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the miniature. The first call assembles it in the cache; later calls take a few seconds.

    It knows the sounds in `llava_soundclip.demo.SOUNDS`, and gives any other sound one of their names.

    Args:
        patched: whether to return the handle of the patched model, ready to caption, or the stock model and processor.
        mm_projector: "prepared" was trained to listen to the CLS slot, without ever hearing a sound. "stock" was
            trained on patches alone, like LLaVA-1.5's. The model card compares them.
        hub: source of Whisper and SmolLM2: False for their pip packages, True for the Hub. None takes each from its
            package if that is installed, else from the Hub. All figures in the docs were measured with the
            packages' weights: their SmolLM2 has 4 bits (Q4_1), the Hub's has bfloat16.
        cache: folder for the assembled model; by default the environment variable LLAVA_SOUNDCLIP_CACHE,
            else `~/.cache/llava_soundclip`.
        **patch_options: for `patch`, such as `k=`, `tokens=` or `alignment=`.

    Returns:
        A `SoundCLIP`, or the model and its processor.

    Raises:
        FileNotFoundError: if a part is neither installed nor available from the Hub; the message says how to get it.
        ImportError: if gguf isn't installed, which reads the package of SmolLM2.
        TypeError: for patch options with `patched=False`.
        ValueError: for an unknown mm_projector, or if a package's file is not the one that the miniature was trained
            with.
    """
    if mm_projector not in get_args(MMProjector):
        known = ", ".join(map(repr, get_args(MMProjector)))
        raise ValueError(f"mm_projector must be one of {known}, not {mm_projector!r}")
    if patch_options and not patched:
        raise TypeError(f"{', '.join(patch_options)}: these are for patch(), but patched=False was given")
    from llava_soundclip.demo import assemble

    weights = weights_folder()
    is_from_hub = not is_packaged(SMOLLM2) if hub is None else hub
    name = f"demo-{assemble.fingerprint(weights, is_from_hub)}"
    folder = assemble.assemble(cache_folder(cache) / name, weights, is_from_hub)

    from transformers import AutoProcessor, LlavaForConditionalGeneration

    with quiet_loading():
        model = LlavaForConditionalGeneration.from_pretrained(folder)
    if mm_projector == "stock":
        from safetensors.torch import load_file

        state = load_file(weights / assemble.MM_PROJECTOR.format("stock"))
        model.model.multi_modal_projector.load_state_dict(state)
    processor = AutoProcessor.from_pretrained(folder)
    if not patched:
        return model, processor
    options: dict[str, Any] = {"encoder": "whisperclip", "k": K, "processor": processor} | patch_options
    if options["encoder"] in ("whisper", "whisperclip"):
        checkpoint = find_part(WHISPER, hub).parent
        options = {"checkpoint": checkpoint, "window": WINDOW} | options
    if options["encoder"] == "whisperclip":  # other encoders are raw unless a projector is given
        options = {"projector": weights / "projector", "alignment": "projected"} | options
    soundclip = patch(model, **options)
    soundclip.prompt = PROMPT if mm_projector == "prepared" else STOCK_PROMPT
    return soundclip
