"""One frame of a video, or a still picture."""

from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from llava_soundclip.media.files import (
    TICK,
    MediaError,
    Source,
    Track,
    check_seconds,
    duration_of,
    is_still,
    name_and_file,
    opened,
)

_EXIF_ORIENTATION = 0x0112


def load_frame(
    source: Source | Image.Image | np.ndarray, *, time: float | Literal["first", "middle"] = "middle"
) -> Image.Image:
    """Decode one picture: a frame of a video, or a still picture, rotated according to its metadata.

    Args:
        source: path, bytes or binary file object (read from its beginning) of a video or picture. A PIL picture or
            an (H, W, 3) uint8 array is returned as RGB.
        time: time of the frame: seconds on the video's clock, "first" or "middle". Ignored for still pictures.

    Returns:
        RGB picture.

    Raises:
        MediaError: if the file can't be read, has no pictures, or ends before `time`.
        TypeError: if `source` is none of the above.
        ValueError: for an invalid `time`, or an array of another shape or dtype.
    """
    if isinstance(time, str):
        if time not in ("first", "middle"):
            raise ValueError(f"time must be seconds, 'first' or 'middle', not {time!r}")
    else:
        check_seconds("time", time)
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise ValueError(f"a picture must be (H, W, 3) uint8, not {source.shape} {source.dtype}")
        return Image.fromarray(source)
    with opened(source) as (container, name):
        track = Track(container, name, "video")
        still = is_still(container) or track.is_cover
        if isinstance(time, str):
            seconds = 0.0 if still or time == "first" else _middle(track)
        else:
            seconds = time
        if seconds is None:
            return load_frame(source, time=_length_by_reading(source) / 2)
        frame = _frame_at(track, seconds)
        pixels = frame.to_ndarray(format="rgb24")
        turned = pixels if still else _turn(pixels, frame)
    picture = Image.fromarray(np.ascontiguousarray(turned))
    return _turn_as_exif(picture, source) if still else picture


def _frame_at(track: Track, time: float) -> Any:
    """The frame on screen at a time: the last frame that starts by then, or else the first frame."""
    duration = duration_of(track.container)
    if duration is not None and time > duration:
        raise MediaError(f"{track.name}: it ends at {duration:.2f} s, so it has no frame at {time:g} s")
    shown = None
    for begins, frame in track.frames(time):
        if shown is not None and begins > time + TICK:
            break
        shown = frame
    if shown is None:
        raise track.nothing()
    return shown


def _middle(track: Track) -> float | None:
    """Time in seconds of the middle of a video; None if its duration is unknown."""
    stream = track.stream
    if stream.duration:
        middle = ((stream.start_time or 0) + stream.duration / 2) * stream.time_base
        return max(0.0, float(middle) - track.origin)
    duration = duration_of(track.container)
    return None if duration is None else duration / 2


def _length_by_reading(source: Source) -> float:
    """Duration in seconds of a video whose headers have none. The file is read but not decoded."""
    with opened(source) as (container, name):
        track = Track(container, name, "video")
        count, end = 0, 0.0
        for packet in track.packets(0.0):
            if packet.size:
                count += 1
                if packet.pts is not None:
                    end = max(end, float(packet.pts * packet.time_base) - track.origin)
        return end or count * track.frame_length


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
    _, file = name_and_file(source)
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
