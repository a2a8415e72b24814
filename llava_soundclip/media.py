"""Files to waveforms and pictures. Knows no model; PyAV is the only decoder.

Times are seconds on the film's own clock, which begins where the container says that it begins.
"""

import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = [
    "MediaError",
    "MediaInfo",
    "Source",
    "check_waveform",
    "load_audio",
    "load_frame",
    "probe",
    "resample",
]

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_MAX_CHANNELS = 64  # more "channels" than this are samples: a (samples, channels) array
_MAX_PEAK = 8.0  # float sound may exceed 1 a little; far more is integer samples in a float array
_MAX_RATE = 768_000  # Hz, the highest that audio interfaces and formats use
_MIN_FILE_RATE = 100  # Hz; below this a header is wrong, and resampling would blow the sound up
_CONTEXT = 0.1  # seconds round a cut, so that the resampler's filter sees what the whole sound has there
_PREROLL = 0.5  # seconds before a cut: lossy codecs need some frames after a seek to settle
_STEP_BACK = 10.0  # seconds to try further back when a seek lands behind its target
_EXIF_ORIENTATION = 0x0112
_TICK = 1e-4  # seconds that rounded time stamps may be off


class MediaError(ValueError):
    """A file that can't give what was asked for. The message names the file and the reason."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file says about itself, without decoding it."""

    duration: float | None  # seconds; None if the file doesn't say, and for a still picture
    has_audio: bool
    has_video: bool  # a still picture too
    sampling_rate: int | None  # Hz
    channels: int | None


