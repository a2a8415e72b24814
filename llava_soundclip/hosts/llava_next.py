"""LLaVA-NeXT (1.6) in transformers: `LlavaNextForConditionalGeneration`.

An image is a base tile, which shows the whole image, and a grid of tiles in a higher resolution. The tower sees each
tile separately, so each has a slot. The image's sound takes all slots, and chooses k patches in every tile.

The stock code packs the tiles into rows, removes rows or columns that only pad the picture, and ends each row with a
newline token. That order is kept. The base tile's slot is before its patches; the slots of the grid are between the
base tile and the first row, in the order of the tiles. Removed patches are never chosen. With tokens="drop" all
newlines stay, so that a prompt's length follows from `image_sizes` and the number of rows can still be read.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_soundclip.hearing import Hearing
from llava_soundclip.hosts.base import Ear, Undo, arguments_by_name, override, signature_of
from llava_soundclip.hosts.huggingface import Encoding, HuggingFaceHost, current_encoding


@dataclass(frozen=True)
class Layout:
    """The stock code's packing of one image, with T tiles of N patches each.

    Attributes:
        order: (L,) int64, the patch in each place, numbered over all tiles; -1 for a newline.
        has_place: (T, N) bool, false for patches that only pad the picture.
    """

    order: Tensor
    has_place: Tensor


@dataclass(kw_only=True)
class TiledEncoding(Encoding):
    """An encoding whose hearing has one sound per tile.

    Attributes:
        layouts: one per image.
        is_read: (tiles, N) bool, the patches that the language model reads; set by the tower's hook.
    """

    layouts: list[Layout]
    is_read: Tensor | None = None


class LlavaNextHost(HuggingFaceHost):
    """The host of LLaVA-NeXT: several tiles per image, and their layout.

    Raises:
        ValueError: for vision_feature_select_strategy="full", which the stock code can't pack.
    """

    per_image = ("pixel_values", "image_sizes")

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.cuts_first({})  # refuses a config with "full"

    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        strategy = arguments.get("vision_feature_select_strategy")
        if (strategy or self.model.config.vision_feature_select_strategy) == "full":
            raise ValueError(
                'LLaVA-NeXT can\'t pack its tiles with vision_feature_select_strategy="full" '
                '(transformers#32395): set it to "default", in model.config and in the processor'
            )
        return True

    def install(self, ear: Ear, undo: Undo) -> None:
        super().install(ear, undo)
        override(self.model.model, "pack_image_features", self._pack, undo)

    def pictures(self, arguments: dict[str, Any]) -> int:
        return len(self._given(arguments.get("image_sizes")))

    def sizes(self, ear: Ear, arguments: dict[str, Any]) -> tuple[list[int], list[int]]:
        self.cuts_first(arguments)
        layouts = self.layouts(self._given(arguments.get("image_sizes")))
        kept = ear.visual_tokens_per_image() - 1  # per tile
        wanted = []
        for layout in layouts:
            newlines = int((layout.order < 0).sum())
            wanted.append(
                newlines + sum(1 + min(kept, places) for places in layout.has_place.sum(1).tolist())
            )
        return [len(layout.order) for layout in layouts], wanted

    def encoding(self, arguments: dict[str, Any], hearing: Hearing) -> Encoding:
        layouts = self.layouts(self._given(arguments.get("image_sizes")))
        tiles = torch.tensor([len(layout.has_place) for layout in layouts])
        embeddings = hearing.embeddings.repeat_interleave(tiles.to(hearing.embeddings.device), dim=0)
        encoding = super().encoding(arguments, replace(hearing, embeddings=embeddings))
        return TiledEncoding(**vars(encoding), layouts=layouts)

    def edit(self, ear: Ear, layers: list[Tensor], encoding: Encoding) -> list[Tensor]:
        assert isinstance(encoding, TiledEncoding)
        candidates = torch.cat([layout.has_place for layout in encoding.layouts])
        edited, encoding.is_read = ear.edit_tiles(layers, encoding.hearing, candidates)
        return edited

    def layouts(self, image_sizes: Tensor) -> list[Layout]:
        """The layout of each image from its (height, width), found by letting the stock code pack indices."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = self.model.config
        numbers = []
        for size in image_sizes:
            tiles = image_size_to_num_patches(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            numbers.append(torch.arange(tiles * self.patches).view(tiles, self.patches, 1))
        packed, _ = self.model.model.pack_image_features(
            numbers,
            image_sizes,
            vision_feature_select_strategy="default",
            image_newline=torch.tensor([-1]),
        )
        layouts = []
        for tiles, order in zip(numbers, packed, strict=True):
            order = order[:, 0]
            layouts.append(Layout(order, torch.isin(tiles[:, :, 0], order)))
        return layouts

    def _pack(self, module: nn.Module, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The stock code's sequence of patches, with the slots inserted and unread patches removed."""
        encoding = current_encoding(self)
        if not isinstance(encoding, TiledEncoding):
            return stock(*args, **kwargs)
        arguments = arguments_by_name(signature_of(module, "pack_image_features"), *args, **kwargs)
        tiles = arguments["image_features"]
        arguments["image_features"] = [image[:, 1:] for image in tiles]
        patches, lengths = stock(**arguments)
        assert encoding.is_read is not None
        is_read = encoding.is_read.cpu().split([len(image) for image in tiles])
        packed = []
        for image, tokens, layout, reads in zip(tiles, patches, encoding.layouts, is_read, strict=True):
            stays = (layout.order < 0) | reads.flatten()[layout.order]
            base = reads.shape[1]
            packed.append(
                torch.cat(
                    [image[:1, 0], tokens[:base][stays[:base]], image[1:, 0], tokens[base:][stays[base:]]]
                )
            )
        return packed, lengths.new_tensor([len(image) for image in packed])

    def _given(self, image_sizes: Tensor | None) -> Tensor:
        if image_sizes is None:
            raise ValueError(
                "LLaVA-NeXT's image tokens can't be counted without image_sizes: give the processor's, "
                "also with a cache"
            )
        return image_sizes
