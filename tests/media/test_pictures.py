"""`load_frame`: which frame, which way up, and in the right colours."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from llava_soundclip.media import MediaError, load_audio, load_frame, load_frames, probe
from tests.media.making import (
    FPS,
    GREY_STEP,
    MATRICES,
    audio_frames,
    chirp,
    film,
    picture_frames,
    set_display_matrix,
    to_format,
    write,
)


def index(picture: Image.Image) -> int:
    """Which frame of `picture_frames` a picture is."""
    return round((np.asarray(picture).mean() - 16) / GREY_STEP)


@pytest.mark.parametrize(
    "extension, codec",
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("ts", "mpeg2video"),
        ("gif", "gif"),
    ],
)
def test_the_frame_on_screen_at_a_time(tmp_path, extension, codec):
    path = write(tmp_path / f"a.{extension}", pictures=picture_frames(25), video_codec=codec)
    assert index(load_frame(path, time="first")) == 0
    assert index(load_frame(path)) == 12
    for time, frame in [(0, 0), (0.1, 1), (0.19, 1), (1.0, 10), (1.25, 12), (2.4, 24), (2.45, 24)]:
        assert index(load_frame(path, time=time)) == frame, time


def test_a_time_behind_the_end(tmp_path):
    path = film(tmp_path / "a.mov", seconds=2)
    with pytest.raises(MediaError, match=r"a\.mov: it ends at 2\.0\d s, so it has no frame at 3 s"):
        load_frame(path, time=3)


def test_frames_between_key_frames_far_into_a_film(tmp_path):
    frames = (frame for i in range(60) for frame in picture_frames(25, first=25 * i))
    path = write(tmp_path / "a.mp4", pictures=frames, video_codec="libx264", options={"g": "250", "bf": "2"})
    assert index(load_frame(path, time=100.75)) == 7  # frame 1007 of 1500
    assert index(load_frame(path)) == 750 % 25


def test_the_clock_begins_where_the_film_does(tmp_path):
    path = write(tmp_path / "a.ts", pictures=picture_frames(25, first=1000), video_codec="mpeg2video")
    assert index(load_frame(path, time=1.5)) == 15
    assert index(load_frame(path)) == 12


def test_pictures_that_begin_after_the_sound(tmp_path):
    sound = to_format(chirp(4, 16_000), "s16")
    path = write(tmp_path / "a.mov", sound=sound, pictures=picture_frames(20, first=20))
    assert index(load_frame(path, time=0.5)) == 0  # nothing is on screen yet: the first
    assert index(load_frame(path, time=2.55)) == 5
    assert index(load_frame(path)) == 10


@pytest.mark.parametrize("extension, codec", [("mkv", "libx264"), ("h264", "libx264")])
def test_a_film_that_doesnt_say_how_long_it_is(tmp_path, extension, codec):
    path = tmp_path / f"a.{extension}"
    if extension == "mkv":  # as browsers record it: written to a pipe, without a duration or an index

        class Pipe(io.RawIOBase):
            def __init__(self):
                self.bytes = io.BytesIO()

            def writable(self):
                return True

            def write(self, data):
                return self.bytes.write(data)

        pipe = Pipe()
        write(pipe, container="matroska", pictures=picture_frames(25), video_codec=codec)
        path.write_bytes(pipe.bytes.getvalue())
    else:
        write(path, pictures=picture_frames(25), video_codec=codec)
    assert probe(path).duration is None
    assert index(load_frame(path, time="first")) == 0
    assert index(load_frame(path)) in (11, 12)
    with pytest.raises(MediaError, match="it ends at .* s, so it has no frame at 99 s"):
        load_frame(path, time=99)


@pytest.mark.parametrize("name", MATRICES)
def test_films_are_turned_as_their_metadata_ask(tmp_path, name):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = write(tmp_path / "a.mp4", pictures=_one(pixels), video_codec="mpeg4", options={"qscale": "2"})
    set_display_matrix(path, MATRICES[name])
    result = np.asarray(load_frame(path))

    a, b, c, d = MATRICES[name]  # the slow way: send every pixel where the matrix says
    p, q = np.meshgrid(np.arange(64), np.arange(48))
    x, y = a * p + c * q, b * p + d * q
    x, y = x - x.min(), y - y.min()
    expected = np.zeros((y.max() + 1, x.max() + 1, 3), np.uint8)
    expected[y, x] = pixels
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).mean() < 20


def _one(pixels):
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, FPS)
    return [frame]


def _photo() -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_still_pictures_look_as_pillow_shows_them(tmp_path, extension, mode):
    if (extension, mode) in {("jpg", "P"), ("webp", "P")}:
        pytest.skip("no such format")
    path = tmp_path / f"a.{extension}"
    options = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(extension, {})
    _photo().convert(mode).save(path, **options)
    result = load_frame(path, time=12.0)
    assert result.mode == "RGB"
    with Image.open(path) as reference:
        difference = np.abs(np.asarray(result).astype(int) - np.asarray(reference.convert("RGB")))
    assert difference.mean() < 2 and difference.max() < 16
    assert probe(path).duration is None and probe(path).has_video


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_photos_are_turned_as_their_exif_asks(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    _photo().save(path, exif=exif, quality=95, subsampling=0)
    with Image.open(path) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference))
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        result = np.asarray(load_frame(source))
        assert result.shape == expected.shape
        assert np.abs(result.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    "extension, codec, sample_format", [("mp3", "libmp3lame", "s16p"), ("flac", "flac", "s16")]
)
def test_the_cover_of_a_song(tmp_path, extension, codec, sample_format):
    path = tmp_path / f"a.{extension}"
    with av.open(str(path), "w") as output:
        audio, cover = output.add_stream(codec, rate=44_100, layout="mono"), output.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in picture_frames(1):
            output.mux(cover.encode(frame))
        output.mux(cover.encode(None))
        for frame in audio_frames(to_format(chirp(20, 44_100), sample_format), sample_format, 44_100):
            output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    for time in ("first", "middle", 12.0):
        assert index(load_frame(path, time=time)) == 0
    assert load_audio(path, sampling_rate=16_000, start=18, duration=1).shape == (1, 16_000)


def test_transparency_is_dropped(tmp_path):
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "a.png")
    assert load_frame(tmp_path / "a.png").getpixel((3, 3)) == (200, 100, 50)


def test_pictures_and_arrays_come_back_as_rgb():
    picture = _photo()
    assert np.array_equal(np.asarray(load_frame(picture.convert("RGBA"))), np.asarray(picture))
    assert np.array_equal(np.asarray(load_frame(np.asarray(picture))), np.asarray(picture))
    assert load_frame(picture.convert("L")).mode == "RGB"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="picture must be"):
        load_frame(array)


@pytest.mark.parametrize("time", ["end", -1, float("nan"), True])
def test_absurd_times(time):
    with pytest.raises(ValueError, match="time must be"):
        load_frame("never opened", time=time)


def test_one_frame_of_a_long_film_needs_the_memory_of_one(tmp_path):
    path = write(
        tmp_path / "a.mp4",
        size=(640, 480),
        pictures=(frame for i in range(60) for frame in picture_frames(10, (640, 480), first=10 * i)),
        options={"g": "600"},
    )
    code = (
        "import resource, sys; from llava_soundclip.media import load_frame; load_frame(sys.argv[1], time='first');"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; load_frame(sys.argv[1], time=59.0);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    kilobytes = int(subprocess.check_output([sys.executable, "-c", code, str(path)], text=True))
    assert kilobytes < 20_000  # all frames up to there: 270 MB


def test_real_clips(shared: Path):
    for path in sorted((shared / "media" / "ave2").glob("*.mp4")):
        pictures = [
            np.asarray(load_frame(path, time=time)).astype(float) for time in ("first", "middle", 2.9)
        ]
        assert all(picture.std() > 10 for picture in pictures)
        assert probe(path).duration == pytest.approx(3, abs=0.1)
    for path in sorted((shared / "media" / "pairs").glob("*.jpg")):
        with Image.open(path) as reference:
            expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB")).astype(int)
        assert np.abs(np.asarray(load_frame(path)) - expected).mean() < 2


def anamorphic(path, pixel, size=(64, 48)):
    """A film whose pixels have other proportions, with a white square of 16x16 of its pixels."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*pixel)
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[16:32, 16:32] = 255
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    "pixel, size",
    [((64, 45), (91, 48)), ((2, 1), (128, 48)), ((1, 2), (64, 96)), ((1, 1), (64, 48)), ((255, 1), (64, 48))],
)
def test_a_video_has_its_shape_on_the_screen(tmp_path, pixel, size):
    picture = load_frame(anamorphic(tmp_path / "a.mp4", pixel))
    assert picture.size == size
    white = np.argwhere(np.asarray(picture)[..., 0] > 128)
    tall, wide = white.max(axis=0) - white.min(axis=0) + 1
    shown = Fraction(*pixel) if size != (64, 48) else 1  # a header of 255:1 is an error
    assert wide / tall == pytest.approx(float(shown), rel=0.1)
    assert [frame.size for frame in load_frames(tmp_path / "a.mp4", 2)] == [size, size]


