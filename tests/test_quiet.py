"""Loading is quiet, and only loading."""

import logging
import os
import subprocess
import sys
import threading

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel
from transformers.utils import logging as transformers_logging

from llava_soundclip._quiet import quiet_loading
from llava_soundclip.demo.kinds import make_clip
from llava_soundclip.demo.parts import CACHE_VARIABLE, PIP_LINE, SMOLLM2, WHISPER, is_packaged
from tests.conftest import PROGRESS, tiny_vision_config


@pytest.fixture
def talking(monkeypatch):
    """transformers as users have it; the suite turns its warnings off. Its handler writes to the suite's stderr."""
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger.manager._clear_cache()
    monkeypatch.setattr(logger, "propagate", True)  # for caplog
    yield
    monkeypatch.undo()
    logger.manager._clear_cache()


@pytest.fixture
def clip_folder(tmp_path):
    """A whole CLIP, of which a tower leaves half unused."""
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text | {"num_hidden_layers": 1}, vision_config=tiny_vision_config().to_dict()
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_unused_weights_and_bars_are_kept_off_the_screen(talking, clip_folder, caplog, capsys):
    with quiet_loading():
        CLIPVisionModel.from_pretrained(clip_folder)
    assert not caplog.records and not capsys.readouterr().err
    CLIPVisionModel.from_pretrained(clip_folder)  # afterwards all is as it was
    said = caplog.text + capsys.readouterr().err
    if hasattr(transformers_logging, "set_tqdm_hook"):  # transformers 5
        assert "UNEXPECTED" in said and "Loading weights" in said


def test_missing_weights_are_told(talking, clip_folder, caplog):
    from safetensors.torch import load_file, save_file

    weights = load_file(clip_folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "position_embedding" not in name}
    save_file(weights, clip_folder / "model.safetensors", metadata={"format": "pt"})
    with quiet_loading():
        CLIPVisionModel.from_pretrained(clip_folder)
    assert "position_embedding" in caplog.text


def test_the_users_settings_are_in_force_again(monkeypatch):
    logger = logging.getLogger("transformers.modeling_utils")
    before = (transformers_logging.get_verbosity(), list(logger.filters), are_progress_bars_disabled())
    hooks = []
    if hasattr(transformers_logging, "set_tqdm_hook"):
        monkeypatch.setattr(transformers_logging, "_tqdm_hook", hooks.append)
    with pytest.raises(OSError, match="no such model"), quiet_loading():
        raise OSError("no such model")
    assert (transformers_logging.get_verbosity(), logger.filters, are_progress_bars_disabled()) == before
    if hasattr(transformers_logging, "set_tqdm_hook"):
        assert transformers_logging.set_tqdm_hook(None) == hooks.append


def test_the_last_of_several_threads_ends_the_quiet():
    logger = logging.getLogger("transformers.modeling_utils")
    inside, leave = threading.Event(), threading.Event()

    def load():
        with quiet_loading():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=load)
    with quiet_loading():
        other.start()
        assert inside.wait(10)
    assert logger.filters
    leave.set()
    other.join()
    assert not logger.filters


def run(tmp_path, *arguments):
    """Run a command as users do, on a clip and with an empty cache; the suite turns transformers' warnings off."""
    clip = make_clip(tmp_path / "bell.mp4", picture="bell", sound="bell")
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    environment[CACHE_VARIABLE] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "llava_soundclip", arguments[0], str(clip), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(not is_packaged(WHISPER), reason=f"needs {PIP_LINE}")
def test_features_says_one_line(tmp_path):
    options = ("--checkpoint", "demo", "--encoder-option", "window=clip", "--tower", "demo")
    done = run(tmp_path, "features", *options, "--out", str(tmp_path / "features"))
    (line,) = (line for line in done.stderr.splitlines() if not PROGRESS.match(line))
    assert "1 of 1 clips" in line


@pytest.mark.slow
@pytest.mark.skipif(not all(map(is_packaged, (WHISPER, SMOLLM2))), reason=f"needs {PIP_LINE}")
def test_caption_says_nothing_else(tmp_path):
    done = run(tmp_path, "caption", "--max-new-tokens", "8")
    assert "I hear a bell" in done.stdout and not done.stderr
