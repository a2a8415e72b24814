"""The example in docs/adding-an-encoder.md runs, and keeps the contract."""

import re
from pathlib import Path
from typing import Any

import pytest

from llava_soundclip import encoders
from tests.encoders.test_registry import assert_keeps_the_contract

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-encoder.md"


def test_the_example(monkeypatch):
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    for block in code:
        exec(block, names)  # noqa: S102 (our own page)
    assert names["encoder"].dim == 32
    assert_keeps_the_contract(encoders.load_encoder("bands"), "bands")
    with pytest.raises(ValueError, match="dim=0"):
        encoders.load_encoder("bands", dim=0)


def test_the_files_that_it_names_are_there():
    for path in re.findall(r"`((?:llava_soundclip|tests)/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parents[1] / path).is_file(), path
