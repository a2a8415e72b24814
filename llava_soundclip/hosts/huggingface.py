"""The common part of the LLaVAs in transformers, 4.57 to 5.23.

These methods of the patched instance are overridden:

- `forward` of the model without its head makes room in the prompt for the tokens of a sound. Masks, positions, states
  and caches stay in the caller's places, so logits, losses and everything in `generate` do as well.
- `get_image_features` below it says which layers are read and which sounds are heard.
- `forward` of the vision tower edits the hidden states of these layers. If the stock code then removes the CLS token,
  a zero before the slot is removed instead.
- `generate` pins the sounds of its call and checks it before anything is encoded.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from llava_soundclip.fingerprints import clip_fingerprint
from llava_soundclip.hearing import Hearing
from llava_soundclip.hosts.base import (
    REPLICA,
    Ear,
    Host,
    Undo,
    arguments_by_name,
    must_hear,
    note_encoded,
    override,
    signature_of,
)
from llava_soundclip.hosts.places import (
    Places,
    capacity_of,
    enlarge,
    last_read,
    masks,
    no_places,
    places_of,
    positions,
    put_in_places,
    reading,
    remember,
)
from llava_soundclip.hosts.room import Room, count_images, make_room


@dataclass(kw_only=True)
class Encoding:
    """One call of `get_image_features` with sounds.

    Attributes:
        host: the host of the call, since two models may share a tower.
        hearing: one sound per picture that the tower gets.
        layers: indices of the hidden states that the model reads, with the deepest last.
        cuts_first: whether the stock code removes the first token.
        is_done: whether the tower's tokens were edited.
    """

    host: "HuggingFaceHost"
    hearing: Hearing
    layers: tuple[int, ...]
    cuts_first: bool
    is_done: bool = False


# Set only during the stock `get_image_features`, so that other uses of the tower stay stock.
_ENCODING: ContextVar[Encoding | None] = ContextVar("llava_soundclip.encoding", default=None)
_UNHEARD = (
    "the sound wasn't heard: the model's forward or get_image_features was replaced after the patch, and the new one "
    "doesn't call the patched get_image_features: patch the model again, or open silence() for a call without a sound"
)


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
        override(self.vision_tower, "forward", self._tower(ear), undo)
        override(self.model.model, "get_image_features", self._encode(ear), undo)
        override(self.model.model, "forward", self._forward(ear), undo)
        override(self.model, "generate", self._generate(ear), undo)
        override(self.model, "prepare_inputs_for_generation", self._prepare(ear), undo)
        if hasattr(self.model, "_supports_mm_encoder_outputs"):
            # Else `generate` encodes the images itself, and counts their tokens in the caller's prompt.
            override(self.model, "_supports_mm_encoder_outputs", self._encodes_before(ear), undo)

    def _tower(self, ear: Ear) -> Callable[..., Any]:
        def forward(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = stock(*args, **kwargs)
            encoding = current_encoding(self)
            if encoding is None:
                return output
            hidden_states = list(output.hidden_states)
            edited = self.edit(ear, [hidden_states[layer] for layer in encoding.layers], encoding)
            for layer, tokens in zip(encoding.layers, edited, strict=True):
                if encoding.cuts_first:
                    tokens = nn.functional.pad(tokens, (0, 0, 1, 0))
                hidden_states[layer] = tokens
            encoding.is_done = True
            return type(output)(**{**output, "hidden_states": tuple(hidden_states)})

        return forward

    def edit(self, ear: Ear, layers: list[Tensor], encoding: Encoding) -> list[Tensor]:
        """Algorithm 1 on the layers that a call reads, each (n, N+1, D)."""
        return ear.edit(layers, encoding.hearing)

    def _encode(self, ear: Ear) -> Callable[..., Any]:
        def get_image_features(
            module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any
        ) -> Any:
            hearing = ear.hearing()
            if module is not self.model.model:
                _mark_hooks(cast(Any, module).vision_tower)
            if hearing is None:
                return stock(*args, **kwargs)
            self._refuse_replicas(module)
            kwargs = arguments_by_name(signature_of(module, "get_image_features"), *args, **kwargs)
            repeats = _repeats(self.pictures(kwargs), hearing)
            _check_counts(self.pictures(kwargs), repeats, hearing)
            kwargs |= {name: kwargs[name][::repeats] for name in self.per_image}
            encoding = self.encoding(kwargs, hearing)
            note_encoded()
            token = _ENCODING.set(encoding)
            error = None
            try:
                output = stock(**kwargs)
            except Exception as stock_error:
                if encoding.is_done:
                    raise
                error = stock_error
            finally:
                _ENCODING.reset(token)
            if not encoding.is_done:
                raise RuntimeError(
                    "the sound wasn't heard: the vision tower was replaced after the patch; patch the model again"
                ) from error
            return _repeat_by_row(output, hearing, repeats) if repeats > 1 else output

        return get_image_features

    def encoding(self, arguments: dict[str, Any], hearing: Hearing) -> Encoding:
        """The description of a call of `get_image_features` for the tower."""
        layers = arguments.get("vision_feature_layer", arguments.get("vision_feature_layers"))
        layers = self._by_depth(self.selected_layers if layers is None else layers)
        return Encoding(host=self, hearing=hearing, layers=layers, cuts_first=self.cuts_first(arguments))

    def _forward(self, ear: Ear) -> Callable[..., Any]:
        signature = signature_of(self.model.model, "forward")

        def forward(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None and all(places_of(value) is None for value in (*args, *kwargs.values())):
                return stock(*args, **kwargs)
            given = arguments_by_name(signature, *args, **kwargs)
            given.pop("cache_position", None)  # counts the caller's tokens
            counts_tokens = "cache_position" in signature.parameters  # before transformers 5
            places = places_of(given.get("past_key_values"))
            hears = hearing is not None and self._hears(given, hearing)
            if places is None and not hears:
                return stock(*args, **kwargs)
            self._refuse_replicas(module)
            return_dict = given.get("return_dict")
            if return_dict is None:
                return_dict = getattr(self.model.config, "return_dict", True)
            given |= {"return_dict": True, **({"cache_position": None} if counts_tokens else {})}
            output = self._read(ear, stock, given, places, hearing if hears else None)
            return output if return_dict else output.to_tuple()

        return forward

    def _hears(self, given: dict[str, Any], hearing: Hearing) -> bool:
        """Whether a call has images for the open sounds.

        Raises:
            ValueError: for a call that can't hear them.
        """
        if given.get("mm_encoder_outputs"):
            raise ValueError(
                "a sound is open, but these images were encoded before the call: give pixel_values instead of "
                "mm_encoder_outputs"
            )
        is_inside = hearing.images_per_row is not None or given.get("past_key_values") is not None
        if given.get("inputs_embeds") is not None and (
            given.get("pixel_values") is not None or not is_inside
        ):
            raise ValueError("inputs_embeds can't be given with a sound: give input_ids and pixel_values")
        if given.get("pixel_values") is not None:
            return True
        if not is_inside:
            raise ValueError("a sound is open, but no pixel_values are given: a sound needs an image")
        if self._has_image_tokens(given.get("input_ids")):
            raise ValueError("a sound is open, but the prompt has image tokens without pixel_values")
        return False

    def _has_image_tokens(self, ids: Tensor | None) -> bool:
        """Whether these are tokens of a prompt with an image; a single token is one that was generated."""
        is_prompt = ids is not None and ids.shape[1] > 1
        return is_prompt and bool((ids == self.model.config.image_token_id).any())

    def _read(
        self,
        ear: Ear,
        stock: Callable[..., Any],
        given: dict[str, Any],
        before: Places | None,
        hearing: Hearing | None,
    ) -> Any:
        """The stock `forward` on the tokens that are read, with everything else in the caller's places."""
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        tokens = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        batch, length = tokens.shape[:2]
        if before is None:
            cached = 0 if cache is None else int(cache.get_seq_length())
            before = no_places(batch, cached, tokens.device)
        if len(before.source) != batch:
            raise ValueError(f"the cache has {len(before.source)} rows, but the call has {batch}")
        chunk, is_padded = torch.arange(length, device=tokens.device).expand(batch, -1), False
        if hearing is not None:
            room = self._repeated_room(ear, given, hearing)
            chunk, is_padded = room.source, room.is_padded
            config = self.model.config.get_text_config()
            pad = config.pad_token_id
            for name, value in given.items():
                is_per_token = isinstance(value, Tensor) and value.shape == (batch, length)
                if is_per_token and name not in ("attention_mask", "position_ids"):
                    given[name] = room.stretch(value, padding=(pad or 0) if name == "input_ids" else 0)
            if room.growth > 0:
                enlarge(cache, room.growth, getattr(config, "sliding_window", None))
        places = before.extend(chunk, length, is_padded=is_padded)
        given["attention_mask"] = masks(places, chunk, mask, capacity_of(cache))
        given["position_ids"] = positions(places, chunk, given.get("position_ids"), mask)
        if "cache_position" in given:
            given["cache_position"] = torch.arange(
                before.source.shape[1], places.source.shape[1], device=tokens.device
            )
        with ear.listening(hearing), reading(cache):
            output = stock(**given) if hearing is None else _heard(stock, given)
        if output.past_key_values is not None:
            remember(output.past_key_values, places)
        if hearing is None or not hearing.has_raw_logits:
            last = None if hearing is None else last_read(chunk, length)
            put_in_places(output, last, length, places)
        return output

    def _repeated_room(self, ear: Ear, given: dict[str, Any], hearing: Hearing) -> Room:
        """The room for a prompt, whose rows `generate` may have repeated for beams."""
        repeats = _repeats(self.pictures(given), hearing)
        once = {name: given[name][::repeats] for name in ("input_ids", *self.per_image)}
        mask, length = given.get("attention_mask"), given["input_ids"].shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            once["attention_mask"] = mask[::repeats, -length:]
        room, _ = self.room(ear, {**given, "attention_mask": None, **once}, hearing)
        if repeats == 1:
            return room
        return Room(*(value.repeat_interleave(repeats, 0) for value in (room.source, room.is_new, room.ids)))

    def _generate(self, ear: Ear) -> Callable[..., Any]:
        def generate(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None:
                with ear.listening(None):  # a sound that opens meanwhile isn't heard
                    return stock(*args, **kwargs)
            self._refuse_replicas(module)
            kwargs = arguments_by_name(signature_of(module, "generate"), *args, **kwargs)
            inputs = kwargs.pop("inputs", None)
            ids = kwargs.pop("input_ids", None) if inputs is None else inputs
            if kwargs.get("inputs_embeds") is not None or ids is None:
                raise ValueError(
                    "a sound needs input_ids: inputs_embeds alone don't say where the images are"
                )
            kwargs["input_ids"] = ids
            images = self._images_per_row(ear, kwargs, hearing)
            _read_at_once(kwargs, self.model.generation_config)
            with ear.listening(replace(hearing, images_per_row=images, has_raw_logits=False)):
                output = stock(**kwargs)
            if places_of(getattr(self.model, "_cache", None)) is not None:
                del self.model._cache  # transformers would use it again, enlarged, in a stock call
            return output

        return generate

    def _images_per_row(self, ear: Ear, arguments: dict[str, Any], hearing: Hearing) -> tuple[int, ...]:
        """The number of images in each row that `generate` will encode. Those in a cache are heard already."""
        ids, mask, cache = (
            arguments.get(name) for name in ("input_ids", "attention_mask", "past_key_values")
        )
        assert ids is not None
        cached = 0 if cache is None else int(cache.get_seq_length())
        if cached and (mask is None or mask.shape[-1] == ids.shape[1]):
            arguments = {**arguments, "input_ids": ids[:, cached:]}
        has_images = bool((arguments["input_ids"] == self.model.config.image_token_id).any())
        if places_of(cache) is not None and (arguments.get("pixel_values") is None or not has_images):
            return (0,) * len(ids)
        if isinstance(mask, Tensor):
            length = arguments["input_ids"].shape[1]
            arguments = {**arguments, "attention_mask": mask[:, -length:] if mask.ndim == 2 else None}
        return self.room(ear, arguments, hearing)[1]

    def _prepare(self, ear: Ear) -> Callable[..., Any]:
        def prepare_inputs_for_generation(
            module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any
        ) -> Any:
            inputs = stock(*args, **kwargs)
            mask = kwargs.get("attention_mask")
            hearing = ear.hearing()
            if hearing is not None and self._has_image_tokens(inputs.get("input_ids")):
                # Before 5.18, transformers leaves the images of a second turn out.
                inputs |= {name: kwargs[name] for name in self.per_image if kwargs.get(name) is not None}
            is_heard = hearing is not None or places_of(kwargs.get("past_key_values")) is not None
            if is_heard and (mask is None or mask.ndim == 2):
                inputs["attention_mask"] = mask  # for a static cache, it was made for the caller's tokens
            return inputs

        return prepare_inputs_for_generation

    def _encodes_before(self, ear: Ear) -> Callable[..., Any]:
        def supports_mm_encoder_outputs(module: nn.Module, stock: Callable[..., Any]) -> bool:
            return ear.hearing() is None and stock()

        return supports_mm_encoder_outputs

    def _refuse_replicas(self, module: nn.Module) -> None:
        if module is not self.model and module is not self.model.model:
            raise RuntimeError(REPLICA)

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
        if arguments.get("pixel_values") is None:
            raise ValueError("a sound is open, but no pixel_values are given: a sound needs an image")
        stock, wanted = self.sizes(ear, arguments)
        images = count_images(ids, placeholder=placeholder, stock=stock)
        pictures = self.pictures(arguments)
        if pictures != sum(images):
            raise ValueError(f"{_count(pictures, 'image')} given, but the prompt has room for {sum(images)}")
        _check_counts(pictures, 1, hearing)
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

    def _by_depth(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        states = self.model.config.vision_config.num_hidden_layers + 1
        return (layers,) if isinstance(layers, int) else tuple(sorted(layers, key=lambda i: i % states))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def features(output: Any) -> Any:
    """One tensor per image: `pooler_output` since 5.0, the output itself before."""
    return getattr(output, "pooler_output", output)


def _heard(stock: Callable[..., Any], given: dict[str, Any]) -> Any:
    """The stock `forward` of a call that must hear."""
    with must_hear(_UNHEARD) as encoded:
        try:
            return stock(**given)
        except ValueError as error:  # the stock code compares numbers of features
            if encoded:
                raise
            raise RuntimeError(_UNHEARD) from error


def _mark_hooks(replica: nn.Module) -> None:
    """Tell a replica of `nn.DataParallel` that its hooks are there, since it shares them with the original.

    Without this, transformers 5 adds them once more for each replica, and a hidden state is collected several times.
    """
    hooks = (hook for module in replica.modules() for hook in module._forward_hooks.values())
    if any(getattr(hook, "__name__", "") == "output_capturing_hook" for hook in hooks):
        vars(replica)["_output_capturing_hooks_installed"] = True


def _repeats(images: int, hearing: Hearing) -> int:
    """The number of times that `generate` repeated each image for its beams; 1 outside `generate`."""
    sounds = len(hearing.embeddings)
    return images // sounds if hearing.images_per_row is not None and images % sounds == 0 else 1


def _check_counts(images: int, repeats: int, hearing: Hearing) -> None:
    sounds = len(hearing.embeddings)
    if sounds * repeats != images:
        raise ValueError(f"{_count(sounds, 'sound')} for {_count(images, 'image')}: give one sound per image")


def _read_at_once(kwargs: dict[str, Any], default_config: Any) -> None:
    """`prefill_chunk_size` could cut an image's tokens, so a prompt with sounds is read at once."""
    kwargs.pop("prefill_chunk_size", None)
    config = kwargs.get("generation_config")
    if getattr(config, "prefill_chunk_size", None) is not None:
        kwargs["generation_config"] = copy.deepcopy(config)
        kwargs["generation_config"].prefill_chunk_size = None
    if getattr(default_config, "prefill_chunk_size", None) is not None:  # would fill in for None
        kwargs["prefill_chunk_size"] = kwargs["input_ids"].shape[1] + 1


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
