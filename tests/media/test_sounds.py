"""`load_audio` against files of known content, `wave`, SciPy and soxr."""

import io
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import soxr

from llava_soundclip.media import MediaError, check_waveform, load_audio, load_audio_as_it_is, probe
from tests.media.making import chirp, film, picture_frames, to_format, write

LOSSLESS = [  # container, codec, sample format, tolerance against the chirp in float
    ("wav", "pcm_u8", "u8", 2 / 128),
    ("wav", "pcm_s16le", "s16", 1e-4),
    ("wav", "pcm_s24le", "s32", 1e-6),
    ("wav", "pcm_s32le", "s32", 1e-6),
    ("wav", "pcm_f32le", "flt", 1e-6),
    ("wav", "pcm_f64le", "dbl", 1e-6),
    ("aiff", "pcm_s16be", "s16", 1e-4),
    ("flac", "flac", "s16", 1e-4),
    ("mka", "flac", "s16", 1e-4),
    ("mov", "pcm_s16le", "s16", 1e-4),
    ("m4a", "alac", "s16p", 1e-4),
    ("avi", "pcm_s16le", "s16", 1e-4),
]
LOSSY = [  # container, codec, sample format, rate
    ("mp3", "libmp3lame", "s16p", 44_100),
    ("m4a", "aac", "fltp", 44_100),
    ("ts", "aac", "fltp", 48_000),
    ("aac", "aac", "fltp", 16_000),
    ("mkv", "aac", "fltp", 44_100),
    ("ogg", "libopus", "s16", 48_000),
    ("webm", "libopus", "s16", 48_000),
    ("mkv", "ac3", "fltp", 48_000),
]


def _cases(table):
    return pytest.mark.parametrize(
        "extension, codec, sample_format, extra", table, ids=[c[1] + "." + c[0] for c in table]
    )


