"""Opening, describing and decoding files, starting at any time.

Times are seconds on the video's own clock, which starts at the container's start time.
"""

import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar

from llava_soundclip._text import printable

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

MAX_SECONDS = 3600.0  # length of a sound that is decoded; a small file may claim days
MAX_PIXELS = 2**26  # pixels of a picture that is decoded: more than any video's, and most cameras' pictures

TICK = 1e-4  # seconds; tolerance for rounded time stamps

_STEP_BACK = 10.0  # seconds to go back when a seek lands after its target
# FFmpeg's flags of formats whose files can be joined, with time stamps that begin anew (AVFMT_TS_DISCONT), and of those
# without time stamps, whose time is counted in frames (AVFMT_GENERIC_INDEX).
_MAY_RESTART, _COUNTED = 0x0200, 0x0100
RESTART = 1.0  # seconds by which time stamps go back when a clock begins anew
_SLACK = 0.5  # seconds that a header's duration may be wrong; beyond, the measured one counts

Kind: TypeAlias = Literal["audio", "video"]
T = TypeVar("T")


class MediaError(ValueError):
    """Error for a file that can't be decoded as requested. The message names the file and the reason."""


class MediaWarning(UserWarning):
    """Warning for a file of which not everything is used as one might expect. The message names the file."""


class _UndecodableError(MediaError):
    """Error for a track of which nothing can be decoded, though it has packets."""


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a file from its headers, without decoding."""

    duration: float | None  # seconds; None if unknown, and for a still picture
    has_audio: bool
    has_video: bool  # also for a still picture
    sampling_rate: int | None  # Hz
    channels: int | None


def probe(source: Source) -> MediaInfo:
    """Read the facts about a file from its headers.

    Raises:
        MediaError: if the file can't be read.
        TypeError: if `source` isn't a path, bytes or a binary file object.
    """
    with opened(source) as (container, _):
        audio, video = container.streams.best("audio"), container.streams.best("video")
        codec = audio.codec_context if audio is not None else None  # None for a codec without a decoder
        return MediaInfo(
            duration=None if is_still(container) else duration_of(container),
            has_audio=audio is not None,
            has_video=video is not None,
            sampling_rate=codec.sample_rate if codec is not None else None,
            channels=codec.channels if codec is not None else None,
        )


def check_seconds(name: str, value: float) -> None:
    """Check a time.

    Raises:
        ValueError: if it isn't a finite number of seconds, 0 or more; the message has its name.
    """
    if isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be seconds, 0 or more, not {value!r}")


class _Bytes:
    """A binary file without its name, since FFmpeg interprets names ("%03d", "http:", ".m3u8")."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        if _is_seekable(file):
            file.seek(0)
            self.seek, self.tell = file.seek, file.tell


def _is_seekable(file: BinaryIO) -> bool:
    """Whether a file can seek. It may be a minimal object with `read`, and perhaps `seek` and `tell`."""
    return file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")


def name_and_file(source: Source) -> tuple[str, BinaryIO]:
    """The name of a source for messages, and the source as an open binary file.

    Raises:
        MediaError: if the file can't be opened.
        TypeError: if `source` isn't a path, bytes or a binary file object.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>", io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        shown = printable(path)
        reason = never_opened(path)
        if reason is not None:
            raise MediaError(reason)
        try:
            return shown, open(path, "rb")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise MediaError(f"{shown}: {getattr(error, 'strerror', None) or error}") from error
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"source must be a path, bytes or a binary file object, not {type(source).__name__}"
            " (pass arrays to check_waveform and resample)"
        )
    return printable(str(getattr(source, "name", "<file object>"))), source


def never_opened(path: str) -> str | None:
    """The reason why a path is never opened; None if it may be opened.

    Addresses aren't downloaded. A pipe or a device may wait for ever, never end, or give its content only once.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return address_fault(path)
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    return f"{printable(path)}: it is {kind}, not a file: save its content to a file, and give its path"


def address_fault(path: str) -> str | None:
    """The reason why a path that isn't a file can't be one: it is an address or a data URI; None if it may be."""
    if re.match(r"data:[^,]*,", path):
        return f"{printable(path, 40)}: it is a data URI: save its content to a file, and give its path"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        return f"{printable(path, 200)}: it is an address: download the file, and give its path"
    return None


