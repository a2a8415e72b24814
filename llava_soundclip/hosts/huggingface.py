"""The common part of the LLaVAs in transformers, 4.57 to 5.23.

Three places of the patched instance are changed:

- The vision tower gets a forward hook that edits the hidden states which the model reads. If the stock code then
  removes the CLS token, the hook puts a zero before the slot, which is removed instead.
- A wrapper of `model.model.get_image_features` sets which layers these are and which sounds are heard. `forward` calls
  that method in every version; since 5.18 `generate` also calls it before its prefill.
- The outer model makes room in the prompt: a pre-hook in `forward`, a wrapper in `generate`. Ids, streamers and
  processors stay the caller's own.

Code that calls `tower.forward(x)` would skip the forward hook, but transformers calls the tower itself.
"""

import copy
import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_soundclip.fingerprints import clip_fingerprint
from llava_soundclip.hosts.base import Ear, Hearing, Host, Undo, shadow
from llava_soundclip.hosts.generation import adapt_generate
from llava_soundclip.hosts.room import Room, count_images, make_room


@dataclass
class Encoding:
    """One call of `get_image_features` with sounds.

    Attributes:
        host: the host of the call, since two models may share a tower.
        hearing: one sound per picture that the tower gets.
        layers: indices of the hidden states that the model reads, with the deepest last.
        cuts_first: whether the stock code removes the first token.
    """

    host: "HuggingFaceHost"
    hearing: Hearing
    layers: tuple[int, ...]
    cuts_first: bool


# Set only during the stock `get_image_features`, so that other uses of the tower stay stock.
_ENCODING: ContextVar[Encoding | None] = ContextVar("llava_soundclip.encoding", default=None)


def current_encoding(host: "HuggingFaceHost") -> Encoding | None:
    """The encoding in progress, if it is this host's."""
    encoding = _ENCODING.get()
    return encoding if encoding is not None and encoding.host is host else None


