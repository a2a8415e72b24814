"""Wav2CLIP's and AudioCLIP's files at their full size: read, refused, and fetched from a server on loopback."""

import os
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llava_soundclip.encoders import wav2clip
from llava_soundclip.encoders.audioclip import AudioCLIPEncoder
from llava_soundclip.encoders.audioclip import encoder as audioclip
from llava_soundclip.encoders.wav2clip import Wav2CLIPEncoder
from tests.encoders.fake_resnets import (
    file_content,
    weights,
    write_audioclip,
    write_pt,
    write_safetensors,
    write_wav2clip,
)
from tests.encoders.fake_whisper import weights as whisper_weights
from tests.encoders.fake_whisper import write_openai

CLASSES = {"wav2clip": Wav2CLIPEncoder, "audioclip": AudioCLIPEncoder}
KERNEL = {"wav2clip": "audio_encoder.conv1.weight", "audioclip": "audio.conv1.weight"}
NAMES = {
    "Wav2CLIP.pt": ("wav2clip", wav2clip),
    "AudioCLIP-Full-Training.pt": ("audioclip", audioclip),
    "AudioCLIP-Partial-Training.pt": ("audioclip", audioclip),
}

both = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {"wav2clip": write_wav2clip(folder), "audioclip": write_audioclip(folder)}


def assert_holds(encoder, name: str) -> None:
    state = encoder.state_dict()
    assert state.keys() == weights(name).keys()
    for tensor in state:
        assert torch.equal(state[tensor], weights(name)[tensor]), tensor


@both
def test_a_release(files, name):
    """Its counters, windows and other parts are stepped over."""
    encoder = CLASSES[name].load(checkpoint=files[name])
    assert_holds(encoder, name)
    sound = np.random.default_rng(0).normal(0, 0.1, 3000).astype(np.float32)
    vector = encoder.embed([sound], encoder.sampling_rate)
    assert torch.equal(vector, CLASSES[name](weights(name)).embed([sound], encoder.sampling_rate))


@both
def test_other_formats_have_the_same_identity(files, tmp_path, name):
    identity = CLASSES[name](weights(name)).checkpoint
    safe = CLASSES[name].load(checkpoint=str(write_safetensors(tmp_path / "x.safetensors", name)))
    assert_holds(safe, name)
    half = {tensor: value.half() for tensor, value in weights(name).items()}
    torch.save(
        {"state_dict": {f"module.{tensor}": value for tensor, value in half.items()}}, tmp_path / "x.pt"
    )
    rounded = CLASSES[name].load(checkpoint=tmp_path / "x.pt")
    assert {value.dtype for value in rounded.state_dict().values()} == {torch.float32}
    assert rounded.checkpoint == safe.checkpoint == identity
    assert CLASSES[name].load(checkpoint=files[name], dtype="bfloat16").checkpoint == identity
    assert CLASSES[name](weights(name, seed=1)).checkpoint != identity


def test_the_encoder_does_not_hold_the_file(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", "wav2clip")
    encoder = Wav2CLIPEncoder.load(checkpoint=path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_holds(encoder, "wav2clip")


@pytest.mark.parametrize("part", [0, 0.001, 0.5, 0.9999])
@pytest.mark.parametrize("write", [write_pt, write_safetensors])
def test_cut_files(tmp_path, write, part):
    path = write(tmp_path / ("x.pt" if write is write_pt else "x.safetensors"), "wav2clip")
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(ValueError, match=path.name):
        Wav2CLIPEncoder.load(checkpoint=path)


class Hostile:
    """Unpickled without care, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@both
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run(tmp_path, name, zipped):
    harm = tmp_path / "harm"
    torch.save({KERNEL[name]: Hostile(harm)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="x.pt holds more than tensors.*refused"):
        CLASSES[name].load(checkpoint=tmp_path / "x.pt")
    assert not harm.exists()


@both
def test_other_tensors(tmp_path, name):
    kernel = KERNEL[name]
    prefix = kernel.split(".")[0]
    for change, message in [
        ({kernel: torch.zeros(64, 2, 7, 7)}, r"conv1.weight is \(64, 2, 7, 7\), expected \(64, "),
        ({kernel: None}, r"conv1.weight is missing, expected \(64, "),
        ({f"{prefix}.adapter": torch.zeros(2)}, r"adapter is \(2,\), expected no such tensor"),
        ({kernel: torch.zeros(weights(name)[kernel].shape, dtype=torch.int8)}, "aren't floats"),
    ]:
        content = {**file_content(name), **change}
        content = {tensor: value for tensor, value in content.items() if value is not None}
        save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=rf"x.safetensors.*{message}"):
            CLASSES[name].load(checkpoint=tmp_path / "x.safetensors")


@both
def test_another_models_file(files, tmp_path, name):
    other = files["audioclip" if name == "wav2clip" else "wav2clip"]
    whisper = write_openai(tmp_path / "whisper.pt", whisper_weights())
    for path in (other, whisper):
        with pytest.raises(ValueError, match=rf"{path.name} doesn't hold a whole \w+CLIP audio encoder"):
            CLASSES[name].load(checkpoint=path)
    with pytest.raises(ValueError, match=tmp_path.name):
        CLASSES[name].load(checkpoint=tmp_path)


@both
def test_options_are_checked_first(tmp_path, name):
    load = CLASSES[name].load
    for options, message in [
        ({"dtype": "int8"}, "dtype='int8' is unknown; known: float32, float16, bfloat16"),
        ({"checkpoint": "huge"}, "unknown (Wav2CLIP|AudioCLIP) checkpoint 'huge'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(**{"checkpoint": tmp_path / "none.pt", **options})
    with pytest.raises(FileNotFoundError, match="no (Wav2CLIP|AudioCLIP) checkpoint at"):
        load(checkpoint=tmp_path / "none.pt")
    with pytest.raises(ValueError, match="amplitude='loud' is unknown; known: int16, unit"):
        AudioCLIPEncoder.load(checkpoint=tmp_path / "none.pt", amplitude="loud")


@contextmanager
def serving(path: Path, *, status: int = 200, sent: float = 1.0):
    """A server that answers every request with a file, or a part of it under the whole one's length."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            requests.append(self.path)
            content = path.read_bytes()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(sent * len(content))])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("release", NAMES)
def test_a_release_is_fetched_once(files, cache, monkeypatch, release):
    name, module = NAMES[release]
    assert module.KNOWN[release].endswith(f"/{release}")
    with serving(files[name]) as (address, requests):
        monkeypatch.setitem(module.KNOWN, release, f"{address}/v0/{release}")
        first = CLASSES[name].load(checkpoint=release)
        assert [path.name for path in cache.iterdir()] == [release]
        again = CLASSES[name].load() if "Partial" not in release else CLASSES[name].load(checkpoint=release)
        assert requests == [f"/v0/{release}"]
    assert first.checkpoint == again.checkpoint == CLASSES[name](weights(name)).checkpoint


@pytest.mark.parametrize(("status", "sent"), [(500, 1.0), (404, 1.0), (200, 0.5), (200, 0.0)])
def test_a_download_that_fails_leaves_nothing(files, cache, monkeypatch, status, sent):
    with serving(files["wav2clip"], status=status, sent=sent) as (address, _):
        monkeypatch.setitem(wav2clip.KNOWN, "Wav2CLIP.pt", f"{address}/Wav2CLIP.pt")
        with pytest.raises(OSError, match="couldn't be fetched"):
            Wav2CLIPEncoder.load()
    assert not list(cache.iterdir())
