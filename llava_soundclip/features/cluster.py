"""Features on a Ray cluster, with Ray Data: tasks decode, a pool of actors embeds, one process writes.

Heavy imports are inside the functions: the processes that decode import this module but don't need torch.
"""

import math
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from llava_soundclip._extras import require
from llava_soundclip.clips.clip import Clip, DatasetCell, Media, TarMember
from llava_soundclip.features.decode import SORTED_AT_ONCE, SORTED_BYTES, Decoded, Decoder

if TYPE_CHECKING:
    from torch import Tensor

    from llava_soundclip.encoders import AudioEncoder
    from llava_soundclip.features.ledger import Extraction, Ledger
    from llava_soundclip.features.store import FeatureHeader, StoredDType
    from llava_soundclip.features.towers import VisionTower

_MOST_CPUS = 8  # per actor; more CPUs are better used by another actor
_TRIES = 2  # of work whose processes die, before its clips are tried one by one
_CALLS = 100  # per process that decodes, so that a memory leak of FFmpeg ends with the process

LoadEncoder: TypeAlias = "Callable[[str], AudioEncoder]"
LoadTower: TypeAlias = "Callable[[str], VisionTower]"


def extract_features_on_ray(
    clips: Iterable[Clip],
    load_encoder: LoadEncoder,
    load_tower: LoadTower,
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    frames: int = 1,
    patches: bool = False,
    dtype: "StoredDType" = "float16",
    shard_size: int = 1000,
    batch_size: int = 8,
    progress: bool = False,
) -> "Extraction":
    """Make the features of clips, as `extract_features` does, on all machines of a Ray cluster.

    Each GPU of the cluster gets an actor with the encoder and the tower; without GPUs, actors take half of the CPUs.
    The other CPUs decode. Only this process writes, so only it needs the folder. The package, the clips' files and
    the weights must be on every node, under the same paths.

    If a process or a node dies, its work is done again elsewhere. A clip that makes processes die is a bad clip.

    Args:
        clips: clips with unique ids. See `read_clips`.
        load_encoder: loads the encoder onto a device, "cpu" or an accelerator's name. It is sent to the nodes.
        load_tower: loads the tower onto a device, in the same way.
        out: the features folder.
        address: "auto" for the cluster that this machine is part of, "HOST:PORT" for the cluster with this head node,
            "local" to start Ray on this machine. None for the cluster that this process has joined, else the cluster
            that `ray.init()` finds.
        frames: number of frames per clip, evenly spaced.
        patches: whether to store the patch tokens as well.
        dtype: dtype of the stored numbers.
        shard_size: clips per shard. Up to one shard is lost if this process is killed.
        batch_size: clips per batch of the encoder and the tower.
        progress: whether to show a progress bar.

    Returns:
        The result, with the bad clips and their reasons. Its seconds for "wait" and "write" are those of this process;
        for "decode", "encoder" and "tower" they are the sum over all workers.

    Raises:
        ImportError: if Ray isn't installed.
        ConnectionError: if there is no such cluster.
        ValueError: as in `extract_features`.
        RuntimeError: if the cluster is too small, or its actors don't start. Different weights on two nodes are one
            cause.
    """
    from llava_soundclip.features.ledger import Extraction, Ledger, check_ids
    from llava_soundclip.features.store import FeatureWriter
    from llava_soundclip.running import progress_bar

    clips = list(clips)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    check_ids(clips)
    require("ray", extra="ray")
    with ExitStack() as stack:
        stack.enter_context(joined(address))
        pool = Pool.of(_nodes())
        options = {"frames": frames, "patches": patches, "dtype": dtype}
        header, decoder = _described(pool, load_encoder, load_tower, options)
        writer = stack.enter_context(FeatureWriter(out, header, shard_size=shard_size))
        bar = stack.enter_context(progress_bar(progress, unit="clips"))
        task = bar.add_task("features", total=len(clips))
        ledger = stack.enter_context(Ledger(clips, writer, Extraction(), lambda: bar.advance(task)))
        run = _ClusterRun(ledger, decoder, _Embedding(load_encoder, load_tower, pool, header, batch_size))
        try:
            run.work_on(ledger.todo(wait=False))
            if ledger.left():
                bar.update(task, description="features (waiting for other processes)")
                run.work_on(ledger.todo(wait=True))
        except KeyboardInterrupt:
            ledger.flush()
            ledger.result.interrupted = True
    return ledger.result


