"""From a clip to a caption, and to the patches that its sound kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from llava_soundclip.controls import fill
from llava_soundclip.media import MediaError, load_frame, probe
from llava_soundclip.sounds import as_list, is_array

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_soundclip.patching import SoundCLIP

FrameTime: TypeAlias = float | Literal["first", "middle"]  # seconds into a film, or a word for it

_MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Trace:
    """Which patches a sound kept.

    Attributes:
        frame: the picture as the tower saw it, resized and cropped.
        similarity: (rows, columns) float32 cosines of the sound with the patches.
        kept: (rows, columns) bool, true where a patch keeps its value.
        k: how many are kept.
        encoder: name of the audio encoder.
    """

    frame: "Image"
    similarity: np.ndarray
    kept: np.ndarray
    k: int
    encoder: str


def caption(
    soundclip: "SoundCLIP",
    source: Any,
    prompt: str | None,
    picture: Any,
    frame: FrameTime,
    sampling_rate: int | None,
    generate_kwargs: dict[str, Any],
) -> str | list[str]:
    """See `SoundCLIP.caption`."""
    sources = as_list(source)
    pictures = [_picture(*pair, frame) for pair in _with_pictures(sources, picture)]
    processor = load_processor(soundclip)
    text = chat_prompt(processor, soundclip.prompt if prompt is None else prompt)
    inputs = processor(
        images=pictures, text=[text] * len(pictures), padding=True, padding_side="left", return_tensors="pt"
    ).to(soundclip.model.device, soundclip.model.dtype)
    with soundclip.audio(sources, sampling_rate=sampling_rate):
        output = soundclip.model.generate(**inputs, **{"max_new_tokens": _MAX_NEW_TOKENS, **generate_kwargs})
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    new = sequences[:, inputs["input_ids"].shape[1] :]
    captions = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return captions if isinstance(source, list | tuple) else captions[0]


def trace(
    soundclip: "SoundCLIP", source: Any, picture: Any, frame: FrameTime, sampling_rate: int | None
) -> Trace:
    """See `SoundCLIP.trace`."""
    processor = load_processor(soundclip)
    seen = _picture(source, picture, frame)
    pixel_values = processor.image_processor(seen, return_tensors="pt")["pixel_values"]
    pixel_values = pixel_values.flatten(0, -4)[:1]  # of tiles the first, which shows all of the picture
    host = soundclip._host
    with torch.no_grad():
        audio = fill(soundclip.align(soundclip.embed(source, sampling_rate=sampling_rate)), soundclip.control)
        selection = soundclip.substituter().select(host.tower_tokens(pixel_values), audio)
    return Trace(
        frame=_as_picture(pixel_values[0], processor.image_processor),
        similarity=selection.similarity[0].reshape(host.grid).cpu().numpy(),
        kept=selection.mask[0].reshape(host.grid).cpu().numpy(),
        k=soundclip.k,
        encoder=soundclip.encoder.name,
    )


def load_processor(soundclip: "SoundCLIP") -> Any:
    """The handle's processor, loaded from where the model came from if it has none yet.

    Raises:
        ValueError: if the model came from nowhere (built from a config).
    """
    if soundclip.processor is None:
        from transformers import AutoProcessor

        origin = soundclip.model.config._name_or_path
        if not origin:
            raise ValueError("the model doesn't say where it came from: give patch its processor=")
        soundclip.processor = AutoProcessor.from_pretrained(origin)
    return soundclip.processor


def chat_prompt(processor: Any, question: str) -> str:
    """A question about one image in the words of the model's chat template, or of LLaVA-1.5's.

    A question that has an image token already is a whole prompt and stays as it is.
    """
    if processor.image_token in question:
        return question
    if processor.chat_template is None:
        return f"USER: {processor.image_token}\n{question} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _with_pictures(sources: list[Any], picture: Any) -> list[tuple[Any, Any]]:
    pictures = list(picture) if isinstance(picture, list | tuple) else [picture] * len(sources)
    if len(pictures) != len(sources):
        raise ValueError(f"{len(pictures)} pictures for {len(sources)} sounds: give one, or one a sound")
    return list(zip(sources, pictures, strict=True))


def _picture(source: Any, picture: Any, frame: FrameTime) -> "Image":
    if picture is not None:
        return load_frame(picture, time=frame)
    if is_array(source):
        raise ValueError("a sound given as an array has no picture of its own: give picture=")
    try:
        return load_frame(source, time=frame)
    except MediaError as error:
        if probe(source).has_video:
            raise
        raise MediaError(f"{error} (a sound alone needs picture=)") from error


def _as_picture(pixel_values: torch.Tensor, image_processor: Any) -> "Image":
    """Undo the processor's normalisation: (3, H, W) to an RGB picture."""
    from PIL import Image

    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (image_processor.image_mean, image_processor.image_std)
    )
    pixels = (pixel_values * std + mean).clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