class HuggingFaceHost(Host):
    """A `...ForConditionalGeneration` with a CLIP tower, a projector and a language model in `model.model`.

    A family says whether its code removes the CLS token.

    Attributes:
        per_image: names of arguments of `get_image_features` with one entry per image.

    Raises:
        TypeError: if the tower has no CLS token (SigLIP, Pixtral), so that there is no slot for a sound.
    """

    per_image: tuple[str, ...] = ("pixel_values",)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if not any(name.endswith("class_embedding") for name, _ in self.vision_tower.named_parameters()):
            raise TypeError(
                f"the vision tower is a {type(self.vision_tower).__name__} without a CLS token, so a sound "
                "has no slot to take; SoundCLIP needs a CLIP tower"
            )

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.model.vision_tower

    @property
    def tower_layer(self) -> int:
        return self._by_depth(self.selected_layers)[-1]

    @property
    def selected_layers(self) -> int | Sequence[int]:
        """The layer or layers that the model reads, from its config."""
        return self.model.config.vision_feature_layer

    @property
    def tower(self) -> str:
        return clip_fingerprint(self.model.config.vision_config)

    @property
    def width(self) -> int:
        return self.model.config.vision_config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        config = self.model.config.vision_config
        side = config.image_size // config.patch_size
        return side, side

    @abstractmethod
    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        """Whether `get_image_features` removes the first token, if called with these arguments."""

    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return self.vision_tower(pixel_values, output_hidden_states=True).hidden_states[self.tower_layer]

    def visual_tokens(self, pixel_values: Tensor, image_sizes: Any = None) -> list[Tensor]:
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        given = {"pixel_values": pixel_values, "image_sizes": image_sizes}
        output = self.model.model.get_image_features(**{name: given[name] for name in self.per_image})
        return list(features(output))

    def install(self, ear: Ear, undo: Undo) -> None:
        hook = self.vision_tower.register_forward_hook(self._edit_tower_output(ear))
        undo.push(hook.remove)
        hook = self.model.register_forward_pre_hook(self._make_room_in_forward(ear), with_kwargs=True)
        undo.push(hook.remove)
        shadow(self.model.model, "get_image_features", self._keep_slot(ear), undo)
        shadow(self.model, "generate", self._generate(ear), undo)

    def _edit_tower_output(self, ear: Ear) -> Callable[..., Any]:
        def hook(tower: nn.Module, args: Any, output: Any) -> Any:
            encoding = current_encoding(self)
            if encoding is None:
                return None
            hidden_states = list(output.hidden_states)
            edited = self.edit(ear, [hidden_states[layer] for layer in encoding.layers], encoding)
            for layer, tokens in zip(encoding.layers, edited, strict=True):
                if encoding.cuts_first:
                    tokens = nn.functional.pad(tokens, (0, 0, 1, 0))
                hidden_states[layer] = tokens
            return type(output)(**{**output, "hidden_states": tuple(hidden_states)})

        return hook

    def edit(self, ear: Ear, layers: list[Tensor], encoding: Encoding) -> list[Tensor]:
        """Algorithm 1 on the layers that a call reads, each (n, N+1, D)."""
        return ear.edit(layers, encoding.hearing)

    def _keep_slot(self, ear: Ear) -> Callable[..., Any]:
        def get_image_features(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None:
                return stock(*args, **kwargs)
            kwargs = arguments_by_name(inspect.signature(stock), *args, **kwargs)
            repeats = _beams(self.pictures(kwargs), hearing)
            kwargs |= {name: kwargs[name][::repeats] for name in self.per_image}
            token = _ENCODING.set(self.encoding(kwargs, hearing))
            try:
                output = stock(**kwargs)
            finally:
                _ENCODING.reset(token)
            if repeats > 1:
                return _repeat_by_row(output, hearing, repeats)
            return output

        return get_image_features

    def encoding(self, arguments: dict[str, Any], hearing: Hearing) -> Encoding:
        """The description of a call of `get_image_features` for the tower's hook."""
        layers = arguments.get("vision_feature_layer", arguments.get("vision_feature_layers"))
        layers = self._by_depth(self.selected_layers if layers is None else layers)
        return Encoding(self, hearing, layers, self.cuts_first(arguments))

    def _make_room_in_forward(self, ear: Ear) -> Callable[..., Any]:
        signature = inspect.signature(type(self.model).forward)

        def pre_hook(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            hearing = ear.hearing() if model is self.model else None  # a copy of the model has the same hooks
            if hearing is None or hearing.images_per_row is not None:  # `generate` has made room already
                return None
            kwargs = arguments_by_name(signature, model, *args, **kwargs)
            del kwargs["self"]
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError("inputs_embeds can't be given with a sound: give input_ids and pixel_values")
            encoded = (kwargs.get("past_key_values"), kwargs.get("mm_encoder_outputs"))
            if kwargs.get("pixel_values") is None and encoded != (None, None):
                return None
            room, _ = self.room(ear, kwargs, hearing)
            return (), self.stretch(room, kwargs)

        return pre_hook

    def _generate(self, ear: Ear) -> Callable[..., Any]:
        def generate(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None or hearing.images_per_row is not None:
                return stock(*args, **kwargs)
            kwargs = arguments_by_name(inspect.signature(stock), *args, **kwargs)
            inputs = kwargs.pop("inputs", None)
            ids = kwargs.pop("input_ids", None) if inputs is None else inputs
            if kwargs.get("inputs_embeds") is not None or ids is None:
                raise ValueError(
                    "a sound needs input_ids: inputs_embeds alone don't say where the images are"
                )
            kwargs["input_ids"] = ids
            room, images = self.room(ear, kwargs, hearing)
            kwargs = adapt_generate(self.stretch(room, kwargs), room, self.model.generation_config)
            with ear.listening(Hearing(hearing.embeddings, images)):
                output = stock(**kwargs)
            if isinstance(output, Tensor):
                return room.restore(output)
            output.sequences = room.restore(output.sequences)
            return output

        return generate

    def room(self, ear: Ear, arguments: dict[str, Any], hearing: Hearing) -> tuple[Room, tuple[int, ...]]:
        """The plan for the prompt of a call, and the number of images in each row. Nothing is encoded yet.

        Raises:
            ValueError: if the numbers of sounds, images and placeholders don't match; the message names them.
        """
        ids, placeholder = arguments["input_ids"], self.model.config.image_token_id
        sounds = len(hearing.embeddings)
        if not (ids == placeholder).any():
            raise ValueError(
                f"the prompt has no image token, but {_count(sounds, 'sound')} open: a sound needs an image"
            )
        has_pictures = arguments.get("pixel_values") is not None
        if not has_pictures and arguments.get("past_key_values") is None:
            raise ValueError("a sound is open, but no pixel_values are given: a sound needs an image")
        stock, wanted = self.sizes(ear, arguments)
        images = count_images(ids, placeholder=placeholder, stock=stock)
        pictures = self.pictures(arguments) if has_pictures else sum(images)
        if pictures != sum(images):
            raise ValueError(f"{_count(pictures, 'image')} given, but the prompt has room for {sum(images)}")
        if sounds != pictures:
            raise ValueError(
                f"{_count(sounds, 'sound')} for {_count(pictures, 'image')}: give one sound per image"
            )
        room = make_room(
            ids,
            placeholder=placeholder,
            images=images,
            stock=stock,
            wanted=wanted,
            attention_mask=arguments.get("attention_mask"),
        )
        return room, tuple(images)

    def pictures(self, arguments: dict[str, Any]) -> int:
        """The number of images in a call."""
        return len(arguments["pixel_values"])

    def sizes(self, ear: Ear, arguments: dict[str, Any]) -> tuple[list[int], list[int]]:
        """For each image, the number of placeholders that the processor writes, and of visual tokens with a sound."""
        stock = self.patches + (not self.cuts_first(arguments))
        placeholders = int((arguments["input_ids"] == self.model.config.image_token_id).sum())
        images = math.ceil(placeholders / stock)
        return [stock] * images, [ear.visual_tokens_per_image()] * images

    def stretch(self, room: Room, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call, with every tensor stretched that has one value per token.

        Raises:
            ValueError: for position_ids. They follow from the attention mask, and the caller's don't fit.
        """
        if kwargs.get("position_ids") is not None:
            raise ValueError("leave position_ids out while a sound is given: they follow from attention_mask")
        kwargs = {name: value for name, value in kwargs.items() if name != "cache_position"}
        shape = kwargs["input_ids"].shape
        if room.is_padded and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(kwargs["input_ids"])
        pad = self.model.config.get_text_config().pad_token_id
        for name, value in kwargs.items():
            if name == "input_ids":
                kwargs[name] = room.stretch(value, padding=pad or 0)
            elif name == "labels" and value is not None:
                kwargs[name] = room.stretch(value, padding=-100, new=-100)
            elif isinstance(value, Tensor) and value.shape == shape and not value.is_floating_point():
                kwargs[name] = room.stretch(value, padding=0)
        return kwargs

    def _by_depth(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        states = self.model.config.vision_config.num_hidden_layers + 1
        return (layers,) if isinstance(layers, int) else tuple(sorted(layers, key=lambda i: i % states))


def arguments_by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name."""
    arguments = signature.bind(*args, **kwargs).arguments
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    return {**arguments.pop(rest, {}), **arguments}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def features(output: Any) -> Any:
    """One tensor per image: `pooler_output` since 5.0, the output itself before."""
    return getattr(output, "pooler_output", output)


def _beams(images: int, hearing: Hearing) -> int:
    """The number of times that `generate` repeated each image for its beams; 1 outside `generate`.

    Raises:
        ValueError: if the numbers of sounds and images differ; the message names both.
    """
    sounds = len(hearing.embeddings)
    if hearing.images_per_row is not None and images % sounds == 0:
        return images // sounds
    if sounds != images:
        raise ValueError(f"{_count(sounds, 'sound')} for {_count(images, 'image')}: give one sound per image")
    return 1


def _repeat_by_row(output: Any, hearing: Hearing, repeats: int) -> Any:
    """Repeat features for beams, row by row.

    Before 5.18, transformers repeats images one by one (a a b b), which mixes up the images of a prompt with several.
    The ids are repeated row by row (a b a b), so the features must be as well.
    """
    once = features(output)
    repeated: Any = []
    start = 0
    for images in hearing.images_per_row or ():
        repeated += list(once[start : start + images]) * repeats
        start += images
    repeated = torch.stack(repeated) if isinstance(once, Tensor) else repeated
    if not hasattr(output, "pooler_output"):
        return repeated
    output = copy.copy(output)
    output.pooler_output = repeated
    return output
