"""The interface of a LLaVA family, and tools to change a model and restore it completely."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Hearing:
    """The sounds of one call.

    Attributes:
        embeddings: (n, d_a) float32, one z_a per image, in the order of the images.
        images_per_row: number of images in each row of the prompt while `generate` runs; else None.
    """

    embeddings: Tensor
    images_per_row: tuple[int, ...] | None = None


class Ear(Protocol):
    """The part of a handle that its host may use."""

    def hearing(self) -> Hearing | None:
        """The sounds that the calling context hears; None for a stock call."""

    def listening(self, hearing: Hearing) -> AbstractContextManager[None]:
        """Pin the sounds of a call to the current context."""

    def edit(self, layers: Sequence[Tensor], hearing: Hearing) -> list[Tensor]:
        """Algorithm 1 on the tower's selected layers, each (n, N+1, D). The last one decides which patches stay."""

    def edit_tiles(
        self, layers: Sequence[Tensor], hearing: Hearing, candidates: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Algorithm 1 on tiles, for a host that lays out their patches itself.

        Returns the edited layers (n, N+1, D), and the patches that the language model reads, (n, N) bool.
        `candidates`, (n, N) bool, are the patches that have a place in the layout.
        """

    def visual_tokens_per_image(self) -> int:
        """The number of visual tokens per image while a sound is heard."""


class Host(ABC):
    """One LLaVA family: where its vision tower is, and how its vision tokens reach the language model.

    Raises:
        ValueError: if weights are on the meta device, unless accelerate put them there.
    """

    def __init__(self, model: Any) -> None:  # the families' models share no base class
        self.model = model
        empty = _find_empty(model)
        if empty is not None:
            raise ValueError(
                f"{empty} is on the meta device and has no values: load the weights first, with from_pretrained"
            )

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The CLIP tower whose tokens are edited."""

    @property
    @abstractmethod
    def tower_layer(self) -> int:
        """The layer that the model reads, as an index into the tower's hidden states; the deepest of several.

        Patches are selected at this layer.
        """

    @property
    @abstractmethod
    def tower(self) -> str:
        """Fingerprint of the tower, compared with the tower in a projector's labels."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the width of a tower token."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; their product is N."""

    @property
    def patches(self) -> int:
        """N, the number of patches of an image or a tile."""
        rows, columns = self.grid
        return rows * columns

    @abstractmethod
    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        """The tower's unedited tokens at `tower_layer`: (n, N+1, D), with CLS first."""

    @abstractmethod
    def visual_tokens(self, pixel_values: Tensor, image_sizes: Any = None) -> list[Tensor]:
        """The tokens that the language model reads for each image, (tokens, hidden), made by the model's own code.

        If images are cut into tiles, `image_sizes` has the size of each, as the family's processor returns it.
        """

    @abstractmethod
    def install(self, ear: Ear, undo: "Undo") -> None:
        """Hook into the model. Each change pushes its own removal onto `undo`."""


def _find_empty(module: nn.Module, name: str = "") -> str | None:
    """Name of a parameter without values. Accelerate has the values of offloaded parameters, so they don't count."""
    if hasattr(module, "_hf_hook"):
        return None
    for own, parameter in module.named_parameters(name, recurse=False):
        if parameter.is_meta:
            return own
    children = ((f"{name}.{own}".lstrip("."), child) for own, child in module.named_children())
    return next((empty for own, child in children if (empty := _find_empty(child, own))), None)


class Undo:
    """A stack of steps that undo everything that a host installed."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[[], None], Callable[[], object]]] = []

    def push(self, undo: Callable[[], object], *, check: Callable[[], None] = lambda: None) -> None:
        """Add a step. `check` raises an error while the step can't be undone."""
        self._steps.append((check, undo))

    def close(self) -> None:
        """Undo all steps, the last one first. If any check raises an error, nothing is undone."""
        for check, _ in self._steps:
            check()
        while self._steps:
            self._steps.pop()[1]()


class _Shadow:
    """Wraps a method of one instance. A deep copy of the instance gets the class's own method."""

    def __init__(self, owner: nn.Module, name: str, wrap: Callable[..., Any]) -> None:
        self._owner, self._name, self._wrap = owner, name, wrap
        self._stock = getattr(owner, name)
        functools.update_wrapper(self, self._stock)  # transformers reads the signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(self._stock, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._name).__get__(memo[id(self._owner)])


def shadow(owner: nn.Module, name: str, wrap: Callable[..., Any], undo: Undo) -> None:
    """Replace a method of this one instance by `wrap(stock, *args, **kwargs)`.

    Undo restores the attribute of the instance. If the method was wrapped again since, ours can't be removed from
    under the new wrapper: the check raises a RuntimeError that names the method.
    """
    before = vars(owner).get(name)
    method = _Shadow(owner, name, wrap)

    def check() -> None:
        if vars(owner).get(name) is not method:
            raise RuntimeError(
                f"{type(owner).__name__}.{name} was replaced after the patch: undo that first, then unpatch"
            )

    def restore() -> None:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)

    setattr(owner, name, method)
    undo.push(restore, check=check)
