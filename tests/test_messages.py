"""Texts that leave the process: no secrets, and none of torch's advice."""

import base64
import pickle
import shlex
import sys

import pytest
import torch

from llava_soundclip.messages import scrub, secrets_of, sentence
from llava_soundclip.running import command_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://anna:s3cret@host:8/v1 and more", "http://***@host:8/v1 and more"),
        ("https://token@host", "https://***@host"),
        ("http://a:p@ss@host/", "http://***@host/"),
        ("http://host/v1?api_key=abc&model=m#x", "http://host/v1?api_key=***&model=m#x"),
        ("http://host/?a=b&access_token=abc", "http://host/?a=b&access_token=***"),
        ("Authorization: Bearer abc.def-1234", "Authorization: Bearer ***"),
        ("http://host/v1 mail me@host", "http://host/v1 mail me@host"),
        ("a key=value pair, k=15, clips/a@b.mp4", "a key=value pair, k=15, clips/a@b.mp4"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text, shown):
    assert scrub(text) == shown


def test_secrets_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc-12345678")
    monkeypatch.setenv("MY_SERVICE_PASSWORD", 'pass"word\\123')
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("KEYBOARD", "querty-layout")
    text = 'x abc-12345678 pass"word\\123 pass\\"word\\\\123 pass%22word%5C123 true querty-layout'
    assert scrub(text) == "x *** *** *** *** true querty-layout"


def test_the_password_of_an_address_and_its_header_are_secrets():
    found = secrets_of("http://anna:s%40cret@host/v1")
    assert found == ["s@cret", base64.b64encode(b"anna:s@cret").decode()]
    assert scrub("s@cret s%40cret " + found[1], *found) == "*** *** ***"
    assert secrets_of("http://host/v1") == secrets_of("http://[bad") == []
    assert scrub("a cat", "a") == "a cat"  # too short to be told from a word


def test_the_command_has_neither_passwords_nor_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = [
        "eval",
        "captions",
        str(tmp_path / "runs" / "c.jsonl"),
        "--json",
        "/home/anna/secret project/c.json",
        "--out=/home/anna/r.html",
        "--encoder-option",
        "checkpoint=/data/w.pt",
        "--judge-url",
        "http://anna:s3cret@host/v1",
        "--prompt",
        "What is 1/2?",
        "/",
    ]
    monkeypatch.setattr(sys, "argv", ["program", *typed])
    assert shlex.split(command_line()) == [
        *("llava-soundclip", "eval", "captions", "runs/c.jsonl", "--json", "c.json", "--out=r.html"),
        *("--encoder-option", "checkpoint=w.pt", "--judge-url", "http://***@host/v1"),
        *("--prompt", "What is 1/2?", "/"),
    ]


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_torchs_advice_is_not_passed_on(tmp_path, write):
    write({"a": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only") as caught:
        torch.load(tmp_path / "w.pt", weights_only=True)
    said = sentence(caught.value)
    assert "nsupported" in said
    assert not any(word in said for word in ("weights_only", "torch.", "trust", "http", "\x1b"))


def test_an_error_of_the_system_names_its_file():
    assert sentence(FileNotFoundError(2, "No such file", "a.json")) == "a.json: No such file"
    assert sentence(MemoryError()) == "there isn't enough memory (MemoryError)"
    assert sentence(ValueError("http://a:bcd@c is wrong")) == "http://***@c is wrong"