def can_read_again(source: Source) -> bool:
    """Whether a source can be opened more than once."""
    return isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)) or _is_seekable(source)


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, str]]:
    """Yield an open container and the file's name. PyAV's errors in the block become MediaErrors."""
    import av

    name, file = name_and_file(source)
    try:
        if _is_seekable(file):
            file.seek(0, io.SEEK_END)
            if file.tell() == 0:
                raise MediaError(f"{name}: it is empty")
        with av.open(
            _Bytes(file),
            metadata_errors="replace",
            options={"protocol_whitelist": "none"},  # a playlist must not open other files or addresses
        ) as container:
            yield container, name
    except MediaError:
        raise
    except av.InvalidDataError as error:
        raise MediaError(f"{name}: it isn't a media file, or it is truncated or damaged") from error
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if file is not source:
            file.close()


def is_still(container: Any) -> bool:
    """True for a picture file. FFmpeg's demuxers for pictures have names such as "png_pipe"."""
    return container.format.name.endswith("_pipe")


def _origin(container: Any) -> float:
    """Start of the video's clock in seconds. Codecs discard everything before zero."""
    return max(0.0, (container.start_time or 0) / 1e6)


def duration_of(container: Any) -> float | None:
    """Duration in seconds; None if unknown."""
    return container.duration / 1e6 if container.duration and container.duration > 0 else None


def decode_track(
    container: Any, name: str, kind: Kind, use: Callable[["Track"], T], number: int | None = None
) -> T:
    """Use a track of an open container: the best one that can be decoded.

    If another than the best is used, a `MediaWarning` names both.

    Args:
        container: the open container.
        name: its name, for messages.
        kind: the kind of track.
        use: function of a track.
        number: number of the track among those of its kind, counted from 0; None for the best.

    Returns:
        The result of `use`.

    Raises:
        MediaError: if there is no such track, or none can be decoded.
    """
    tracks = _tracks(container, name, kind, number)
    faults: list[MediaError] = []
    for stream in tracks:
        try:
            found = use(Track(container, name, stream, untouched=not faults))
        except _UndecodableError as error:
            faults.append(error)
            continue
        if faults:
            what = "sound" if kind == "audio" else "picture"
            warn(
                name,
                f"{what} track {_number(container, tracks[0])} can't be decoded; track "
                f"{_number(container, stream)} ({stream.codec_context.name}) is used (track= chooses another)",
            )
        return found
    raise faults[0]


def warn(name: str, text: str) -> None:
    """Warn of something about a file."""
    warnings.warn(f"{name}: {text}", MediaWarning, stacklevel=2)


def _tracks(container: Any, name: str, kind: Kind, number: int | None) -> list[Any]:
    """The streams to try, the best first."""
    of_kind = [stream for stream in container.streams if stream.type == kind]
    what = "sound" if kind == "audio" else "picture"
    if number is not None:
        if not 0 <= number < len(of_kind):
            raise MediaError(f"{name}: it has no {what} track {number}: {_listed(of_kind, what)}")
        return [of_kind[number]]
    best = container.streams.best(kind)
    if best is None:
        raise MediaError(f"{name}: it has no {'sound' if kind == 'audio' else 'pictures'}")
    return [best, *(stream for stream in of_kind if stream.index != best.index)]


def _number(container: Any, stream: Any) -> int:
    """The number of a stream among those of its kind."""
    return sum(other.type == stream.type and other.index < stream.index for other in container.streams)


def _listed(streams: list[Any], what: str) -> str:
    if not streams:
        return f"it has no {what} tracks"
    codecs = [getattr(stream.codec_context, "name", "no decoder") for stream in streams]
    return "its tracks are " + ", ".join(f"{number} ({codec})" for number, codec in enumerate(codecs))


