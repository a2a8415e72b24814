"""The original `llava` package (haotian-liu): `LlavaLlamaForCausalLM`, and its Mistral and MPT siblings.

A prompt holds one image token (-200) per image and becomes embeddings before the language model sees it, so the ids
need no room. Four methods of the patched instance are overridden:

- `encode_images` returns the sound's token and the patches instead of the patches only.
- `prepare_inputs_labels_for_multimodal` gives each tile of an image the image's sound.
- `forward` puts logits and states into the places of the stock prompt, in which an image has one place per patch.
- `generate` pins its sounds and refuses a call that can't hear them.

The stock code that merges the tiles of `spatial` images needs squares of patches. So it is run on the patches' indices,
and the tokens follow them. The base tile's slot comes first. The slots of the other tiles are between the base
tile's patches and the rows, in the order of the tiles. So rows, columns and newlines are those of the stock code.
Tiles of `flat` images follow one another, each with its slot first.

Without a sound the stock methods are called. The package is never imported.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
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
    stock_class,
)
from llava_soundclip.hosts.places import (
    capacity_of,
    last_read,
    masks,
    no_places,
    places_of,
    positions,
    put_in_places,
    reading,
    remember,
)

_IMAGE_TOKEN = -200  # llava.constants.IMAGE_TOKEN_INDEX
_UNHEARD = (
    "the sound wasn't heard: a method of the model was replaced after the patch, and the new one doesn't call the "
    "patched encode_images: patch the model again, or open silence() for a call without a sound"
)


class OriginalLlavaHost(Host):
    """The host of the original package's models.

    Raises:
        ValueError: if the tower isn't loaded yet.
        TypeError: if there is no tower, or if it has no CLS token or several scales.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        tower = self.vision_tower
        if tower is None:
            raise TypeError(
                f"this {type(model).__name__} has no vision tower: its config has no mm_vision_tower"
            )
        if not tower.is_loaded:
            raise ValueError(
                "the vision tower isn't loaded: call model.get_vision_tower().load_model() before patch"
            )
        if not any(name.endswith("class_embedding") for name, _ in tower.named_parameters()):
            raise TypeError(
                f"the vision tower is a {type(tower).__name__} without a CLS token, so a sound has no slot "
                "to take; SoundCLIP needs a CLIP tower"
            )
        if tower.hidden_size != tower.config.hidden_size:
            raise TypeError(
                f"the vision tower is a {type(tower).__name__} whose tokens join several scales of a picture: "
                "none of them has a slot for a sound"
            )

    @property
    def vision_tower(self) -> Any:
        return self.model.get_vision_tower()

    @property
    def tower_layer(self) -> int:
        return self.vision_tower.select_layer

    @property
    def tower(self) -> str:
        return clip_fingerprint(self.vision_tower.config)

    @property
    def width(self) -> int:
        return self.vision_tower.config.hidden_size

    @property
    def grid(self) -> tuple[int, int]:
        side = self.vision_tower.num_patches_per_side
        return side, side

    @torch.no_grad()  # like the stock tower
    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        # Call the CLIP model inside: the tower around it drops CLS unless its select_feature is "cls_patch".
        tower = self.vision_tower
        output = tower.vision_tower(
            pixel_values.to(device=tower.device, dtype=tower.dtype), output_hidden_states=True
        )
        return output.hidden_states[tower.select_layer].to(pixel_values.dtype)

    def visual_tokens(self, pixel_values: Tensor, image_sizes: Any = None) -> list[Tensor]:
        images = pixel_values.to(self.model.device, self.model.dtype)
        if images.ndim == 4:
            return list(self.model.encode_images(images))
        # The stock code packs tiles only while it makes a prompt, so make one prompt of two tokens per image.
        ids = torch.tensor([[_IMAGE_TOKEN, 0]] * len(images), device=images.device)
        _, _, is_token, _, embeddings, _ = self.model.prepare_inputs_labels_for_multimodal(
            ids, None, torch.ones_like(ids), None, None, images, image_sizes
        )
        return [row[mask.bool()][:-1] for row, mask in zip(embeddings, is_token, strict=True)]

    def install(self, ear: Ear, undo: Undo) -> None:
        override(self.model, "forward", self._forward(ear), undo)
        override(self.model, "encode_images", self._encode(ear), undo)
        override(self.model, "prepare_inputs_labels_for_multimodal", self._prepare(ear), undo)
        override(self.model, "generate", self._generate(ear), undo)

    def _forward(self, ear: Ear) -> Callable[..., Any]:
        signature = signature_of(self.model, "forward")

        def forward(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None and all(places_of(value) is None for value in (*args, *kwargs.values())):
                return stock(*args, **kwargs)
            given = arguments_by_name(signature, *args, **kwargs)
            cache = given.get("past_key_values")
            before = places_of(cache)
            hears = hearing is not None and hearing.images_per_row is None and self._hears(given)
            if before is None and not hears:
                return stock(*args, **kwargs)
            if module is not self.model:
                raise RuntimeError(REPLICA)
            ids: Any = given.get("input_ids")
            mask = given.get("attention_mask")
            tokens = given["inputs_embeds"] if ids is None else ids
            if before is None:
                cached = 0 if cache is None else int(cache.get_seq_length())
                before = no_places(len(tokens), cached, tokens.device)
            if hears:
                assert hearing is not None
                self.check(hearing, ids, mask, given["images"])
                sizes = self._sizes(ear, given["images"], given.get("image_sizes"))
                chunk, length = self._layout(ids, mask, sizes)
                places = before.extend(chunk, length, is_padded=bool((chunk < 0).any()))
            else:
                length = tokens.shape[1]
                chunk = torch.arange(length, device=tokens.device).expand(len(tokens), -1)
                places = before.extend(chunk, length)
                given["attention_mask"] = masks(places, chunk, mask, capacity_of(cache))
                if given.get("position_ids") is not None:  # else padding is counted, as in the stock prompt
                    given["position_ids"] = positions(places, chunk, given["position_ids"], mask)
            return_dict = given.get("return_dict")
            if return_dict is None:
                return_dict = getattr(self.model.config, "return_dict", True)
            if "return_dict" in signature.parameters:  # a repaired MPT may have none
                given["return_dict"] = True
            heard = must_hear(_UNHEARD) if hears else nullcontext()
            with ear.listening(hearing if hears else None), reading(cache), heard:
                output = stock(**given)
            if output.past_key_values is not None:
                remember(output.past_key_values, places)
            if hearing is None or not hearing.has_raw_logits:
                last = last_read(chunk, length) if hears else None
                put_in_places(output, last, length, places)
            return output if return_dict else output.to_tuple()

        return forward

    def _hears(self, given: dict[str, Any]) -> bool:
        """Whether a call of `forward` has images.

        Raises:
            ValueError: for a call that can't hear the open sounds.
        """
        is_later = given.get("past_key_values") is not None
        if given.get("inputs_embeds") is not None and (given.get("images") is not None or not is_later):
            raise ValueError("inputs_embeds can't be given with a sound: give input_ids and images")
        if given.get("images") is not None:
            return given["input_ids"].shape[1] > 1  # else the stock code takes it for a step of decoding
        if not is_later:
            raise ValueError("a sound is open, but the call has no images: a sound needs an image")
        return False

    def _sizes(self, ear: Ear, images: Any, image_sizes: Any) -> list[tuple[int, int]]:
        """For each image, the number of its tokens in the stock prompt, and with a sound."""
        heard = ear.visual_tokens_per_image()
        if isinstance(images, Tensor) and images.ndim == 4:
            return [(self.patches, heard)] * len(images)
        tiles = [len(image) if image.ndim == 4 else 1 for image in images]
        if getattr(self.model.config, "mm_patch_merge_type", "flat") == "flat":
            return [(count * self.patches, count * heard) for count in tiles]
        sizes = []
        for count, size in zip(tiles, _checked_sizes(image_sizes, tiles), strict=True):
            places = torch.arange(count * (1 + self.patches)).view(count, -1)
            order = self._merged_order(places, size)
            kept = torch.isin(places[:, 1:], order).sum(1).clamp_max(heard - 1)
            sizes.append((len(order) - count, int((order < 0).sum()) + count + int(kept.sum())))
        return sizes

    def _layout(
        self, ids: Tensor, attention_mask: Tensor | None, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, int]:
        """The place in the stock prompt of each token that is read, (B, L') or -1, and the stock prompt's length."""
        limit = getattr(self.model.config, "tokenizer_model_max_length", None)
        pads_left = getattr(self.model.config, "tokenizer_padding_side", "right") == "left"
        is_real = torch.ones_like(ids) if attention_mask is None else attention_mask
        rows, lengths = [], []
        images = iter(sizes)
        for row, real in zip(ids, is_real, strict=True):
            is_image = (row == _IMAGE_TOKEN)[real.bool()].tolist()
            places: list[int] = []
            count = 0
            for at_image in is_image:
                stock, heard = next(images) if at_image else (1, 1)
                places += [count] * max(heard - stock, 0) + list(range(count, count + min(stock, heard)))
                count += stock
            if not any(is_image):
                next(images)
            rows.append(torch.tensor(places[:limit]))
            lengths.append(count if limit is None else min(count, limit))
        length, tokens = max(lengths), max(map(len, rows))
        chunk = torch.full((len(rows), tokens), -1)
        for target, source, count in zip(chunk, rows, lengths, strict=True):
            source = source.masked_fill(source >= count, -1)
            if pads_left:
                target[tokens - len(source) :] = torch.where(source < 0, -1, source + length - count)
            else:
                target[: len(source)] = source
        return chunk.to(ids.device), length

    def _encode(self, ear: Ear) -> Callable[..., Any]:
        def encode_images(module: nn.Module, stock: Callable[..., Any], images: Tensor) -> Tensor:
            hearing = ear.hearing()
            if hearing is None:
                return stock(images)
            if module is not self.model:
                raise RuntimeError(REPLICA)
            note_encoded()
            (edited,) = ear.edit([self.tower_tokens(images)], hearing)
            return cast(Any, self.model).get_model().mm_projector(edited)

        return encode_images

    def _prepare(self, ear: Ear) -> Callable[..., Any]:
        def prepare(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None:
                return stock(*args, **kwargs)
            given = arguments_by_name(
                signature_of(module, "prepare_inputs_labels_for_multimodal"), *args, **kwargs
            )
            ids, images = given["input_ids"], given["images"]
            if images is None or ids.shape[1] == 1:  # a step of decoding
                return stock(**given)
            if hearing.images_per_row is None:  # else `generate` has checked
                self.check(hearing, ids, given["attention_mask"], images)
            if isinstance(images, Tensor) and images.ndim == 4:
                with must_hear(_UNHEARD):
                    return stock(**given)
            tiles = [image if image.ndim == 4 else image[None] for image in images]
            hearing = _one_a_tile(hearing, tiles)
            if getattr(self.model.config, "mm_patch_merge_type", "flat") == "flat":
                with ear.listening(hearing), must_hear(_UNHEARD):
                    return stock(**given)
            note_encoded()
            features = self._merge(ear, hearing, tiles, given.get("image_sizes"))
            view = _View(self.model, encode_images=lambda _: features)
            given["images"] = tiles[0]  # the stock code leaves the features of a 4-D batch unchanged
            return stock_class(self.model).prepare_inputs_labels_for_multimodal(view, **given)

        return prepare

    def _merge(
        self, ear: Ear, hearing: Hearing, tiles: list[Tensor], image_sizes: Sequence[Any] | None
    ) -> list[Tensor]:
        """The tokens that the language model reads for images in tiles: (tokens, hidden) for each.

        Only patches with a place in the merged image can be chosen; unpadding removes the others.

        Args:
            ear: the handle's part that edits tiles.
            hearing: one sound per tile.
            tiles: (tiles, 3, H, W) for each image, with the base tile first.
            image_sizes: width and height of each picture before it was cut into tiles.
        """
        tokens = 1 + self.patches  # per tile
        places = torch.arange(sum(map(len, tiles)) * tokens).view(-1, tokens)
        orders = [
            self._merged_order(image_places, size)
            for image_places, size in zip(
                places.split([*map(len, tiles)]), _checked_sizes(image_sizes, [*map(len, tiles)]), strict=True
            )
        ]
        candidates = torch.isin(places[:, 1:], torch.cat(orders))
        (edited,), is_read = ear.edit_tiles([self.tower_tokens(torch.cat(tiles))], hearing, candidates)
        edited = edited.flatten(0, 1)
        is_read = nn.functional.pad(is_read, (1, 0), value=True).flatten().cpu()  # the slots are also read
        core = self.model.get_model()
        features = []
        for order in orders:
            order = order[(order < 0) | is_read[order]]
            visual = core.mm_projector(edited[order.clamp_min(0).to(edited.device)])
            if (order < 0).any():
                visual[(order < 0).to(visual.device)] = core.image_newline.to(visual)
            features.append(visual)
        return features

    def _merged_order(self, places: Tensor, image_size: Any) -> Tensor:
        """The order in which an image's tokens are read: (tokens,) int64 entries of `places`, -1 for a newline.

        The stock code merges the places of the patches, (tiles, N), as if they were features of width 1.

        Args:
            places: (tiles, N+1) int64, a number for each token of the tower, with the slots first.
            image_size: width and height of the picture.
        """
        config = copy.copy(self.model.config)
        config.tokenizer_model_max_length = None  # keep the whole image, even if the prompt is truncated
        core = SimpleNamespace(image_newline=torch.tensor([-1]), embed_tokens=lambda ids: ids[:, None])
        view = _View(
            self.model,
            config=config,
            device=places.device,
            model=core,
            get_model=lambda: core,
            encode_images=lambda _: places[:, 1:, None],
        )
        ids = torch.tensor([[_IMAGE_TOKEN, 0]])  # a prompt of one token would count as a step of decoding
        *_, merged, _ = stock_class(self.model).prepare_inputs_labels_for_multimodal(
            view, ids, None, None, None, None, [torch.empty(len(places), 0)], [image_size]
        )
        order, base = merged[0, :-1, 0], places.shape[1] - 1
        return torch.cat([places[:1, 0], order[:base], places[1:, 0], order[base:]])

    def _generate(self, ear: Ear) -> Callable[..., Any]:
        def generate(module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None:
                with ear.listening(None):  # a sound that opens meanwhile isn't heard
                    return stock(*args, **kwargs)
            if module is not self.model:
                raise RuntimeError(REPLICA)
            given = arguments_by_name(signature_of(module, "generate"), *args, **kwargs)
            ids, images = given.get("inputs"), given.get("images")
            if given.get("inputs_embeds") is not None or ids is None:
                raise ValueError(
                    "a sound needs the prompt's ids as inputs; inputs_embeds can't be given with it"
                )
            if images is None:
                raise ValueError("a sound is open, but no images are given: a sound needs an image")
            per_row = self.check(hearing, ids, given.get("attention_mask"), images)
            sizes = self._sizes(ear, images, given.get("image_sizes"))
            chunk, length = self._layout(ids, given.get("attention_mask"), sizes)
            _move_lengths(given, chunk.shape[1] - length, self.model.generation_config)
            pinned = replace(hearing, images_per_row=tuple(per_row), has_raw_logits=False)
            with ear.listening(pinned), must_hear(_UNHEARD):
                return stock(**given)

        return generate

    def check(
        self,
        hearing: Hearing,
        ids: Tensor,
        attention_mask: Tensor | None,
        images: Tensor | Sequence[Tensor],
    ) -> list[int]:
        """The number of images in each row of the prompt. Checks the call before anything is encoded.

        Raises:
            ValueError: if the numbers of sounds, images and image tokens don't match; the message names them.
        """
        is_image = ids == _IMAGE_TOKEN
        if attention_mask is not None:
            is_image &= attention_mask.bool()
        per_row = is_image.sum(1).tolist()
        if not any(per_row):
            raise ValueError(
                f"a sound is open, but the prompt has no image token ({_IMAGE_TOKEN}): a sound needs an image"
            )
        # For a row without an image token, the stock code takes one image and skips it.
        wanted = sum(max(images_here, 1) for images_here in per_row)
        if len(images) != wanted:
            raise ValueError(f"{len(images)} images given, but the prompt has room for {wanted}")
        sounds = len(hearing.embeddings)
        if sounds != len(images):
            raise ValueError(f"{sounds} sounds for {len(images)} images: give one sound per image")
        return per_row


def _checked_sizes(image_sizes: Sequence[Any] | None, tiles: Sequence[int]) -> Sequence[Any]:
    """One size per image, whose numbers of tiles are given.

    Raises:
        ValueError: if `image_sizes` doesn't have one entry per image.
    """
    if image_sizes is None and max(tiles) == 1:
        return [None] * len(tiles)  # nothing is merged
    if image_sizes is None or len(image_sizes) != len(tiles):
        sizes = "no" if image_sizes is None else len(image_sizes)
        raise ValueError(
            f"{sizes} image_sizes for {len(tiles)} images in tiles: give (width, height) of each picture"
        )
    return image_sizes


def _move_lengths(given: dict[str, Any], growth: int, default_config: Any) -> None:
    """`max_length` and `min_length` count the stock prompt, so they change with the tokens that are read."""
    config = given.get("generation_config")
    if config is not None:
        config = given["generation_config"] = copy.deepcopy(config)
    unset = type(default_config)()
    for name in ("max_length", "min_length"):
        if given.get(name) is not None:
            given[name] += growth
        elif (value := getattr(config or default_config, name)) not in (None, getattr(unset, name)):
            if config is not None:
                setattr(config, name, value + growth)
            else:
                given[name] = value + growth


def _one_a_tile(hearing: Hearing, tiles: Sequence[Tensor]) -> Hearing:
    """The same sounds, repeated for each tile of their image."""
    repeats = torch.tensor([len(image) for image in tiles], device=hearing.embeddings.device)
    return replace(hearing, embeddings=hearing.embeddings.repeat_interleave(repeats, 0))


class _View:
    """A view of a model with some attributes replaced, for the stock code. The model itself isn't changed."""

    def __init__(self, model: Any, /, **replaced: Any) -> None:
        vars(self).update(replaced, _model=model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
