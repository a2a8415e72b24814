"""A hundred broken files for each reader: it reads something, or says in a sentence what is wrong.

The damage is drawn with a seed: cut, changed, zeroed, doubled, removed and inserted bytes, and odd JSON.
"""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_soundclip.media import MediaWarning
from tests.media.making import chirp, film, to_format, write

pytestmark = pytest.mark.slow

COUNT = 100
ODD = [
    "null", "[]", "{}", '""', "-1", "1e999", "NaN", "true", '{"a": 1, "a": 2}', "[" * 3000, '{"a":' * 3000,
    "1" * 5000, '"\\ud800"', '"\\u0000"', "[[[[[[]]]]]]", '{"clip": []}', '{"id": {}}', '{"id": 1e400}',
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 8, 64, 512))
        match rng.randrange(7):
            case 0:
                del data[at:]
            case 1:
                for place in range(at, min(at + length, len(data))):
                    data[place] = rng.randrange(256)
            case 2:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = rng.randbytes(length)
            case _:
                data[at : at + length] = b"\xff" * len(data[at : at + length])
    return bytes(data)


def odd_json(content: bytes, rng: random.Random) -> bytes:
    """A copy in which values are replaced by others that are valid JSON, or nearly."""
    text = content.decode()
    for _ in range(rng.randint(1, 3)):
        places = [at for at, sign in enumerate(text) if sign in ":,[{\n"] or [0]
        at = rng.choice(places) + 1
        end = min((found for sign in ",}]\n" if (found := text.find(sign, at)) >= 0), default=len(text))
        text = text[:at] + rng.choice(ODD) + text[end:]
    return text.encode("utf-8", "replace")


