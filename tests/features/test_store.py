"""Features on disk: what is written is read, from whole and from broken files."""

import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from llava_soundclip.features import FeatureFolder, FeatureHeader, FeatureWriter
from tests.features.making import header


def write_rows(folder, ids, *, shard_size=3, head=None, patch_count=5):
    """Rows whose numbers follow from their ids alone."""
    head = header() if head is None else head
    with FeatureWriter(folder, head, shard_size=shard_size) as writer:
        for id in ids:
            writer.add(id, id.partition("#")[0], *row(id, head, patch_count), start=1.0, end=None)
    return FeatureFolder(folder)


def row(id, head, patch_count=5):
    generator = torch.Generator().manual_seed(sum(map(ord, id)) * 31 + len(id))
    audio = torch.randn(head.audio_shape, generator=generator)
    cls = torch.randn(head.width, generator=generator)
    patches = torch.randn(patch_count, head.width, generator=generator)
    return (audio, cls, patches) if head.patches else (audio, cls)


def shards(folder):
    return sorted((folder / "shards").iterdir())


def parts(folder):
    return sorted((folder / "index").iterdir())


# Writing and reading


@settings(max_examples=25, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 500), unique=True, max_size=20),
    shard_size=st.integers(1, 7),
    layers=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from(["float16", "float32"]),
    patches=st.booleans(),
    draw=st.lists(st.integers(0, 10**6), max_size=30),
)
def test_rows_come_back(tmp_path_factory, numbers, shard_size, layers, dtype, patches, draw):
    folder = tmp_path_factory.mktemp("features") / "new"
    head = header(layers=layers, dtype=dtype, patches=patches)
    ids = [f"a/{number}" for number in numbers]
    features = write_rows(folder, ids, shard_size=shard_size, head=head)
    assert features.header == head
    assert features.ids == features.sources == sorted(ids)
    assert len(features) == len(ids)
    assert len(shards(folder)) == -(-len(ids) // shard_size)
    indices = [index % len(ids) for index in draw] if ids else []
    audio, cls = features.rows(torch.tensor(indices, dtype=torch.int64))
    assert audio.shape == (len(indices), *head.audio_shape) and cls.shape == (len(indices), 6)
    assert audio.dtype == cls.dtype == torch.float32
    for place, index in enumerate(indices):
        expected = [tensor.to(head.torch_dtype).float() for tensor in row(features.ids[index], head)]
        assert torch.equal(audio[place], expected[0]) and torch.equal(cls[place], expected[1])
        if patches:
            assert torch.equal(features.patches(torch.tensor([index]))[0], expected[2])
    features.verify()


def test_the_index_says_where_a_row_is(tmp_path):
    write_rows(tmp_path / "f", ["a#1", "b#1"])
    table = pq.read_table(parts(tmp_path / "f")[0]).to_pylist()
    assert [(r["id"], r["source"], r["start"], r["end"], r["row"]) for r in table] == [
        ("a#1", "a", 1.0, None, 0),
        ("b#1", "b", 1.0, None, 1),
    ]
    assert {r["shard"] for r in table} == {shards(tmp_path / "f")[0].name}
    stored = load_file(shards(tmp_path / "f")[0])
    assert torch.equal(stored["cls"][1], row("b#1", header())[1])


def test_an_empty_folder(tmp_path):
    features = write_rows(tmp_path / "f", [])
    assert len(features) == 0 and features.ids == []
    audio, cls = features.rows(torch.tensor([], dtype=torch.long))
    assert audio.shape == (0, 4) and cls.shape == (0, 6)
    features.verify()


@pytest.mark.parametrize("wrong", [[2], [-1], [0, 5]])
def test_an_index_outside(tmp_path, wrong):
    features = write_rows(tmp_path / "f", ["a", "b"])
    with pytest.raises(IndexError, match="outside the 2 rows"):
        features.rows(torch.tensor(wrong))
    with pytest.raises(IndexError, match="integers"):
        features.rows(torch.tensor([0.0]))


def test_no_patches_without_patches(tmp_path):
    with pytest.raises(ValueError, match="without patches"):
        write_rows(tmp_path / "f", ["a"]).patches(torch.tensor([0]))


def test_a_reader_goes_to_another_process(tmp_path):
    features = write_rows(tmp_path / "f", ["a", "b", "c", "d"])
    expected = features.rows(torch.tensor([3, 0]))
    copy = pickle.loads(pickle.dumps(features))
    assert all(torch.equal(a, b) for a, b in zip(copy.rows(torch.tensor([3, 0])), expected, strict=True))


def test_a_later_run_adds_shards_and_leaves_the_others(tmp_path):
    write_rows(tmp_path / "f", ["a", "b", "c", "d"])
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "f").rglob("*.*")}
    features = write_rows(tmp_path / "f", ["d", "e", "a"])
    assert features.ids == ["a", "b", "c", "d", "e"]
    assert len(shards(tmp_path / "f")) == 3
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before


