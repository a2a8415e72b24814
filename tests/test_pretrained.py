"""Models of others: damaged or odd files are a sentence, and code that comes with them isn't run."""

import json

import pytest
import transformers

from llava_soundclip.features import VisionTower
from llava_soundclip.loading import load_llava, load_soundclip
from llava_soundclip.pretrained import load_pretrained
from tests.conftest import build_tiny_llava, build_tiny_processor


@pytest.fixture
def llava(tmp_path):
    model = build_tiny_llava()
    model.save_pretrained(tmp_path / "llava")
    build_tiny_processor(model).save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def test_a_whole_folder_loads(llava):
    model, processor = load_llava(str(llava))
    assert type(model).__name__ == "LlavaForConditionalGeneration" and processor is not None


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_cut_download_is_named_in_a_sentence(llava, name, share):
    file = llava / name
    if not file.exists():
        pytest.skip(f"this transformers writes no {name}")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises((OSError, ValueError)) as caught:
        load_llava(str(llava))
    assert str(llava) in str(caught.value) or name in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "[" * 5000,
        '{"a":' * 5000,
        '{"model_type": []}',
        '{"model_type": "llava", "architectures": "LlavaForConditionalGeneration"}',
        '{"model_type": "llava", "architectures": [["a"]]}',
        '{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": "x"}',
        '{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": [1]}',
        '{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": 7}}',
    ],
)
def test_an_odd_config_is_a_sentence(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises((OSError, TypeError, ValueError)) as caught:
        load_soundclip(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    "load", [load_soundclip, VisionTower.load, lambda name: load_pretrained(transformers.AutoTokenizer, name)]
)
@pytest.mark.parametrize("name", ["nofolder/", "./nofolder", "/no/folder", "a/b/c", "~/nofolder", ""])
def test_a_path_that_is_not_there_is_said_as_one(load, name, monkeypatch):
    def ask(*arguments, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", ask)
    with pytest.raises(FileNotFoundError, match=f"there is no folder '{name}'; a Hub id has the form"):
        load(name)


def test_a_file_is_no_folder(llava):
    with pytest.raises(ValueError, match=r"model\.safetensors is a file: give the folder that it is in"):
        load_soundclip(str(llava / "model.safetensors"))


CODE = """
from pathlib import Path
from transformers import LlavaConfig
Path({mark!r}).touch()
class OwnConfig(LlavaConfig):
    model_type = "own"
"""


@pytest.fixture
def with_code(llava, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("it asked"))
    config = json.loads((llava / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (llava / "config.json").write_text(json.dumps(config))
    (llava / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    return llava


def test_code_in_a_folder_is_neither_run_nor_asked_about(with_code, tmp_path):
    with pytest.raises(
        ValueError, match="needs Python code of its own, which isn't run.*--trust-remote-code"
    ):
        load_soundclip(str(with_code))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_folder_is_run_if_asked_for(with_code, tmp_path):
    load_llava(str(with_code), trust_remote_code=True)
    assert (tmp_path / "ran").exists()