@dataclass(frozen=True)
class Pool:
    """The actors that embed.

    They leave at least one whole CPU, wherever Ray puts them. If they took all CPUs, the tasks that decode would never
    start and Ray Data would wait forever.

    Attributes:
        size: number of actors.
        cpus: CPUs per actor.
        gpus: GPUs per actor, 0 or 1.
        left: number of whole CPUs for the tasks that decode.
    """

    size: int
    cpus: float
    gpus: int
    left: int

    @classmethod
    def of(cls, nodes: Sequence[tuple[float, float]]) -> "Pool":
        """The pool of a cluster.

        Args:
            nodes: numbers of CPUs and GPUs of each node.

        Raises:
            RuntimeError: if no CPU would be left.
        """
        with_gpus = [(cpus, int(gpus)) for cpus, gpus in nodes if cpus and gpus >= 1]
        if with_gpus:
            share = min(cpus / (2 * gpus) for cpus, gpus in with_gpus)
            each = min(1.0, math.floor(100 * share) / 100)  # Ray may round up
            left = sum(int(cpus - int(gpus) * each) for cpus, gpus in nodes)
            pool = cls(sum(gpus for _, gpus in with_gpus), each, 1, left)
        else:
            counts = [int(cpus) for cpus, _ in nodes]
            total = sum(counts)
            threads = max(1, min(_MOST_CPUS, max(counts) // 2))
            size = max(1, sum(count // (2 * threads) for count in counts))
            pool = cls(size, threads, 0, total - size * threads)
        if pool.left < 1:
            found = ", ".join(f"{cpus:g}" for cpus, _ in nodes)
            raise RuntimeError(
                f"the cluster is too small: its nodes have {found} CPUs (`ray start --num-cpus` sets them), but "
                "decoding needs a whole CPU besides those for the encoder and the tower: 2 or more in all"
            )
        return pool

    @property
    def reserved(self) -> dict[str, float]:
        """Resources that Ray reserves for each actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@dataclass(frozen=True)
class _Embedding:
    """Arguments of an actor. See `extract_features_on_ray`."""

    load_encoder: LoadEncoder
    load_tower: LoadTower
    pool: Pool
    header: "FeatureHeader"
    batch_size: int


class _ClusterRun:
    """Sends clips through the cluster, and records the results in the ledger."""

    def __init__(self, ledger: "Ledger", decoder: Decoder, embedding: _Embedding) -> None:
        self.ledger = ledger
        self.decoder = decoder
        self.embedding = embedding

    def work_on(self, clips: Iterable[Clip]) -> None:
        waiting = {clip.id: clip for clip in clips}
        most = SORTED_AT_ONCE * self.embedding.batch_size
        together = max(1, min(most, len(waiting) // self.embedding.pool.left))
        for group_size in sorted({together, 1}, reverse=True):
            # If a group's processes keep dying, trying its clips one by one finds the bad clip.
            for id, made in self._made(list(waiting.values()), group_size):
                clip = waiting.pop(id, None)
                if clip is None:  # a duplicate row
                    continue
                if isinstance(made, str):
                    self.ledger.fail(clip, made)
                else:
                    self.ledger.add(clip, *made)
        for clip in waiting.values():
            self.ledger.fail(
                clip, "the processes that worked on it died: it is damaged, or too large for the memory"
            )
        self.ledger.flush()

    def _made(
        self, clips: Sequence[Clip], group_size: int
    ) -> "Iterator[tuple[str, tuple[Tensor, Tensor] | str]]":
        """Yield each clip's id with its sound and tokens, or with the reason why it is bad.

        Clips that make processes die aren't yielded.
        """
        import ray.data
        import torch

        from llava_soundclip.features.embed import clock

        if not clips:
            return
        pool = self.embedding.pool
        sent = _Sent()
        groups = [clips[at : at + group_size] for at in range(0, len(clips), group_size)]
        rows = [{"clips": pickle.dumps([sent(clip) for clip in group])} for group in groups]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote()
        dataset = dataset.flat_map(
            _decode,
            fn_args=[tries, self.decoder, [ray.put(dataset) for dataset in sent.datasets]],
            num_cpus=1,
            max_calls=_CALLS,  # this also keeps Ray Data from decoding in the actors if both need one CPU
        )
        dataset = dataset.map(
            _Embed,
            fn_constructor_args=[tries, self.embedding],
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.size, initial_size=pool.size),
            **pool.reserved,
        )
        dataset.context.enable_progress_bars = False
        seconds = self.ledger.result.seconds
        with _errors_of_ray():
            found = iter(dataset.iter_rows())
            while True:
                with clock(seconds, "wait"):
                    row = next(found, None)
                if row is None:
                    return
                made, spent = pickle.loads(row["made"])
                for stage, value in spent.items():
                    seconds[stage] += value
                for id, result in made:
                    if isinstance(result, str):
                        yield id, result
                    else:
                        audio, tokens = map(torch.from_numpy, result)
                        yield id, (audio, tokens)


class _Sent:
    """Prepares clips for other machines: absolute paths, and datasets by number, so that each is sent once.

    Attributes:
        datasets: datasets of the clips so far.
    """

    def __init__(self) -> None:
        self.datasets: list[Any] = []
        self._numbers: dict[int, int] = {}

    def __call__(self, clip: Clip) -> Clip:
        picture = None if clip.picture is None else self._media(clip.picture)
        return replace(clip, sound=self._media(clip.sound), picture=picture)

    def _media(self, media: Media) -> Media:
        if isinstance(media, str):
            return os.path.abspath(media)
        if isinstance(media, TarMember):
            return replace(media, path=os.path.abspath(media.path))
        if isinstance(media, DatasetCell):
            if id(media.dataset) not in self._numbers:
                self._numbers[id(media.dataset)] = len(self.datasets)
                self.datasets.append(media.dataset)
            return replace(media, dataset=self._numbers[id(media.dataset)])
        return media


def _received(media: Media, datasets: Sequence[Any]) -> Media:
    return replace(media, dataset=datasets[media.dataset]) if isinstance(media, DatasetCell) else media


class Tries:
    """Counts the starts of each piece of work. Ray restarts work whose process died, in actors without limit."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, work: str) -> int:
        """Count a start of a piece of work, and return the number of starts so far."""
        self._counts[work] += 1
        return self._counts[work]


def _given_up(tries: Any, work: str) -> bool:
    """Count a start of a piece of work, and return whether it was started too often."""
    import ray

    return ray.get(tries.begin.remote(work)) > _TRIES


def _decode(
    row: dict[str, bytes], tries: Any, decoder: Decoder, references: Sequence[Any]
) -> Iterator[dict[str, bytes]]:
    """Decode a group of clips; large clips are split into several groups."""
    import ray

    clips: list[Clip] = pickle.loads(row["clips"])
    if _given_up(tries, f"decode {clips[0].id}"):
        return
    datasets = ray.get(list(references))
    group: list[tuple[str, Decoded | str]] = []
    room = SORTED_BYTES
    for clip in clips:
        picture = None if clip.picture is None else _received(clip.picture, datasets)
        found = decoder(replace(clip, sound=_received(clip.sound, datasets), picture=picture).fetched())
        group.append((clip.id, found))
        room -= found.nbytes if isinstance(found, Decoded) else 0
        if room <= 0:
            yield {"decoded": pickle.dumps(group)}
            group, room = [], SORTED_BYTES
    if group:
        yield {"decoded": pickle.dumps(group)}


class _Embed:
    """The actor: it embeds groups of decoded clips."""

    def __init__(self, tries: Any, embedding: _Embedding) -> None:
        from llava_soundclip.features.embed import Embedder, header_of

        header = embedding.header
        encoder, tower = _loaded(embedding.load_encoder, embedding.load_tower, embedding.pool)
        own = header_of(encoder, tower, frames=header.frames, patches=header.patches, dtype=header.dtype)
        differences = header.differences(own)
        if differences:
            raise ValueError(f"nodes have different weights: {'; '.join(differences)}")
        self.tries = tries
        self.batch_size = embedding.batch_size
        self.seconds: dict[str, float] = {}
        self.embedder = Embedder(encoder, tower, header.patches, self.batch_size, self.seconds)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        """The rows of a group of clips, as arrays."""
        group: list[tuple[str, Decoded | str]] = pickle.loads(row["decoded"])
        if _given_up(self.tries, f"embed {group[0][0]}"):
            return {"made": pickle.dumps(([], {}))}
        good = sorted(
            ((id, found) for id, found in group if isinstance(found, Decoded)),
            key=lambda item: item[1].waveform.shape[-1],
        )
        made: list[Any] = [(id, reason) for id, reason in group if isinstance(reason, str)]
        self.seconds.clear()
        self.seconds["decode"] = sum(found.seconds for _, found in good)
        for at in range(0, len(good), self.batch_size):
            batch = good[at : at + self.batch_size]
            results = self.embedder([found for _, found in batch])
            for (id, _), result in zip(batch, results, strict=True):
                made.append((id, result if isinstance(result, str) else tuple(t.numpy() for t in result)))
        return {"made": pickle.dumps((made, self.seconds))}


def _described(
    pool: Pool, load_encoder: LoadEncoder, load_tower: LoadTower, options: Mapping[str, Any]
) -> "tuple[FeatureHeader, Decoder]":
    """The features' header and decoder, made on the cluster: only its nodes need memory for an encoder and a tower."""
    import ray

    task = ray.remote(**pool.reserved)(_describe)
    with _errors_of_ray():
        return ray.get(task.remote(pool, load_encoder, load_tower, options))


def _describe(
    pool: Pool, load_encoder: LoadEncoder, load_tower: LoadTower, options: Mapping[str, Any]
) -> "tuple[FeatureHeader, Decoder]":
    from llava_soundclip.features.embed import decoder_of, header_of

    encoder, tower = _loaded(load_encoder, load_tower, pool)
    return header_of(encoder, tower, **options), decoder_of(encoder, tower, frames=options["frames"])


def _loaded(
    load_encoder: LoadEncoder, load_tower: LoadTower, pool: Pool
) -> "tuple[AudioEncoder, VisionTower]":
    """Load both in a process of Ray."""
    import torch

    from llava_soundclip.running import default_device

    torch.set_num_threads(max(1, int(pool.cpus)))
    device = default_device() if pool.gpus else "cpu"
    return load_encoder(device), load_tower(device)


def _nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of the cluster's nodes."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0), resources.get("GPU", 0)) for resources in alive]


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Join a cluster inside a block. A cluster that this process joined before is used and not left."""
    import ray

    if address is None and ray.is_initialized():
        yield
        return
    ray.init(address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _errors_of_ray() -> Iterator[None]:
    """Turn an error of Ray into the error that a worker raised, or else into a RuntimeError."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise RuntimeError(f"Ray: {error}") from error
