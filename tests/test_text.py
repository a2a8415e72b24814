"""Names of files as text that can be written and shown."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_soundclip._text import as_unicode, printable, printable_lines


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain name.wav", "plain name.wav"),
        ("naïve café 雨 👩‍👩‍👧 می‌خواهم", "naïve café 雨 👩‍👩‍👧 می‌خواهم"),
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("a\nError: forged", r"a\nError: forged"),
        ("a\r\tb\x00\x7f\x9b", r"a\r\tb\x00\x7f\x9b"),
        ("a\u2028b\u202egnp.exe", r"a\u2028b\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9.wav"), r"caf\xe9.wav"),
    ],
)
def test_one_line_that_no_terminal_obeys(text, shown):
    assert printable(text) == shown


def test_lines_and_tabs_may_stay():
    assert printable_lines("one\n\ttwo\x1b[31m") == "one\n\ttwo\\x1b[31m"


def test_a_long_text_is_cut():
    assert printable("a" * 5000, 10) == "a" * 10 + "…"


@given(st.text(alphabet=st.characters(codec=None)))
def test_every_text_can_be_written_and_shown(text):
    assert as_unicode(text).encode("utf-8").decode("utf-8") == as_unicode(text)
    shown = printable(text)
    assert (
        shown.encode("utf-8")
        and all(unicodedata.category(one) not in ("Cc", "Cs") for one in shown)
        or not text
    )


@given(st.binary(max_size=30))
def test_every_file_name_can_be_written(name):
    assert as_unicode(os.fsdecode(name)).encode("utf-8").isascii() or name.decode("utf-8", "replace")
    assert os.fsdecode(name).isprintable() <= (printable(os.fsdecode(name)) == os.fsdecode(name))