def check_waveform(waveform: "np.ndarray | Tensor", *, name: str = "sound") -> np.ndarray:
    """Check a sound that came as an array and give it its usual form.

    Args:
        waveform: float16, float32, float64 or bfloat16 in [-1, 1], numpy or torch (any device),
            (samples,) or (channels, samples). It isn't changed, but the result may share its memory.
        name: what error messages call it.

    Returns:
        (channels, samples) float32, C-contiguous.

    Raises:
        TypeError: if it isn't an array of floats.
        ValueError: for no samples, another number of axes, NaN or infinity, samples far outside [-1, 1],
            or axes that look swapped. The message says what to do.
    """
    if hasattr(waveform, "detach"):  # torch, which needn't be imported for this
        tensor = waveform.detach().cpu()
        waveform = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if not isinstance(waveform, np.ndarray):
        raise TypeError(f"{name} must be a numpy or torch array of floats, not {type(waveform).__name__}")
    if np.issubdtype(waveform.dtype, np.integer):
        peak = f"{float(np.iinfo(waveform.dtype).max) + 1:.0f}"
        raise TypeError(
            f"{name} holds {waveform.dtype}, but must be float in [-1, 1]: "
            f"divide by {peak} (sound.astype('float32') / {peak})"
        )
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"{name} holds {waveform.dtype}, but must be float in [-1, 1]")
    if waveform.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {waveform.shape}: give (samples,) or (channels, samples)")
    if waveform.size == 0:
        raise ValueError(f"{name} is empty: its shape is {waveform.shape}")
    if waveform.ndim == 2 and waveform.shape[0] > _MAX_CHANNELS:
        raise ValueError(
            f"{name} has shape {waveform.shape}, {waveform.shape[0]} channels: "
            "the axes are (channels, samples), so transpose it (sound.T)"
        )
    low, high = float(waveform.min()), float(waveform.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinity")
    if max(-low, high) > _MAX_PEAK:
        raise ValueError(
            f"{name} reaches from {low:g} to {high:g}, far outside [-1, 1]: integer samples in a float "
            "array? Divide them by the integer type's range (32768 for int16)"
        )
    return np.ascontiguousarray(np.atleast_2d(waveform), dtype=np.float32)


def resample(waveform: np.ndarray, from_rate: float, to_rate: float) -> np.ndarray:
    """Resample a sound, each channel by itself (soxr, HQ).

    Args:
        waveform: (channels, samples) float32.
        from_rate: Hz of `waveform`.
        to_rate: Hz of the result. The same rate gives `waveform` itself.

    Returns:
        (channels, samples') float32, one sample at least.

    Raises:
        ValueError: for a rate that isn't a number of Hz in (0, 768000].
    """
    for rate in (from_rate, to_rate):
        _check_rate(rate)
    if from_rate == to_rate:
        return waveform
    import soxr

    result = soxr.resample(np.ascontiguousarray(waveform.T), from_rate, to_rate, quality="HQ")
    return _at_least_one_sample(result, waveform)


def load_audio(
    source: Source, *, sampling_rate: int, start: float = 0.0, duration: float | None = None
) -> np.ndarray:
    """Decode the sound of a file, or a part of it, in memory that grows with the part alone.

    A part equals the same slice of the whole sound (lossy codecs: nearly). No silence is made up: a
    sound that begins later than the film, or ends before `start + duration`, gives what there is. From
    a damaged or cut file comes what can be decoded of it.

    Args:
        source: path, bytes or binary file object (read from its beginning), in any container and codec
            that PyAV knows; a film's best sound track is taken.
        sampling_rate: Hz of the result.
        start: seconds on the film's clock.
        duration: seconds; None for all that follows.

    Returns:
        (channels, samples) float32, in [-1, 1] but for a little overshoot of lossy codecs.

    Raises:
        MediaError: if the file can't be read, or holds no sound there.
        TypeError: if `source` is none of the above.
        ValueError: for an absurd `sampling_rate`, `start` or `duration`.
    """
    _check_rate(sampling_rate)
    _check_seconds("start", start)
    if duration is not None:
        _check_seconds("duration", duration)
        if duration == 0:
            raise ValueError("duration must be above 0 s")
    with _open(source) as (container, name):
        stream = container.streams.best("audio")
        if stream is None:
            raise MediaError(f"{name}: it has no sound")
        waveform = _cut(_Track(container, stream, name), sampling_rate, start, duration)
    try:
        return check_waveform(waveform, name="the sound")
    except ValueError as error:
        raise MediaError(f"{name}: {error}") from error


def load_frame(
    source: "Source | Image.Image | np.ndarray", *, time: float | Literal["first", "middle"] = "middle"
) -> "Image.Image":
    """Decode one picture: a film's frame, or a still picture, turned the way its metadata asks.

    Args:
        source: path, bytes or binary file object (read from its beginning) of a film or picture; or a
            PIL picture, or a (H, W, 3) uint8 array, which come back as RGB.
        time: seconds on the film's clock (the frame on screen then), "first" or "middle". Still
            pictures pay no attention to it.

    Returns:
        RGB picture.

    Raises:
        MediaError: if the file can't be read, has no pictures, or ends before `time`.
        TypeError: if `source` is none of the above.
        ValueError: for another `time`, or another array.
    """
    from PIL import Image

    if isinstance(time, str):
        if time not in ("first", "middle"):
            raise ValueError(f"time must be seconds, 'first' or 'middle', not {time!r}")
    else:
        _check_seconds("time", time)
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f"a picture must be (H, W, 3) uint8, not {source.shape} {source.dtype}")
        return Image.fromarray(source)
    with _open(source) as (container, name):
        stream = container.streams.best("video")
        if stream is None:
            raise MediaError(f"{name}: it has no pictures")
        still = _is_still(container)
        frame = _frame_at(_Track(container, stream, name), "first" if still else time)
        pixels = frame.to_ndarray(format="rgb24")
        turned = pixels if still else _turn(pixels, frame)
    picture = Image.fromarray(np.ascontiguousarray(turned))
    return _turn_as_exif(picture, source) if still else picture


def probe(source: Source) -> MediaInfo:
    """Read what a file says about itself.

    Raises:
        MediaError: if it can't be read.
        TypeError: if `source` isn't a path, bytes or a binary file object.
    """
    with _open(source) as (container, _):
        audio, video = container.streams.best("audio"), container.streams.best("video")
        return MediaInfo(
            duration=None if _is_still(container) else _duration(container),
            has_audio=audio is not None,
            has_video=video is not None,
            sampling_rate=audio.codec_context.sample_rate if audio is not None else None,
            channels=audio.codec_context.channels if audio is not None else None,
        )


def _check_rate(rate: float) -> None:
    if isinstance(rate, bool) or not 0 < rate <= _MAX_RATE:
        raise ValueError(f"a sampling rate must be in (0, {_MAX_RATE}] Hz, not {rate!r}")


def _check_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be seconds, 0 or more, not {value!r}")


