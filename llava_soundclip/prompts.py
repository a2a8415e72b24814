"""Prompts and pictures in the format of a model's processor."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def chat_prompt(processor: Any, question: str) -> str:
    """A prompt with a question about one image, by the model's chat template, or else by LLaVA-1.5's.

    A question that already has an image token is a whole prompt and stays unchanged.
    """
    if processor.image_token in question:
        return question
    if processor.chat_template is None:
        return f"USER: {processor.image_token}\n{question} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def tokenizer_options(processor: Any, prompt: str) -> dict[str, Any]:
    """Options for a prompt that begins with BOS, as some chat templates write it: no second one is added."""
    bos = getattr(processor.tokenizer, "bos_token", None)
    return {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}


def as_seen(pixel_values: Tensor, image_processor: Any) -> "Image":
    """Undo the processor's normalisation: (3, H, W) to an RGB picture."""
    from PIL import Image

    mean, std = (
        tensor(values).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = (pixel_values * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