def sound(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.media import load_audio

    samples = to_format(chirp(0.3, 16_000), "s16")
    return write(folder / "a.flac", sound=samples, audio_codec="flac"), lambda path: load_audio(
        path, sampling_rate=16_000
    )


def wave(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.media import load_audio_as_it_is

    return write(folder / "a.wav", sound=to_format(chirp(0.3, 16_000), "s16")), load_audio_as_it_is


def video(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.media import load_audio, load_frames

    return film(folder / "a.mp4", seconds=0.5, audio_codec="aac", sample_format="fltp"), lambda path: (
        load_frames(path, 2),
        load_audio(path, sampling_rate=8000),
    )


def picture(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from PIL import Image

    from llava_soundclip.media import load_frame

    Image.effect_noise((40, 30), 60).convert("RGB").save(folder / "a.png")
    return folder / "a.png", load_frame


def webp(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from PIL import Image

    from llava_soundclip.media import load_frames

    frames = [Image.effect_noise((20, 20), 60).convert("RGB") for _ in range(3)]
    frames[0].save(folder / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    return folder / "a.webp", lambda path: load_frames(path, 2)


def csv(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.clips import read_clips

    rows = "".join(f'clips/{n}.mp4,{n},{n + 0.5},"name, {n}"\n' for n in range(20))
    (folder / "a.csv").write_text(f"path,start,end,id\n{rows}")
    return folder / "a.csv", lambda path: read_clips([str(path)])


def jsonl(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.clips import read_clips

    rows = [json.dumps({"path": f"clips/{n}.mp4", "start": n, "end": n + 1}) for n in range(20)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    return folder / "a.jsonl", lambda path: read_clips([str(path)])


def parquet(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from llava_soundclip.clips import read_clips

    pq.write_table(pa.table({"path": ["a.mp4", "b.mp4"], "start": [0.0, 1.0]}), folder / "a.parquet")
    return folder / "a.parquet", lambda path: read_clips([str(path)])


def tar(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    import tarfile

    from llava_soundclip.clips import read_clips, sound_of

    wave(folder)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in ("x.wav", "y.wav", "deep/z.wav"):
            archive.add(folder / "a.wav", name)

    def read(path: Path) -> None:
        fault: Exception | None = None
        for clip in read_clips([str(path)]):
            try:
                sound_of(clip, 16_000)
            except (OSError, ValueError) as error:
                fault = error
        if fault is not None:
            raise fault

    return folder / "a.tar", read


def captions(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.captioning import CaptionFile, read_captions

    rows = [
        {"clip": f"{n}.mp4", "caption": "a dog", "encoder": "clap", "alignment": 0.5, "k": 3}
        for n in range(20)
    ]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(path: Path) -> None:
        try:
            read_captions(path)
        finally:
            CaptionFile(path, None, {"encoder": "clap", "alignment": "raw", "k": 3}).add([{"clip": "new"}])

    return folder / "a.jsonl", read


def references(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.evaluation.captions import read_references, read_things

    rows = [{"id": n, "references": ["a dog", "a cat"], "sounding": ["dog"], "silent": []} for n in range(20)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl", lambda path: (read_references(path), read_things(path))


def answers(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.evaluation.judge import DIMENSIONS
    from llava_soundclip.evaluation.judge.answers import Answer, AnswersFile, read_answers

    judge = {"model": "m", "host": "h", "prompt": "p", "temperature": 0.0}
    with AnswersFile(folder / "a.jsonl", judge) as file:
        for n in range(10):
            file.append(Answer(str(n), "raw", 0, "abc", "scored", dict.fromkeys(DIMENSIONS, 3)))
    return folder / "a.jsonl", lambda path: read_answers(path, judge)


def figures(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.evaluation.report.read import read_runs
    from tests.evaluation.report.test_report import a_retrieval

    (folder / "a.json").write_text(json.dumps(a_retrieval(n=20), indent=1))
    return folder / "a.json", lambda path: read_runs(path.parent)


def projector(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip import Projector

    Projector(6, 8, 4).save_pretrained(folder)
    (folder / "config.json").unlink()
    return folder / "model.safetensors", Projector.from_pretrained


def projector_config(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip import Projector

    Projector(6, 8, 4, tower="clip").save_pretrained(folder)
    return folder / "config.json", lambda path: Projector.from_pretrained(path.parent)


def whisper_pt(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.encoders.whisper.formats import read_checkpoint
    from tests.encoders import fake_whisper

    small = fake_whisper.weights(n_state=4, n_layer=1, n_head=1)
    return fake_whisper.write_openai(folder / "a.pt", small), read_checkpoint


def old_pt(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.encoders.checkpoints import read_tensors

    state = {f"layer.{n}.weight": torch.randn(4, 5) for n in range(5)}
    torch.save({"state_dict": state}, folder / "a.pth", _use_new_zipfile_serialization=False)
    return folder / "a.pth", read_tensors


def ctranslate2(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.encoders.whisper.formats import read_checkpoint
    from tests.encoders import fake_whisper

    small = fake_whisper.weights(n_state=4, n_layer=1, n_head=1)
    return fake_whisper.write_ctranslate2(folder, small) / "model.bin", read_checkpoint


def transformers_config(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.encoders.whisper.formats import read_checkpoint
    from tests.encoders import fake_whisper

    small = fake_whisper.weights(n_state=4, n_layer=1, n_head=1)
    return fake_whisper.write_transformers(folder, small) / "config.json", lambda path: read_checkpoint(
        path.parent
    )


def header(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.features import FeatureFolder
    from tests.training.making import write_features

    write_features(folder, clips=6)
    return folder / "features.json", lambda path: FeatureFolder(path.parent)


def index(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.features import FeatureFolder

    header(folder)
    return next((folder / "index").glob("*.parquet")), lambda path: FeatureFolder(path.parents[1]).verify()


def shard(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.features import FeatureFolder

    header(folder)
    return next((folder / "shards").glob("*")), lambda path: FeatureFolder(path.parents[1]).verify()


def vectors(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.features.vectors import load_vectors, save_vectors
    from tests.conftest import TinyEncoder

    encoder = TinyEncoder()
    save_vectors(folder / "a.safetensors", {"a.wav": torch.ones(encoder.dim)}, encoder)
    return folder / "a.safetensors", lambda path: load_vectors(path, encoder)


def recipe(folder: Path) -> tuple[Path, Callable[[Path], Any]]:
    from llava_soundclip.evaluation.vectors import measured_rows
    from llava_soundclip.features import FeatureFolder
    from tests.training.making import write_features

    data = FeatureFolder(write_features(folder / "f", clips=12))
    made = {"recipe": {"validation": 0.25, "seed": 0, "loss": "mse"}, "features": data.digest()}
    (folder / "recipe.json").write_text(json.dumps(made, indent=1))
    return folder / "recipe.json", lambda path: measured_rows(data, path.parent)


TEXTS = (jsonl, captions, references, answers, figures, projector_config, transformers_config, header, recipe)
READERS = (
    *(sound, wave, video, picture, webp, csv, parquet, tar, projector, whisper_pt, old_pt, ctranslate2),
    *(index, shard, vectors, *TEXTS),
)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_hundred_broken_files_are_read_or_refused(reader: Callable[..., Any], tmp_path: Path) -> None:
    path, read = reader(tmp_path)
    whole = path.read_bytes()
    read(path)
    rng = random.Random(f"{reader.__name__}")
    refused = 0
    for number in range(COUNT):
        odd = reader in TEXTS and number % 2
        path.write_bytes(odd_json(whole, rng) if odd else damaged(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MediaWarning)
                read(path)
        except (OSError, ValueError) as error:
            refused += 1
            assert str(error).strip(), number
            assert "weights_only" not in str(error)
        except Exception as error:  # noqa: BLE001 - any other kind is a fault
            pytest.fail(f"file {number}: {type(error).__name__}: {str(error)[:300]}")
    assert refused
