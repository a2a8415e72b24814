"""Vectors of sounds: one per clip, for search and for other programs."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from llava_soundclip._version import __version__
from llava_soundclip.alignment.files import METADATA_KEY
from llava_soundclip.clips import Clip, Names, as_clips, sound_of
from llava_soundclip.encoders import AudioEncoder
from llava_soundclip.running import work_through, write_file


@dataclass
class Embedded:
    """The result of `embed_clips`.

    Attributes:
        vectors: for each clip's id, (d_a,) float32 on the CPU.
        bad: for each clip that could not be embedded, the reason, by id.
    """

    vectors: dict[str, Tensor] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


def embed_clips(
    clips: Sequence[Clip] | Names,
    encoder: AudioEncoder,
    *,
    batch_size: int = 8,
    on_clips: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """Embed the sounds of clips. One bad clip doesn't stop the rest.

    Args:
        clips: clips with unique ids, see `read_clips`; or names of files and folders.
        encoder: the audio encoder.
        batch_size: clips per batch.
        on_clips: called with the number of clips that were done or failed since the last call.

    Returns:
        The vectors, and the bad clips.
    """
    by_id = {clip.id: clip for clip in as_clips(clips)}

    def embed(ids: Sequence[str]) -> Sequence[Tensor]:
        sounds = [sound_of(by_id[id].fetched(), encoder.decoding_rate) for id in ids]
        return encoder.embed([wave for wave, _ in sounds], [rate for _, rate in sounds]).cpu().unbind()

    embedded = Embedded()
    for vectors, failed in work_through([*by_id], embed, batch_size):
        embedded.vectors |= vectors
        embedded.bad |= failed
        on_clips(len(vectors) + len(failed))
    return embedded


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
