"""Clips of WebDataset tars, read without unpacking them."""

import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import BinaryIO

from llava_soundclip._text import printable
from llava_soundclip.clips.cells import as_text
from llava_soundclip.clips.clip import Clip, TarMember
from llava_soundclip.clips.find import MEDIA_SUFFIXES, PICTURE_SUFFIXES, SOUND_SUFFIXES, VIDEO_SUFFIXES
from llava_soundclip.media.files import never_opened


def read_tar(path: str) -> Iterator[Clip]:
    """The samples of a tar. Members whose names are equal up to the first dot are one sample.

    If a sample has several sounds, or no sound and several videos, each is a clip. Hard and symbolic links to members
    are followed. A member that can't be used is a bad clip, and so is the rest of a damaged tar.
    """
    whole = os.path.abspath(path)
    prefix = f"{os.path.basename(os.path.dirname(whole))}/{os.path.basename(whole)}"
    listing = _Listing(path)
    listing.read()
    shown = printable(path)
    faults = dict(listing.faults)
    for name in listing.unused():
        faults[name] = "the tar holds another file of this name, which replaces it"
    samples: dict[str, dict[str, TarMember]] = defaultdict(dict)
    for name in [*listing.members, *listing.links]:
        member = listing.resolved(name)
        if member is not None:
            samples[_key_of(name)][name] = member
        elif _suffix_of(name) in MEDIA_SUFFIXES:
            faults[name] = f"it is a link to {printable(listing.links[name])}, which isn't a file in the tar"
    for key, members in samples.items():
        for name, sound, picture in _clips_of(key, members):
            id = as_text(f"{prefix}/{name}") or prefix
            if sound is None:
                names = printable(", ".join(members))
                fault = f"{shown}/{printable(key)}: none of its files ({names}) is a sound or a video"
                yield Clip(id, id, path, fault=fault)
            else:
                yield Clip(id, id, sound, picture)
    for name, fault in faults.items():
        id = as_text(f"{prefix}/{name}") or prefix
        yield Clip(id, id, path, fault=f"{shown}/{printable(name)}: {fault}")
    if listing.end is not None:
        yield Clip(as_text(prefix) or path, prefix, path, fault=listing.end)


@dataclass
class _Listing:
    """What is in a tar.

    Attributes:
        members: files by name; the last one of a name counts.
        links: targets of links by name.
        faults: reasons by name, for media that are neither files nor links.
        end: the reason why the tar can't be read to its end.
    """

    path: str
    members: dict[str, TarMember] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    end: str | None = None
    _times: Counter[str] = field(default_factory=Counter)

    def read(self) -> None:
        """Read the headers of all members."""
        self.end = never_opened(self.path)
        if self.end is not None:
            return
        try:
            with open(self.path, "rb") as file:
                at = -1
                while _goes_on(file, max(at, 0)):
                    begin = file.tell()
                    with tarfile.open(fileobj=file, mode="r:") as archive:
                        for member in archive:
                            self._add(member)
                        at = archive.offset
                    if at <= begin:  # tarfile ends quietly at what is no header
                        raise tarfile.ReadError(f"what begins at byte {begin} is no member")
                if at < 0:
                    raise tarfile.ReadError("it is empty")
        except Exception as error:  # noqa: BLE001 - tarfile raises anything for odd headers
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.end = f"{printable(self.path)} is truncated, damaged or not a tar: {printable(reason)}"

    def _add(self, member: tarfile.TarInfo) -> None:
        name = member.name
        if member.isdir() or posixpath.basename(name).startswith(
            "._"
        ):  # "._" holds a Mac's notes about a file
            return
        self._times[name] += 1
        for of_kind in (self.members, self.links, self.faults):
            of_kind.pop(name, None)
        if member.issym():
            self.links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
        elif member.islnk():
            self.links[name] = member.linkname
        elif member.isreg() and not member.issparse():
            self.members[name] = TarMember(self.path, member.offset_data, member.size, name)
        elif _suffix_of(name) in MEDIA_SUFFIXES:
            self.faults[name] = "it is stored with holes" if member.issparse() else "it isn't a file"

    def resolved(self, name: str) -> TarMember | None:
        """The file of a name, through links inside the tar; None if there is none."""
        target: str | None = name
        for _ in range(len(self.links) + 1):
            if target in self.members:
                return replace(self.members[target], name=name)
            if target not in self.links:
                return None
            target = self._names.get(posixpath.normpath(self.links[target]))
        return None

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names of files and links by their normal form, for the targets of links."""
        return {posixpath.normpath(name): name for name in [*self.members, *self.links]}

    def unused(self) -> list[str]:
        """The names of media that an other file of the same name replaces, once each."""
        return [
            name for name, times in self._times.items() if times > 1 and _suffix_of(name) in MEDIA_SUFFIXES
        ]


def _goes_on(file: BinaryIO, at: int) -> bool:
    """Whether a file holds more than zeros after a position, as joined tars do. The file is left there."""
    file.seek(at)
    while block := file.read(512):
        if block.strip(b"\0"):
            file.seek(-len(block), os.SEEK_CUR)
            return True
    return False


def _key_of(name: str) -> str:
    """The name of a member's sample: its name up to the first dot, which may not be the first character."""
    folder, base = posixpath.split(name)
    stem = base[:1] + base[1:].partition(".")[0]
    return f"{folder}/{stem}" if folder else stem


def _suffix_of(name: str) -> str:
    """The suffix of a member. In WebDataset "left.wav" is a wav."""
    return posixpath.splitext(name)[1].lower()


def _clips_of(
    key: str, members: Mapping[str, TarMember]
) -> list[tuple[str, TarMember | None, TarMember | None]]:
    """The clips of a sample: the name of each, its sound and its picture."""
    sounds, videos, pictures = (
        [name for name in sorted(members) if _suffix_of(name) in suffixes]
        for suffixes in (SOUND_SUFFIXES, VIDEO_SUFFIXES, frozenset(PICTURE_SUFFIXES))
    )
    heard = sounds or videos
    seen = pictures + (videos if sounds else [])
    if len(heard) == 1:
        picture = _picture_of(heard[0], seen)
        return [(key, members[heard[0]], None if picture is None else members[picture])]
    if not heard:
        return [(key, None, None)]
    stems = Counter(posixpath.splitext(name)[0] for name in heard)
    found: list[tuple[str, TarMember | None, TarMember | None]] = []
    for name in heard:
        stem = posixpath.splitext(name)[0]
        picture = _picture_of(name, seen)
        found.append(
            (stem if stems[stem] == 1 else name, members[name], None if picture is None else members[picture])
        )
    return found


def _picture_of(name: str, pictures: Sequence[str]) -> str | None:
    """The picture of a sound: that with its whole name, or else the sample's first."""
    stem = posixpath.splitext(name)[0]
    return next(
        (picture for picture in pictures if posixpath.splitext(picture)[0] == stem),
        next(iter(pictures), None),
    )
