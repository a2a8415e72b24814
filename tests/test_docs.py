"""What the documents show works as it stands there."""

import re
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from llava_soundclip import SoundCLIP, patch
from tests.conftest import TinyEncoder, build_tiny_llava, build_tiny_processor
from tests.media.making import write_film

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    ROOT / "weights" / "demo" / "README.md",
    ROOT / "recipes" / "README.md",
]


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_make_knows_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        target
        for document in DOCUMENTS
        for target in re.findall(r"(?:^|`)make ([\w-]+)", document.read_text(), re.MULTILINE)
    }
    assert named <= targets


def test_commands_exist() -> None:
    for document in DOCUMENTS:
        for script in re.findall(
            r"python ((?:examples|benchmarks|recipes)/[\w/.-]+\.py)", document.read_text()
        ):
            assert (ROOT / script).is_file(), f"{document.name} names {script}"


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
