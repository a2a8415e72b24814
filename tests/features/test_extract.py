"""Features of clips: the numbers of a plain loop, whatever stops or shares the work."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_soundclip.clips import load_sound
from llava_soundclip.encoders import load_encoder
from llava_soundclip.features import (
    Clip,
    FeatureFolder,
    VisionTower,
    decode,
    extract,
    extract_features,
    read_clips,
)
from llava_soundclip.features.claims import Claims, group_of
from llava_soundclip.features.decode import Decoded, Decoder, DecodingPool
from llava_soundclip.features.pictures import ClipPictures, ProcessorPictures, prepare_like
from llava_soundclip.fingerprints import clip_fingerprint
from llava_soundclip.media import MediaWarning, load_audio, load_audio_as_it_is, load_frame, load_frames
from tests.conftest import TinyEncoder, tiny_vision_config
from tests.features.making import make_films, save_tiny_tower
from tests.media.making import (
    GREY_STEP,
    break_codec,
    chirp,
    film,
    picture_frames,
    to_format,
    two_tracks,
    write,
)


@pytest.fixture(scope="session")
def tower(tower_folder):
    return VisionTower.load(tower_folder)


@pytest.fixture(scope="session")
def whisperclip(whisper_file):
    return load_encoder("whisperclip", checkpoint=whisper_file)


def quick(clips, out, tower, *, encoder=None, **options):
    """Extraction without processes, by an encoder that costs nothing."""
    return extract_features(clips, encoder or TinyEncoder(), tower, out, **({"workers": 0} | options))


def everything(path):
    features = FeatureFolder(path)
    features.verify()
    return features.ids, *features.rows(torch.arange(len(features)))


def same(one, two):
    return one[0] == two[0] and all(torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))


def contents(folder):
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".safetensors", ".parquet")
    }


# Values


@pytest.mark.parametrize("workers", [0, 2])
def test_values_of_a_plain_loop(films, tower, tower_folder, whisperclip, tmp_path, workers):
    import transformers

    clips = read_clips([str(films)])
    done = extract_features(
        clips, whisperclip, tower, tmp_path, dtype="float32", patches=True, workers=workers, batch_size=3
    )
    assert (done.made, done.there, done.bad, done.interrupted) == (11, 0, {}, False)
    features = FeatureFolder(tmp_path)
    assert features.ids == [f"clips/film{i:03}.mkv" for i in range(10)] + ["clips/long.mp4"]
    assert features.header.layers == 2 and "fusion" not in features.header.encoder
    audio, cls = features.rows(torch.arange(11))
    patches = features.patches(torch.arange(11))
    model = transformers.CLIPVisionModel.from_pretrained(tower_folder)
    processor = transformers.AutoImageProcessor.from_pretrained(tower_folder)
    for i, id in enumerate(features.ids):
        path = films.parent / id
        sound = load_audio(path, sampling_rate=16_000)
        pixels = processor(load_frame(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            tokens = model(pixels, output_hidden_states=True).hidden_states[-2][0]
        torch.testing.assert_close(
            audio[i], whisperclip.layer_means([sound], 16_000)[0], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(cls[i], tokens[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(patches[i], tokens[1:], rtol=1e-4, atol=1e-5)
    fused = whisperclip.fuse(audio)
    torch.testing.assert_close(
        fused[:1],
        whisperclip.embed([load_audio(films / "film000.mkv", sampling_rate=16_000)], 16_000),
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_vector_of_an_encoder_without_fusion(films, tower, whisper_file, tmp_path):
    whisper = load_encoder("whisper", checkpoint=whisper_file)
    quick(read_clips([str(films / "film001.mkv")]), tmp_path, tower, encoder=whisper, dtype="float32")
    features = FeatureFolder(tmp_path)
    assert features.header.layers is None and features.header.encoder == dict(whisper.signature())
    sound = load_audio(films / "film001.mkv", sampling_rate=16_000)
    torch.testing.assert_close(features.rows(torch.tensor([0]))[0], whisper.embed([sound], 16_000))


def test_the_mean_over_frames(films, tower, tmp_path):
    clip = read_clips([str(films / "long.mp4")])
    quick(clip, tmp_path, tower, frames=3, dtype="float32", patches=True)
    pictures = [load_frame(films / "long.mp4", time=time) for time in (0.5, 1.5, 2.5)]
    brightness = [np.asarray(picture).mean() for picture in pictures]
    assert np.diff(brightness) == pytest.approx([10 * GREY_STEP] * 2, abs=3)
    expected = tower.tokens(torch.from_numpy(prepare_like(tower.processor)(pictures))).mean(dim=0)
    features = FeatureFolder(tmp_path)
    torch.testing.assert_close(features.rows(torch.tensor([0]))[1][0], expected[0])
    torch.testing.assert_close(features.patches(torch.tensor([0]))[0], expected[1:])


def test_half_precision_is_the_rounded_float(films, tower, tmp_path):
    clips = read_clips([str(films)])
    quick(clips, tmp_path / "full", tower, dtype="float32")
    quick(clips, tmp_path / "half", tower)
    full, half = everything(tmp_path / "full"), everything(tmp_path / "half")
    assert torch.equal(half[2], full[2].half().float())


def test_batches_hold_sounds_of_one_length(films, tower, tmp_path):
    class Noting(TinyEncoder):
        def _embed(self, waveforms):
            batches.append([waveform.shape[1] for waveform in waveforms])
            return super()._embed(waveforms)

    batches = []
    quick(read_clips([str(films)]), tmp_path, tower, encoder=Noting(), batch_size=4)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    lengths = [length for batch in batches[1:] for length in batch]  # the first one doesn't wait for others
    assert batches[0] == sorted(batches[0]) and lengths == sorted(lengths)


class Here:
    """Stands for a pool of processes: decodes at once, in this one."""

    def __init__(self, workers, *, mp_context, initializer, initargs):
        (self.decoder,) = initargs

    def submit(self, function, clip):
        future = Future()
        future.set_result(self.decoder(clip))
        return future

    def shutdown(self, **options):
        pass


@pytest.mark.parametrize(("room", "most"), [(5000, 5), (5999, 5), (10**6, 20), (100, 2)])
def test_large_clips_are_decoded_less_far_ahead(monkeypatch, room, most):
    """Once the size of a clip is known, as many wait as the bytes allow, but one for each worker."""
    monkeypatch.setattr(decode, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(decode, "_AHEAD_BYTES", room)
    sizes = [250] + [200] * 59
    found = {
        str(i): Decoded(np.zeros((1, size), np.float32), 16_000, np.zeros(0), 0.0)
        for i, size in enumerate(sizes)
    }
    given, ahead = [], []

    def clips():
        for i in range(len(sizes)):
            yield Clip(str(i), str(i), "sound.wav")
            ahead.append(i + 1 - len(given))

    with DecodingPool(lambda clip: found[clip.id], 2, 20) as pool:
        for clip, decoded in pool.decode(clips()):
            assert decoded is found[clip.id]
            given.append(clip.id)
    assert given == list(found)
    assert ahead[:19] == list(range(1, 20))  # nothing is known before the first one is there
    assert set(ahead[20:]) == {most - 1}


def test_large_clips_make_smaller_groups(tower, tmp_path, monkeypatch):
    class Noting(TinyEncoder):
        def _embed(self, waveforms):
            batches.append(len(waveforms))
            return super()._embed(waveforms)

    batches = []
    Image.new("RGB", (30, 30), "teal").save(tmp_path / "picture.png")
    sound = write(tmp_path / "sound.wav", sound=to_format(chirp(0.1, 16_000), "s16"))
    clips = [Clip(str(i), str(i), str(sound), str(tmp_path / "picture.png")) for i in range(14)]
    clip_bytes = 1600 * 4 + 3 * 30 * 30 * 4  # float32 samples and pixels
    for room, expected in [
        (3 * clip_bytes, [3, 3, 3, 3, 2]),
        (3 * clip_bytes + 1, [4, 4, 4, 2]),
        (1, [1] * 14),
    ]:
        batches.clear()
        monkeypatch.setattr(extract, "SORTED_BYTES", room)
        quick(clips, tmp_path / f"f{room}", tower, encoder=Noting(), batch_size=6)
        assert batches == expected


# Segments


def test_segments_are_slices_of_the_whole(films):
    whole = load_audio(films / "film004.mkv", sampling_rate=16_000)
    part, rate = load_sound(str(films / "film004.mkv"), 16_000, 0.1, 0.25)
    assert rate == 16_000
    np.testing.assert_allclose(part, whole[:, 1600:4000], atol=1e-4)
    rest, _ = load_sound(str(films / "film004.mkv"), 16_000, 0.1, None)
    np.testing.assert_allclose(rest, whole[:, 1600:], atol=1e-4)


def test_segments_at_the_sounds_own_rate(tmp_path):
    path = write(tmp_path / "a.wav", sound=to_format(chirp(1.0, 8_000, 2), "s16"), rate=8_000)
    whole, rate = load_audio_as_it_is(path)
    part, own = load_sound(str(path), None, 0.5, 0.75)
    assert rate == own == 8_000 and np.array_equal(part, whole[:, 4000:6000])
    assert np.array_equal(load_sound(str(path), None, None, None)[0], whole)


def test_frames_of_a_segment(films):
    long = str(films / "long.mp4")
    for frames, start, end, times in (
        (1, 1.0, 2.0, [1.5]),
        (2, 1.0, 2.0, [1.25, 1.75]),
        (1, 2.0, None, [2.5]),
        (1, None, 1.0, [0.5]),
        (2, 2.0, 99.0, [2.25, 2.75]),
    ):
        found = load_frames(long, frames, start, end)
        assert len(found) == frames
        for picture, at in zip(found, times, strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(load_frame(long, time=at)))


def test_a_still_picture_comes_once(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    assert len(load_frames(str(tmp_path / "a.png"), 5, 1.0, 2.0)) == 1


def test_a_film_that_does_not_say_how_long_it_is_is_measured(tmp_path):
    path = write(tmp_path / "a.m4v", container="m4v", pictures=picture_frames(20))  # two seconds
    for count, shown in ((1, [10]), (4, [2, 7, 12, 17])):
        brightness = [np.asarray(picture).mean() for picture in load_frames(str(path), count)]
        assert brightness == pytest.approx([16 + GREY_STEP * number for number in shown], abs=GREY_STEP / 2)


# Bad clips


def test_bad_clips_are_listed_and_the_others_made(films, tower, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    film(folder / "good.mkv", seconds=0.5)
    write(folder / "sound.wav", sound=to_format(chirp(0.2, 16_000), "s16"))
    write(folder / "mute.mkv", pictures=picture_frames(3))
    (folder / "broken.mp4").write_bytes(b"no film")
    clips = [
        *read_clips([str(folder), str(tmp_path / "none.mp4")]),
        Clip("late", "late", str(folder / "good.mkv"), start=30.0, end=33.0),
        Clip("faulty", "faulty", "x", fault="it goes nowhere"),
    ]
    for workers in (0, 1):
        done = extract_features(clips, TinyEncoder(), tower, tmp_path / f"f{workers}", workers=workers)
        assert FeatureFolder(tmp_path / f"f{workers}").ids == ["clips/good.mkv"]
        assert done.made == 1
        assert {id: reason.rpartition("/")[2] for id, reason in done.bad.items()} == {
            "clips/broken.mp4": "broken.mp4: it isn't a media file, or it is truncated or damaged",
            "clips/mute.mkv": "mute.mkv: it has no sound",
            "clips/sound.wav": "sound.wav: it has no pictures (put a picture with the same name next to "
            "the sound)",
            f"{tmp_path.name}/none.mp4": "none.mp4: No such file or directory",
            "late": "good.mkv: it has no sound from 30 s to 33 s; its sound ends at 0.50 s",
            "faulty": "it goes nowhere",
        }


@pytest.mark.parametrize("workers", [0, 1])
def test_which_track_is_heard_is_said_here_though_it_is_decoded_elsewhere(tower, tmp_path, workers):
    path = two_tracks(tmp_path / "a.mov", default=1)
    break_codec(path, 1)
    with pytest.warns(MediaWarning, match="sound track 1 can't be decoded; track 0"):
        done = extract_features(read_clips(str(path)), TinyEncoder(), tower, tmp_path / "f", workers=workers)
    assert (done.made, done.bad) == (1, {})


@pytest.mark.parametrize("workers", [0, 1])
def test_features_of_the_contents_of_parquet(films, tower, tmp_path, workers):
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    names = sorted(films.glob("film*"))[:3]
    cells = pa.array([{"bytes": path.read_bytes(), "path": "x.mp4"} for path in names], held)
    pq.write_table(pa.table({"video": cells, "id": [path.name for path in names]}), tmp_path / "t.parquet")
    clips = read_clips(str(tmp_path / "t.parquet"))
    extract_features(clips, TinyEncoder(), tower, tmp_path / "held", workers=workers)
    extract_features(
        read_clips([str(path) for path in names]), TinyEncoder(), tower, tmp_path / "files", workers=0
    )
    rows = [FeatureFolder(tmp_path / name).rows(torch.arange(3)) for name in ("held", "files")]
    for held_row, file_row in zip(*rows, strict=True):
        torch.testing.assert_close(held_row, file_row)


def test_a_clip_that_the_encoder_fails_on_is_alone_bad(films, tower, tmp_path):
    class Picky(TinyEncoder):
        def _embed(self, waveforms):
            if any(waveform.shape[1] > 40_000 for waveform in waveforms):
                raise RuntimeError("out of memory")
            return super()._embed(waveforms)

    done = quick(read_clips([str(films)]), tmp_path, tower, encoder=Picky(), batch_size=4)
    assert done.bad == {"clips/long.mp4": "out of memory"}
    assert done.made == len(FeatureFolder(tmp_path)) == 10


def test_numbers_that_half_precision_can_not_hold(films, tower, tmp_path):
    class Loud(TinyEncoder):
        def _embed(self, waveforms):
            return super()._embed(waveforms) + torch.tensor([[1e6 * (len(w.T) > 40_000)] for w in waveforms])

    done = quick(read_clips([str(films)]), tmp_path, tower, encoder=Loud())
    assert list(done.bad) == ["clips/long.mp4"] and "too large for float16" in done.bad["clips/long.mp4"]


class Deadly(ClipPictures):
    """Kills its process at dark pictures, as a fault in a decoder would."""

    def __call__(self, pictures):
        if np.asarray(pictures[0]).mean() < 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(pictures)


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_is_alone_bad(tower, tmp_path):
    clips = []
    for i in range(5):
        pixels = np.full((30, 30, 3), 10 if i == 2 else 100, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        sound = write(tmp_path / f"{i}.wav", sound=to_format(chirp(0.1, 16_000), "s16"))
        clips.append(Clip(f"{i}", f"{i}", str(sound), str(tmp_path / f"{i}.png")))
    light = ClipPictures.like(tower.processor)
    assert light is not None
    decoder = Decoder(16_000, 1, Deadly(**dataclasses.asdict(light)))
    with DecodingPool(decoder, 2, 4) as pool:
        results = {clip.id: found for clip, found in pool.decode(clips)}
    assert list(results) == ["0", "1", "2", "3", "4"]
    assert isinstance(results["2"], str) and "process that decoded it died" in results["2"]
    assert all(isinstance(results[id], Decoded) for id in "0134")


# Options


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"frames": 0}, "frames must be 1"), ({"batch_size": 0}, "batch_size"), ({"workers": -1}, "workers")],
)
def test_options_are_checked(tower, tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        quick([], tmp_path / "f", tower, **options)
    assert not (tmp_path / "f").exists()


def test_ids_are_checked(tower, tmp_path):
    with pytest.raises(ValueError, match="two clips have the id 'a'"):
        quick([Clip("a", "a", "x"), Clip("a", "a", "y")], tmp_path, tower)


def test_another_tower_or_encoder_is_refused(films, tower, whisper_file, tmp_path):
    clips = read_clips([str(films / "film001.mkv")])
    quick(clips, tmp_path / "f", tower)
    other = VisionTower.load(save_tiny_tower(tmp_path / "tower", seed=1))
    with pytest.raises(ValueError, match="another kind: tower_weights is '[0-9a-f]{8}' there and"):
        quick(clips, tmp_path / "f", other)
    with pytest.raises(ValueError, match="encoder is .*tiny.* there and .*whisper"):
        quick(clips, tmp_path / "f", tower, encoder=load_encoder("whisper", checkpoint=whisper_file))


def test_another_fusion_is_no_other_folder(films, tower, whisper_file, tmp_path):
    clips = read_clips([str(films / "film001.mkv")])
    for fusion in ("average_all", "final_only"):
        encoder = load_encoder("whisperclip", checkpoint=whisper_file, fusion=fusion)
        done = quick(clips, tmp_path, tower, encoder=encoder)
    assert (done.made, done.there) == (0, 1)


# Towers


def test_the_tower(tower, tower_folder, tmp_path):
    config = tiny_vision_config()
    assert tower.name == "clip_vision_model-w32-l3-p10-i30" == clip_fingerprint(config)
    assert (tower.width, tower.patch_count, tower.layer) == (32, 9, -2)
    assert VisionTower.load(tower_folder).weights == tower.weights
    with pytest.raises(ValueError, match="layer -5 is outside"):
        VisionTower.load(tower_folder, layer=-5)
    whole = tower.model.from_pretrained(tower_folder)(torch.ones(1, 3, 30, 30), output_hidden_states=True)
    for layer, states in enumerate(whole.hidden_states):
        found = VisionTower.load(tower_folder, layer=layer)  # without the blocks above
        assert found.weights == tower.weights and torch.equal(found.tokens(torch.ones(1, 3, 30, 30)), states)
    last = VisionTower.load(tower_folder, layer=3).tokens(torch.zeros(1, 3, 30, 30))
    assert not torch.equal(last, tower.tokens(torch.zeros(1, 3, 30, 30)))


def test_a_tower_inside_of_a_whole_clip(tower, tower_folder, tmp_path):
    import transformers

    text = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=tiny_vision_config().to_dict(), projection_dim=8
    )
    model = transformers.CLIPModel(config)
    tiny = transformers.CLIPVisionModel.from_pretrained(tower_folder)
    model.vision_model.load_state_dict(getattr(tiny, "vision_model", tiny).state_dict())
    model.save_pretrained(tmp_path)
    tower.processor.save_pretrained(tmp_path)
    found = VisionTower.load(tmp_path)
    assert (found.name, found.weights) == (tower.name, tower.weights)


def test_what_is_no_clip_tower(tmp_path):
    import transformers

    transformers.SiglipVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a siglip_vision_model: a tower with a CLS token"):
        VisionTower.load(tmp_path)
    with pytest.raises(OSError):
        VisionTower.load(tmp_path / "none")


@pytest.mark.parametrize("change", [{"do_center_crop": False}, {"do_normalize": False}, {"resample": 0}])
def test_pictures_are_prepared_as_the_processor_does(tower, change):
    import copy

    processor = copy.deepcopy(tower.processor)
    for name, value in change.items():
        setattr(processor, name, value)
    prepare = prepare_like(processor)
    assert isinstance(prepare, ProcessorPictures if "resample" not in change else ClipPictures)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (77, 131, 3), dtype=np.uint8))
    expected = processor([picture], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(prepare([picture]), expected, atol=1e-5)


def test_workers_decode_without_torch():
    code = "import sys, llava_soundclip.features.decode; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Stopped and gone on with


def test_a_second_run_makes_what_is_missing(films, tower, tmp_path):
    clips = read_clips([str(films)])
    quick(clips[:7], tmp_path / "f", tower, shard_size=3)
    before = contents(tmp_path / "f")
    done = quick(clips, tmp_path / "f", tower, shard_size=3)
    assert (done.made, done.there) == (4, 7)
    assert before.items() <= contents(tmp_path / "f").items()
    quick(clips, tmp_path / "whole", tower)
    assert same(everything(tmp_path / "f"), everything(tmp_path / "whole"))
    after = contents(tmp_path / "f")
    assert quick(clips, tmp_path / "f", tower).made == 0
    assert contents(tmp_path / "f") == after


def test_ctrl_c_keeps_what_is_made(films, tower, tmp_path):
    class Pressed(TinyEncoder):
        calls = 0

        def _embed(self, waveforms):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super()._embed(waveforms)

    clips = read_clips([str(films)])
    done = extract_features(clips, Pressed(), tower, tmp_path, batch_size=2, workers=1)
    assert done.interrupted and done.made == 4
    assert len(FeatureFolder(tmp_path)) == 4
    done = quick(clips, tmp_path, tower)
    assert (done.made, done.there, done.interrupted) == (7, 4, False)


RUN = """
import sys, time
import torch
torch.set_num_threads(1)
from tests.conftest import TinyEncoder
from llava_soundclip.features import VisionTower, extract_features, read_clips