def test_a_turned_video_is_stretched_before_it_is_turned(tmp_path):
    path = anamorphic(tmp_path / "a.mp4", (2, 1))
    set_display_matrix(path, MATRICES["quarter turn clockwise"])
    assert load_frame(path).size == (48, 128)


COLOURS = ["red", "lime", "blue"]


def colour(picture):
    return COLOURS[int(np.asarray(picture).reshape(-1, 3).mean(axis=0).argmax())]


def pages(size=(32, 24)):
    return [Image.new("RGB", size, name) for name in COLOURS]


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif"])
def test_an_animation_is_a_video(tmp_path, name):
    first, *others = pages()
    first.save(tmp_path / name, save_all=True, append_images=others, duration=[1000, 2000, 1000])
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        assert colour(load_frame(source, time="first")) == "red"
        assert colour(load_frame(source)) == "lime"
        for time, shown in ((0.5, "red"), (1.0, "lime"), (2.9, "lime"), (3.1, "blue")):
            assert colour(load_frame(source, time=time)) == shown
        assert [colour(picture) for picture in load_frames(source, 4)] == ["red", "lime", "lime", "blue"]
        assert [colour(picture) for picture in load_frames(source, 2, 1.0, 3.0)] == ["lime", "lime"]
        with pytest.raises(MediaError, match="it ends at .* s, so it has no frame at 9 s"):
            load_frame(source, time=9)


