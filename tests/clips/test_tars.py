"""Tars as they are found in the world: each sound is a clip, or is named with the reason why it is none."""

import io
import tarfile

import pytest

from llava_soundclip.clips import known_fault, open_media, read_clips


def tar(path, members, mode="w"):
    """A tar of (name, content) pairs; a TarInfo stands for a member without content."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def clips_in(path):
    """The clips of a tar by the rest of their ids."""
    prefix = f"{path.parent.name}/{path.name}/"
    return {clip.id.removeprefix(prefix): clip for clip in read_clips([str(path)])}


def contents(path):
    """The sound and picture of each clip, or the reason why it is none."""
    return {
        id: clip.fault.removeprefix(f"{path}") if clip.fault is not None else (
            open_media(clip.sound).read(), None if clip.picture is None else open_media(clip.picture).read()
        )
        for id, clip in clips_in(path).items()
    }  # fmt: skip


def test_sounds_that_share_a_name_up_to_a_dot(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        [
            ("talk.part1.wav", b"1"),
            ("talk.part2.wav", b"2"),
            ("talk.part2.png", b"p"),
            ("v1.0 intro.mp4", b"3"),
            ("v1.0 outro.mp4", b"4"),
            ("two.flac", b"5"),
            ("two.wav", b"6"),
            ("one.left.wav", b"7"),
            ("one.jpg", b"q"),
            ("one.json", b"{}"),
            (".hidden.wav", b"8"),
            ("._one.left.wav", b"a Mac's notes"),
            ("set.1/x.wav", b"9"),
            ("both.wav", b"10"),
            ("both.mp4", b"11"),
        ],
    )
    assert contents(path) == {
        "talk.part1": (b"1", b"p"),  # the sample's only picture
        "talk.part2": (b"2", b"p"),
        "v1.0 intro": (b"3", None),
        "v1.0 outro": (b"4", None),
        "two.flac": (b"5", None),
        "two.wav": (b"6", None),
        "one": (b"7", b"q"),
        ".hidden": (b"8", None),
        "set.1/x": (b"9", None),
        "both": (b"10", b"11"),
    }


def test_links_inside_a_tar_are_followed(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        [
            link("early.wav", "clips/a.wav"),
            ("clips/a.wav", b"1"),
            link("hard.wav", "clips/a.wav", tarfile.LNKTYPE),
            link("clips/soft.wav", "a.wav"),
            link("clips/up.wav", "../hard.wav"),
            link("notes.txt", "/etc/passwd"),
        ],
    )
    found = contents(path)
    assert found.pop("notes", None) is None or "none of its files" in str(found)
    assert found == dict.fromkeys(["clips/a", "early", "hard", "clips/soft", "clips/up"], (b"1", None))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret.wav", "gone.wav", "loop.wav", "b.wav", ""])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_that_lead_to_no_file_of_the_tar(tmp_path, target, kind):
    path = tar(
        tmp_path / "a.tar", [("a.wav", b"1"), link("loop.wav", target, kind), link("b.wav", "loop.wav", kind)]
    )
    found = contents(path)
    assert found.pop("a") == (b"1", None)
    assert set(found) == {"loop.wav", "b.wav"}
    assert all("which isn't a file in the tar" in fault for fault in found.values())


def test_of_two_files_of_one_name_the_last_is_used_and_the_other_named(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.wav", b"1"), ("b.wav", b"2"), ("a.wav", b"3")])
    assert contents(path) == {
        "a": (b"3", None),
        "b": (b"2", None),
        "a.wav": "/a.wav: the tar holds another file of this name, which replaces it",
    }


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_is_named(tmp_path, kind):
    path = tar(tmp_path / "a.tar", [("a.wav", b"1"), link("b.wav", "", kind), link("c.txt", "", kind)])
    assert contents(path) == {"a": (b"1", None), "b.wav": "/b.wav: it isn't a file"}


def test_joined_tars_are_read_to_the_end(tmp_path):
    parts = [tar(tmp_path / f"{name}.tar", [(f"{name}.wav", name.encode())]).read_bytes() for name in "abc"]
    path = tmp_path / "all.tar"
    path.write_bytes(b"".join(parts) + b"\0" * 4096)
    assert contents(path) == {name: (name.encode(), None) for name in "abc"}
    path.write_bytes(parts[0] + b"no tar at all" * 100)
    found = contents(path)
    assert found.pop("a") == (b"a", None)
    (fault,) = found.values()
    assert "is truncated, damaged or not a tar" in fault


def test_damage_in_the_middle_is_named_and_what_is_before_it_is_used(tmp_path):
    path = tar(tmp_path / "a.tar", [(f"{i}.wav", b"x" * 600) for i in range(3)])
    data = bytearray(path.read_bytes())
    data[3 * 512 + 100 : 3 * 512 + 140] = b"?" * 40  # the second member's header
    path.write_bytes(data)
    found = contents(path)
    assert found.pop("0") == (b"x" * 600, None)
    (fault,) = found.values()
    assert "is truncated, damaged or not a tar" in fault


ODD = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "x.mp4",
    "GNU.sparse.realsize": "1000",
}


def test_one_odd_tar_does_not_stop_the_others(tmp_path):
    odd = tarfile.TarInfo("p.mp4")
    odd.size, odd.pax_headers = 1000, ODD
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        archive.addfile(odd, io.BytesIO(b"x" * 1000))
    (tmp_path / "text.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "empty.tar").touch()
    tar(tmp_path / "good.tar", [("a.wav", b"1")])
    clips = read_clips([str(tmp_path / "*.tar"), str(tmp_path / "gone.tar")])
    good = [clip for clip in clips if known_fault(clip) is None]
    assert [clip.id for clip in good] == [f"{tmp_path.name}/good.tar/a"]
    bad = {clip.id.rpartition("/")[2]: clip.fault for clip in clips if clip.fault is not None}
    assert set(bad) == {"odd.tar", "text.tar", "empty.tar", "gone.tar"}
    assert all(name in fault for name, fault in bad.items())
