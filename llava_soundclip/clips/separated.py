"""Rows of text with separators: CSV and TSV, as they are found in the world."""

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence

Row = Mapping[str, str] | str

_SEPARATORS = (",", ";", "\t")
_UNPAIRED = (
    "a quotation mark isn't closed in its line, or stands inside a cell. Quote the whole cell, and write each mark in "
    'it twice: "say ""hi"""'
)


def read_separated(
    text: str, separator: str, header: Sequence[str], keys: Sequence[str], vggsound: Sequence[str]
) -> tuple[list[str], list[Row]]:
    """The columns and rows of a CSV or TSV.

    Comment lines (#) are skipped, except one above the first row that names its columns. The separator is that of the
    first row. If quotation marks don't pair, they are taken as they stand where every line has all cells.

    Args:
        text: the file.
        separator: the usual separator of its kind.
        header: names of all columns, for a file without a header.
        keys: columns whose cells differ from a caption's text, such as the path; used to tell a cell of several lines
            from a quotation mark that swallows rows.
        vggsound: names of the columns of VGGSound's table, which has no header.

    Returns:
        The names of the columns, and the rows: cells by column, or a phrase that says why a row can't be used.

    Raises:
        ValueError: if quotation marks don't pair and rows would be lost; the message names the line.
    """
    lines = list(io.StringIO(text, newline=""))
    above = 0
    while above < len(lines) and (not lines[above].strip() or lines[above].lstrip().startswith("#")):
        above += 1
    comments, lines = [line.lstrip().lstrip("#") for line in lines[:above]], lines[above:]
    if not lines:
        lines, comments = comments[-1:], []  # nothing but a header, as a comment
    separator = _separator_of(lines[0] if lines else "", separator)
    first = _cells(lines[0], separator) if lines else []
    if set(keys) <= set(first):
        comments = []
    above_it = (_cells(line, separator) for line in reversed(comments))
    named = next((cells for cells in above_it if len(cells) == len(first) > 1), None)
    is_bare = bool(header) and len(header) == len(first) and not set(header) & set(first)
    if named is not None:
        names = named
    elif is_bare:
        names = list(header)
    elif _is_vggsound(first):
        names = list(vggsound)
    else:
        names = first
    key = next((names.index(name) for name in keys if name in names), 0)
    records = _records(lines, separator, len(names), key, above)
    if names is first:
        records = records[1:]
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise ValueError(f"it has two columns {min(twice)!r}")
    rows: list[Row] = []
    for cells in records:
        if cells and cells[0].startswith("#") and len(cells) != len(names):
            continue
        while len(cells) > len(names) and not cells[-1]:
            cells = cells[:-1]
        if len(cells) != len(names):
            rows.append(f"has {len(cells)} cells instead of {len(names)}")
        else:
            rows.append(dict(zip(names, cells, strict=True)))
    return names, rows


def _separator_of(line: str, usual: str) -> str:
    """The separator that is most frequent outside of quotation marks."""
    bare = re.sub(r'"[^"]*"', "", line)
    most = max(_SEPARATORS, key=bare.count)
    return most if bare.count(most) > bare.count(usual) else usual


def _records(lines: list[str], separator: str, width: int, key: int, above: int) -> list[list[str]]:
    """All rows as cells.

    Raises:
        ValueError: as in `read_separated`.
    """
    try:
        return list(_quoted(lines, separator, width, key, above))
    except ValueError:
        cells = [_cells(line, separator) for line in lines if line.strip()]
        if width > 1 and all(len(row) == width for row in cells):
            return cells
        raise


def _quoted(lines: list[str], separator: str, width: int, key: int, above: int) -> Iterator[list[str]]:
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    before = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {above + before + 1}: {_UNPAIRED}") from error
        several = reader.line_num - before > 1
        own = [_cells(line, separator) for line in lines[before : reader.line_num]] if several else []
        if len(own) > 1 and all(len(row) == width and _is_like(row[key], own[0][key]) for row in own):
            raise ValueError(f"line {above + before + 1}: {_UNPAIRED}")  # it swallows what looks like rows
        before = reader.line_num
        cells = [cell.strip() for cell in cells]
        if any(cells):
            yield cells


def _is_like(one: str, other: str) -> bool:
    """Whether two texts may be of one column of paths or ids: equal suffixes, or equal lengths without spaces."""
    suffixes = [os.path.splitext(text)[1].lower() for text in (one, other)]
    if any(suffixes):
        return suffixes[0] == suffixes[1]
    return len(one) == len(other) and " " not in one + other


def _cells(line: str, separator: str) -> list[str]:
    """The cells of one line whose quotation marks may not pair. Those around a whole cell are removed."""
    try:
        (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    except (csv.Error, ValueError):
        cells = line.rstrip("\r\n").split(separator)
    return [cell.strip() for cell in cells]


def _is_vggsound(cells: Sequence[str]) -> bool:
    """Whether the first row is one of VGGSound's table: a YouTube id, whole seconds, a label, train or test."""
    return (
        len(cells) == 4
        and re.fullmatch(r"[\w-]{11}", cells[0]) is not None
        and cells[1].isdecimal()
        and cells[3] in ("train", "test")
    )
