"""Features on Ray: on a cluster of nodes on this machine, the rows of the run without it, whoever dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_soundclip.clips.clip import DatasetCell
from llava_soundclip.features import (
    Clip,
    FeatureFolder,
    VisionTower,
    cluster,
    extract_features,
    extract_features_on_ray,
    read_clips,
)
from llava_soundclip.features.cluster import Pool
from tests.conftest import TinyEncoder
from tests.ray_cluster import two_nodes

# Ray Data warns of its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


class Dying(TinyEncoder):
    """Kills its process at a sound of three seconds: once, where it has a mark to leave, or each time."""

    def __init__(self, mark: Path | None = None) -> None:
        super().__init__()
        self.mark = mark

    def _embed(self, waveforms):
        is_first = self.mark is None or not self.mark.exists()
        if is_first and any(waveform.shape[1] > 40_000 for waveform in waveforms):
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._embed(waveforms)


class Slow(TinyEncoder):
    """Takes its time and notes its node, and at first waits until all three nodes work."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        self.notes = notes
        self.until: float | None = None

    def _embed(self, waveforms):
        import ray

        (self.notes / ray.get_runtime_context().get_node_id()).touch()
        if self.until is None:
            self.until = time.monotonic() + 90  # in case that no actor came to a node
        while len(list(self.notes.iterdir())) < 3 and time.monotonic() < self.until:
            time.sleep(0.05)
        time.sleep(0.5 * len(waveforms))
        return super()._embed(waveforms)


class DyingProcessor:
    """Kills its process at dark pictures, as a fault in a decoder would."""

    def __init__(self, processor) -> None:
        self.processor = processor

    def __call__(self, pictures, **options):
        if np.asarray(pictures[0]).mean() < 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.processor(pictures, **options)


