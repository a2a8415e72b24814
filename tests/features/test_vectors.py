"""Vectors of clips in a file: resumed, shared, and refused if they aren't this encoder's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_soundclip.features import vectors
from llava_soundclip.features.vectors import embed_clips, load_vectors, save_vectors
from tests.cli.test_caption import sound
from tests.conftest import TinyEncoder


@pytest.fixture
def clips(tmp_path):
    for n in range(6):
        sound(tmp_path / "clips" / f"{n}.wav", 10 + n)
    return tmp_path / "clips"


class Counting(TinyEncoder):
    """Counts the sounds; as if Ctrl-C came at one of them."""

    def __init__(self, stops_at=None):
        super().__init__()
        self.seen, self.stops_at = 0, stops_at

    def _embed(self, waveforms):
        self.seen += len(waveforms)
        if self.stops_at is not None and self.seen > self.stops_at:
            raise KeyboardInterrupt
        return super()._embed(waveforms)


def test_an_interrupted_run_resumes_with_the_same_vectors(clips, tmp_path):
    whole = embed_clips(clips, TinyEncoder()).vectors
    out = tmp_path / "v.safetensors"
    with pytest.raises(KeyboardInterrupt):
        embed_clips(clips, Counting(stops_at=4), out, batch_size=2)
    assert len(load_file(out)) == 4
    encoder, counted = Counting(), []
    found = embed_clips(clips, encoder, out, batch_size=2, on_clips=counted.append)
    assert encoder.seen == 2 and found.there == 4 and sum(counted) == 6
    assert found.vectors.keys() == whole.keys() == load_file(out).keys()
    assert all(torch.equal(load_file(out)[name], vector) for name, vector in whole.items())
    before = out.stat().st_mtime_ns
    assert embed_clips(clips, Counting(stops_at=0), out).there == 6
    assert out.stat().st_mtime_ns == before


def test_it_is_saved_while_it_runs(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_SAVED_EVERY", 0.0)
    monkeypatch.setattr(vectors, "_SHARE", 0)
    sizes = []
    out = tmp_path / "v.safetensors"
    embed_clips(
        clips,
        TinyEncoder(),
        out,
        batch_size=2,
        on_clips=lambda count: out.exists() and sizes.append(len(load_file(out))),
    )
    assert sizes == [2, 4, 6]


def test_two_runs_share_a_file(clips, tmp_path):
    out = tmp_path / "v.safetensors"

    class Second(TinyEncoder):
        def _embed(self, waveforms):
            if not out.exists():
                embed_clips(clips / "0.wav", TinyEncoder(), out)
            return super()._embed(waveforms)

    embed_clips(clips / "1.wav", Second(), out)
    assert [name[-5:] for name in sorted(load_file(out))] == ["0.wav", "1.wav"]


def test_another_encoders_vectors_are_not_added_to(clips, tmp_path):
    out = tmp_path / "v.safetensors"
    embed_clips(clips, TinyEncoder(), out)
    other = TinyEncoder()
    other.checkpoint = "other-1234"
    before = out.read_bytes()
    with pytest.raises(
        ValueError, match="holds vectors made with checkpoint .* not 'other-1234': give another file"
    ):
        embed_clips(clips, other, out)
    wide = TinyEncoder()
    wide.dim = 7
    with pytest.raises(ValueError, match="another width than 7"):
        load_vectors(out, wide)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"notes", b"\x00" * 40, None, "metadata"])
def test_what_is_no_file_of_vectors_is_left_alone(clips, tmp_path, content):
    out = tmp_path / "v.safetensors"
    if content is None:
        save_file({"a": torch.ones(3)}, out)
    elif content == "metadata":
        save_file({"a": torch.ones(3)}, out, metadata={"llava_soundclip": json.dumps([1])})
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"v\.safetensors isn't a file of vectors"):
        embed_clips(clips, TinyEncoder(), out)
    assert out.read_bytes() == before


def test_a_clip_that_has_gone_bad_keeps_its_vector(clips, tmp_path):
    out = tmp_path / "v.safetensors"
    embed_clips(clips, TinyEncoder(), out)
    (clips / "0.wav").write_bytes(b"gone bad")
    sound(clips / "new.wav", 50)
    found = embed_clips(clips, TinyEncoder(), out)
    assert not found.bad and len(load_file(out)) == 7


def test_vectors_are_written_one_file_at_a_time(tmp_path):
    encoder = TinyEncoder()
    both = torch.arange(2.0 * encoder.dim).reshape(2, -1)  # the two share memory
    save_vectors(tmp_path / "v.safetensors", {"a": both[0], "b": both[1]}, encoder)
    assert torch.equal(load_vectors(tmp_path / "v.safetensors", encoder)["b"], both[1])
