"""The original `llava` package (haotian-liu): `LlavaLlamaForCausalLM`, and its Mistral and MPT siblings.

A prompt holds one image token (-200) per image and becomes embeddings before the language model sees it, so the ids
need no room. Three methods of the patched instance are wrapped:

- `encode_images` returns the sound's token and the patches instead of the patches only.
- `prepare_inputs_labels_for_multimodal` gives each tile of an image the image's sound.
- `generate` refuses calls in which a sound can't be heard, as a forward pre-hook does for `forward`.

The stock code that merges the tiles of `spatial` images needs squares of patches. So it is run on the patches' indices,
and the tokens follow them. The base tile's slot comes first. The slots of the other tiles are between the base
tile's patches and the rows, in the order of the tiles. So rows, columns and newlines are those of the stock code.
Tiles of `flat` images follow one another, each with its slot first.

Without a sound the wrappers call the stock methods. The package is never imported.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from llava_soundclip.fingerprints import clip_fingerprint
from llava_soundclip.hosts.base import Ear, Hearing, Host, Undo, shadow
from llava_soundclip.hosts.huggingface import arguments_by_name

_IMAGE_TOKEN = -200  # llava.constants.IMAGE_TOKEN_INDEX


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
        hook = self.model.register_forward_pre_hook(self._check_forward(ear), with_kwargs=True)
        undo.push(hook.remove)
        shadow(self.model, "encode_images", self._encode(ear), undo)
        shadow(self.model, "prepare_inputs_labels_for_multimodal", self._prepare(ear), undo)
        shadow(self.model, "generate", self._generate(ear), undo)

    def _check_forward(self, ear: Ear) -> Callable[..., None]:
        signature = inspect.signature(type(self.model).forward)

        def pre_hook(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            hearing = ear.hearing() if model is self.model else None  # a copy of the model has the same hooks
            if hearing is None or hearing.images_per_row is not None:  # `generate` has checked
                return
            given = arguments_by_name(signature, model, *args, **kwargs)
            if given.get("inputs_embeds") is not None:
                raise ValueError("inputs_embeds can't be given with a sound: give input_ids and images")
            if given.get("images") is None and given.get("past_key_values") is None:
                raise ValueError("a sound is open, but the call has no images: a sound needs an image")

        return pre_hook

    def _encode(self, ear: Ear) -> Callable[..., Any]:
        def encode_images(stock: Callable[..., Any], images: Tensor) -> Tensor:
            hearing = ear.hearing()
            if hearing is None:
                return stock(images)
            (edited,) = ear.edit([self.tower_tokens(images)], hearing)
            return self.model.get_model().mm_projector(edited)

        return encode_images

    def _prepare(self, ear: Ear) -> Callable[..., Any]:
        def prepare(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None:
                return stock(*args, **kwargs)
            given = arguments_by_name(inspect.signature(stock), *args, **kwargs)
            ids, images = given["input_ids"], given["images"]
            if images is None or ids.shape[1] == 1:  # a step of decoding
                return stock(**given)
            if hearing.images_per_row is None:  # else `generate` has checked
                self.check(hearing, ids, given["attention_mask"], images)
            if isinstance(images, Tensor) and images.ndim == 4:
                return stock(**given)
            tiles = [image if image.ndim == 4 else image[None] for image in images]
            hearing = _one_a_tile(hearing, tiles)
            if getattr(self.model.config, "mm_patch_merge_type", "flat") == "flat":
                with ear.listening(hearing):
                    return stock(**given)
            features = self._merge(ear, hearing, tiles, given.get("image_sizes"))
            view = _View(self.model, encode_images=lambda _: features)
            given["images"] = tiles[0]  # the stock code leaves the features of a 4-D batch unchanged
            return type(self.model).prepare_inputs_labels_for_multimodal(view, **given)

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

        Raises:
            ValueError: if `image_sizes` doesn't have one entry per image.
        """
        if image_sizes is None and max(map(len, tiles)) == 1:
            image_sizes = [None] * len(tiles)  # nothing is merged
        if image_sizes is None or len(image_sizes) != len(tiles):
            sizes = "no" if image_sizes is None else len(image_sizes)
            raise ValueError(
                f"{sizes} image_sizes for {len(tiles)} images in tiles: give (width, height) of each picture"
            )
        tokens = 1 + self.patches  # per tile
        places = torch.arange(sum(map(len, tiles)) * tokens).view(-1, tokens)
        orders = [
            self._merged_order(image_places, size)
            for image_places, size in zip(places.split([*map(len, tiles)]), image_sizes, strict=True)
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
        *_, merged, _ = type(self.model).prepare_inputs_labels_for_multimodal(
            view, ids, None, None, None, None, [torch.empty(len(places), 0)], [image_size]
        )
        order, base = merged[0, :-1, 0], places.shape[1] - 1
        return torch.cat([places[:1, 0], order[:base], places[1:, 0], order[base:]])

    def _generate(self, ear: Ear) -> Callable[..., Any]:
        def generate(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            hearing = ear.hearing()
            if hearing is None or hearing.images_per_row is not None:
                return stock(*args, **kwargs)
            given = arguments_by_name(inspect.signature(stock), *args, **kwargs)
            ids, images = given.get("inputs"), given.get("images")
            if given.get("inputs_embeds") is not None or ids is None:
                raise ValueError(
                    "a sound needs the prompt's ids as inputs; inputs_embeds can't be given with it"
                )
            if images is None:
                raise ValueError("a sound is open, but no images are given: a sound needs an image")
            per_row = self.check(hearing, ids, given.get("attention_mask"), images)
            with ear.listening(Hearing(hearing.embeddings, tuple(per_row))):
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


def _one_a_tile(hearing: Hearing, tiles: Sequence[Tensor]) -> Hearing:
    """The same sounds, repeated for each tile of their image."""
    repeats = torch.tensor([len(image) for image in tiles], device=hearing.embeddings.device)
    return Hearing(hearing.embeddings.repeat_interleave(repeats, 0), hearing.images_per_row)


class _View:
    """A view of a model with some attributes replaced, for the stock code. The model itself isn't changed."""

    def __init__(self, model: Any, /, **replaced: Any) -> None:
        vars(self).update(replaced, _model=model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