def test_an_animated_webp_of_one_frame_is_a_picture(tmp_path):
    first, second, _ = pages()
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], duration=1000)
    data = bytearray((tmp_path / "a.webp").read_bytes())
    del data[data.rindex(b"ANMF") :]
    data[4:8] = (len(data) - 8).to_bytes(4, "little")
    assert colour(load_frame(bytes(data))) == colour(load_frame(bytes(data), time=9)) == "red"
    assert len(load_frames(bytes(data), 3)) == 1


@pytest.mark.parametrize("time", ["first", "middle", 0, 0.03, 5])
def test_of_a_jpeg_with_more_pictures_the_first_is_shown(tmp_path, time):
    first, *others = pages()
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=others)
    assert colour(load_frame(tmp_path / "a.jpg", time=time)) == "red"
    assert [colour(picture) for picture in load_frames(tmp_path / "a.jpg", 8, 1.0, 3.0)] == ["red"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"])
def test_a_still_picture_has_no_time(tmp_path, name):
    picture = Image.new("RGB", (32, 24), "lime")
    picture.save(tmp_path / name, dpi=(300, 150))
    for time in ("first", "middle", 0, 7.5):
        shown = load_frame(tmp_path / name, time=time)
        assert colour(shown) == "lime" and shown.size == (32, 24)
    assert len(load_frames(tmp_path / name, 8, 2.0, 4.0)) == 1


def test_a_cover_is_a_still_picture(tmp_path):
    path = tmp_path / "a.mp3"
    cover = io.BytesIO()
    Image.new("RGB", (32, 24), "blue").save(cover, "png")
    with av.open(str(path), "w") as output:
        sound = output.add_stream("libmp3lame", rate=16_000, layout="mono")
        picture = output.add_stream("png")
        picture.width, picture.height, picture.pix_fmt = 32, 24, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(cover.getvalue())
        packet.stream = picture
        for frame in audio_frames(to_format(chirp(3, 16_000), "s16p"), "s16p", 16_000):
            output.mux(sound.encode(frame))
        output.mux(packet)
        output.mux(sound.encode(None))
    assert [colour(shown) for shown in load_frames(path, 8)] == ["blue"]
    assert [colour(shown) for shown in load_frames(path, 2, 1.0, 2.0)] == ["blue"]
    assert colour(load_frame(path, time=2.0)) == "blue"
