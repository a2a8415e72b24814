"""Small files that claim days of sound or billions of pixels."""

import struct
import subprocess
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from llava_soundclip.clips import frame_of, read_clips, sound_of
from llava_soundclip.features.decode import Decoder, DecodingPool, Parts, PartsDecoder, Wanted
from llava_soundclip.features.pictures import ClipPictures
from llava_soundclip.media import MediaError, load_audio, load_audio_as_it_is, load_frame, load_frames
from tests.media.making import film, picture_frames, write


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = (value << 1 ^ (polynomial if value >> (bits - 1) else 0)) & ((1 << bits) - 1)
    return value


def silent_flac(path, frames: int, rate_code: int = 4):
    """A FLAC of constant frames of 65,535 samples at 8 kHz, 15 bytes each; the header gives no length."""
    info = (
        struct.pack(">HH", 65535, 65535)
        + bytes(6)
        + ((8000 << 44) | (15 << 36)).to_bytes(8, "big")
        + bytes(16)
    )
    parts = [b"fLaC\x80" + len(info).to_bytes(3, "big") + info]
    for number in range(frames):
        # FLAC numbers frames as UTF-8 does characters.
        head = b"\xff\xf8\x70\x08" + chr(number).encode("utf-8", "surrogatepass") + struct.pack(">H", 65534)
        body = head + bytes([_crc(head, 8, 7)]) + bytes(3)
        parts.append(body + struct.pack(">H", _crc(body, 16, 0x8005)))
    path.write_bytes(b"".join(parts))
    return path


def test_a_small_file_of_many_hours_is_refused(tmp_path):
    path = silent_flac(tmp_path / "a.flac", 600)  # 80 minutes
    assert path.stat().st_size < 10_000
    with pytest.raises(
        MediaError, match=r"a\.flac: its sound is longer than 3600 s: give its start and end, or raise"
    ):
        load_audio(path, sampling_rate=16_000)
    part = load_audio(path, sampling_rate=16_000, start=4000.0, duration=2.0)
    assert part.shape[1] == 32_000
    whole = load_audio(path, sampling_rate=1000, max_seconds=5000)
    assert whole.shape[1] == pytest.approx(600 * 65_535 / 8, abs=2)


def test_the_limit_is_exact(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8000 * 2))
    assert load_audio_as_it_is(path, max_seconds=2.0)[0].shape == (1, 16_000)
    with pytest.raises(MediaError, match=r"longer than 1\.9 s"):
        load_audio_as_it_is(path, max_seconds=1.9)


def test_many_channels_have_less_room(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((8, 2, 48_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 8 * 48_000))
    with pytest.raises(MediaError, match=r"longer than 0\.195312 s"):
        load_audio_as_it_is(path, max_seconds=1.0)


def test_a_gap_takes_no_more_than_the_limit(tmp_path):
    import av

    path = tmp_path / "a.mka"
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        for at in (0, 3000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), 99, "<i2"), layout="mono")
            frame.sample_rate, frame.pts = 8000, at * 8000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert load_audio_as_it_is(path)[0].shape[1] == 3000 * 8000 + 800
    with pytest.raises(MediaError, match="longer than 60 s"):
        load_audio_as_it_is(path, max_seconds=60.0)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".gif", ".tiff", ".jpg"])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (300, 200)).save(path)
    assert load_frame(path, max_pixels=60_000).size == (300, 200)
    for read in (load_frame, lambda path, **options: load_frames(path, 1, **options)):
        with pytest.raises(
            MediaError, match=r"its picture has 300 x 200 pixels: make it smaller, or raise max_pixels"
        ):
            read(path, max_pixels=59_999)