def test_two_writers_at_once_and_a_clip_that_both_made(tmp_path):
    with FeatureWriter(tmp_path / "f", header()) as one, FeatureWriter(tmp_path / "f", header()) as other:
        for writer, ids in ((one, "abc"), (other, "cd")):
            for id in ids:
                writer.add(id, id, *row(id, header()))
        one.flush()
        assert "a" not in other.finished
        other.refresh()
        assert {"a", "b", "c"} <= other.finished
    features = FeatureFolder(tmp_path / "f")
    assert features.ids == ["a", "b", "c", "d"]
    features.verify()


@pytest.mark.parametrize("earlier", ["first", "second"])
def test_of_a_clip_that_two_writers_made_the_first_shard_counts(tmp_path, earlier):
    """Whoever wrote first: names decide, so that every reader takes the same row."""
    with FeatureWriter(tmp_path / "f", header()) as one, FeatureWriter(tmp_path / "f", header()) as other:
        one._writer, other._writer = ("1" * 16, "2" * 16) if earlier == "first" else ("2" * 16, "1" * 16)
        one.add("a", "film of one", *row("one", header()), start=1.0)
        other.add("a", "film of other", *row("other", header()), start=2.0)
        other.add("b", "film of other", *row("b", header()))
    features = FeatureFolder(tmp_path / "f")
    assert features.ids == ["a", "b"] and features.sources[1] == "film of other"
    name, start = ("one", 1.0) if earlier == "first" else ("other", 2.0)
    assert features.sources[0] == f"film of {name}"
    assert features.table.column("start").to_pylist() == [start, None]
    audio, cls = row(name, header())
    assert torch.equal(features.rows(torch.tensor([0]))[0][0], audio)
    assert torch.equal(features.rows(torch.tensor([0]))[1][0], cls)
    features.verify()


def test_many_rows_open_quickly_and_stay_on_disk(tmp_path):
    code = f"""
import resource, time, torch
from llava_soundclip.features import FeatureFolder
FeatureFolder({str(tmp_path / "f")!r})  # what is imported and compiled once
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
features = FeatureFolder({str(tmp_path / "f")!r})
seconds = time.perf_counter() - began
assert len(features) == 20_000
features.rows(torch.arange(64))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
print(seconds, grown)
"""
    head = header(audio_dim=512, width=1024)
    audio, cls = torch.randn(512), torch.randn(1024)
    with FeatureWriter(tmp_path / "f", head, shard_size=1000) as writer:
        for i in range(20_000):
            writer.add(f"{i:06}", "film", audio, cls)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, grown_kib = map(float, out.split())
    assert seconds < 1.0  # 0.05 s measured
    assert grown_kib < 40_000  # the rows are 120 MB


# Headers


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"encoder": "tiny", "checkpoint": "other"}},
        {"audio_dim": 5},
        {"layers": 2},
        {"tower": "clip-other"},
        {"tower_weights": "4567"},
        {"tower_layer": -1},
        {"width": 7},
        {"frames": 3},
        {"dtype": "float16"},
        {"patches": True},
    ],
)
def test_another_header_is_refused(tmp_path, change):
    write_rows(tmp_path / "f", ["a"])
    with pytest.raises(ValueError, match=f"another kind: {next(iter(change))} is .* there and .* here"):
        FeatureWriter(tmp_path / "f", header(**change))
    write_rows(tmp_path / "f", ["b"], head=header(library_version="0.0.1"))  # that may differ


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"a": 1}},
        {"audio_dim": 0},
        {"width": True},
        {"layers": 0},
        {"frames": 0},
        {"tower": None},
        {"dtype": "bfloat16"},
        {"patches": 1},
        {"tower_layer": "x"},
    ],
)
def test_a_header_is_checked(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        header(**change)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"{}", b'{"format": 1}', b'{"format": 2}', b'{"format": 1, "audio_dim": "x"}'],
)
def test_a_broken_header(tmp_path, content):
    write_rows(tmp_path / "f", ["a"])
    (tmp_path / "f" / "features.json").write_bytes(content)
    for use in (FeatureFolder, lambda path: FeatureWriter(path, header())):
        with pytest.raises(ValueError, match="features.json isn't a header of features"):
            use(tmp_path / "f")


