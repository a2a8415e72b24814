"""Vectors of sounds: one per clip, for search and for other programs."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llava_soundclip._version import __version__
from llava_soundclip.alignment.files import METADATA_KEY
from llava_soundclip.clips import Clip, Names, as_clips
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.features.decode import DecodingPool, Parts, PartsDecoder, Wanted
from llava_soundclip.files import locked_folder, parse_json, write_file
from llava_soundclip.running import work_through

_SAVED_EVERY = 1.0  # seconds at least between two savings of the file
_SHARE = 20  # times as long as a saving takes is the time until the next, so that long files cost little


@dataclass
class Embedded:
    """The result of `embed_clips`.

    Attributes:
        vectors: for each clip's id, (d_a,) float32 on the CPU; also those that were in the file already.
        bad: for each clip that could not be embedded, the reason, by id.
        there: number of clips whose vectors were in the file already.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    there: int = 0


def embed_clips(
    clips: Sequence[Clip] | Names,
    encoder: AudioEncoder,
    out: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 8,
    workers: int = 0,
    on_clips: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """Embed the sounds of clips. One bad clip doesn't stop the rest.

    Args:
        clips: clips with unique ids, see `read_clips`; or names of files and folders.
        encoder: the audio encoder.
        out: safetensors file, as `save_vectors` writes it. Clips in it are done already, so an interrupted run resumes.
            It is saved every few seconds, at an interruption, and at the end. Several runs may share it.
        batch_size: clips per batch.
        workers: number of processes that decode: a file that takes all memory then fails alone. 0 decodes in this one.
        on_clips: called with the number of clips that were done or failed since the last call.

    Returns:
        The vectors, and the bad clips.

    Raises:
        ValueError: if `out` holds anything but vectors of this encoder; it isn't changed.
        OSError: if `out` can't be read or written.
    """
    by_id = {clip.id: clip for clip in as_clips(clips)}
    file = None if out is None else _VectorFile(Path(out), encoder)
    embedded = Embedded({} if file is None else file.vectors)
    todo = [id for id in by_id if id not in embedded.vectors]
    embedded.there = len(by_id) - len(todo)
    on_clips(embedded.there)

    def embed(ids: Sequence[str]) -> Sequence[Tensor]:
        found = [parts for _, parts in pool.decode(Wanted(by_id[id]) for id in ids)]
        if reasons := [parts for parts in found if isinstance(parts, str)]:
            raise ValueError(reasons[0])
        sounds = [parts.sound for parts in found if isinstance(parts, Parts) and parts.sound is not None]
        return encoder.embed([wave for wave, _ in sounds], [rate for _, rate in sounds]).cpu().unbind()

    try:
        with DecodingPool(PartsDecoder(encoder.decoding_rate), workers, ahead=batch_size) as pool:
            for vectors, failed in work_through(todo, embed, batch_size):
                embedded.vectors |= vectors
                embedded.bad |= failed
                if file is not None and vectors:
                    file.save_if_due()
                on_clips(len(vectors) + len(failed))
    finally:
        if file is not None:
            file.save()
    return embedded


class _VectorFile:
    """The file of a run, and its vectors. Several runs may share it: each saves the vectors of all."""

    def __init__(self, path: Path, encoder: AudioEncoder) -> None:
        self.path = path
        self.vectors: dict[str, Tensor] = {}
        self._encoder = encoder
        self._saved = 0  # number of vectors in the file
        self._state: tuple[int, int] | None = None  # of the file that was read or written last
        self._due = time.monotonic() + _SAVED_EVERY
        self._merge()

    def save_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """Save the vectors, if there are new ones."""
        if len(self.vectors) == self._saved:
            return
        began = time.monotonic()
        with locked_folder(self.path.parent):
            self._merge()
            save_vectors(self.path, self.vectors, self._encoder)
            self._saved, self._state = len(self.vectors), self._state_now()
        now = time.monotonic()
        self._due = now + max(_SAVED_EVERY, _SHARE * (now - began))

    def _merge(self) -> None:
        """Take over what another run has saved."""
        state = self._state_now()
        if state is not None and state != self._state:
            there = load_vectors(self.path, self._encoder)
            self.vectors.update({name: vector for name, vector in there.items() if name not in self.vectors})
            self._saved, self._state = len(there), state

    def _state_now(self) -> tuple[int, int] | None:
        if not self.path.is_file():
            return None
        state = self.path.stat()
        return state.st_ino, state.st_mtime_ns


def load_vectors(path: str | os.PathLike[str], encoder: AudioEncoder) -> dict[str, Tensor]:
    """Read the vectors of a file that `save_vectors` wrote.

    Args:
        path: the file.
        encoder: the encoder that must have made them.

    Raises:
        ValueError: if they are another encoder's, aren't finite, or the file holds something else.
        OSError: if the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(parse_json((file.metadata() or {})[METADATA_KEY]))
            vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} isn't a file of vectors: give another file, or remove it"
        ) from error
    made_with = dict(encoder.signature())
    others = [
        f"{name} {about.get(name)!r}, not {value!r}"
        for name, value in made_with.items()
        if about.get(name) != value
    ]
    if others:
        raise ValueError(f"{os.fspath(path)} holds vectors made with {'; '.join(others)}: give another file")
    if any(vector.shape != (encoder.dim,) for vector in vectors.values()):
        raise ValueError(
            f"{os.fspath(path)} holds vectors of another width than {encoder.dim}: give another file"
        )
    return vectors


def save_vectors(path: str | os.PathLike[str], vectors: Mapping[str, Tensor], encoder: AudioEncoder) -> None:
    """Write vectors as a safetensors file, with the encoder's signature in its metadata.

    Args:
        path: the file to write.
        vectors: (d_a,) float32 by name.
        encoder: the encoder that made them.
    """
    about = json.dumps({**encoder.signature(), "library_version": __version__})
    copies = {name: vector.clone() for name, vector in vectors.items()}  # the vectors may share memory
    write_file(Path(path), save(copies, metadata={METADATA_KEY: about}))
