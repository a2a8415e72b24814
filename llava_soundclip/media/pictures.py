"""Frames of a video or an animation, or a still picture."""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from llava_soundclip.media.files import (
    MAX_PIXELS,
    RESTART,
    TICK,
    MediaError,
    Source,
    Track,
    can_read_again,
    check_seconds,
    decode_track,
    duration_of,
    has_restarts,
    is_still,
    name_and_file,
    opened,
)

_EXIF_ORIENTATION = 0x0112
_THINNEST = 200  # times as long as wide: models enlarge the short side, so a thinner picture takes gigabytes
# What Pillow raises on files that it can't read.
_NO_PICTURE = (OSError, ValueError, SyntaxError, OverflowError, struct.error, Image.DecompressionBombError)
_MOST_STRETCHED = 4  # a pixel of other proportions is an error in the header


def load_frame(
    source: Source | Image.Image | np.ndarray,
    *,
    time: float | Literal["first", "middle"] = "middle",
    track: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode one picture: a frame of a video, or a still picture, as it is shown.

    It is rotated according to its metadata. A video whose pixels aren't square is stretched to its shape on a screen.

    Args:
        source: path, bytes or binary file object (read from its beginning) of a video or picture. A PIL picture or
            an (H, W, 3) uint8 array is returned as RGB.
        time: time of the frame: seconds on the video's clock, "first" or "middle". Ignored for still pictures.
        track: number of the video track, counted from 0; None for the best one that can be decoded.
        max_pixels: number of pixels above which a file is refused.

    Returns:
        RGB picture.

    Raises:
        MediaError: if the file can't be read, has no pictures, too large or too thin ones, or ends before `time`.
        TypeError: if `source` is none of the above.
        ValueError: for an invalid `time`, or an array of another shape or dtype.

    Warns:
        MediaWarning: if another track than the best is used.
    """
    if isinstance(time, str):
        if time not in ("first", "middle"):
            raise ValueError(f"time must be seconds, 'first' or 'middle', not {time!r}")
    else:
        check_seconds("time", time)
    if isinstance(source, Image.Image):
        _check_shape("the picture", *source.size)
        return source.convert("RGB")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f"a picture must be (H, W, 3) uint8, not {source.shape} {source.dtype}")
        _check_shape("the picture", source.shape[1], source.shape[0])
        return Image.fromarray(source)

    def times(shown: _Pictures) -> list[float]:
        if isinstance(time, str):
            return [0.0 if shown.is_still or time == "first" else shown.middle()]
        return [time]

    return _decode(source, times, track, max_pixels)[0]


def load_frames(
    source: Source,
    count: int,
    start: float | None = None,
    end: float | None = None,
    *,
    track: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Image.Image]:
    """Decode evenly spaced frames of a video or a part of it: the middle frame of each of `count` equal parts.

    Args:
        source: a video or a still picture, as in `load_frame`. A still picture is returned once, for any `count`.
        count: number of frames.
        start: start of the part in seconds; None for the beginning.
        end: end of the part in seconds; None for the end.
        track: number of the video track, as in `load_frame`.
        max_pixels: number of pixels above which a file is refused.

    Returns:
        RGB pictures.

    Raises:
        MediaError: if there are no pictures in that part.
    """

    def times(shown: _Pictures) -> list[float]:
        if shown.is_still:
            return [0.0]
        if count == 1 and start is None and end is None:
            return [shown.middle()]
        begin, length = start or 0.0, shown.length()
        stop = length if end is None else min(end, length)
        return [begin + (i + 0.5) * max(0.0, stop - begin) / count for i in range(count)]

    return _decode(source, times, track, max_pixels)


class _Pictures(Protocol):
    """The pictures of a file over time."""

    is_still: bool

    def length(self) -> float:
        """Length in seconds."""

    def middle(self) -> float:
        """Time in seconds of the middle."""

    def at(self, time: float) -> Image.Image:
        """The picture on screen at a time in seconds."""


def _decode(
    source: Source, times: Callable[[_Pictures], Sequence[float]], number: int | None, max_pixels: int
) -> list[Image.Image]:
    """The pictures of a file at some times."""
    if can_read_again(source):
        _check_header(source, max_pixels)
    if _is_for_pillow(source):
        with _with_pillow(source) as (name, picture):
            if picture is not None and picture.format in ("MPO", "WEBP"):
                try:
                    pages = _Pages(picture, name, max_pixels)
                    return [pages.at(time) for time in times(pages)]
                except MediaError:
                    raise
                except (OSError, ValueError, SyntaxError, EOFError) as error:
                    raise MediaError(f"{name}: its picture is empty or damaged: {error}") from error
    with opened(source) as (container, name):

        def use(track: Track) -> list[Image.Image]:
            film = _Film(track, source, max_pixels)
            return [film.at(time) for time in times(film)]

        return decode_track(container, name, "video", use, number)


def _is_for_pillow(source: Source) -> bool:
    """Whether a file may be one that FFmpeg misreads: a JPEG with more pictures behind, or an animated WebP."""
    if not can_read_again(source):
        return False
    _, file = name_and_file(source)
    try:
        file.seek(0)
        head = file.read(21)
    except OSError:
        return False  # its error is given when it is decoded
    finally:
        if file is not source:
            file.close()
    return head[:2] == b"\xff\xd8" or (head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2))


class _Film:
    """The pictures of a video or picture file that FFmpeg decodes.

    Args:
        track: its video track.
        source: the file.
        max_pixels: number of pixels of a frame above which it is refused.
    """

    def __init__(self, track: Track, source: Source, max_pixels: int) -> None:
        header = track.stream.codec_context
        _check_pixels(track.name, header.width, header.height, max_pixels)
        self.max_pixels = max_pixels
        self.track = track
        self.source = source
        self.is_still = is_still(track.container) or track.is_cover
        self._length: float | None = None
        self._is_joined = (
            track.may_restart and can_read_again(source) and has_restarts(source, track.stream.index)
        )
        if self._is_joined:  # several places have the same time stamp
            track.can_seek = False

    def length(self) -> float:
        if self._length is None:
            length = None if self._is_joined else self.track.length()
            self._length = self._by_reading() if length is None else length
        return self._length

    def middle(self) -> float:
        length, claimed = self.length(), duration_of(self.track.container)
        stream = self.track.stream
        if length != claimed or not stream.duration:
            return length / 2
        middle = ((stream.start_time or 0) + stream.duration / 2) * stream.time_base
        return max(0.0, float(middle) - self.track.origin)

    def at(self, time: float) -> Image.Image:
        frame = self._frame_at(0.0 if self.is_still else time)
        _check_pixels(self.track.name, frame.width, frame.height, self.max_pixels)
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        if self.is_still:
            _check_shape(self.track.name, *picture.size)
            return _turn_as_exif(picture, self.source)
        size = _shown_size(picture.size, self.track.stream.sample_aspect_ratio)
        _check_pixels(self.track.name, *size, self.max_pixels)
        _check_shape(self.track.name, *size)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(picture)
        return Image.fromarray(np.ascontiguousarray(_turn(pixels, frame)))

    def _frame_at(self, time: float) -> Any:
        """The frame on screen at a time: the last frame that starts by then, or else the first frame."""
        shown, begins, is_last = None, 0.0, True
        for begins_next, frame in self.track.frames(time):
            if shown is not None and begins_next > time + TICK:
                is_last = False
                break
            shown, begins = frame, begins_next
        if shown is None:
            raise self.track.nothing()
        if is_last and not self.is_still and time > begins + self.track.frame_length + TICK:
            length = self.length()
            if time > length + TICK:
                raise MediaError(
                    f"{self.track.name}: it ends at {length:.2f} s, so it has no frame at {time:g} s"
                )
        return shown

    def _by_reading(self) -> float:
        """Length in seconds of a video whose packets near the end can't be found. It is read but not decoded."""
        if not can_read_again(self.source):
            raise MediaError(f"{self.track.name}: it doesn't say its length, and can be read only once")
        with opened(self.source) as (container, name):
            track = Track(container, name, container.streams[self.track.stream.index])
            count, end, shift = 0, 0.0, 0.0
            for packet in track.packets(0.0):
                if packet.size:
                    count += 1
                    if packet.pts is not None:
                        stops = packet.pts + (packet.duration or 0)
                        stop = float(stops * packet.time_base) - track.origin + shift
                        if stop < end - RESTART:
                            shift += end - stop
                            stop = end
                        end = max(end, stop)
            return end or count * track.frame_length


class _Pages:
    """The pictures of a file that Pillow decodes: an animated WebP, or the first of a JPEG with several pictures.

    Args:
        picture: the open file.
        name: its name, for messages.
        max_pixels: number of pixels above which it is refused.
    """

    def __init__(self, picture: Image.Image, name: str, max_pixels: int) -> None:
        _check_pixels(name, *picture.size, max_pixels)
        _check_shape(name, *picture.size)
        self.picture = picture
        self.name = name
        self.count = getattr(picture, "n_frames", 1)
        self.is_still = picture.format == "MPO" or self.count == 1

    def _frames(self) -> Iterator[tuple[float, Image.Image]]:
        """The end in seconds of each frame, and its picture."""
        ends = 0.0
        for number in range(self.count):
            self.picture.seek(number)
            self.picture.load()  # it holds the duration afterwards
            ends += max(0, self.picture.info.get("duration", 0)) / 1000
            yield ends, self.picture

    def length(self) -> float:
        return max(ends for ends, _ in self._frames())

    def middle(self) -> float:
        return self.length() / 2

    def at(self, time: float) -> Image.Image:
        if self.is_still:
            return ImageOps.exif_transpose(self.picture).convert("RGB")
        length = 0.0
        for ends, picture in self._frames():
            length = ends
            if time + TICK < ends:
                return picture.convert("RGB")
        if time > length + TICK:
            raise MediaError(f"{self.name}: it ends at {length:.2f} s, so it has no frame at {time:g} s")
        return self.picture.convert("RGB")


@contextmanager
def _with_pillow(source: Source) -> Iterator[tuple[str, Image.Image | None]]:
    """The name of a picture file, and the file opened by Pillow, which reads only its header so far.

    It is None for a format that Pillow doesn't know.
    """
    name, file = name_and_file(source)
    try:
        try:
            file.seek(0)
            picture = Image.open(file)
        except _NO_PICTURE:
            yield name, None
            return
        with picture:
            yield name, picture
    finally:
        if file is not source:
            file.close()


def _check_pixels(name: str, width: int, height: int, most: int) -> None:
    """Refuse a picture by the size in its header.

    Raises:
        MediaError: if it has more pixels than allowed; the message names the limit.
    """
    if width * height > most:
        raise MediaError(
            f"{name}: its picture has {width} x {height} pixels: make it smaller, or raise max_pixels={most}"
        )


def _check_shape(name: str, width: int, height: int) -> None:
    if max(width, height) > _THINNEST * min(width, height):
        raise MediaError(
            f"{name}: its picture of {width} x {height} pixels is too thin to be shown to a model"
        )


def _check_header(source: Source, max_pixels: int) -> None:
    """Refuse a picture file before FFmpeg opens it: to know a picture's format, it decodes it."""
    name, file = name_and_file(source)
    try:
        file.seek(0)
        with Image.open(file) as header:
            size = header.size
    except Image.DecompressionBombError as error:  # above a limit of Pillow's own
        if max_pixels <= 2 * (Image.MAX_IMAGE_PIXELS or max_pixels):
            raise MediaError(
                f"{name}: its picture has more than {max_pixels} pixels: make it smaller, or raise "
                f"max_pixels={max_pixels}"
            ) from error
    except _NO_PICTURE:
        pass
    else:
        _check_pixels(name, *size, max_pixels)
    finally:
        if file is not source:
            file.close()


def _shown_size(size: tuple[int, int], pixel: Any) -> tuple[int, int]:
    """The size of a frame on a screen: `pixel` is the width of a pixel by its height; None if unknown."""
    width, height = size
    if not pixel or pixel == 1 or not 1 / _MOST_STRETCHED <= pixel <= _MOST_STRETCHED:
        return size
    return (round(width * pixel), height) if pixel > 1 else (width, round(height / pixel))


def _turn(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Rotate and mirror (H, W, 3) by quarter turns, according to the video's display matrix."""
    try:
        matrix = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return pixels
    except ValueError:  # PyAV lists no side data if it doesn't know one kind
        return np.rot90(pixels, round(frame.rotation / 90))
    a, b, _, c, d = matrix[:5].tolist()  # the pixel (p, q) is shown at (a p + c q, b p + d q)
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _turn_as_exif(picture: Image.Image, source: Source) -> Image.Image:
    """Rotate a still picture according to its EXIF orientation. Pillow reads only the header."""
    try:
        with _with_pillow(source) as (_, header):
            turn = 1 if header is None else header.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError):  # broken metadata
        return picture
    picture.getexif()[_EXIF_ORIENTATION] = turn
    return ImageOps.exif_transpose(picture)
