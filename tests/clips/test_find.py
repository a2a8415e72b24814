"""Finding media files by name, in folders and by patterns."""

import pytest

from llava_soundclip.clips import as_clips, find_clips, read_clips


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with clips in it, and in a folder below; the current one is above it."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/b.mp4", "clips/a.MOV", "clips/notes.txt", "clips/deep/er/c.wav", "clips/deep/d.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "clips" / "folder.mp4").mkdir()
    return tmp_path


def test_files_folders_and_patterns_each_once(folder):
    assert find_clips(["clips"]) == ["clips/a.MOV", "clips/b.mp4", "clips/deep/er/c.wav"]
    assert find_clips(["clips/*.mp4", "clips", "./clips/b.mp4"]) == find_clips(["clips/b.mp4", "clips"])
    assert find_clips(["clips/**/*.wav"]) == ["clips/deep/er/c.wav"]
    assert find_clips(["clips/notes.txt"]) == ["clips/notes.txt"]  # named by itself: it is meant
    assert find_clips(["gone.mp4", "none/*.mp4"]) == ["gone.mp4", "none/*.mp4"]
    assert find_clips([]) == []


def test_a_name_that_looks_like_a_pattern(folder):
    (folder / "clips" / "take[1].mp4").touch()
    assert find_clips(["clips/take[1].mp4"]) == ["clips/take[1].mp4"]


def test_one_name_is_not_a_list_of_letters(folder):
    assert (
        find_clips("clips")
        == find_clips(folder.joinpath("clips").relative_to(folder))
        == find_clips(["clips"])
    )
    assert [clip.id for clip in read_clips("clips/b.mp4")] == ["clips/b.mp4"]
    (clip,) = as_clips("clips/b.mp4")
    assert as_clips(["clips/b.mp4"]) == [clip] == as_clips([clip]) and clip.sound == "clips/b.mp4"
    assert as_clips([]) == []