def _at_least_one_sample(result: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """(channels, samples) of soxr's (samples, channels); the mean where that is too short for a sample."""
    if len(result) == 0:
        return waveform.mean(axis=1, keepdims=True)
    return np.ascontiguousarray(result.T)


class _Bytes:
    """A binary file without its name: FFmpeg reads meanings into names ("%03d", "http:", ".m3u8")."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        if file.seekable():
            file.seek(0)
            self.seek, self.tell = file.seek, file.tell


def _name_and_file(source: Source) -> tuple[str, BinaryIO]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>", io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            return name, open(name, "rb")
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise MediaError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        raise TypeError(
            f"source must be a path, bytes or a binary file object, not {type(source).__name__}"
            " (an array goes to check_waveform and resample)"
        )
    return str(getattr(source, "name", "<file object>")), source


@contextmanager
def _open(source: Source) -> Iterator[tuple[Any, str]]:
    """An open container and the file's name. What PyAV raises in the block becomes a MediaError."""
    import av

    name, file = _name_and_file(source)
    try:
        with av.open(
            _Bytes(file),
            metadata_errors="replace",
            options={"protocol_whitelist": "none"},  # a playlist must not open other files or addresses
        ) as container:
            yield container, name
    except MediaError:
        raise
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if file is not source:
            file.close()


def _is_still(container: Any) -> bool:
    """Whether this is a picture file (FFmpeg's demuxers for them are called "png_pipe" and so on)."""
    return container.format.name.endswith("_pipe")


def _origin(container: Any) -> float:
    """Seconds at which the film's clock starts. Before zero there is only what codecs cut off."""
    return max(0.0, (container.start_time or 0) / 1e6)


def _duration(container: Any) -> float | None:
    """Seconds from the film's beginning to its end, None if it doesn't say."""
    return container.duration / 1e6 if container.duration and container.duration > 0 else None


class _Track:
    """One stream of an open container, decoded from any time on.

    Packets that can't be decoded are skipped, as players do, and a read error ends the track; `failure`
    keeps the last of these errors for the case that nothing else comes.
    """

    def __init__(self, container: Any, stream: Any, name: str) -> None:
        self.container, self.stream, self.name = container, stream, name
        self.origin = _origin(container)
        self.failure: Exception | None = None
        self._untouched = True

    def frames(self, at: float) -> Iterator[tuple[float, Any]]:
        """(seconds, frame) from a frame at or before `at` if there is one, to the end.

        Where a seek lands too late (no index, no key frame, data cut off) another goes further back.
        """
        for back in (at, at - _STEP_BACK, 0.0):
            frames = self._frames_from(max(0.0, back))
            first = next(frames, None)
            if first is not None and (back <= 0 or first[0] <= at + _TICK):
                yield first
                yield from frames
                return
            if back <= 0:
                return

    def packets(self, at: float) -> Iterator[Any]:
        import av

        try:
            if at > 0:
                timestamp = math.floor((self.origin + at) / self.stream.time_base)
                self.container.seek(timestamp, stream=self.stream)
            elif not self._untouched:
                self.container.seek(min(0, self.container.start_time or 0))
            self._untouched = False
            yield from self.container.demux(self.stream)
        except (av.FFmpegError, OSError) as error:
            self.failure = error

    def _frames_from(self, at: float) -> Iterator[tuple[float, Any]]:
        import av

        clock = None if at > 0 else 0.0  # for frames without a time stamp
        for packet in self.packets(at):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self.failure = error
                continue
            for frame in frames:
                if frame.pts is not None:
                    clock = float(frame.pts * frame.time_base) - self.origin
                if clock is None:
                    return
                yield clock, frame
                clock += self._length(frame)

    def _length(self, frame: Any) -> float:
        """Seconds that a frame lasts."""
        if self.stream.type == "audio":
            return frame.samples / max(1, frame.sample_rate)
        return float(1 / (self.stream.average_rate or self.stream.guessed_rate or 25))

    def nothing(self) -> MediaError:
        """The error for a track of which nothing can be decoded."""
        what = "sound" if self.stream.type == "audio" else "picture"
        reason = getattr(self.failure, "strerror", None) or self.failure
        return MediaError(f"{self.name}: its {what} is empty" + (f" or damaged: {reason}" if reason else ""))


def _cut(track: _Track, to_rate: int, start: float, duration: float | None) -> np.ndarray:
    """(channels, samples) at `to_rate` from `start` on; what lies outside isn't kept at any time."""
    import soxr

    frames = track.frames(start - _CONTEXT - _PREROLL if start else 0.0)
    time, frame = next(frames, (0.0, None))
    if frame is None:
        raise track.nothing()
    block = _samples(frame)
    rate, channels = frame.sample_rate, len(block)
    if not _MIN_FILE_RATE <= rate <= _MAX_RATE:
        raise MediaError(f"{track.name}: it claims a sampling rate of {rate} Hz")

    # Positions are samples on the film's clock. Input starts where both rates have a sample, so that the
    # output falls on the same grid as that of the whole sound.
    period = rate // math.gcd(rate, to_rate)
    position = round(time * rate)
    begin, end, low, high = position, sys.maxsize, -sys.maxsize, sys.maxsize
    if start:
        begin = max(position, math.floor((start - _CONTEXT) * rate / period) * period)
        low = round(start * to_rate)
    if duration is not None:
        end = math.ceil((start + duration + _CONTEXT) * rate)
        high = max(round((start + duration) * to_rate), round(start * to_rate) + 1)
    stream = soxr.ResampleStream(rate, to_rate, channels, dtype="float32", quality="HQ")
    out = round(begin * to_rate / rate)
    kept: list[np.ndarray] = []

    def keep(block: np.ndarray, *, last: bool = False) -> None:
        nonlocal out
        if rate != to_rate:
            block = stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
        wanted = block[:, max(0, low - out) : max(0, high - out)]
        if wanted.size:
            kept.append(wanted.copy())
        out += block.shape[1]

    while frame is not None and position < end:
        block = _samples(frame)
        if (frame.sample_rate, len(block)) != (rate, channels):
            raise MediaError(
                f"{track.name}: its sound changes from {channels} channels at {rate} Hz to {len(block)} at "
                f"{frame.sample_rate} Hz in the middle"
            )
        keep(block[:, max(0, begin - position) : end - position])
        position += block.shape[1]
        _, frame = next(frames, (0.0, None))
    keep(np.empty((channels, 0), np.float32), last=True)
    if kept:
        return np.concatenate(kept, axis=1)
    if low < position * to_rate / rate < high and block.size:  # shorter than one sample at the new rate
        return block.mean(axis=1, keepdims=True)
    if position <= 0:
        raise track.nothing()
    until = "" if duration is None else f" to {start + duration:g} s"
    raise MediaError(
        f"{track.name}: it has no sound from {start:g} s{until}; its sound goes from "
        f"{time:.2f} s to {position / rate:.2f} s"
    )


def _samples(frame: Any) -> np.ndarray:
    """(channels, samples) float32 in [-1, 1] of a decoded frame in any sample format."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / 2.0 ** (8 * samples.dtype.itemsize - 1)
    return samples.astype(np.float32)


def _frame_at(track: _Track, time: float | Literal["first", "middle"]) -> Any:
    """The frame on screen at a time: the last that begins at it or before, or else the first."""
    duration = _duration(track.container)
    if isinstance(time, str):
        time = 0.0 if time == "first" else _middle(track)
    elif duration is not None and time > duration:
        raise MediaError(f"{track.name}: it ends at {duration:.2f} s, so it has no frame at {time:g} s")
    shown = None
    for begins, frame in track.frames(time):
        if shown is not None and begins > time + _TICK:
            break
        shown = frame
    if shown is None:
        raise track.nothing()
    return shown


def _middle(track: _Track) -> float:
    """Seconds of the middle of a film's pictures; read through, not decoded, if it doesn't say."""
    stream, base = track.stream, track.stream.time_base
    if stream.duration:
        return max(0.0, float(((stream.start_time or 0) + stream.duration / 2) * base) - track.origin)
    if duration := _duration(track.container):
        return duration / 2
    count, end = 0, 0.0
    for packet in track.packets(0.0):
        if packet.size:
            count += 1
            if packet.pts is not None:
                end = max(end, float(packet.pts * base) - track.origin)
    return (end or count / float(stream.average_rate or stream.guessed_rate or 25)) / 2


def _turn(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Turn and mirror (H, W, 3) as a film's display matrix asks, by quarter turns."""
    try:
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return pixels
    except ValueError:  # PyAV lists no side data at all beside a kind that it doesn't know
        return np.rot90(pixels, round(frame.rotation / 90))
    a, b, _, c, d = matrix[:5].tolist()  # the pixel (p, q) is shown at (a p + c q, b p + d q)
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _turn_as_exif(picture: "Image.Image", source: Source) -> "Image.Image":
    """Turn a still picture as its EXIF orientation asks. Pillow reads the header, it decodes nothing."""
    from PIL import Image, ImageOps

    _, file = _name_and_file(source)
    try:
        file.seek(0)
        with Image.open(file) as header:
            picture.getexif()[_EXIF_ORIENTATION] = header.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError):  # a format that Pillow doesn't know
        return picture
    finally:
        if file is not source:
            file.close()
    return ImageOps.exif_transpose(picture)
