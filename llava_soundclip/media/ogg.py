"""Joined Ogg files, as recorders of internet radio write them: one file behind the other, with clocks of their own."""

import io
from collections.abc import Generator
from typing import BinaryIO, cast

from llava_soundclip.media.files import Source, can_read_again, name_and_file


class _OggFile(io.RawIOBase):
    """One of several joined files, as a part of the open file that holds them all.

    Args:
        file: the open file.
        begin: position of its first byte.
        end: position after its last byte.
        name: name of the whole, for messages.
    """

    def __init__(self, file: BinaryIO, begin: int, end: int, name: str) -> None:
        self.name = name
        self._file, self._begin, self._end, self._at = file, begin, end, begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._end - self._at)
        self._file.seek(self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self._begin, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = max(self._begin, base + offset)
        return self.tell()

    def tell(self) -> int:
        return self._at - self._begin


def joined_files(source: Source) -> Generator[BinaryIO, None, None]:
    """Yield the files of a joined Ogg file; nothing for any other file.

    FFmpeg reads only the first if the next has another rate or number of channels, and can't seek past it.
    """
    if isinstance(source, _OggFile) or not can_read_again(source):
        return
    name, file = name_and_file(source)
    try:
        begins, end = _beginnings(file)
        if len(begins) > 1:
            for begin, stop in zip(begins, [*begins[1:], end], strict=True):
                yield cast(BinaryIO, _OggFile(file, begin, stop, name))
    finally:
        if file is not source:
            file.close()


def _beginnings(file: BinaryIO) -> tuple[list[int], int]:
    """Positions at which files begin, each with the first pages of its streams, and the end of the last one."""
    begins: list[int] = []
    at, was_first = 0, False
    try:
        while True:
            file.seek(at)
            head = file.read(27)
            if len(head) < 27 or head[:4] != b"OggS":
                break
            sizes = file.read(head[26])
            is_first = bool(head[5] & 2)
            if is_first and not was_first:
                begins.append(at)
            was_first = is_first
            at += 27 + len(sizes) + sum(sizes)
        return begins, file.seek(0, io.SEEK_END)
    except OSError:
        return [], 0  # its error is given when it is decoded
