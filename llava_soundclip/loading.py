"""A LLaVA by its name: loaded, and patched."""

from typing import Any

from llava_soundclip.alignment.build import check_alignment
from llava_soundclip.encoders import encoder_class
from llava_soundclip.hosts import supported_models
from llava_soundclip.patching import SoundCLIP, patch
from llava_soundclip.running import default_device
from llava_soundclip.substitution import check_k

DEMO = "demo"  # the name of the miniature, wherever a model is asked for


def load_llava(model_id: str, *, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a LLaVA and its processor.

    Args:
        model_id: Hub id or folder.
        device: such as "cuda:1", or "auto" to spread it; by default the accelerator, if there is one.
        dtype: "auto" for the one in which it was saved, or "float32", "float16", "bfloat16".

    Returns:
        The model and its processor.

    Raises:
        TypeError: if it is no model that `patch` takes. Its weights aren't downloaded to find that out.
        OSError: if it can't be found or reached.
    """
    import transformers

    architectures = transformers.AutoConfig.from_pretrained(model_id).architectures or []
    # The original package's models are patched by a program that loads them, not from here.
    supported = [name for name in supported_models() if hasattr(transformers, name)]
    known = [name for name in architectures if name in supported]
    if not known:
        raise TypeError(
            f"{model_id} is a {' or '.join(architectures) or 'model without a name'}; "
            f"supported are {', '.join(supported)}"
        )
    model = getattr(transformers, known[0]).from_pretrained(
        model_id, dtype=dtype, device_map=device or default_device()
    )
    return model.eval(), transformers.AutoProcessor.from_pretrained(model_id)


def load_soundclip(
    model: str = DEMO, *, device: str | None = None, dtype: str = "auto", **patch_options: Any
) -> SoundCLIP:
    """Load a LLaVA and patch it.

        soundclip = load_soundclip("llava-hf/llava-1.5-7b-hf", encoder="clap", k=15)
        soundclip.caption("clip.mp4")

    Args:
        model: Hub id or folder of a LLaVA, or "demo" for the miniature.
        device: as `load_llava` takes it.
        dtype: as `load_llava` takes it.
        **patch_options: for `patch`, or `load_demo`.

    Raises:
        TypeError, ValueError, OSError, ImportError: those of `load_llava`, `patch` and `load_demo`. A wrong encoder,
            alignment or k is an error before the model is loaded.
    """
    if isinstance(patch_options.get("encoder"), str):
        encoder_class(patch_options["encoder"])
    if "alignment" in patch_options:
        check_alignment(patch_options["alignment"])
    if "k" in patch_options:
        check_k(patch_options["k"])
    if model == DEMO:
        import torch

        from llava_soundclip.demo import load_demo

        soundclip = load_demo(**patch_options)
        soundclip.model.to(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))
        return soundclip
    loaded, processor = load_llava(model, device=device, dtype=dtype)
    return patch(loaded, processor=processor, **patch_options)
