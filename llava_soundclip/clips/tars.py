"""Clips of WebDataset tars, read without unpacking them."""

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llava_soundclip.clips.cells import as_text
from llava_soundclip.clips.clip import Clip, TarMember
from llava_soundclip.clips.find import PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES


def read_tar(path: str) -> Iterator[Clip]:
    """The samples of a tar. Members whose names are equal up to the first dot are one sample."""
    samples: dict[str, dict[str, TarMember]] = {}
    whole = os.path.abspath(path)
    prefix = f"{os.path.basename(os.path.dirname(whole))}/{os.path.basename(whole)}"
    fault = None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if member.isreg() and not member.issparse() and stem:
                    key = f"{folder}/{stem}" if folder else stem
                    place = TarMember(path, member.offset_data, member.size, member.name)
                    samples.setdefault(key, {})[f".{extension.lower()}"] = place
    except (OSError, tarfile.TarError) as error:
        fault = f"{path} is truncated, damaged or not a tar: {error}"
    for key, members in samples.items():
        id = as_text(f"{prefix}/{key}") or prefix
        sound = _first(members, SOUND_SUFFIXES) or _first(members, VIDEO_SUFFIXES)
        picture = _first(members, PICTURE_SUFFIXES) or _first(members, VIDEO_SUFFIXES)
        if sound is None:
            names = ", ".join(member.name for member in members.values())
            yield Clip(id, id, path, fault=f"{path}/{key}: none of its files ({names}) is a sound or a video")
        else:
            yield Clip(id, id, sound, None if picture is sound else picture)
    if fault is not None:
        yield Clip(as_text(prefix) or path, prefix, path, fault=fault)


def _first(members: Mapping[str, TarMember], suffixes: Iterable[str]) -> TarMember | None:
    """The first member with one of the suffixes. In WebDataset "left.wav" is a wav."""
    kinds = frozenset(suffixes)
    return next((place for name, place in sorted(members.items()) if Path(f"_{name}").suffix in kinds), None)