class Slow(TinyEncoder):
    def _embed(self, waveforms):
        time.sleep({seconds} * len(waveforms))
        return super()._embed(waveforms)

if __name__ == "__main__":
    print("begins", flush=True)
    done = extract_features(
        read_clips([{clips!r}]), Slow(), VisionTower.load({tower!r}), {out!r},
        shard_size=4, batch_size=2, workers={workers},
    )
    print(done.made, done.there, len(done.bad), flush=True)
"""


def start(tmp_path, name="run", **values):
    """The run in a process of its own."""
    script = tmp_path / f"{name}.py"
    script.write_text(RUN.format(**values))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_shards(out, count, process, *, limit=90.0):
    until = time.monotonic() + limit
    while len(list(out.glob("index/*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


def children_of(pid):
    """Processes below one, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_killed_in_the_middle_and_gone_on_with(tower, tower_folder, tmp_path):
    clips = tmp_path / "clips"
    make_films(clips, 24)
    out = tmp_path / "killed"
    values = {"clips": str(clips), "tower": str(tower_folder), "out": str(out), "workers": 1}
    process = start(tmp_path, seconds=0.1, **values)
    wait_for_shards(out, 2, process)
    time.sleep(0.15)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # workers that live on would keep its output open
    before = contents(out)
    made = FeatureFolder(out).ids
    assert workers and 8 <= len(made) < 24 and len(made) % 4 == 0
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they end with their main process
        assert time.monotonic() < until
        time.sleep(0.05)
    (out / "shards" / ".killed-00009.safetensors.part").write_bytes(b"half")

    process = start(tmp_path, seconds=0.0, **values)
    output, errors = process.communicate(timeout=120)
    assert output.split("\n")[1] == f"{24 - len(made)} {len(made)} 0", errors
    after = contents(out)
    vouched = {
        path: content for path, content in before.items() if (out / "index" / f"{path.stem}.parquet").exists()
    }
    assert vouched.items() <= after.items()
    assert not list(out.rglob("*.part"))
    stored = [id for part in after if part.suffix == ".parquet" for id in ids_of(part)]
    assert len(stored) == len(set(stored)) == 24  # nothing was made twice
    quick(read_clips([str(clips)]), tmp_path / "never", tower)
    assert same(everything(out), everything(tmp_path / "never"))


