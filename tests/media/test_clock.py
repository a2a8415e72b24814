"""Sound is that of its time: in files with gaps, joined files, wrong lengths, and tracks that can't be decoded."""

import io
import struct

import av
import numpy as np
import pytest

from llava_soundclip.media import (
    MediaError,
    MediaWarning,
    load_audio,
    load_audio_as_it_is,
    load_frame,
    load_frames,
    probe,
)
from tests.media.making import (
    GREY_STEP,
    audio_frames,
    break_codec,
    chirp,
    film,
    picture_frames,
    slow_chirp,
    to_format,
    two_tracks,
    write,
)

RATE = 16_000


def pitch_at(path, start, seconds=0.5, **options):
    """Seconds at which the loudest tone of a part was in the chirp of 200 Hz + 60 Hz per second."""
    wave = load_audio(path, sampling_rate=RATE, start=start, duration=seconds, **options)[0]
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
    return (np.fft.rfftfreq(8 * len(wave), 1 / RATE)[spectrum.argmax()] - 200) / 60


def with_gaps(path, gaps, *, seconds=20, audio_codec="aac", sample_format="fltp"):
    """A film whose packets of sound are missing in some seconds."""
    whole = path.with_name(f"whole-{path.name}")
    write(
        whole,
        sound=to_format(slow_chirp(0, seconds), sample_format),
        sample_format=sample_format,
        rate=48_000,
        audio_codec=audio_codec,
        pictures=(frame for i in range(seconds) for frame in picture_frames(10, first=10 * i)),
    )
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            time = None if packet.pts is None else packet.pts * packet.time_base
            if time is None or (
                packet.stream.type == "audio" and any(begin <= time < end for begin, end in gaps)
            ):
                continue
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["mkv", "mp4", "ts"])
def test_after_gaps_a_part_is_the_sound_of_its_time(tmp_path, extension):
    path = with_gaps(tmp_path / f"a.{extension}", [(3, 5), (9, 12), (12.5, 16)])
    for start in (1.0, 5.5, 7.5, 16.5, 18.5):
        assert pitch_at(path, start) == pytest.approx(start + 0.25, abs=0.15)
    whole = load_audio(path, sampling_rate=RATE)
    assert abs(whole.shape[1] / RATE - 20) < 0.1
    for begin, end in ((3.2, 4.9), (9.2, 11.9), (12.7, 15.9)):
        assert np.abs(whole[:, round(begin * RATE) : round(end * RATE)]).max() < 1e-3
    for start in (1.0, 5.5, 17.0):  # the part is the slice of the whole
        part = load_audio(path, sampling_rate=RATE, start=start, duration=1)
        slice = whole[:, round(start * RATE) :][:, :RATE]
        assert (
            max(
                np.corrcoef(part[0, 32:-32], slice[0, 32 + lag :][: RATE - 64])[0, 1]
                for lag in range(-32, 33)
            )
            > 0.99
        )


