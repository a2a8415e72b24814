"""The encoder in docs/adding-an-encoder.md passes every test that its three steps promise."""

import re
from pathlib import Path
from typing import Any

import pytest

from llava_soundclip import encoders
from tests.encoders import test_registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-an-encoder.md"


@pytest.fixture
def page(tmp_path, monkeypatch) -> dict[str, Any]:
    """The names that the page's code defines, run in a folder that holds the encoder's checkpoint."""
    monkeypatch.setattr(encoders, "_ENCODERS", dict(encoders._ENCODERS))
    text = PAGE.read_text(encoding="utf-8")
    made, used, written = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "bands"}
    for block in (made, written):
        exec(block, names)  # noqa: S102 (our own page)
    names["write_bands"](tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(used, names)  # noqa: S102 (our own page)
    monkeypatch.setitem(test_registry.CHECKPOINTS, "bands", names["write_bands"])
    return names


def test_its_encoder_is_loaded_with_its_options(page):
    assert page["encoder"].signature().keys() == {"encoder", "checkpoint", "floor"}
    assert encoders.load_encoder("bands", checkpoint="bands.safetensors", floor=1e-6).floor == 1e-6


def test_its_encoder_keeps_the_contract(page, tmp_path, monkeypatch):
    test_registry.test_every_encoder_keeps_the_contract("bands", tmp_path)
    test_registry.test_no_sounds_give_no_vectors_on_the_encoders_device("bands", tmp_path)
    for dtype in ("float16", "bfloat16"):
        test_registry.test_half_precision("bands", dtype, tmp_path)
    test_registry.test_options_are_checked_before_anything_is_read("bands", monkeypatch)


def test_the_lines_of_the_tables_name_what_the_page_defines(page):
    text = PAGE.read_text(encoding="utf-8")
    target, function = re.findall(r'^```text\n"bands": "?([\w.:]+)"?,\n```', text, re.MULTILINE)
    assert target.rpartition(":")[2] in page
    assert function in page


def test_the_files_that_it_names_are_there():
    for path in re.findall(
        r"`((?:llava_soundclip|tests|examples)/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8")
    ):
        assert (PAGE.parents[1] / path).is_file(), path