def ids_of(part):
    import pyarrow.parquet as pq

    return pq.read_table(part).column("id").to_pylist()


@pytest.mark.slow
def test_two_processes_share_the_work(tower, tower_folder, tmp_path):
    clips = tmp_path / "clips"
    make_films(clips, 40)
    out = tmp_path / "both"
    values = {"clips": str(clips), "tower": str(tower_folder), "out": str(out), "workers": 0}
    processes = [start(tmp_path, f"run{i}", seconds=0.1, **values) for i in range(2)]
    counts = []
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        counts.append([int(word) for word in output.split("\n")[1].split()])
    assert sum(made for made, _, _ in counts) == 40
    assert all(made + there == 40 and made > 0 and bad == 0 for made, there, bad in counts)
    stored = [id for part in (out / "index").glob("*.parquet") for id in ids_of(part)]
    assert len(stored) == len(set(stored)) == 40  # each clip was worked on once
    quick(read_clips([str(clips)]), tmp_path / "one", tower)
    assert same(everything(out), everything(tmp_path / "one"))


# Claims


def test_claims_without_locks_hand_everything_out(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_soundclip.features.claims.fcntl", None)
    clips = [Clip(f"{i}", f"{i}", "x") for i in range(50)]
    claims = Claims(tmp_path / "claims", clips)
    taken = [clip.id for clip, _ in claims.take(lambda: {"7"}, wait=False)]
    assert sorted(taken) == sorted(clip.id for clip in clips) and not claims.left()
    claims.settle([id for id in taken if id != "7"])
    claims.close()


HOLD = """
import fcntl, os, sys
file = open(sys.argv[1], "ab")
for group in sys.argv[2:]:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(group), os.SEEK_SET)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_what_another_process_holds_is_left_until_it_ends(tmp_path):
    clips = [Clip(f"{i}", f"{i}", "x") for i in range(5)]
    claims = Claims(tmp_path / "claims", clips)
    held = {"1", "3"}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "claims"), *(str(group_of(id)) for id in held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert {clip.id for clip, _ in claims.take(set, wait=False)} == {"0", "2", "4"}
        assert claims.left()
        other.kill()
        other.wait()
        assert {clip.id for clip, _ in claims.take(set, wait=True)} == held
    assert not claims.left()
    claims.close()


TRY = """
import fcntl, os, sys
file = open(sys.argv[1], "ab")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(sys.argv[2]), os.SEEK_SET)
except OSError:
    print("held")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_group_is_let_go_once_all_its_clips_are_settled(tmp_path):
    first, second = _two_of_one_group()
    claims = Claims(tmp_path / "claims", [Clip(id, id, "x") for id in (first, second, "other")])
    command = [sys.executable, "-c", TRY, str(tmp_path / "claims"), str(group_of(first))]

    def is_held():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held\n"

    assert not is_held()
    assert len(list(claims.take(lambda: {"other"}, wait=False))) == 3
    assert is_held()
    claims.settle([first])
    assert is_held()
    claims.settle([second])
    assert not is_held()
    claims.close()


def _two_of_one_group():
    """Two ids that are claimed together."""
    seen: dict[int, str] = {}
    for number in range(10_000):
        other = seen.setdefault(group_of(f"{number}"), f"{number}")
        if other != f"{number}":
            return other, f"{number}"
    raise AssertionError


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tower_folder, films, tmp_path):
    script = tmp_path / "run.py"
    text = RUN.format(
        clips=str(films), tower=str(tower_folder), out=str(tmp_path / "f"), seconds=0, workers=1
    )
    script.write_text(text.replace('if __name__ == "__main__":', "if True:"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, script], check=False, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "needs `if __name__ == '__main__':`" in done.stderr


def test_torch_leaves_the_workers_their_cores(films, tower, tmp_path):
    class Counting(TinyEncoder):
        def _embed(self, waveforms):
            counts.append(torch.get_num_threads())
            return super()._embed(waveforms)

    counts = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        extract_features(read_clips([str(films)]), Counting(), tower, tmp_path, workers=1)
        assert set(counts) == {max(1, min(2, extract._cores() - 1))}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