@_cases(LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_formats_give_every_sample(tmp_path, extension, codec, sample_format, extra, channels):
    sound = chirp(0.7, 16_000, channels)
    path = write(
        tmp_path / f"a.{extension}",
        sound=to_format(sound, sample_format),
        sample_format=sample_format,
        audio_codec=codec,
    )
    result = load_audio(path, sampling_rate=16_000)
    assert result.shape == sound.shape and result.dtype == np.float32
    assert np.abs(result - sound).max() < extra


@_cases(LOSSY)
def test_lossy_formats_give_the_sound_in_its_place(tmp_path, extension, codec, sample_format, extra):
    sound = chirp(2.5, extra, 2)
    path = write(
        tmp_path / f"a.{extension}",
        sound=to_format(sound, sample_format),
        sample_format=sample_format,
        rate=extra,
        audio_codec=codec,
    )
    result = load_audio(path, sampling_rate=extra)
    assert result.shape[0] == 2
    middle = sound[0, extra : extra + 8192]
    lag = int(np.argmax(scipy.signal.correlate(result[0], middle, "valid"))) - extra
    # Some containers don't say how much the encoder put in front, so allow for it, and no more than that.
    assert abs(lag) <= (2400 if extension in ("ts", "aac", "mkv") else 2)
    for channel in result[:, extra + lag :][:, :8192]:
        assert np.corrcoef(channel, middle)[0, 1] > 0.97


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_channels_are_kept_in_order(tmp_path, channels):
    sound = chirp(0.3, 16_000, channels)
    path = write(tmp_path / "a.wav", sound=to_format(sound, "s16"))
    assert np.abs(load_audio(path, sampling_rate=16_000) - sound).max() < 1e-4


def test_wav_files_of_other_libraries(tmp_path):
    sound = chirp(0.5, 22_050, 2)
    with wave.open(str(tmp_path / "wave.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(to_format(sound, "s16").T.tobytes())
    assert np.array_equal(
        load_audio(tmp_path / "wave.wav", sampling_rate=22_050),
        to_format(sound, "s16").astype(np.float32) / 32_768,
    )
    for sample_format in ("u8", "s16", "s32", "flt", "dbl"):
        samples = to_format(sound, sample_format)
        scipy.io.wavfile.write(tmp_path / "scipy.wav", 22_050, samples.T)
        zero, one = {"u8": (128, 128), "s16": (0, 2**15), "s32": (0, 2**31)}.get(sample_format, (0, 1))
        expected = ((samples.astype(np.float64) - zero) / one).astype(np.float32)
        assert np.array_equal(load_audio(tmp_path / "scipy.wav", sampling_rate=22_050), expected)


@pytest.mark.parametrize(
    "rate, to_rate", [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (11_025, 48_000)]
)
def test_resampling_in_blocks_equals_resampling_at_once(tmp_path, rate, to_rate):
    samples = to_format(chirp(1.3, rate, 2), "s16")
    path = write(tmp_path / "a.wav", sound=samples, rate=rate)
    expected = soxr.resample(samples.T.astype(np.float32) / 32_768, rate, to_rate, quality="HQ").T
    result = load_audio(path, sampling_rate=to_rate)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() < 1e-6


@pytest.mark.parametrize(
    "start, duration", [(0, 0.5), (0.0123, 0.3), (1.37, None), (2.9, 0.05), (2.5, 99), (6.03, 1)]
)
@pytest.mark.parametrize("rate", [44_100, 48_000, 16_000])
def test_a_part_is_the_slice_of_the_whole(tmp_path, start, duration, rate):
    sound = chirp(9, rate)
    path = write(tmp_path / "a.flac", sound=to_format(sound, "s16"), rate=rate, audio_codec="flac")
    whole = load_audio(path, sampling_rate=16_000)
    first = round(start * 16_000)
    last = None if duration is None else round((start + duration) * 16_000)
    part = load_audio(path, sampling_rate=16_000, start=start, duration=duration)
    assert part.shape == whole[:, first:last].shape
    assert np.abs(part - whole[:, first:last]).max() < 1e-5


@pytest.mark.parametrize(
    "extension, codec, sample_format, blur",
    [
        ("mp4", "aac", "fltp", 0),
        ("mkv", "libopus", "s16", 0.001),
        ("ts", "aac", "fltp", 0),
        ("avi", "libmp3lame", "s16p", 0),
        ("mov", "pcm_s16le", "s16", 0),
        ("mp3", "libmp3lame", "s16p", 0),
    ],
)
def test_a_part_of_a_film_after_a_seek(tmp_path, extension, codec, sample_format, blur):
    path = tmp_path / f"a.{extension}"
    sound = to_format(chirp(20, 48_000, 2), sample_format)
    pictures = None if extension == "mp3" else _still_film(20)
    write(path, sound=sound, sample_format=sample_format, rate=48_000, pictures=pictures, audio_codec=codec)
    whole = load_audio(path, sampling_rate=16_000)
    part = load_audio(path, sampling_rate=16_000, start=15.1234, duration=1)
    first = round(15.1234 * 16_000)
    assert part.shape == (2, 16_000)
    margin = round(blur * 16_000)  # Matroska's clock ticks in milliseconds
    errors = [np.abs(part - whole[:, first + lag :][:, :16_000]).max() for lag in range(-margin, margin + 1)]
    assert min(errors) < 1e-3


def _still_film(seconds):
    return (frame for i in range(seconds) for frame in picture_frames(10, first=10 * i))


def test_times_are_those_of_the_film_when_its_sound_begins_late(tmp_path):
    sound = chirp(2, 16_000)
    path = write(
        tmp_path / "late.mov", sound=to_format(sound, "s16"), pictures=_still_film(3), audio_start=1.0
    )
    assert np.abs(load_audio(path, sampling_rate=16_000) - sound).max() < 1e-4
    part = load_audio(path, sampling_rate=16_000, start=1.5, duration=0.5)
    assert np.abs(part - sound[:, 8_000:16_000]).max() < 1e-4
    assert load_audio(path, sampling_rate=16_000, start=0.75, duration=0.5).shape == (1, 4_000)
    with pytest.raises(MediaError, match="no sound from 0 s to 0.5 s; its sound begins at 1.00 s"):
        load_audio(path, sampling_rate=16_000, duration=0.5)
    with pytest.raises(MediaError, match="no sound from 3.5 s; its sound ends at 3.00 s"):
        load_audio(path, sampling_rate=16_000, start=3.5)


def test_a_clock_that_doesnt_start_at_zero(tmp_path):
    sound = chirp(4, 48_000)
    path = write(
        tmp_path / "a.ts",
        sound=to_format(sound, "fltp"),
        sample_format="fltp",
        rate=48_000,
        audio_codec="aac",
    )
    assert np.corrcoef(load_audio(path, sampling_rate=48_000, start=2, duration=1)[0],
                       load_audio(path, sampling_rate=48_000)[0, 96_000:144_000])[0, 1] > 0.999  # fmt: skip


def test_bytes_and_file_objects_read_from_their_beginning(tmp_path):
    path = write(tmp_path / "a.wav", sound=to_format(chirp(0.5, 16_000), "s16"))
    expected = load_audio(path, sampling_rate=16_000)
    for source in (str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        assert np.array_equal(load_audio(source, sampling_rate=16_000), expected)
    with open(path, "rb") as file:
        for _ in range(2):
            assert np.array_equal(load_audio(file, sampling_rate=16_000), expected)
        assert not file.closed


def test_a_stream_that_cannot_seek(tmp_path):
    path = write(tmp_path / "a.wav", sound=to_format(chirp(0.5, 16_000), "s16"))

    class Pipe(io.RawIOBase):
        def __init__(self):
            self.bytes = io.BytesIO(path.read_bytes())

        def readable(self):
            return True

        def readinto(self, buffer):
            return self.bytes.readinto(buffer)

    assert load_audio(Pipe(), sampling_rate=16_000).shape == (1, 8_000)
    assert load_audio(Pipe(), sampling_rate=16_000, start=0.25).shape == (1, 4_000)


def test_an_object_that_can_read_and_nothing_else(tmp_path):
    path = write(tmp_path / "a.wav", sound=to_format(chirp(0.5, 16_000), "s16"))

    class Reader:
        def __init__(self):
            self.read = io.BytesIO(path.read_bytes()).read

    assert load_audio(Reader(), sampling_rate=16_000).shape == (1, 8_000)


def test_names_have_no_meaning(tmp_path):
    for name in ("100%01d.wav", "a:b.wav", "file:x.wav", "ünï cödé.wav", "-i.wav"):
        path = write(io.BytesIO(), container="wav", sound=to_format(chirp(0.1, 16_000), "s16"))
        (tmp_path / name).write_bytes(path.getvalue())
        assert load_audio(tmp_path / name, sampling_rate=16_000).shape == (1, 1_600)


def test_a_single_sample(tmp_path):
    path = write(tmp_path / "a.wav", sound=np.full((2, 1), 16_384, np.int16), rate=48_000)
    assert np.array_equal(load_audio(path, sampling_rate=48_000), [[0.5], [0.5]])
    assert load_audio(path, sampling_rate=16_000).shape == (2, 1)


@pytest.mark.parametrize("seconds", [0, 1e-9])
def test_shortest_parts(tmp_path, seconds):
    path = write(tmp_path / "a.wav", sound=to_format(chirp(0.5, 16_000), "s16"))
    if seconds:
        assert load_audio(path, sampling_rate=16_000, start=0.1, duration=seconds).shape == (1, 1)
    else:
        with pytest.raises(ValueError, match="duration"):
            load_audio(path, sampling_rate=16_000, duration=seconds)


@pytest.mark.parametrize(
    "arguments",
    [{"start": -1}, {"start": float("nan")}, {"duration": -1}, {"start": True}, {"sampling_rate": 0}],
)
def test_absurd_arguments(tmp_path, arguments):
    with pytest.raises(ValueError, match="must be"):
        load_audio(tmp_path / "never opened", **{"sampling_rate": 16_000, **arguments})


def test_what_a_probe_tells(tmp_path):
    path = film(tmp_path / "a.mov", seconds=2)
    info = probe(path)
    assert (info.has_audio, info.has_video, info.sampling_rate, info.channels) == (True, True, 16_000, 2)
    assert info.duration == pytest.approx(2, abs=0.05)
    sound_only = probe(write(tmp_path / "a.wav", sound=to_format(chirp(0.5, 16_000), "s16")))
    assert (sound_only.has_video, sound_only.channels, sound_only.duration) == (False, 1, 0.5)


_HOUR = """
import resource, sys
from llava_soundclip.media import load_audio
load_audio(sys.argv[1], sampling_rate=16_000, duration=1)  # imports and buffers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, duration = eval(sys.argv[2])
sound = load_audio(sys.argv[1], sampling_rate=16_000, start=start, duration=duration)
print(sound.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def hour(tmp_path_factory) -> Path:
    """An hour of sound, 8 kHz."""
    path = tmp_path_factory.mktemp("hour") / "hour.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        minute = to_format(chirp(60, 8_000), "s16").tobytes()
        file.writeframes(minute * 60)
    return path


@pytest.mark.parametrize("start", [0, 1800.5, 3590])
def test_three_seconds_of_an_hour_need_the_memory_of_three_seconds(hour, start):
    output = subprocess.check_output([sys.executable, "-c", _HOUR, str(hour), f"({start}, 3)"], text=True)
    samples, kilobytes = map(int, output.split())
    assert samples == 48_000
    assert kilobytes < 20_000  # the hour is 56 MB in the file, 230 MB as it would be returned


def test_three_seconds_of_an_hour_are_all_that_is_read(hour):
    class Counting(io.FileIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            Counting.count += len(data)
            return data

    with Counting(hour) as file:
        assert load_audio(file, sampling_rate=16_000, start=1800.5, duration=3).shape == (1, 48_000)
    assert Counting.count < 1e6  # of 58 MB


@pytest.mark.slow
def test_an_hour_can_be_had_too(hour):
    output = subprocess.check_output([sys.executable, "-c", _HOUR, str(hour), "(0, None)"], text=True)
    samples, kilobytes = map(int, output.split())
    assert samples == 3600 * 16_000
    assert kilobytes < 3 * 3600 * 16_000 * 4 / 1024


def test_real_clips(shared):
    for path in sorted((shared / "media" / "ave2").glob("*.mp4")):
        sound = load_audio(path, sampling_rate=16_000)
        assert sound.shape[0] in (1, 2) and 2.9 * 16_000 < sound.shape[1] < 3.2 * 16_000
        assert sound.std() > 1e-3
        part = load_audio(path, sampling_rate=16_000, start=1, duration=1)
        assert np.abs(part - sound[:, 16_000:32_000]).max() < 1e-5
        check_waveform(sound)
    rate, samples = scipy.io.wavfile.read(shared / "media" / "pairs" / "dog_audio.wav")
    expected = soxr.resample(samples.astype(np.float32) / 32_768, rate, 16_000, quality="HQ").T
    result = load_audio(shared / "media" / "pairs" / "dog_audio.wav", sampling_rate=16_000)
    assert np.abs(result - expected.reshape(result.shape)).max() < 1e-6


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_a_sound_as_it_is(tmp_path, rate):
    wave = chirp(0.3, rate, channels=2)
    path = write(tmp_path / "x.wav", sound=to_format(wave, "s16"), rate=rate)
    loaded, own_rate = load_audio_as_it_is(path)
    assert own_rate == rate
    np.testing.assert_allclose(loaded, wave, atol=1e-4)
