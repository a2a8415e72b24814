"""The interface of a LLaVA family, and tools to change a model and leave no trace."""

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
        images_per_row: images in each row of the prompt, while `generate` runs; else None.
    """

    embeddings: Tensor
    images_per_row: tuple[int, ...] | None = None


class Ear(Protocol):
    """The part of a handle that its host may use."""

    def hearing(self) -> Hearing | None:
        """The sounds that the calling context hears; None leaves the model stock."""

    def listening(self, hearing: Hearing) -> AbstractContextManager[None]:
        """Pin the sounds of a call to the current context."""

    def edit(self, layers: Sequence[Tensor], hearing: Hearing) -> list[Tensor]:
        """Algorithm 1 on the tower's selected layers, each (n, N+1, D); chosen at the last of them."""

    def edit_tiles(
        self, layers: Sequence[Tensor], hearing: Hearing, candidates: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The same for tiles whose patches the host lays out: edited (n, N+1, D), and (n, N) bool what is read.

        `candidates`, (n, N) bool, are the patches that the layout has a place for.
        """

    def visual_tokens_per_image(self) -> int:
        """The number of visual tokens per image while a sound is heard."""


class Host(ABC):
    """One LLaVA family: where its vision tower is and how its vision tokens reach the language model.

    Raises:
        ValueError: if the model has no weights: some are on the meta device, and accelerate didn't put them there.
    """

    def __init__(self, model: Any) -> None:  # the families share no base class of their own
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
        """The layer that the model reads, the deepest if several: index into the tower's hidden states.

        Selection is made there.
        """

    @property
    @abstractmethod
    def tower(self) -> str:
        """Fingerprint of the tower, compared with the one that a projector was trained for."""

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
        """N, the patches of an image, or of a tile."""
        rows, columns = self.grid
        return rows * columns

    @abstractmethod
    def tower_tokens(self, pixel_values: Tensor) -> Tensor:
        """(n, N+1, D): what the tower gives at `tower_layer`, CLS first, unedited."""

    @abstractmethod
    def visual_tokens(self, pixel_values: Tensor, image_sizes: Any = None) -> list[Tensor]:
        """The tokens that the language model reads for each image, (tokens, hidden), as the model itself makes them.

        Where images are cut into tiles, `image_sizes` has the size of each, as its family's processor gives it.
        """

    @abstractmethod
    def install(self, ear: Ear, undo: "Undo") -> None:
        """Hook into the model; each change pushes its own removal on `undo`."""


def _find_empty(module: nn.Module, name: str = "") -> str | None:
    """Name of a parameter without values. Offloaded parameters are also on the meta device, but accelerate has their values."""
    if hasattr(module, "_hf_hook"):
        return None
    for own, parameter in module.named_parameters(name, recurse=False):
        if parameter.is_meta:
            return own
    children = ((f"{name}.{own}".lstrip("."), child) for own, child in module.named_children())
    return next((empty for own, child in children if (empty := _find_empty(child, own))), None)


class Undo:
    """The way back from everything that a host installed."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[[], None], Callable[[], object]]] = []

    def push(self, undo: Callable[[], object], *, check: Callable[[], None] = lambda: None) -> None:
        """Remember a step; `check` raises while the step can't be undone."""
        self._steps.append((check, undo))

    def close(self) -> None:
        """Undo all steps, the last one first. If one can't be undone, none is, and its check's error says why."""
        for check, _ in self._steps:
            check()
        while self._steps:
            self._steps.pop()[1]()


class _Shadow:
    """Stands before a method of one instance. A deep copy of the instance gets the class's own method."""

    def __init__(self, owner: nn.Module, name: str, wrap: Callable[..., Any]) -> None:
        self._owner, self._name, self._wrap = owner, name, wrap
        self._stock = getattr(owner, name)
        functools.update_wrapper(self, self._stock)  # transformers reads the signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(self._stock, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._owner), self._name).__get__(memo[id(self._owner)])


def shadow(owner: nn.Module, name: str, wrap: Callable[..., Any], undo: Undo) -> None:
    """Put `wrap(stock, *args, **kwargs)` before a method of this one instance.

    On undo the instance gets back what it held. If somebody put another wrapper on top since, ours can't be
    taken out from under it: the check raises a RuntimeError that names the method.
    """
    before = vars(owner).get(name)
    method = _Shadow(owner, name, wrap)

    def check() -> None:
        if vars(owner).get(name) is not method:
            raise RuntimeError(
                f"{type(owner).__name__}.{name} was replaced after the patch: take that away first, then unpatch"
            )

    def restore() -> None:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)

    setattr(owner, name, method)
    undo.push(restore, check=check)
