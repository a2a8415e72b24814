"""What is wrong with a file is said with its name, never with a raw PyAV error."""

import io
import struct

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_soundclip.media import MediaError, load_audio, load_frame, probe
from tests.media.making import chirp, film, picture_frames, to_format, write


def sound_of(source):
    return load_audio(source, sampling_rate=16_000)


EVERY = pytest.mark.parametrize("read", [sound_of, load_frame, probe], ids=["sound", "frame", "probe"])


@EVERY
def test_a_missing_file_and_a_folder(tmp_path, read):
    with pytest.raises(MediaError, match=r"gone\.mp4: No such file"):
        read(tmp_path / "gone.mp4")
    with pytest.raises(MediaError, match=f"{tmp_path.name}: Is a directory"):
        read(tmp_path)
    with pytest.raises(MediaError, match="null byte"):
        read("a\0b")


@EVERY
def test_an_empty_file_and_a_text(tmp_path, read):
    for content, words in [
        (b"", "it is empty"),
        (b"This is no film.\n" * 50, "isn't a media file"),
        (b"\0" * 5000, "isn't"),
    ]:
        path = tmp_path / "text.mp4"
        path.write_bytes(content)
        with pytest.raises(MediaError, match=rf"text\.mp4: .*{words}"):
            read(path)
        with pytest.raises(MediaError, match=rf"<{len(content)} bytes>: .*{words}"):
            read(content)


