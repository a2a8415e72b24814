"""Where clips come from: their ids, their times, and what is wrong with a table."""

import csv
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_soundclip.clips import AVE2, Clip, Columns, open_media, read_clips, read_dataset
from llava_soundclip.clips.clip import Content, TarMember
from llava_soundclip.features.decode import Decoder
from llava_soundclip.media import MediaError, load_audio, load_frame
from tests.media.making import chirp, film, picture_frames, to_format, write


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder that is the current one, with empty files in "data/clips"."""
    for name in ("a.mp4", "b.wav", "b.png", "deep/a.mp4", "deep/notes.txt", "deep/c.flac"):
        path = tmp_path / "data" / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def ids(*names, **options):
    return [clip.id for clip in read_clips([str(name) for name in names], **options)]


# Files


def test_ids_do_not_depend_on_where_one_stands(data, monkeypatch):
    everything = ["clips/a.mp4", "clips/b.wav", "clips/deep/a.mp4", "clips/deep/c.flac"]
    assert ids("data/clips") == ids(data / "clips") == ids("./data/../data/clips/") == everything
    assert ids("data/clips/**/*.*")[:2] == everything[:1] + ["clips/b.png"]  # named by a pattern: it is meant
    assert ids("data/clips/*.mp4") == ids("data/clips/a.mp4") == ["clips/a.mp4"]
    monkeypatch.chdir(data / "clips")
    assert ids(".") == ids("../clips") == everything
    assert ids("a.mp4") == ids("*.mp4") == ["clips/a.mp4"]
    assert ids("none.mp4", "none/*.mp4") == ["clips/none.mp4", "none/*.mp4"]


def test_each_clip_once(data):
    assert len(read_clips(["data/clips", "data/clips/a.mp4", str(data / "clips" / "*.wav")])) == 4


def test_two_clips_with_one_id(data):
    (data / "other" / "clips").mkdir(parents=True)
    (data / "other" / "clips" / "a.mp4").touch()
    with pytest.raises(
        ValueError, match="two clips have the id 'clips/a.mp4': .*Name a folder that is above both"
    ):
        read_clips(["data/clips", "data/other/clips"])
    assert len(read_clips(["data"])) == 5


def test_a_sound_takes_the_picture_beside_it(data):
    pictures = {clip.id: clip.picture for clip in read_clips(["data/clips"])}
    assert pictures.pop("clips/b.wav") == "data/clips/b.png"
    assert set(pictures.values()) == {None}


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_no_unicode(data):
    try:
        with open(os.path.join(os.fsencode(data), b"\xff.wav"), "wb"):
            pass
    except OSError:
        pytest.skip("the file system wants Unicode")
    (clip,) = [clip for clip in read_clips(["data"]) if "\\x" in clip.id]
    assert clip.id.encode() and os.path.exists(clip.sound)


# Tables

ROWS = [
    {"path": "clips/a.mp4", "start": 0.5, "end": 3.25},
    {"path": "clips/a.mp4", "start": 3.25, "end": None},
    {"path": "clips/b.wav", "start": None, "end": None},
]


def write_table(path: Path, rows, kind):
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_tables(data, kind):
    clips = read_clips([str(write_table(data / f"table.{kind}", ROWS, kind))])
    assert [(clip.id, clip.source, clip.start, clip.end) for clip in clips] == [
        ("clips/a.mp4#0.5-3.25", "clips/a.mp4", 0.5, 3.25),
        ("clips/a.mp4#3.25-", "clips/a.mp4", 3.25, None),
        ("clips/b.wav", "clips/b.wav", None, None),
    ]
    assert [clip.sound for clip in clips] == [str(data / row["path"]) for row in ROWS]
    assert clips[2].picture == str(data / "clips" / "b.png")


def test_columns_of_other_names(data):
    row = {"film": "a.mp4", "from": "1", "to": "2", "name": "007", "of": "the film", "seen": "b.png", "x": ""}
    table = write_table(data / "table.csv", [row], "csv")
    columns = Columns(path="film", start="from", end="to", id="name", source="of", picture="seen")
    (clip,) = read_clips([str(table)], columns=columns, root=data / "clips")
    at = data / "clips"
    assert clip == Clip("007", "the film", str(at / "a.mp4"), str(at / "b.png"), 1.0, 2.0)
    assert ids(table, columns=Columns(path="{name}/{film}", id="")) == ["007/a.mp4"]


def test_missing_columns_are_named(data):
    table = write_table(data / "table.csv", [{"film": "a", "from": 1}], "csv")
    with pytest.raises(ValueError, match="has no column 'path' for the path; its columns are film, from"):
        read_clips([str(table)])
    with pytest.raises(ValueError, match="no column 'till' for the end"):
        read_clips([str(table)], columns=Columns(path="film", end="till"))
    with pytest.raises(ValueError, match="no column 'key' for the path"):
        read_clips([str(table)], columns=Columns(path="{film}/{key}.mp4"))
    with pytest.raises(ValueError, match="which column is the path"):
        read_clips([str(table)], columns=Columns(path=""))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"start": "soon"}, "its start is 'soon', not seconds"),
        ({"start": "3", "end": "2"}, "it goes from 3 s to 2 s: it ends before it begins"),
        ({"end": "0"}, "ends before it begins"),
        ({"start": "-1"}, "times must be 0 or more"),
        ({"end": "nan"}, "times must be"),
        ({"end": "inf"}, "times must be"),
        ({"path": ""}, "row 1 of .*table.jsonl has no path"),
    ],
)
def test_a_bad_row_is_a_bad_clip(data, row, reason):
    table = write_table(data / "table.jsonl", [{"path": "a.mp4"} | row, {"path": "b.wav"}], "jsonl")
    bad, good = read_clips([str(table)])
    assert good.fault is None and good.id == "b.wav"
    assert bad.fault is not None and re.search(reason, bad.fault)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"{}\n{"),
        ("a.json", b"[1]"),
        ("a.parquet", b"PAR1"),
        ("a.csv", b"path\n\xff\n"),
        ("a.json", b"["),
    ],
)
def test_a_broken_table_is_named(data, name, content):
    (data / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} can't be read as a table"):
        read_clips([str(data / name)])


@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**7)), unique=True, min_size=1, max_size=20)
)
def test_ids_of_segments_differ(tmp_path_factory, times):
    rows = [{"path": "a.mp4", "start": at / 1000, "end": (at + length) / 1000} for at, length in times]
    path = write_table(tmp_path_factory.mktemp("t") / "t.jsonl", rows, "jsonl")
    clips = read_clips([str(path)])
    assert len({clip.id for clip in clips}) == len(times)
    assert [(clip.start, clip.end) for clip in clips] == [(row["start"], row["end"]) for row in rows]


def test_ave2(data):
    row = {
        "youtube_id": "dQw4w9WgXcQ",
        "segment_start_time": 30,
        "segment_end_time": 33.0,
        "video_caption": "x",
    }
    table = write_table(data / "train_00000.json", [row], "json")
    (clip,) = read_clips([str(table)], columns=AVE2, root="films")
    assert clip == Clip(
        "dQw4w9WgXcQ.mp4#30-33", "dQw4w9WgXcQ", os.path.join("films", "dQw4w9WgXcQ.mp4"), None, 30.0, 33.0
    )
    write_table(table, [{"youtube_id": "x", "segment_start_time": 1}], "json")
    with pytest.raises(
        ValueError, match="no column 'segment_end_time' for the end; its columns are youtube_id, seg"
    ):
        read_clips([str(table)], columns=AVE2)


# Tars


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """The bytes of a film, a sound and a picture."""
    folder = tmp_path_factory.mktemp("media")
    film(folder / "a.mkv", seconds=0.5)
    write(folder / "b.wav", sound=to_format(chirp(0.3, 16_000), "s16"))
    load_frame(folder / "a.mkv").save(folder / "b.png")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_tars(tmp_path, media, format):
    long = "x" * 90 + "/" + "y" * 90
    members = {
        "0001.json": b"{}",
        "0001.mkv": media["a.mkv"],
        "0002.wav": media["b.wav"],
        "0002.png": media["b.png"],
        "sub/0001.left.WAV": media["b.wav"],
        "sub/0001.jpg": b"",
        f"{long}.mkv": media["a.mkv"],
        "0003.txt": b"",
    }
    path = write_tar(tmp_path / "set-000.tar", members, format=format)
    clips = {clip.id.removeprefix(f"{tmp_path.name}/set-000.tar/"): clip for clip in read_clips([str(path)])}
    assert list(clips) == ["0001", "0002", "sub/0001", long, "0003"]
    assert clips["0003"].fault == f"{path}/0003: none of its files (0003.txt) is a sound or a video"
    assert clips["0001"].picture is None
    assert open_media(clips["0002"].sound).read() == media["b.wav"]
    assert open_media(clips["0002"].picture).read() == media["b.png"]
    assert open_media(clips["sub/0001"].sound).read() == media["b.wav"]
    assert open_media(clips[long].sound).read() == media["a.mkv"]
    assert read_clips([str(tmp_path / "*.tar")]) == list(clips.values())
    assert os.listdir(tmp_path) == ["set-000.tar"]  # nothing was unpacked


def test_a_clip_in_a_tar_is_decoded_as_one_outside(tmp_path, media):
    path = write_tar(tmp_path / "a.tar", {"1.mkv": media["a.mkv"], "2.mkv": b"no film"})
    good, bad = read_clips([str(path)])
    decoder = Decoder(16_000, 1, lambda pictures: np.stack([np.asarray(picture) for picture in pictures]))
    found = decoder(good)
    assert np.array_equal(found.waveform, load_audio(media["a.mkv"], sampling_rate=16_000))
    assert np.array_equal(found.pixels[0], np.asarray(load_frame(media["a.mkv"])))
    assert decoder(bad) == f"{path}/2.mkv: it isn't a media file, or it is truncated or damaged"


def test_tars_with_links_and_paths_outside(tmp_path, media):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(media["b.wav"])
    path = tmp_path / "set" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("a.wav", tarfile.SYMTYPE),
            ("b.wav", tarfile.LNKTYPE),
            ("c.wav", tarfile.FIFOTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
        outside = tarfile.TarInfo("../../d.wav")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"mine"))
    clip, *links = read_clips([str(path)])
    assert [link.id for link in links] == ["set/a.tar/c.wav", "set/a.tar/a.wav", "set/a.tar/b.wav"]
    assert links[0].fault == f"{path}/c.wav: it isn't a file"
    for link in links[1:]:  # named, and never followed out of the tar
        assert link.fault is not None and f"link to {secret}, which isn't a file in the tar" in link.fault
    assert clip.id == "set/a.tar/../../d" and isinstance(clip.sound, TarMember)
    assert open_media(clip.sound).read() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["secret.wav", "set"]


@pytest.mark.parametrize("cut", [1, 700, 1500, 3000])
def test_a_cut_tar_gives_what_is_before_the_cut(tmp_path, cut):
    path = write_tar(
        tmp_path / "a.tar", {"1.wav": b"1" * 100, "2.wav": b"2" * 1500}, format=tarfile.USTAR_FORMAT
    )
    path.write_bytes(path.read_bytes()[:cut])
    clips = read_clips([str(path)])
    whole = [clip for clip in clips if clip.fault is None]
    assert len(whole) < 2 or cut > 1500
    for clip in whole:
        try:
            assert len(open_media(clip.sound).read()) in (100, 1500)
        except MediaError as error:
            assert "the tar is truncated" in str(error)
    assert clips


def test_what_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"nothing of the kind" * 100)
    (clip,) = read_clips([str(tmp_path / "a.tar")])
    assert "is truncated, damaged or not a tar" in clip.fault
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match="is compressed"):
        read_clips([str(tmp_path / "a.tar.gz")])


# Datasets


class Audio:
    """As `datasets.Audio` is, as far as it is used."""

    decode = True


class FakeDataset:
    """As `datasets.Dataset` is, as far as it is used."""

    def __init__(self, columns):
        self.columns = columns
        self.column_names = list(columns)
        self.features = dict.fromkeys(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def select_columns(self, names):
        return FakeDataset({name: self.columns[name] for name in names})

    def __getitem__(self, key):
        return {name: values[key] for name, values in self.columns.items()}


def test_a_dataset(media):
    dataset = FakeDataset(
        {
            "audio": [{"bytes": media["b.wav"], "path": "b.wav"}, {"bytes": None, "path": "/x.wav"}, None, 3],
            "image": [{"bytes": media["b.png"], "path": None}] * 4,
            "id": ["one", "two", None, "four"],
            "start": [0.1, None, None, None],
        }
    )
    clips = read_dataset(dataset, name="user/set", picture="image")
    assert [clip.id for clip in clips] == ["one", "two", "user/set/00000002", "four"]
    fetched = [clip.fetched() for clip in clips]
    assert fetched[0].sound == Content(media["b.wav"], "b.wav")
    assert fetched[0].picture == Content(media["b.png"], "row 0, image")
    assert fetched[0].start == 0.1
    assert fetched[1].sound == "/x.wav"
    assert [clip.fault for clip in fetched] == [
        None,
        None,
        "row 2, audio: it is empty",
        "row 3, audio: it is a int, not a file",
    ]
    with pytest.raises(ValueError, match="no column 'sound'; its columns are audio, image"):
        read_dataset(dataset, name="x", sound="sound")


def test_a_real_dataset(media, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "b.wav").write_bytes(media["b.wav"])
    dataset = datasets.Dataset.from_dict(
        {"audio": [str(tmp_path / "b.wav")], "image": [str(tmp_path / "b.png")], "source": ["film"]}
    )
    (tmp_path / "b.png").write_bytes(media["b.png"])
    dataset = dataset.cast_column("audio", datasets.Audio()).cast_column("image", datasets.Image())
    (clip,) = read_dataset(dataset, name="set", picture="image")
    assert (clip.id, clip.source) == ("set/00000000", "film")
    decoder = Decoder(16_000, 1, lambda pictures: np.stack([np.asarray(picture) for picture in pictures]))
    found = decoder(clip.fetched())
    assert np.array_equal(found.waveform, load_audio(media["b.wav"], sampling_rate=16_000))


def test_pictures_of_films_are_of_the_film(tmp_path):
    path = write(tmp_path / "a.mkv", sound=to_format(chirp(0.5, 16_000), "s16"), pictures=picture_frames(5))
    (clip,) = read_clips([str(path)])
    decoder = Decoder(16_000, 1, lambda pictures: np.stack([np.asarray(picture) for picture in pictures]))
    assert np.array_equal(decoder(clip).pixels[0], np.asarray(load_frame(path)))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", '{"path": "a.mp4", "path": "b.mp4"}'), ("a.json", '[{"path": "a", "path": "b"}]')],
)
def test_a_key_that_is_there_twice_is_said(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="the key 'path' is there twice"):
        read_clips([str(tmp_path / name)])
