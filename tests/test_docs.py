"""The documents keep their promises: links resolve, commands parse, and code runs as it stands."""

import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from torch import nn

from llava_soundclip import SoundCLIP, patch
from llava_soundclip.cli import app
from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, WHISPER, is_packaged
from llava_soundclip.running import PROGRAM
from tests.conftest import TinyEncoder, build_tiny_llava, build_tiny_processor
from tests.media.making import write_film

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "recipes", "weights/demo")),
]


README_LINES = 120


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def prose(document: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readmes_first_figures_are_the_measured_ones() -> None:
    figures = json.loads((ROOT / "recipes" / "miniature" / "figures" / "measured.json").read_text())
    scenes, unseen = figures["prepared: scenes"], figures["prepared: unseen"]
    readme = (ROOT / "README.md").read_text()
    rows = {
        "its sound, projected": "similar, projected",
        "the same, with random patches": "random, projected",
        "its sound, raw": "similar, raw",
        "noise": "similar, noise",
        "a zero vector": "similar, zero vector",
        "another sound": "similar, another recording",
    }
    for row, setting in rows.items():
        cells = [row]
        for place in ("visible", "not visible"):
            figure = scenes[f"zero, 18, {setting}, {place}"]["heard"]
            low, high = figure["interval"]
            cells.append(f"{figure['share']:.2f} ({low:.2f} to {high:.2f})")
        assert f"| {' | '.join(cells)} |" in readme
    counts = [
        round(part["share"] * part["n"]) for name, part in unseen.items() if name.startswith("recording ")
    ]
    assert f"{sum(count > 3 for count in counts)} of {len(counts)} named" in readme
    assert f"{sum(counts)} of {6 * len(counts)} clips" in readme


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_images_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(document)):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_page_of_commands_is_up_to_date() -> None:
    """If this fails: `make docs-cli`."""
    page = runpy.run_path(str(ROOT / "recipes" / "pages" / "cli.py"))["page"]
    assert (ROOT / "docs" / "cli.md").read_text() == page()


def code(document: Path) -> tuple[list[str], list[str]]:
    """A document's code: the lines of its shell blocks, and what stands between backticks in its text."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    shell = "\n".join(text for language, text in fenced if language in ("", "sh", "text"))
    typed = shell.replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`]+)`", re.sub(r"\n *", " ", prose(document)))
    return [line.strip() for line in typed], inline


def command_lines() -> list[tuple[str, bool]]:
    """The command lines of all documents, and whether each is to be typed as it stands."""
    found = []
    for document in DOCUMENTS:
        typed, inline = code(document)
        as_it_stands = document.name != "cli.md"  # that page's lines name values by their kind
        found += [(part.strip(), as_it_stands) for line in typed for part in line.split("&&")]
        found += [(line, False) for line in inline]
    program = re.compile(rf"(?:\S*/)?(?:{PROGRAM}|python -m llava_soundclip) ")
    return [(program.sub("", line, count=1), whole) for line, whole in found if program.match(line)]


@pytest.mark.parametrize(("line", "whole"), command_lines())
def test_command_lines_parse(line: str, whole: bool) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line, comments=True)
    while words and words[0] in getattr(command, "commands", ()):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    if hasattr(command, "commands"):  # "eval ... --json": some command of the group
        assert words[0] in ("COMMAND", "...", "--version"), line
    elif whole:
        command.make_context("command", words)
    else:
        known = {name for param in command.params for name in param.opts}
        assert set(options) <= {*known, "--help"}, line


def test_make_knows_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for line in (line for lines in code(document) for line in lines):
            words = shlex.split(line.partition("#")[0]) if re.match(r"make [\w-]", line) else []
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{document.name}: {line}"


def test_commands_exist() -> None:
    for document in DOCUMENTS:
        for script in re.findall(r"python ([\w.-]+/[\w/.-]+\.py)", document.read_text()):
            assert (ROOT / script).is_file(), f"{document.name} names {script}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_imported_names_exist(document: Path) -> None:
    for module, names in re.findall(
        r"^from (llava_soundclip[\w.]*) import (.+)$", document.read_text(), re.MULTILINE
    ):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module} has no {name}"


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the tiny random model, whose processor is a stock one; only the encoder and k are smaller."""
    for name in ("clip.mp4", "bark.wav", "clip.wav", "dog.jpg"):
        write_film(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    model = build_tiny_llava()
    processor = build_tiny_processor(model)
    picture = Image.new("RGB", (30, 30))
    captions: list[str] = []

    def small_patch(model: nn.Module, encoder: str) -> SoundCLIP:
        assert encoder == "whisperclip"
        return patch(model, TinyEncoder(), k=4, processor=processor)

    names = {
        "model": model,
        "inputs": processor(images=picture, text="w4 <image>", return_tensors="pt"),
        "patch": small_patch,
        "print": captions.append,
    }
    for block in blocks(ROOT / "README.md", "python"):
        exec(block.replace("from llava_soundclip import patch", ""), names)  # noqa: S102  our own README
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert len(captions) == 2 and all(captions)
    assert "generate" not in vars(model)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(is_packaged, (WHISPER, SMOLLM2))), reason=f"needs {PIP_LINE}")
def test_the_readme_shows_what_make_demo_prints(tmp_path: Path) -> None:
    example = ROOT / "examples" / "caption_clip.py"
    command = [sys.executable, example, "--map", tmp_path / "map.png"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (shown,) = blocks(ROOT / "README.md", "text")
    assert set(shown.splitlines()) <= set(printed)
