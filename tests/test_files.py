"""Our own files, written whole or not at all; and JSON of others."""

import errno
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from llava_soundclip import files
from llava_soundclip.files import (
    check_file,
    check_folder,
    locked_folder,
    parse_json,
    read_json,
    write_file,
    write_picture,
    written_aside,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "page.html"
    write_file(path, "old")
    with pytest.raises(ZeroDivisionError), written_aside(path) as file:
        file.write(b"half of the new")
        _ = 1 / 0
    assert path.read_text() == "old" and names(tmp_path) == ["page.html"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_file(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (lambda: write_file(path, "new"), lambda: check_file(path), lambda: check_folder(tmp_path)):
        with pytest.raises(OSError, match="No space left") as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename in (str(path), str(tmp_path))
    assert path.read_text() == "old" and names(tmp_path) == ["page.html"]


def test_what_a_kill_left_goes_away_with_the_next_write(tmp_path):
    code = (
        "import os, signal, sys; from llava_soundclip.files import written_aside\n"
        "with written_aside(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "a [1]*.json"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = names(tmp_path)
    assert left.endswith(".part")
    other = tmp_path / f".b.json.{'0' * 32}.part"  # another file's is its own matter
    other.touch()
    write_file(path, "whole")
    assert names(tmp_path) == sorted([other.name, path.name])


def test_two_writers_do_not_take_each_other_for_dead(tmp_path):
    path = tmp_path / "a.json"
    with written_aside(path) as first:
        first.write(b"first")
        write_file(path, "second")
    assert path.read_text() == "first" and names(tmp_path) == ["a.json"]


def test_links_modes_and_devices_stay_what_they_are(tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    write_file("/dev/null", "nothing")
    check_file("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path, "no")


def test_the_first_of_several_writers_may_win(tmp_path):
    write_file(tmp_path / "a", "first", replace=False)
    write_file(tmp_path / "a", "second", replace=False)
    assert (tmp_path / "a").read_text() == "first" and names(tmp_path) == ["a"]


def test_text_that_is_not_unicode_is_written(tmp_path):
    write_file(tmp_path / "a", "a\ud800b")
    assert (tmp_path / "a").read_text() == "a?b"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody may write to")
def test_what_cannot_be_written_is_told_before(tmp_path):
    for check in (check_file, check_folder):
        with pytest.raises(OSError, match="/proc/") as caught:
            check("/proc/made/here")
        assert caught.value.strerror
    check_file(tmp_path / "a" / "b.json")
    check_folder(tmp_path / "c" / "d")
    assert names(tmp_path) == ["a", "c"] and names(tmp_path / "a") == names(tmp_path / "c" / "d") == []
    with pytest.raises(IsADirectoryError):
        check_file(tmp_path)


def test_pictures_are_written_whole_into_new_folders(tmp_path):
    picture = Image.new("RGB", (4, 3), (9, 8, 7))
    write_picture(tmp_path / "new" / "a.png", picture)
    assert Image.open(tmp_path / "new" / "a.png").getpixel((1, 1)) == (9, 8, 7)
    with pytest.raises(ValueError, match=r"pictures aren't written as \.nonsense"):
        write_picture(tmp_path / "a.nonsense", picture)
    assert names(tmp_path) == ["new"]


def hold(folder, holds, may_end):
    with locked_folder(folder):
        holds.set()
        may_end.wait(30)


def test_a_locked_folder_is_one_process_at_a_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    holds, may_end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, holds, may_end))
    other.start()
    assert holds.wait(60)
    with (
        pytest.raises(BlockingIOError, match="another run is working in"),
        locked_folder(tmp_path, wait=False),
    ):
        pass
    may_end.set()
    other.join()
    with locked_folder(tmp_path, wait=False):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested more than 100 levels"),
        ('{"a":' * 100_000, "nested more than 100 levels"),
        ("[" * 150 + "]" * 150, "nested more than 100 levels"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ("1" * 5000, "4300 digits"),
        ("{", "Expecting"),
        (b"\xff{}", "codec can't decode"),
    ],
)
def test_odd_json_is_a_value_error(text, says):
    with pytest.raises(ValueError, match=says):
        parse_json(text)


def test_good_json_is_read_as_it_is(tmp_path):
    value = {"a": [1, 2.5, None, {"b": "ü"}], "c": [[]] * 200}
    for text in (
        json.dumps(value),
        json.dumps(value).encode("utf-16"),
        json.dumps(value).encode("utf-8-sig"),
    ):
        assert parse_json(text) == value
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json("NaN") != parse_json("NaN")
    with pytest.raises(ValueError, match="NaN isn't JSON"):
        parse_json("NaN", nan=False)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json holds a list, expected a dict"):
        read_json(tmp_path / "a.json")