def test_no_features_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="isn't a features folder"):
            FeatureFolder(path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        FeatureWriter(tmp_path, header())
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_header_of_whoever_was_first(tmp_path, monkeypatch):
    header().write(tmp_path)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)  # two that look at the same moment
    assert header(width=9).write(tmp_path) == header()
    assert os.listdir(tmp_path) == ["features.json"]


# Numbers


@pytest.mark.parametrize(
    ("audio", "dtype", "reason"),
    [
        (torch.full((4,), 70_000.0), "float16", "audio reaches 70000, too large for float16"),
        (torch.tensor([0, 1, float("nan"), 2]), "float32", "audio holds NaN"),
        (torch.zeros(5), "float32", r"audio has shape \(5,\)"),
    ],
)
def test_rows_that_can_not_be_stored(tmp_path, audio, dtype, reason):
    with FeatureWriter(tmp_path / "f", header(dtype=dtype)) as writer:
        with pytest.raises(ValueError, match=reason):
            writer.add("a", "a", audio, torch.zeros(6))
        with pytest.raises(ValueError, match="without patches"):
            writer.add("a", "a", torch.zeros(4), torch.zeros(6), torch.zeros(2, 6))
        writer.add("b", "b", torch.zeros(4), torch.zeros(6))
    assert FeatureFolder(tmp_path / "f").ids == ["b"]


def test_a_shard_of_patches_stays_below_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_soundclip.features.store._MAX_SHARD_BYTES", 1000)
    write_rows(tmp_path / "f", list("abcdefgh"), shard_size=100, head=header(patches=True), patch_count=10)
    assert len(shards(tmp_path / "f")) == 3  # 280 bytes a row


# Broken folders


def test_cut_shards_are_named(tmp_path):
    write_rows(tmp_path / "f", list("abcdefg"))
    shard = shards(tmp_path / "f")[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{shard.name} is truncated or damaged"):
        FeatureFolder(tmp_path / "f")
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        FeatureFolder(tmp_path / "f")


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    write_rows(tmp_path / "f", list("abcdefg"), head=header(patches=True))
    chance = random.Random(0)
    for path in (shards(tmp_path / "f")[1], parts(tmp_path / "f")[1]):
        good = path.read_bytes()
        # Padding and names of writers carry no values; what is read must be right or refused.
        expected = FeatureFolder(tmp_path / "f")
        found = 0
        for at in chance.sample(range(len(good)), 60):
            bad = bytearray(good)
            bad[at] ^= 1 << chance.randrange(8)
            path.write_bytes(bad)
            try:
                features = FeatureFolder(tmp_path / "f")
                features.verify()
            except ValueError as error:
                assert path.stem in str(error)
                found += 1
            else:
                everything = torch.arange(7)
                assert features.table.equals(expected.table)
                path.write_bytes(good)
                for mine, theirs in zip(features.rows(everything), expected.rows(everything), strict=True):
                    assert torch.equal(mine, theirs)
        path.write_bytes(good)
        assert found > 30


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nothing of the kind"])
def test_a_broken_index_part_is_named(tmp_path, content):
    write_rows(tmp_path / "f", list("abc"))
    part = parts(tmp_path / "f")[0]
    part.write_bytes(content)
    for use in (FeatureFolder, lambda path: FeatureWriter(path, header())):
        with pytest.raises(ValueError, match=f"{part.name} isn't an index part"):
            use(tmp_path / "f")


def test_another_table_is_no_index_part(tmp_path):
    import pyarrow as pa

    write_rows(tmp_path / "f", list("abc"))
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "f" / "index" / "mine.parquet")
    with pytest.raises(ValueError, match="mine.parquet isn't an index part"):
        FeatureFolder(tmp_path / "f")


def test_shards_of_another_header(tmp_path):
    write_rows(tmp_path / "f", list("abc"))
    path = tmp_path / "f" / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 5}))
    features = FeatureFolder(tmp_path / "f")
    with pytest.raises(ValueError, match=f"{shards(tmp_path / 'f')[0].name} is damaged: cls is"):
        features.rows(torch.tensor([0]))