def has_restarts(source: Source, index: int) -> bool:
    """Whether the time stamps of a stream begin anew somewhere, as in joined files. Its packets are read once.

    Args:
        source: a file that can be read again.
        index: index of the stream.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _restarts(source, index)
    about = os.stat(source)
    return _path_restarts(os.path.abspath(source), index, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)  # a long file may have many clips
def _path_restarts(path: str, index: int, size: int, changed: int) -> bool:
    return _restarts(path, index)


def _restarts(source: Source, index: int) -> bool:
    with opened(source) as (container, name):
        track = Track(container, name, container.streams[index])
        last = -math.inf
        for packet in track.packets(0.0):
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                if time < last - RESTART:
                    return True
                last = time
    return False


class Track:
    """A stream of an open container, decoded starting at any time.

    Packets that can't be decoded are skipped, as in players. Damage that FFmpeg can't skip ends the track.
    `failure` holds the last of these errors, for the case that nothing can be decoded, and `broken` the one that ended
    the track.
    """

    def __init__(self, container: Any, name: str, stream: Any, *, untouched: bool = True) -> None:
        import av

        if stream.codec_context is None:
            raise _UndecodableError(f"{name}: there is no decoder for its {stream.type}")
        self.container, self.stream, self.name = container, stream, name
        self.origin = _origin(container)
        self.failure: Exception | None = None
        self.broken: Exception | None = None
        self._untouched = untouched  # whether the container is at its beginning
        # A seek fails in raw streams, which have no clock, and in cover pictures, but still moves the file.
        self.is_cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
        has_clock = container.start_time is not None or container.duration is not None
        self.can_seek = has_clock and not self.is_cover
        self.may_restart = bool(container.format.flags & _MAY_RESTART)
        self.is_counted = bool(container.format.flags & _COUNTED)

    def frames(self, at: float) -> Iterator[tuple[float, Any]]:
        """Yield (seconds, frame) to the end, from a frame at or before `at` if there is one.

        If a seek lands too late (no index, no key frame, missing data), the next seek goes further back.
        """
        for back in (at, at - _STEP_BACK, 0.0) if self.can_seek else (0.0,):
            frames = self._frames_from(max(0.0, back))
            first = next(frames, None)
            if first is not None and (back <= 0 or first[0] <= at + TICK):
                yield first
                yield from frames
                return
            if back <= 0:
                return

    def packets(self, at: float) -> Iterator[Any]:
        """Yield packets from a seek to `at` seconds on. An error of FFmpeg ends them and is kept in `failure`."""
        import av

        try:
            if at > 0:
                timestamp = math.floor((self.origin + at) / self.stream.time_base)
                self.container.seek(timestamp, stream=self.stream)
            elif not self._untouched:
                self.container.seek(min(0, self.container.start_time or 0))
            self._untouched = False
            yield from self.container.demux(self.stream)
        except av.FFmpegError as error:
            self.failure = error

    def end(self) -> float | None:
        """End of the file in seconds, by its last packets; None if they have no times. Nothing is decoded."""
        import av

        claimed = duration_of(self.container)
        cover = av.stream.Disposition.attached_pic
        kinds = ("audio", "video")
        streams = [s for s in self.container.streams if s.type in kinds and not s.disposition & cover]
        for start in (claimed, 0.0):
            if start is None:
                continue
            ends = []
            try:
                self.container.seek(math.floor((self.origin + start) * 1e6))
                self._untouched = False
                for packet in self.container.demux(streams):
                    if packet.size and packet.pts is not None:
                        ends.append((packet.pts + (packet.duration or 0)) * packet.time_base)
            except av.FFmpegError:
                pass  # damage at the end: the packets before it count
            if ends:
                return float(max(ends)) - self.origin
        return None

    def length(self) -> float | None:
        """Length of the file in seconds: as in its header, or as measured if the header has none or a wrong one."""
        claimed = duration_of(self.container)
        measured = self.end() if self.can_seek else None
        if claimed is None or measured is None or abs(claimed - measured) <= _SLACK:
            return measured if claimed is None else claimed
        return measured

    def _frames_from(self, at: float) -> Iterator[tuple[float, Any]]:
        import av

        clock = None if at > 0 else 0.0  # for frames without a time stamp
        shift = 0.0  # seconds by which a clock that began anew is behind
        for packet in self.packets(at):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self.failure = error
                continue
            for frame in frames:
                if frame.pts is not None:
                    time = float(frame.pts * frame.time_base) - self.origin + shift
                    if clock is not None and time < clock - RESTART:
                        shift += clock - time
                        time = clock
                    clock = time
                if clock is None:
                    return
                yield clock, frame
                is_sound = self.stream.type == "audio"
                clock += frame.samples / max(1, frame.sample_rate) if is_sound else self.frame_length

    @property
    def frame_length(self) -> float:
        """Duration of a frame in seconds, for frames without time stamps."""
        return float(1 / (self.stream.average_rate or self.stream.guessed_rate or 25))

    def nothing(self) -> MediaError:
        """The error for a track that can't be decoded at all."""
        what = "sound" if self.stream.type == "audio" else "picture"
        reason = getattr(self.failure, "strerror", None) or self.failure
        kind = MediaError if self.failure is None else _UndecodableError
        return kind(f"{self.name}: its {what} is empty" + (f" or damaged: {reason}" if reason else ""))