def test_a_small_file_of_200_megapixels_takes_no_memory(tmp_path):
    path = tmp_path / "a.png"
    subprocess.run(
        [sys.executable, "-c", f"from PIL import Image; Image.new('1', (14000, 14000)).save({str(path)!r})"],
        check=True,
    )
    assert path.stat().st_size < 50_000
    code = f"""
import resource
from llava_soundclip.media import MediaError, load_frame
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: load_frame({str(path)!r})
except MediaError as error: print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert "more than 67108864 pixels" in said and int(grown) < 100


def test_a_video_of_too_many_pixels_is_refused(tmp_path):
    path = film(tmp_path / "a.mp4", seconds=0.3, audio_codec="aac", sample_format="fltp")
    assert load_frame(path, max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(MediaError, match="its picture has 64 x 48 pixels"):
        load_frame(path, max_pixels=64 * 48 - 1)


def test_animated_pictures_have_the_limit_too(tmp_path):
    frames = [Image.effect_noise((40, 30), 60).convert("RGB") for _ in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(MediaError, match="40 x 30 pixels"):
        load_frames(tmp_path / "a.webp", 2, max_pixels=100)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 3000), (2010, 10)])
def test_a_thin_picture_is_refused(tmp_path, size):
    Image.new("L", size).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=f"its picture of {size[0]} x {size[1]} pixels is too thin"):
        load_frame(tmp_path / "a.png")
    with pytest.raises(MediaError, match="too thin"):
        load_frame(Image.new("RGB", size))
    with pytest.raises(MediaError, match="too thin"):
        load_frame(np.zeros((size[1], size[0], 3), np.uint8))
    assert load_frame(Image.new("RGB", (2000, 10))).size == (2000, 10)


def test_a_stretched_video_is_as_thin_as_it_is_shown(tmp_path):
    path = write(tmp_path / "a.mkv", pictures=picture_frames(2, (512, 16)), size=(512, 16))
    assert load_frame(path).size == (512, 16)


@pytest.mark.parametrize(("width", "height"), [(30_000, 8), (8, 30_000)])
def test_the_centre_of_a_thin_picture_is_that_of_the_whole(width, height, monkeypatch):
    from llava_soundclip.features import pictures

    waves = np.sin(np.arange(width)[None] / 7) + np.cos(np.arange(height)[:, None] / 5)
    picture = Image.fromarray((60 * waves + 128).astype(np.uint8)).convert("RGB")
    prepare = ClipPictures(24, (24, 24), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    light = prepare([picture])
    monkeypatch.setattr(pictures, "_LONGEST", 10**9)
    assert np.abs(light - prepare([picture])).max() < 0.02


def test_clips_carry_the_limits(tmp_path):
    silent_flac(tmp_path / "a.flac", 2)
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    (clip,) = read_clips([str(tmp_path / "a.flac")], max_seconds=5.0, max_pixels=9999)
    with pytest.raises(MediaError, match="longer than 5 s"):
        sound_of(clip, 8000)
    with pytest.raises(MediaError, match="100 x 100 pixels"):
        frame_of(clip)
    (clip,) = read_clips([str(tmp_path / "a.flac")])
    assert sound_of(clip, 8000)[0].shape[1] == 2 * 65_535 and frame_of(clip).size == (100, 100)
    decoder = Decoder(8000, 1, lambda pictures: np.zeros((1, 3, 2, 2), np.float32))
    (clip,) = read_clips([str(tmp_path / "a.flac")], max_seconds=5.0)
    assert "longer than 5 s" in str(decoder(clip))


class _Dies:
    """A decoder that dies on one clip, as on one that takes all memory."""

    def __call__(self, wanted: Wanted) -> Parts | str:
        if wanted.clip.id.endswith("bad.wav"):
            import os

            os._exit(1)
        return PartsDecoder(8000)(wanted)


def test_a_clip_that_takes_the_process_with_it_fails_alone(tmp_path):
    for name in ("a", "bad", "c"):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
    clips = read_clips([str(tmp_path)], by_path=True)
    with DecodingPool(_Dies(), 1, 4) as pool:
        found = {part.clip.id: parts for part, parts in pool.decode(map(Wanted, clips))}
    reasons = {name.rpartition("/")[2]: parts for name, parts in found.items() if isinstance(parts, str)}
    assert list(reasons) == ["bad.wav"] and "the process that decoded it died" in reasons["bad.wav"]
