"""Ranks on Ray: on a cluster of nodes on this machine, those of the run without it, whoever dies."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from llava_soundclip import cli
from llava_soundclip.evaluation.retrieval import cluster, retrieval
from llava_soundclip.evaluation.retrieval.cluster import ranks_on_ray
from llava_soundclip.evaluation.retrieval.ranks import ranks
from tests.ray_cluster import two_nodes
from tests.training.making import write_features

# Ray Data warns of its own defaults.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with a CPU each, all on this machine, and joined."""
    with two_nodes(1) as found:
        yield found


def assert_same(one, two):
    for found, expected in zip(one, two, strict=True):
        for name, values in vars(expected).items():
            assert vars(found)[name].dtype == values.dtype and torch.equal(vars(found)[name], values)


def pairs(n, width=24):
    c = torch.randn(n, width)
    return c + torch.randn(n, width), c


def eval_retrieval(*arguments):
    return CliRunner().invoke(cli.app, ["eval", "retrieval", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "block", "dtype", "grouped"),
    [
        (330, 100, torch.float32, False),  # the last strip is narrower
        (330, 100, torch.bfloat16, True),
        (5, 100, torch.float64, False),
        (0, 100, torch.float32, False),
    ],
)
def test_the_same_ranks(nodes, n, block, dtype, grouped):
    f_a, c = (vectors.to(dtype) for vectors in pairs(n))
    groups = torch.randint(0, 40, (n,)) if grouped else None
    assert_same(ranks_on_ray(f_a, c, groups, block=block), ranks(f_a, c, groups, block=block))


@pytest.mark.slow
def test_level_answers_share_their_places_across_strips(nodes):
    f_a, c = torch.randint(-1, 2, (2, 90, 3)).float()
    found = ranks_on_ray(f_a, c, block=20)
    assert any((side.mean % 1 == 0.5).any() for side in found)
    assert_same(found, ranks(f_a, c))


@pytest.mark.slow
def test_all_nodes_count_though_a_worker_was_killed(nodes, tmp_path, monkeypatch):
    count = cluster._count

    def dying(row, *arguments):
        import ray

        (tmp_path / ray.get_runtime_context().get_node_id()).touch()
        if row["start"] == 60 and not (tmp_path / "mark").exists():
            (tmp_path / "mark").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return count(row, *arguments)

    monkeypatch.setattr(cluster, "_count", dying)
    f_a, c = pairs(300)
    assert_same(ranks_on_ray(f_a, c, block=10), ranks(f_a, c, block=10))
    assert (tmp_path / "mark").exists()
    assert all((tmp_path / node.node_id).exists() for node in nodes.list_all_nodes())


@pytest.mark.slow
def test_a_strip_that_processes_die_of_is_an_error(nodes, monkeypatch):
    count = cluster._count

    def dying(row, tries, vectors, block):
        found = count(row, tries, vectors, block)
        if row["start"] and found["counts"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    monkeypatch.setattr(cluster, "_count", dying)
    with pytest.raises(RuntimeError, match="4 processes died on rows 10 to 15"):
        ranks_on_ray(*pairs(15), block=10)


@pytest.mark.slow
def test_the_command(tmp_path):
    pytest.importorskip("ray")
    features = write_features(tmp_path / "features")
    options = ("--full", "--right", "source", "--json")
    plain = eval_retrieval(features, *options, tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    # In a process of its own, which hasn't joined a cluster.
    command = ["-m", "llava_soundclip", "eval", "retrieval", features, *options, tmp_path / "ray"]
    subprocess.run(
        [sys.executable, *map(str, command), "--ray", "local"],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        check=True,
    )
    one, two = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("plain", "ray"))
    assert one.pop("command") != two.pop("command")
    assert one == two


def test_what_is_refused(tmp_path, monkeypatch):
    f_a, c = pairs(3)
    with pytest.raises(ValueError, match="ray needs full=True"):
        retrieval(f_a, c, ray="local")
    features = write_features(tmp_path / "features", clips=3)
    result = eval_retrieval(features, "--ray", "local")
    assert result.exit_code == 2 and "--ray needs --full" in result.stderr
    with pytest.raises(ValueError, match=r"expected two \(n, D\)"):
        ranks_on_ray(f_a, c[:2])
    monkeypatch.setitem(sys.modules, "ray", None)
    result = eval_retrieval(features, "--ray", "local", "--full")
    assert result.exit_code == 2 and "pip install 'llava-soundclip[ray]'" in result.stderr
