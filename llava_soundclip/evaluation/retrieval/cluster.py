"""Ranks on a Ray cluster with Ray Data: tasks count strips of rows, and one process adds the counts up."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_soundclip._extras import require
from llava_soundclip.evaluation.retrieval.ranks import BLOCK, Places, Ranks, strip_counts
from llava_soundclip.features.cluster import Tries, joined

_TRIES = 4  # attempts per strip if its processes die; Ray Data alone would retry forever


def ranks_on_ray(
    f_a: Tensor, c: Tensor, groups: Tensor | None = None, *, address: str | None = None, block: int = BLOCK
) -> tuple[Ranks, Ranks]:
    """`ranks` on all CPUs of a Ray cluster. The result is bit-identical if the CPUs are of one kind.

    The vectors are sent once to every node, whose object store must have room for both. A task on each CPU compares
    `block` rows at a time with all columns. If its process or node dies, the strip is counted elsewhere.

    Args:
        f_a: (N, D) of any float dtype, vectors of sounds.
        c: (N, D) of any float dtype, CLS tokens; row i is a right answer for row i.
        groups: (N,) integers: all rows of one group are right answers for each other. None: only row i for row i.
        address: "auto" for the cluster that this machine belongs to, "HOST:PORT" for the cluster with this head, or
            "local" for a new Ray on this machine. None: the cluster that this process has joined, else the one that
            `ray.init()` finds.
        block: rows and columns of the block of cosines that a task holds in memory.

    Returns:
        Ranks of pictures found by sounds and of sounds found by pictures, N each.

    Raises:
        ImportError: if Ray isn't installed.
        ConnectionError: if there is no such cluster.
        ValueError: as for `ranks`.
        RuntimeError: if the cluster fails, or the processes of a strip die repeatedly.
    """
    require("ray", extra="ray")
    places = Places(f_a, c, groups, block=block)
    with joined(address):
        import ray.data
        from ray.exceptions import RayError

        try:
            vectors = ray.put([_sent(tensor) for tensor in (f_a, c, places.right)])
            tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote()
            strips = [{"start": rows.start, "stop": rows.stop} for rows in places.strips()]
            dataset = ray.data.from_items(strips, override_num_blocks=max(1, len(strips)))
            dataset = dataset.map(_count, fn_args=[tries, vectors, block], num_cpus=1)
            dataset.context.enable_progress_bars = False
            for row in dataset.iter_rows():
                if not row["counts"]:
                    raise RuntimeError(
                        f"{_TRIES} processes died on rows {row['start']} to {row['stop']}: "
                        "is a node's memory too small?"
                    )
                rows = slice(row["start"], row["stop"])
                counts = torch.frombuffer(bytearray(row["counts"]), dtype=torch.int32).view(2, -1)
                places.add(rows, *counts.split([rows.stop - rows.start, len(f_a)], dim=1))
        except RayError as error:
            raise RuntimeError(f"Ray: {error}") from error
    return places.ranks()


def _count(row: dict[str, int], tries: Any, vectors: Any, block: int) -> dict[str, Any]:
    """A task: the counts of a strip, or none if its processes keep dying."""
    import ray

    if ray.get(tries.begin.remote(str(row["start"]))) > _TRIES:
        return {**row, "counts": b""}
    f_a, c, right = map(_received, ray.get(vectors))
    counts = strip_counts(f_a, c, right, slice(row["start"], row["stop"]), block=block)
    return {**row, "counts": torch.cat(counts, dim=1).numpy().tobytes()}


def _sent(tensor: Tensor) -> tuple[np.ndarray, torch.dtype]:
    """A tensor as bytes, which processes on a node share instead of copying; numpy has no bfloat16."""
    return tensor.detach().contiguous().view(torch.uint8).numpy(), tensor.dtype


def _received(sent: tuple[np.ndarray, torch.dtype]) -> Tensor:
    array, dtype = sent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the warning that the array is read-only
        return torch.from_numpy(array).view(dtype)