@EVERY
def test_a_playlist_opens_no_other_file(tmp_path, read):
    film(tmp_path / "film.mov")
    lists = {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/film.mov\n#EXT-X-ENDLIST\n",
        "a.ffconcat": "ffconcat version 1.0\nfile film.mov\n",
        "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError, match=name):
            read(tmp_path / name)


@EVERY
@pytest.mark.parametrize("source", [None, 3, ["a.mp4"], io.StringIO("text")])
def test_what_is_no_source(read, source):
    with pytest.raises(TypeError, match="source must be a path, bytes or a binary file object"):
        read(source)


def test_an_array_is_no_file():
    with pytest.raises(TypeError, match="pass arrays to check_waveform"):
        sound_of(np.zeros(16_000))


def test_a_film_without_sound_and_a_sound_without_pictures(tmp_path):
    with pytest.raises(MediaError, match="silent.mp4: it has no sound"):
        sound_of(write(tmp_path / "silent.mp4", pictures=picture_frames(5)))
    with pytest.raises(MediaError, match="dark.wav: it has no pictures"):
        load_frame(write(tmp_path / "dark.wav", sound=to_format(chirp(0.1, 16_000), "s16")))


def test_sound_of_no_length(tmp_path):
    (tmp_path / "a.wav").write_bytes(_wav(16_000, samples=np.zeros(0, np.int16)))
    write(tmp_path / "a.flac", sound=np.zeros((1, 0), np.int16), audio_codec="flac")
    for name in ("a.wav", "a.flac"):
        with pytest.raises(MediaError, match=f"{name}: its sound is empty"):
            sound_of(tmp_path / name)


def _wav(rate: int, channels: int = 1, samples: np.ndarray | None = None, tag: int = 1) -> bytes:
    data = (np.zeros(8000, np.int16) if samples is None else samples).tobytes()
    bits = 16 if samples is None else 8 * samples.itemsize
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, (rate * block) % 2**32, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("rate", [0, 1, 99, 800_000, 2**31 - 1, 2**31, 2**32 - 1])
def test_absurd_rates_in_the_header(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(_wav(rate))
    with pytest.raises(MediaError, match=r"a\.wav: "):
        sound_of(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [100, 8_000, 192_000, 768_000])
def test_unusual_rates_are_right(rate):
    length = sound_of(_wav(rate)).shape[1]
    assert abs(length - 8000 * 16_000 / rate) <= 1


def test_absurd_numbers_of_channels():
    for channels in (0, 65, 1000):
        with pytest.raises(MediaError):
            sound_of(_wav(16_000, channels))


@pytest.mark.parametrize(
    "value, words", [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (30_000.0, "outside")]
)
def test_float_files_of_absurd_values(tmp_path, value, words):
    samples = np.zeros(1000, np.float32)
    samples[500] = value
    (tmp_path / "a.wav").write_bytes(_wav(16_000, samples=samples, tag=3))
    with pytest.raises(MediaError, match=rf"a\.wav: the sound .*{words}"):
        sound_of(tmp_path / "a.wav")


def test_a_codec_that_nobody_knows(tmp_path):
    path = write(tmp_path / "a.avi", sound=to_format(chirp(1, 16_000), "s16"), pictures=picture_frames(10))
    data = path.read_bytes()
    data = data.replace(b"FMP4", b"QQQQ")
    at = data.index(b"strf", data.index(b"auds")) + 8
    path.write_bytes(data[:at] + b"\x99\x99" + data[at + 2 :])
    for read in (sound_of, load_frame):
        with pytest.raises(MediaError, match=r"a\.avi: there is no decoder for its"):
            read(path)
    assert probe(path).sampling_rate in (None, 16_000)


@pytest.mark.parametrize(
    "extension, codec, sample_format",
    [
        ("mkv", "aac", "fltp"),
        ("ts", "aac", "fltp"),
        ("wav", "pcm_s16le", "s16"),
        ("mp3", "libmp3lame", "s16p"),
    ],
)
def test_of_a_cut_file_comes_what_is_there(tmp_path, extension, codec, sample_format):
    pictures = picture_frames(25) if extension in ("mkv", "ts") else None
    path = write(
        tmp_path / f"a.{extension}",
        sound=to_format(chirp(2.5, 48_000), sample_format),
        sample_format=sample_format,
        rate=48_000,
        audio_codec=codec,
        pictures=pictures,
        video_codec="mpeg2video" if extension == "ts" else "libx264",
    )
    whole = sound_of(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    part = sound_of(path)
    assert 0.4 < part.shape[1] / whole.shape[1] < 0.95
    length = part.shape[1] - 2000
    assert np.corrcoef(part[0, :length], whole[0, :length])[0, 1] > 0.999
    if pictures is not None:
        load_frame(path)
        load_frame(path, time="first")


def test_a_cut_mp4_with_its_index_in_front(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.options = {"g": "5", "bf": "0"}
        rng = np.random.default_rng(0)
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), "rgb24")
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    path.write_bytes(data[: len(data) // 3])
    last = np.asarray(load_frame(path))  # the middle is gone: the last frame before the cut
    assert np.abs(last.astype(int) - np.asarray(load_frame(path, time=1.5))).mean() < 100
    path.write_bytes(data[: data.index(b"mdat") + 8])
    with pytest.raises(MediaError, match=r"a\.mp4: its picture is empty"):
        load_frame(path)


def test_samples_that_numpy_gets_no_hold_of():
    with pytest.raises(MediaError, match=r"bytes>: samples of the format s64p? are not supported"):
        sound_of(_wav(16_000, samples=np.zeros(1000, np.int64)))


def test_a_cut_mp4_with_its_index_behind(tmp_path):
    path = film(tmp_path / "a.mov")
    path.write_bytes(path.read_bytes()[:5000])
    for read in (sound_of, load_frame, probe):
        with pytest.raises(MediaError, match=r"a\.mov: it isn't a media file, or it is truncated or damaged"):
            read(path)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_cut_picture_never_gives_a_raw_error(tmp_path, extension):
    from PIL import Image

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"a.{extension}")
    data = (tmp_path / f"a.{extension}").read_bytes()
    for length in (20, 200, len(data) // 2, len(data) - 5):
        try:
            assert load_frame(data[:length]).size == (64, 64)
        except MediaError:
            pass


@pytest.mark.parametrize(
    "extension, codec, sample_format", [("aac", "aac", "fltp"), ("mp3", "libmp3lame", "s16p")]
)
def test_a_sound_that_changes_in_the_middle(tmp_path, extension, codec, sample_format):
    halves = [
        write(
            tmp_path / f"{channels}.{extension}",
            sound=to_format(chirp(1, 48_000, channels), sample_format),
            sample_format=sample_format,
            rate=48_000,
            audio_codec=codec,
        ).read_bytes()
        for channels in (1, 2)
    ]
    path = tmp_path / f"both.{extension}"
    path.write_bytes(b"".join(halves))
    both = sound_of(path)  # in the channels of its beginning
    assert both.shape[0] == 1 and abs(both.shape[1] - 32_000) < 3_000
    assert load_audio(path, sampling_rate=16_000, duration=0.5).shape == (1, 8_000)


def test_a_file_object_that_fails_while_it_is_read(tmp_path):
    noise = np.random.default_rng(0).integers(-30_000, 30_000, (1, 160_000), dtype=np.int16)
    data = write(io.BytesIO(), container="flac", sound=noise, audio_codec="flac").getvalue()

    class Broken(io.BytesIO):
        name = "broken.flac"
        works_until = 200_000

        def read(self, size=-1):
            if self.tell() > self.works_until:
                raise OSError("the cable is out")
            return super().read(size)

    assert load_audio(Broken(data), sampling_rate=16_000, duration=1).shape == (1, 16_000)
    with pytest.raises(MediaError, match=r"broken\.flac: the cable is out"):
        sound_of(Broken(data))
    Broken.works_until = -1
    with pytest.raises(MediaError, match=r"broken\.flac: the cable is out"):
        sound_of(Broken(data))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [
        film(folder / "a.mov", seconds=1).read_bytes(),
        write(folder / "b.mkv", sound=to_format(chirp(1, 48_000), "s16"), rate=48_000, audio_codec="libopus", pictures=picture_frames(10), video_codec="libx264").read_bytes(),
        write(folder / "c.ts", sound=to_format(chirp(1, 48_000), "fltp"), sample_format="fltp", rate=48_000, audio_codec="aac", pictures=picture_frames(10), video_codec="mpeg2video").read_bytes(),
    ]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_films_give_something_right_or_a_media_error(films, data):
    film = bytearray(data.draw(st.sampled_from(films)))
    for _ in range(data.draw(st.integers(1, 20))):
        film[data.draw(st.integers(0, len(film) - 1))] = data.draw(st.integers(0, 255))
    film = film[: data.draw(st.integers(1, len(film)))]
    for read in (
        sound_of,
        load_frame,
        lambda source: load_audio(source, sampling_rate=16_000, start=0.7, duration=0.2),
    ):
        try:
            read(bytes(film))
        except MediaError:
            pass
