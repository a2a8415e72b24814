"""The interface of a LLaVA family, and tools to change a model and restore it completely."""

import copyreg
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn

from llava_soundclip.hearing import Hearing

REPLICA = (
    "a sound is open, but nn.DataParallel splits the images and not their sounds: use DistributedDataParallel, or one "
    "GPU"
)


# Set during a call that must hear: grows when images are encoded with their sounds.
_ENCODED: ContextVar[list[None] | None] = ContextVar("llava_soundclip.encoded", default=None)


def note_encoded() -> None:
    """Note that images are encoded with their sounds."""
    encoded = _ENCODED.get()
    if encoded is not None:
        encoded.append(None)


@contextmanager
def must_hear(message: str) -> Iterator[list[None]]:
    """A call in which images are encoded with their sounds; gives a list that grows when they are.

    Raises:
        RuntimeError: with the message, if none were encoded.
    """
    encoded: list[None] = []
    token = _ENCODED.set(encoded)
    try:
        yield encoded
        if not encoded:
            raise RuntimeError(message)
    finally:
        _ENCODED.reset(token)
    note_encoded()  # in the call around this one


class Ear(Protocol):
    """The part of a handle that its host may use."""

    def hearing(self) -> Hearing | None:
        """The sounds that the calling context hears; None for a stock call."""

    def listening(self, hearing: Hearing | None) -> AbstractContextManager[None]:
        """Pin the sounds of a call, or None for a stock call, until the call ends."""

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


def override(owner: nn.Module, name: str, wrap: Callable[..., Any], undo: Undo) -> None:
    """Replace a method of this one instance by `wrap(module, stock, *args, **kwargs)`.

    `module` is the module of the call, which isn't `owner` in a replica of `nn.DataParallel`.

    The instance gets a subclass of its class, as parametrizations and FSDP do. So the method is found in each way of
    calling it, and the class's method of the moment is called below. Copies, pickles and new instances get the stock
    class. A method that the instance had of its own, such as accelerate's `forward`, is wrapped in the instance.
    """
    if name in vars(owner):
        _wrap_own(owner, name, wrap, undo)
        return
    cls = type(owner)
    if "_soundclip_wraps" not in vars(cls):
        cls = _patched_class(cls)
        owner.__class__ = cls
    wraps = vars(cls)["_soundclip_wraps"].setdefault(name, [])
    if not wraps:
        setattr(cls, name, _method(cls, name, wraps))
    wraps.append(wrap)

    def check() -> None:
        if type(owner) is not cls:
            raise RuntimeError(
                f"the class of {cls.__name__} was replaced after the patch: undo that first, then unpatch"
            )

    def remove() -> None:
        wraps.remove(wrap)
        if not any(vars(cls)["_soundclip_wraps"].values()):
            owner.__class__ = cls.__base__  # type: ignore[assignment]

    undo.push(remove, check=check)


def stock_class(module: nn.Module) -> Any:
    """The class of a module, without the overrides of a patch."""
    return next(cls for cls in type(module).__mro__ if "_soundclip_wraps" not in vars(cls))


def _patched_class(stock: Any) -> Any:
    def reduce(self: Any, protocol: Any) -> Any:
        _, _, *state = super(cls, self).__reduce_ex__(protocol)
        return copyreg._reconstructor, (stock, object, None), *state  # type: ignore[attr-defined]

    def new(made: Any, *args: Any, **kwargs: Any) -> Any:
        # `type(model)(config)` and `type(model).from_pretrained(...)` make stock models. A replica of
        # `nn.DataParallel` is made without arguments.
        return stock(*args, **kwargs) if made is cls and (args or kwargs) else stock.__new__(made)

    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"__new__": new, "__reduce_ex__": reduce, "_soundclip_wraps": {}}
    cls: Any = type(stock.__name__, (stock,), {**names, **own})
    return cls


def _method(cls: type, name: str, wraps: list[Callable[..., Any]]) -> Callable[..., Any]:
    base: Any = cls.__base__

    @functools.wraps(getattr(base, name))  # transformers reads the signature
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(getattr(base, name), self)
        for wrap in wraps:
            call = functools.partial(wrap, self, call)
        return call(*args, **kwargs)

    return method


class _Own:
    """Wraps a method that an instance had of its own. A copy gets the class's method, and a pickle the one before."""

    def __init__(self, owner: nn.Module, name: str, wrap: Callable[..., Any]) -> None:
        self._owner, self._name, self._wrap = owner, name, wrap
        self._before = vars(owner)[name]
        functools.update_wrapper(self, self._before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrap(self._owner, self._before, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(stock_class(self._owner), self._name).__get__(memo[id(self._owner)])

    def __reduce__(self) -> Any:
        return _same, (self._before,)


def _same(value: Any) -> Any:
    return value


def _wrap_own(owner: nn.Module, name: str, wrap: Callable[..., Any], undo: Undo) -> None:
    method = _Own(owner, name, wrap)

    def check() -> None:
        if vars(owner).get(name) is not method:
            raise RuntimeError(
                f"{type(owner).__name__}.{name} was replaced after the patch: undo that first, then unpatch"
            )

    setattr(owner, name, method)
    undo.push(lambda: setattr(owner, name, method._before), check=check)


def signature_of(module: nn.Module, name: str) -> inspect.Signature:
    """The signature of a method; of the class that names its arguments, if a subclass has `*args` only."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            signature = inspect.signature(vars(cls)[name])
            if not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
                break
    return signature.replace(parameters=list(signature.parameters.values())[1:])  # without self


def arguments_by_name(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name."""
    arguments = signature.bind(*args, **kwargs).arguments
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    return {**arguments.pop(rest, {}), **arguments}