class Table(list):
    """Rows, as a dataset has them, that are counted when they are sent."""

    sent = 0

    def __reduce__(self):
        Table.sent += 1
        return Table, (list(self),)


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with two CPUs each, all on this machine, and joined."""
    with two_nodes(2) as found:
        yield found


def rows(path):
    features = FeatureFolder(path)
    features.verify()
    everything = torch.arange(len(features))
    vectors = (
        *features.rows(everything),
        *([features.patches(everything)] if features.header.patches else []),
    )
    return features.table.drop(["shard", "row", "checksum"]).to_pylist(), vectors


def assert_same(one, two):
    (names, vectors), (expected_names, expected) = rows(one), rows(two)
    assert names == expected_names
    for found, wanted in zip(vectors, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_same_rows_though_a_worker_was_killed(nodes, films, tower_folder, tmp_path):
    table = Table({"film": (films / "film002.mkv").read_bytes()} for _ in range(2))
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    clips = [
        *read_clips([str(films), str(tmp_path / "bad.mp4"), str(tmp_path / "none.mp4")]),
        Clip("part", "long", str(films / "long.mp4"), start=1.0, end=2.0),
        *(Clip(f"cell{i}", "table", DatasetCell(table, i, "film")) for i in range(2)),
    ]
    tower = VisionTower.load(tower_folder)
    options = {"frames": 2, "patches": True, "dtype": "float32", "batch_size": 2, "shard_size": 4}
    plain = extract_features(clips, TinyEncoder(), tower, tmp_path / "plain", workers=0, **options)
    extract_features(clips[:3], TinyEncoder(), tower, tmp_path / "ray", workers=0, **options)
    Table.sent = 0
    done = extract_features_on_ray(
        clips,
        lambda device: Dying(tmp_path / "mark"),
        lambda device: VisionTower.load(tower_folder, device=device),
        tmp_path / "ray",
        **options,
    )
    assert (tmp_path / "mark").exists()
    assert (done.made, done.there, done.interrupted) == (11, 3, False)
    assert done.bad == plain.bad and len(done.bad) == 2
    assert Table.sent == 1
    assert {"decode", "encoder", "tower", "wait", "write"} <= done.seconds.keys()
    assert FeatureFolder(tmp_path / "ray").header == FeatureFolder(tmp_path / "plain").header
    assert_same(tmp_path / "ray", tmp_path / "plain")


@pytest.mark.slow
def test_clips_that_kill_workers_each_time_are_alone_bad(nodes, films, tower_folder, tmp_path):
    Image.new("RGB", (30, 30), (10, 10, 10)).save(tmp_path / "dark.png")
    dark = Clip("dark", "dark", str(films / "film000.mkv"), str(tmp_path / "dark.png"))
    *_, good, other, long = read_clips([str(films)])
    clips = [good, long, other, dark]  # two groups, each with one that is to be found

    def load_tower(device):
        tower = VisionTower.load(tower_folder, device=device)
        tower.processor = DyingProcessor(tower.processor)
        return tower

    done = extract_features_on_ray(clips, lambda device: Dying(), load_tower, tmp_path / "f", batch_size=1)
    assert set(done.bad) == {"dark", "clips/long.mp4"}
    assert all("processes that worked on it died" in reason for reason in done.bad.values())
    assert FeatureFolder(tmp_path / "f").ids == [good.id, other.id]


@pytest.mark.slow
def test_the_same_rows_though_a_node_went(nodes, films, tower_folder, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    extra = nodes.add_node(num_cpus=2)
    went = []

    def remove():
        until = time.monotonic() + 120
        while not (notes / extra.node_id).exists() and time.monotonic() < until:
            time.sleep(0.05)
        nodes.remove_node(extra, allow_graceful=False)
        went.append((notes / extra.node_id).exists())

    clips = read_clips([str(films)])
    remover = threading.Thread(target=remove)
    remover.start()
    try:
        done = extract_features_on_ray(
            clips,
            lambda device: Slow(notes),
            lambda device: VisionTower.load(tower_folder, device=device),
            tmp_path / "ray",
            batch_size=1,
        )
    finally:
        remover.join()
    assert went == [True]
    assert (done.made, done.bad) == (11, {})
    extract_features(clips, TinyEncoder(), VisionTower.load(tower_folder), tmp_path / "plain", workers=0)
    assert_same(tmp_path / "ray", tmp_path / "plain")


# Sizes


@pytest.mark.parametrize(
    ("sizes", "pool"),
    [
        ([(2, 0)], Pool(1, 1, 0, 1)),
        ([(2, 0), (2, 0)], Pool(2, 1, 0, 2)),
        ([(1, 0), (1, 0)], Pool(1, 1, 0, 1)),
        ([(64, 0), (48, 0), (0, 0)], Pool(7, 8, 0, 56)),
        ([(16, 4), (8, 0)], Pool(4, 1.0, 1, 20)),
        ([(2, 7)], Pool(7, 0.14, 1, 1)),
        ([(1, 1), (4, 0)], Pool(1, 0.5, 1, 4)),
    ],
)
def test_pools_leave_a_whole_cpu(sizes, pool):
    assert Pool.of(sizes) == pool


@pytest.mark.parametrize("sizes", [[(1, 0)], [(0, 0), (1, 0)], [(1, 1)], [(0, 2)]])
def test_clusters_that_are_too_small(sizes, films, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_nodes", lambda: sizes)
    monkeypatch.setattr(cluster, "joined", lambda address: nullcontext())
    with pytest.raises(RuntimeError, match="the cluster is too small: its nodes have .* CPUs"):
        extract_features_on_ray(read_clips([str(films)]), None, None, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_ids_and_options_are_checked_before_anything_starts(tmp_path):
    twice = [Clip("a", "a", "x"), Clip("a", "a", "y")]
    with pytest.raises(ValueError, match="two clips have the id 'a'"):
        extract_features_on_ray(twice, None, None, tmp_path)
    with pytest.raises(ValueError, match="batch_size must be 1"):
        extract_features_on_ray([], None, None, tmp_path, batch_size=0)


def test_what_decodes_needs_no_torch():
    code = "import sys, llava_soundclip.features.cluster; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
