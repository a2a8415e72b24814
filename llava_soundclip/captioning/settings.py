"""The options of a captioning run, and the settings that it compares."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from llava_soundclip.clips import FrameTime
from llava_soundclip.controls import ANOTHER, CaptionControl
from llava_soundclip.fingerprints import fingerprint

if TYPE_CHECKING:
    from llava_soundclip.patching import SoundCLIP


@dataclass(frozen=True)
class CaptionOptions:
    """Options of a run over many clips.

    Attributes:
        prompt: the question; None for the handle's own.
        frame: the frame of a video to use: "middle", "first", or its time in seconds.
        max_new_tokens: maximum length of a caption, in tokens.
        batch_size: clips per batch.
        do_sample: whether to sample; None leaves it to the model's generation config.

    Raises:
        ValueError: if a number is below 1, or for an unknown `frame`.
    """

    prompt: str | None = None
    frame: FrameTime = "middle"
    max_new_tokens: int = 128
    batch_size: int = 8
    do_sample: bool | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if isinstance(self.frame, str) and self.frame not in ("middle", "first"):
            raise ValueError(f"frame is middle, first, or seconds, not {self.frame!r}")


@dataclass(frozen=True)
class Setting:
    """One way to caption clips, to compare with others.

    Attributes:
        alignment: "raw", "projected" or alpha; None for the handle's own.
        k: number of patches that keep their value; None for the handle's own.
        control: "another" for another clip's sound, "noise" or "zero" in the sound's place, or "random" for random
            patches; None for no control.
        name: its name in rows and figures; None for rows without a name.

    Raises:
        ValueError: for an unknown control.
    """

    alignment: str | float | None = None
    k: int | None = None
    control: CaptionControl | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.control is not None and self.control not in get_args(CaptionControl):
            raise ValueError(
                f"control must be {', '.join(get_args(CaptionControl))} or None, not {self.control!r}"
            )

    @contextmanager
    def applied_to(self, soundclip: "SoundCLIP") -> Iterator[None]:
        """Set a handle's alignment, k and control inside a block. They are restored afterwards."""
        before = soundclip.alignment, soundclip.k, soundclip.control
        try:
            if self.alignment is not None:
                soundclip.alignment = self.alignment
            if self.k is not None:
                soundclip.k = self.k
            soundclip.control = None if self.control == ANOTHER else self.control
            yield
        finally:
            soundclip.alignment, soundclip.k, soundclip.control = before


def describe(soundclip: "SoundCLIP") -> dict[str, Any]:
    """The options of a handle that change its captions but not its settings, as plain data."""
    state = None if soundclip.projector is None else soundclip.projector.state_dict()
    return {
        "encoder": dict(soundclip.encoder.signature()),
        "projector": state and fingerprint(state),
        "tokens": soundclip.tokens,
        "norm": soundclip.norm,
        "prompt": soundclip.prompt,
    }
