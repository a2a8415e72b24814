"""Finding media files by name, in folders and by patterns."""

import os
import time

import pytest

from llava_soundclip.clips import as_clips, find_clips, known_fault, read_clips
from llava_soundclip.clips.find import picture_beside


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


def test_linked_folders_count_as_with_a_pattern(folder):
    (folder / "disk" / "more").mkdir(parents=True)
    for name in ("disk/x.wav", "disk/more/y.wav"):
        (folder / name).touch()
    os.symlink("../disk", folder / "clips" / "linked")
    expected = ["clips/deep/er/c.wav", "clips/linked/more/y.wav", "clips/linked/x.wav"]
    assert find_clips(["clips/**/*.wav"]) == expected
    assert sorted(path for path in find_clips("clips") if path.endswith(".wav")) == expected
    assert len(find_clips(["clips", "disk", "clips/**/*.wav"])) == 5  # each file once


def test_a_folder_keeps_its_own_place_beside_a_link_to_it(folder):
    os.symlink("deep", folder / "clips" / "a link")
    assert find_clips("clips") == ["clips/a.MOV", "clips/b.mp4", "clips/deep/er/c.wav"]


@pytest.mark.parametrize("name", ["clips", "clips/**/*.wav", "clips/**", "**/c.wav"])
def test_links_in_circles_end(folder, name):
    for number in range(12):  # followed without care, they make more paths than anyone can count
        os.symlink("..", folder / "clips" / "deep" / f"up{number}")
    os.symlink("loop.wav", folder / "clips" / "loop.wav")
    began = time.monotonic()
    found = find_clips(name)
    assert time.monotonic() - began < 10
    assert found.count("clips/deep/er/c.wav") == 1
    assert [path for path in found if path.endswith("c.wav")] == ["clips/deep/er/c.wav"]
    assert ("clips/loop.wav" in found) == (name != "**/c.wav")  # named, as a bad clip


def test_patterns_match_as_in_a_shell(folder):
    (folder / "clips" / ".hidden.wav").touch()
    (folder / "clips" / "deep" / "b.wav").touch()
    assert find_clips("clips/**/er/*.wav") == ["clips/deep/er/c.wav"]
    assert find_clips("**/deep/*.wav") == ["clips/deep/b.wav"]
    assert find_clips("clips/**/*.wav") == ["clips/deep/b.wav", "clips/deep/er/c.wav"]
    assert find_clips("clips/**/.*.wav") == ["clips/.hidden.wav"]
    assert find_clips("clips/*/?.wav") == ["clips/deep/b.wav"]
    assert find_clips(str(folder / "clips" / "**" / "[bc].*")) == [
        str(folder / "clips" / name) for name in ("b.mp4", "deep/b.wav", "deep/er/c.wav")
    ]


@pytest.mark.parametrize(
    "name",
    [
        "A.MKV",
        "b.Webm",
        "c.opus",
        "d.JPG.wav",
        "e.m2ts",
        "f.VOB",
        "g.m4b",
        "h.eac3",
        "i.mka",
        "j.aifc",
        "k.mxf",
    ],
)
def test_suffixes_of_media(tmp_path, name):
    (tmp_path / name).touch()
    for other in ("notes.txt", "a.json", "cover.jpg", "x.srt"):
        (tmp_path / other).touch()
    assert find_clips(str(tmp_path)) == [str(tmp_path / name)]


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".PNG", ".webp", ".tif"])
def test_the_picture_beside_a_sound_may_be_in_capitals(tmp_path, suffix):
    (tmp_path / f"clip{suffix}").touch()
    assert picture_beside(str(tmp_path / "clip.WAV")) == str(tmp_path / f"clip{suffix}")
    assert picture_beside(str(tmp_path / "other.wav")) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_a_bad_clip_and_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "a.png")
    (clip,) = read_clips(str(tmp_path))
    assert clip.picture is None
    assert known_fault(clip) == (
        f"{tmp_path}/a.wav: it is a pipe, not a file: save its content to a file, and give its path"
    )
    os.mkfifo(tmp_path / "b.csv")
    with pytest.raises(ValueError, match=r"b\.csv: it is a pipe"):
        read_clips(str(tmp_path / "b.csv"))
    os.mkfifo(tmp_path / "c.tar")
    (clip,) = read_clips(str(tmp_path / "c.tar"))
    assert clip.fault is not None and "it is a pipe" in clip.fault


def test_what_is_known_to_be_bad_before_anything_is_opened(folder):
    gone, there = read_clips(["gone.mp4", "clips/b.mp4"], by_path=True)
    assert known_fault(gone) == "gone.mp4: No such file or directory"
    assert known_fault(there) is None


def test_a_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "er":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_clips("clips") == ["clips/a.MOV", "clips/b.mp4", "clips/deep/er"]
