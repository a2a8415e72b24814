"""A Ray cluster of two nodes on this machine, for the tests of what runs on one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def two_nodes(cpus: int) -> Iterator[Any]:
    """Two nodes with so many CPUs each, joined; without Ray the test is skipped."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus})
        try:
            found.add_node(num_cpus=cpus)
            ray.init(address=found.address, log_to_driver=False)
            yield found
        finally:
            ray.shutdown()
            found.shutdown()