# Leftovers


def test_leftovers_are_ignored_and_cleared_away_by_one_who_is_alone(tmp_path):
    write_rows(tmp_path / "f", list("abc"))
    left = [
        tmp_path / "f" / "shards" / "dead-00000.safetensors",
        tmp_path / "f" / "shards" / ".dead-00001.safetensors.part",
        tmp_path / "f" / "index" / ".dead-00000.parquet.part",
    ]
    for path in left:
        path.write_bytes(b"half")
    assert FeatureFolder(tmp_path / "f").ids == ["a", "b", "c"]
    assert all(path.exists() for path in left)
    first = FeatureWriter(tmp_path / "f", header())
    assert not any(path.exists() for path in left)
    left[0].write_bytes(b"half")
    second = FeatureWriter(tmp_path / "f", header())
    first.close()
    third = FeatureWriter(tmp_path / "f", header())
    assert left[0].exists()  # it may be the second's
    second.close()
    third.close()
    FeatureWriter(tmp_path / "f", header()).close()
    assert not left[0].exists()


def test_a_writer_that_fails_to_start_lets_go(tmp_path):
    write_rows(tmp_path / "f", list("abc"))
    part = parts(tmp_path / "f")[0]
    good = part.read_bytes()
    part.write_bytes(b"")
    with pytest.raises(ValueError, match="isn't an index part"):
        FeatureWriter(tmp_path / "f", header())
    part.write_bytes(good)
    (tmp_path / "f" / "shards" / ".x.part").touch()
    with FeatureWriter(tmp_path / "f", header()):
        assert not (tmp_path / "f" / "shards" / ".x.part").exists()


def test_values_do_not_depend_on_the_order_of_writing(tmp_path):
    ids = [f"{i}" for i in range(9)]
    one = write_rows(tmp_path / "one", ids)
    two = write_rows(tmp_path / "two", ids[::-1], shard_size=4)
    everything = torch.arange(9)
    for a, b in zip(one.rows(everything), two.rows(everything), strict=True):
        assert torch.equal(a, b)
    assert np.array_equal(one.table.column("checksum"), two.table.column("checksum"))


def test_reading_features_needs_no_transformers():
    code = (
        "import sys; from llava_soundclip.features import FeatureFolder;"
        "print([m for m in ('transformers', 'av', 'llava_soundclip.hosts') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_header_knows_its_shapes():
    assert header().audio_shape == (4,) and header(layers=3).audio_shape == (3, 4)
    assert isinstance(header(), FeatureHeader) and header().torch_dtype == torch.float32


# Killed at any moment


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the writer runs after it."""


@pytest.mark.parametrize("step", range(14))
def test_killed_at_any_step_of_writing(tmp_path, monkeypatch, step):
    """Each step that leaves something on the disk, in turn, doesn't come to be."""
    from llava_soundclip.features import store

    steps = []

    def killing(function):
        def call(*arguments, **options):
            steps.append(function)
            if len(steps) == step + 1:
                raise Killed
            return function(*arguments, **options)

        return call

    write_rows(tmp_path / "f", ["a", "b"])
    before = {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.*")}
    writer = FeatureWriter(tmp_path / "f", header(), shard_size=2)
    with monkeypatch.context() as patched:
        patched.setattr(store, "save_file", killing(store.save_file))
        patched.setattr(store, "_sync", killing(store._sync))
        patched.setattr(store.os, "replace", killing(os.replace))
        patched.setattr(store.pq, "write_table", killing(pq.write_table))
        done = 0
        try:
            for id in "cdef":
                writer.add(id, id, *row(id, header()))
            done = 2
        except Killed:
            done = (
                len(steps) // 8
            )  # eight steps a shard, the last of which only brings the index part to the disk
        writer._lock.close()
    assert len(steps) == min(step + 1, 16)
    found = FeatureFolder(tmp_path / "f")
    found.verify()
    assert len(found) >= 2 + 2 * done
    features = write_rows(tmp_path / "f", list("abcdef"))
    features.verify()
    assert features.ids == list("abcdef")
    assert before.items() <= {path: path.read_bytes() for path in (tmp_path / "f").rglob("*.*")}.items()
    stored = [id for part in parts(tmp_path / "f") for id in pq.read_table(part).column("id").to_pylist()]
    assert sorted(stored) == list("abcdef")
    assert {path.stem for path in shards(tmp_path / "f")} == {path.stem for path in parts(tmp_path / "f")}