def test_silence_stands_in_the_gap_and_nothing_is_shifted(tmp_path):
    path = with_gaps(tmp_path / "a.mkv", [(4, 6)])
    over = load_audio(path, sampling_rate=RATE, start=3, duration=4)
    assert over.shape == (1, 4 * RATE)
    loud = [float(np.abs(over[0, at : at + RATE // 2]).max()) > 0.1 for at in range(0, 4 * RATE, RATE // 2)]
    assert loud == [True, True, False, False, False, False, True, True] or loud == [
        True, True, True, False, False, False, True, True]  # fmt: skip  # the packet that begins before the gap
    late = load_audio(path, sampling_rate=RATE, start=5, duration=2)
    assert late.shape == (1, 2 * RATE) and np.abs(late[0, : RATE - 800]).max() < 1e-3
    early = load_audio(path, sampling_rate=RATE, start=3, duration=2)
    assert early.shape == (1, 2 * RATE) and np.abs(early[0, RATE + 1600 :]).max() < 1e-3
    with pytest.raises(
        MediaError, match=r"no sound from 4.5 s to 5.5 s; its sound is missing from 4.0\d s to [56]"
    ):
        load_audio(path, sampling_rate=RATE, start=4.5, duration=1)


def test_a_gap_at_the_beginning_is_where_the_sound_begins(tmp_path):
    path = with_gaps(tmp_path / "a.mkv", [(0, 4)])
    assert pitch_at(path, 5.0) == pytest.approx(5.25, abs=0.15)
    assert load_audio(path, sampling_rate=RATE, start=3, duration=2).shape[1] / RATE == pytest.approx(
        1, abs=0.05
    )
    with pytest.raises(MediaError, match="no sound from 1 s to 2 s; its sound begins at"):
        load_audio(path, sampling_rate=RATE, start=1, duration=1)


def test_time_stamps_that_jitter_are_no_gaps(tmp_path):
    sound = to_format(slow_chirp(0, 4), "s16")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for i, frame in enumerate(audio_frames(sound, "s16", 48_000)):
            frame.pts += 576 * (i % 2)  # 12 ms late, every other one
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert np.abs(load_audio(path, sampling_rate=48_000) - sound / 2**15).max() < 1e-4


def joined(tmp_path, parts, extension, **options):
    """Recordings one behind the other in one file: (begin, end, rate, channels) of the chirp."""
    content = b""
    for begin, end, rate, channels in parts:
        sound = np.repeat(slow_chirp(begin, end, rate), channels, axis=0)
        one = write(
            tmp_path / f"part.{extension}",
            sound=to_format(sound, options["sample_format"]),
            rate=rate,
            **options,
        )
        content += one.read_bytes()
    path = tmp_path / f"joined.{extension}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "second", [(6, 12, 48_000, 1), (6, 12, 44_100, 2), (6, 12, 48_000, 2)], ids=["rate", "channels", "both"]
)
@pytest.mark.parametrize(
    "extension, codec, sample_format", [("mp3", "libmp3lame", "s16p"), ("aac", "aac", "fltp")]
)
def test_a_sound_that_changes_in_the_middle_goes_on(tmp_path, extension, codec, sample_format, second):
    options = {"audio_codec": codec, "sample_format": sample_format}
    path = joined(tmp_path, [(0, 6, 44_100, 1), second], extension, **options)
    whole = load_audio(path, sampling_rate=RATE)
    assert whole.shape[0] == 1 and abs(whole.shape[1] / RATE - 12) < 0.2
    for at in (2, 5, 7, 10):
        part = whole[0, at * RATE : at * RATE + RATE // 2]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 8 * len(part)))
        pitch = (np.fft.rfftfreq(8 * len(part), 1 / RATE)[spectrum.argmax()] - 200) / 60
        assert pitch == pytest.approx(at + 0.25, abs=0.2)
    assert whole[0, 8 * RATE : 9 * RATE].std() == pytest.approx(0.5 / 2**0.5, abs=0.03)


@pytest.mark.parametrize("second", [(6, 12, 48_000, 2), (6, 12, 24_000, 1)], ids=["channels", "rate"])
def test_joined_ogg_files_may_differ(tmp_path, second):
    """FFmpeg itself reads only the first one."""
    options = {"audio_codec": "flac", "sample_format": "s16", "container": "ogg"}
    path = joined(tmp_path, [(0, 6, 48_000, 1), second], "ogg", **options)
    whole = load_audio(path, sampling_rate=RATE)
    assert whole.shape == (1, 12 * RATE)
    assert np.abs(whole[0, 9 * RATE : 10 * RATE] - slow_chirp(9, 10, RATE)).max() < 1e-2
    across = load_audio(path, sampling_rate=RATE, start=5.5, duration=1)
    assert np.abs(across - whole[:, 5 * RATE + RATE // 2 :][:, :RATE]).max() < 1e-2
    assert load_audio_as_it_is(path)[1] == 48_000
    cut = path.read_bytes()[:-5_000]
    assert 10 * RATE < load_audio(cut, sampling_rate=RATE).shape[1] < 12 * RATE
    with pytest.raises(MediaError, match="no sound from 13 s to 14 s; its sound ends at 12.00 s"):
        load_audio(path, sampling_rate=RATE, start=13, duration=1)
    damaged = path.read_bytes().replace(b"\x7fFLAC", b"\x7fXXXX").replace(b"\x7fXXXX", b"\x7fFLAC", 1)
    with pytest.warns(MediaWarning, match="a part of its sound is left out, from 6.00 s"):
        assert load_audio(damaged, sampling_rate=RATE).shape == (1, 6 * RATE)


def test_after_a_change_of_the_rate_a_part_is_still_the_sound_of_its_time(tmp_path):
    """Raw AAC has no time stamps: FFmpeg counts its frames, at the rate of the beginning."""
    options = {"audio_codec": "aac", "sample_format": "fltp"}
    path = joined(tmp_path, [(0, 20, 44_100, 1), (20, 40, 22_050, 1)], "aac", **options)
    for start in (3.0, 17.0, 24.0, 37.0):
        assert pitch_at(path, start) == pytest.approx(start + 0.25, abs=0.2)


def test_a_part_after_a_change_is_exactly_the_slice_of_the_whole(tmp_path):
    options = {"audio_codec": "flac", "sample_format": "s16"}
    path = joined(tmp_path, [(0, 2, 44_100, 1), (2, 6, 48_000, 1)], "flac", **options)
    whole = load_audio(path, sampling_rate=RATE)
    for start in (1.9, 2.337, 4.018):
        part = load_audio(path, sampling_rate=RATE, start=start, duration=1)
        assert np.abs(part - whole[:, round(start * RATE) :][:, :RATE]).max() < 1e-3
    assert np.abs(whole[:, 3 * RATE : 4 * RATE] - slow_chirp(3, 4, RATE)).max() < 1e-3


def test_from_stereo_to_mono_both_channels_go_on(tmp_path):
    options = {"audio_codec": "aac", "sample_format": "fltp"}
    path = joined(tmp_path, [(0, 2, 48_000, 2), (2, 4, 48_000, 1)], "aac", **options)
    whole = load_audio(path, sampling_rate=RATE)
    assert whole.shape[0] == 2 and abs(whole.shape[1] / RATE - 4) < 0.2
    assert np.abs(whole[:, 3 * RATE :]).max(axis=1) == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize(
    "extension, codec, sample_format",
    [("ogg", "libopus", "s16"), ("ts", "aac", "fltp"), ("opus", "libopus", "s16")],
)
def test_joined_files_whose_clock_begins_anew(tmp_path, extension, codec, sample_format):
    options = {"audio_codec": codec, "sample_format": sample_format}
    if extension == "opus":
        options["container"] = "ogg"
    path = joined(tmp_path, [(0, 18, 48_000, 1), (18, 36, 48_000, 1)], extension, **options)
    assert abs(load_audio(path, sampling_rate=RATE).shape[1] / RATE - 36) < 0.2
    for start in (2.0, 8.0, 15.0, 17.0, 20.0, 35.0):  # both files have a second 15
        assert pitch_at(path, start) == pytest.approx(start + 0.25, abs=0.2)
        assert pitch_at(path.read_bytes(), start) == pytest.approx(start + 0.25, abs=0.2)


def test_pictures_and_sounds_of_a_joined_film_are_of_one_time(tmp_path):
    parts = [
        write(
            tmp_path / "part.ts",
            sound=to_format(slow_chirp(2.4 * number, 2.4 * (number + 1)), "fltp"),
            sample_format="fltp",
            rate=48_000,
            audio_codec="aac",
            pictures=picture_frames(24),
            video_codec="mpeg2video",
        ).read_bytes()
        for number in range(2)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    whole = tmp_path / "whole.ts"
    whole.write_bytes(parts[0])
    for pictures, shown in (
        (load_frames(path, 4), [6, 18, 6, 18]),
        (load_frames(path, 2, 2.4, 4.8), [6, 18]),
        ([load_frame(path, time=2.05), load_frame(path, time=4.45)], [20, 20]),
    ):
        assert [index(picture) for picture in pictures] == pytest.approx(shown, abs=1)
    with pytest.raises(MediaError, match="it ends at 4.* s, so it has no frame at 9 s"):
        load_frame(path, time=9)
    assert [index(picture) for picture in load_frames(whole, 4)] == pytest.approx([3, 9, 15, 21], abs=1)


# Lengths


class Unseekable(io.RawIOBase):
    """A file that is written as to a pipe."""

    def __init__(self):
        self.bytes = io.BytesIO()

    def writable(self):
        return True

    def write(self, data):
        return self.bytes.write(data)


def streamed(path, container, **options):
    pipe = Unseekable()
    write(pipe, container=container, **options)
    path.write_bytes(pipe.bytes.getvalue())
    return path


STREAMED = [
    ("wav", "wav", "pcm_s16le", "s16"),
    ("mp3", "mp3", "libmp3lame", "s16p"),
    ("ogg", "ogg", "libopus", "s16"),
    ("flac", "flac", "flac", "s16"),
    ("webm", "webm", "libopus", "s16"),
]


@pytest.mark.parametrize("extension, container, codec, sample_format", STREAMED, ids=[s[0] for s in STREAMED])
def test_sounds_written_to_a_pipe_have_their_times(tmp_path, extension, container, codec, sample_format):
    path = streamed(
        tmp_path / f"a.{extension}",
        container,
        sound=to_format(slow_chirp(0, 20), sample_format),
        sample_format=sample_format,
        rate=48_000,
        audio_codec=codec,
    )
    assert abs(load_audio(path, sampling_rate=RATE).shape[1] / RATE - 20) < 0.1
    for start in (3.0, 12.0, 18.0):
        assert pitch_at(path, start) == pytest.approx(start + 0.25, abs=0.15)


@pytest.mark.parametrize("size", [0, 100, 2**31, 2**32 - 1])
def test_a_wav_whose_header_has_a_wrong_size(tmp_path, size):
    path = write(tmp_path / "a.wav", sound=to_format(slow_chirp(0, 4, RATE), "s16"))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    if size == 100:  # a size that may be right: the rest may be another chunk
        assert load_audio(path, sampling_rate=RATE).shape == (1, 50)
    else:
        assert load_audio(path, sampling_rate=RATE).shape == (1, 4 * RATE)
        assert pitch_at(path, 3.0) == pytest.approx(3.25, abs=0.15)


def index(picture):
    """The number of a frame, by its brightness."""
    return round((np.asarray(picture).mean() - 16) / GREY_STEP)


def test_evenly_spaced_frames_of_a_video_that_does_not_say_its_length(tmp_path):
    path = streamed(tmp_path / "a.mkv", "matroska", pictures=picture_frames(24), video_codec="libx264")
    assert probe(path).duration is None
    assert [index(picture) for picture in load_frames(path, 4)] == [3, 9, 15, 21]
    assert [index(picture) for picture in load_frames(path, 2, 1.2)] == [15, 21]
    assert [index(picture) for picture in load_frames(path.read_bytes(), 3)] == [4, 12, 20]


def set_duration(path, seconds):
    """Write a duration into a Matroska file's header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes
    data[at : at + 8] = struct.pack(">d", seconds * 1000)
    path.write_bytes(data)


@pytest.mark.parametrize("claimed", [0.7, 100.0])
def test_a_wrong_length_in_the_header_does_not_count(tmp_path, claimed):
    path = film(tmp_path / "a.mkv", seconds=2.4)
    set_duration(path, claimed)
    assert probe(path).duration == pytest.approx(claimed)
    assert index(load_frame(path)) in (11, 12)
    assert [index(picture) for picture in load_frames(path, 4)] == [3, 9, 15, 21]
    assert [index(picture) for picture in load_frames(path, 2, 1.2, 2.4)] == [15, 21]
    assert index(load_frame(path, time=2.0)) == 20
    with pytest.raises(MediaError, match=r"a\.mkv: it ends at 2\.4\d* s, so it has no frame at 50 s"):
        load_frame(path, time=50)
    assert load_audio(path, sampling_rate=RATE, start=2, duration=0.3).shape == (2, 4800)


def test_the_last_frame_stays_while_the_sound_goes_on(tmp_path):
    path = write(tmp_path / "a.mkv", sound=to_format(chirp(3, RATE), "s16"), pictures=picture_frames(10))
    assert index(load_frame(path, time=2.5)) == 9
    with pytest.raises(MediaError, match="it ends at"):
        load_frame(path, time=3.5)


# Tracks


def test_the_track_that_can_be_decoded_is_heard_and_named(tmp_path):
    path = two_tracks(tmp_path / "a.mov", default=1)
    assert load_audio(path, sampling_rate=RATE).shape[0] == 2  # the default one
    for number, channels in ((0, 1), (1, 2)):
        assert load_audio(path, sampling_rate=RATE, track=number).shape[0] == channels
    break_codec(path, 1)
    with pytest.warns(MediaWarning, match=r"a\.mov: sound track 1 can't be decoded; track 0 \(aac\) is used"):
        assert load_audio(path, sampling_rate=RATE).shape[0] == 1
    with pytest.warns(MediaWarning):
        assert pitch_at(path, 1.0) == pytest.approx(1.25, abs=0.15)
    with pytest.raises(MediaError, match="there is no decoder for its audio"):
        load_audio(path, sampling_rate=RATE, track=1)
    with pytest.raises(MediaError, match=r"no sound track 2: its tracks are 0 \(aac\), 1 \(no decoder\)"):
        load_audio(path, sampling_rate=RATE, track=2)


def test_a_track_of_which_no_packet_can_be_decoded(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        good = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        broken = output.add_stream("flac", rate=RATE, layout="stereo")
        broken.disposition = av.stream.Disposition.default
        for frame in audio_frames(to_format(chirp(1, RATE), "s16"), "s16", RATE):
            output.mux(good.encode(frame))
        for frame in audio_frames(to_format(chirp(1, RATE, 2), "s16"), "s16", RATE):
            for packet in broken.encode(frame):
                replaced = av.Packet(bytes(packet.size))
                replaced.stream, replaced.pts, replaced.dts = broken, packet.pts, packet.dts
                replaced.time_base, replaced.duration = packet.time_base, packet.duration
                output.mux(replaced)
        output.mux(good.encode(None))
    with pytest.warns(MediaWarning, match="sound track 1 can't be decoded; track 0"):
        sound = load_audio(path, sampling_rate=RATE)
    assert sound.shape == (1, RATE)
    assert np.abs(sound - chirp(1, RATE)).max() < 1e-3
