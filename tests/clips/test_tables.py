"""Tables as they are found in the world: each row is a clip, or is named with the reason why it is none."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_soundclip.clips import FORMATS, Columns, frame_of, read_clips, sound_of
from tests.media.making import chirp, film, to_format, write


def clips_in(tmp_path, text, name="t.csv", columns=None, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return read_clips([str(path)], columns=columns)


def told(clips):
    """File, start and end of each clip, or the reason why it has none."""
    return [
        clip.fault if clip.fault is not None else (os.path.basename(clip.sound), clip.start, clip.end)
        for clip in clips
    ]


SEGMENTS = [("a.mp4", 0.0, 1.5), ("a.mp4", 1.5, 3.0), ("b, c.mp4", 2.0, 4.0)]

WRITTEN = {
    "plain": 'path,start,end\na.mp4,0,1.5\na.mp4,1.5,3\n"b, c.mp4",2,4\n',
    "spaces": 'path, start, end\na.mp4, 0, 1.5\na.mp4 ,1.5 , 3\n"b, c.mp4", 2, 4\n',
    "semicolons": "path;start;end\na.mp4;0;1.5\na.mp4;1.5;3\nb, c.mp4;2;4\n",
    "tabs": "path\tstart\tend\na.mp4\t0\t1.5\na.mp4\t1.5\t3\nb, c.mp4\t2\t4\n",
    "byte order mark": '\ufeffpath,start,end\na.mp4,0,1.5\na.mp4,1.5,3\n"b, c.mp4",2,4\n',
    "windows": 'path,start,end\r\na.mp4,0,1.5\r\na.mp4,1.5,3\r\n"b, c.mp4",2,4\r\n',
    "no last line end": 'path,start,end\na.mp4,0,1.5\na.mp4,1.5,3\n"b, c.mp4",2,4',
    "blank lines": '\npath,start,end\n\na.mp4,0,1.5\n   \na.mp4,1.5,3\n,,\n"b, c.mp4",2,4\n\n',
    "comments": '# made by hand\n#\npath,start,end\na.mp4,0,1.5\n# the rest\na.mp4,1.5,3\n"b, c.mp4",2,4\n',
    "header as a comment": '# clips\n# path, start, end\na.mp4,0,1.5\na.mp4,1.5,3\n"b, c.mp4",2,4\n',
    "title like a header": '# dogs, cats, rain\npath,start,end\na.mp4,0,1.5\na.mp4,1.5,3\n"b, c.mp4",2,4\n',
    "empty cells at the end": 'path,start,end\na.mp4,0,1.5,\na.mp4,1.5,3,,\n"b, c.mp4",2,4\n',
    "all quoted": '"path","start","end"\n"a.mp4","0","1.5"\n"a.mp4","1.5","3"\n"b, c.mp4","2","4"\n',
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_a_table_however_it_is_written(tmp_path, text):
    assert told(clips_in(tmp_path, text)) == SEGMENTS


def test_a_table_in_the_spreadsheets_unicode(tmp_path):
    text = "path\tstart\tend\nä.mp4\t0\t1.5\n"
    for encoding in ("utf-16", "utf-8-sig"):
        assert told(clips_in(tmp_path, text, "t.tsv", encoding=encoding)) == [("ä.mp4", 0.0, 1.5)]


@pytest.mark.parametrize("name, mark", [("t.csv", ","), ("t.tsv", "\t")])
@pytest.mark.parametrize("caption", ['"a man says hi', 'he says "hi"', '"hi" says a man', 'a 5" nail', '""'])
def test_a_quotation_mark_swallows_no_row(tmp_path, name, mark, caption):
    rows = [
        ("path", "caption"),
        ("a.mp4", caption),
        ("b.mp4", "a dog"),
        ("c.mp4", 'it says "wow'),
        ("d.mp4", "x"),
    ]
    text = "".join(mark.join(row) + "\n" for row in rows)
    assert [file for file, *_ in told(clips_in(tmp_path, text, name))] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def test_marks_that_pair_by_chance_swallow_no_row(tmp_path):
    text = 'path,caption\na.mp4,"he says\nb.mp4,a dog"\nc.mp4,rain\n'
    assert [file for file, *_ in told(clips_in(tmp_path, text))] == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_caption_of_several_lines_is_one_cell(tmp_path):
    text = 'path,caption\na.mp4,"hello\nworld, fine"\nb.mp4,"one ""two""\n\nthree"\n'
    assert [file for file, *_ in told(clips_in(tmp_path, text))] == ["a.mp4", "b.mp4"]


def test_where_rows_cannot_be_told_the_table_is_refused(tmp_path):
    text = 'path,caption\na.mp4,"a man, a plan\nb.mp4,"a dog, a cat"\nc.mp4,rain\n'
    with pytest.raises(
        ValueError, match=r"t\.csv can't be read as a table: line 2: a quotation mark isn't closed"
    ):
        clips_in(tmp_path, text)


def test_rows_of_another_length_are_named(tmp_path):
    text = "path,caption,start\na.mp4,a dog, barking,1\nb.mp4,rain,2\nc.mp4,wind\n"
    first, second, third = clips_in(tmp_path, text)
    assert first.fault == f"row 1 of {tmp_path}/t.csv has 4 cells instead of 3"
    assert (second.fault, second.start) == (None, 2.0)
    assert third.fault == f"row 3 of {tmp_path}/t.csv has 2 cells instead of 3"


def test_bad_rows_of_one_video_are_all_counted(tmp_path):
    text = "path,start,end\na.mp4,soon,2\na.mp4,later,3\na.mp4,,\n,1,2\n,1,2\na.mp4,4,3\n"
    clips = clips_in(tmp_path, text)
    assert len(clips) == len({clip.id for clip in clips}) == 6
    assert [clip.id for clip in clips if clip.fault is None] == ["a.mp4"]
    assert [clip.id for clip in clips][:2] == ["a.mp4 (row 1 of t.csv)", "a.mp4 (row 2 of t.csv)"]
    text = "path,start,end,id\na.mp4,x,2,one\nb.mp4,x,2,one\nc.mp4,1,2,one\n"
    assert len(clips_in(tmp_path, text)) == 3


def test_two_tables_of_one_name_keep_their_bad_rows(tmp_path):
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.csv").write_text("path,start\nx.mp4,soon\n")
        names.append(str(tmp_path / folder / "t.csv"))
    clips = read_clips(names)
    assert len(clips) == 2 and all(clip.fault for clip in clips)


def test_a_column_that_comes_twice(tmp_path):
    with pytest.raises(ValueError, match="it has two columns 'start'"):
        clips_in(tmp_path, "path,start,start\na.mp4,1,2\n")


def test_a_table_without_a_header_gets_advice(tmp_path):
    with pytest.raises(ValueError, match="put a row of names first: this one looks like data"):
        clips_in(tmp_path, "a.mp4,0,1\nb.mp4,1,2\n")
    columns = Columns(header=("path", "start", "end"))
    assert len(told(clips_in(tmp_path, "a.mp4,0,1\nb.mp4,1,2\n", columns=columns))) == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 999), st.text(alphabet='ab ,;"\n\r\t#', max_size=12)), min_size=1, max_size=8
    )
)
@settings(deadline=None)
def test_what_python_writes_is_read(tmp_path_factory, rows):
    import csv

    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerows(
        [("path", "caption", "start"), *((f"{i}.mp4", text, at) for i, (at, text) in enumerate(rows))]
    )
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text(written.getvalue(), newline="")
    assert told(read_clips([str(path)])) == [(f"{i}.mp4", float(at), None) for i, (at, _) in enumerate(rows)]


# Published tables

VGGSOUND = 'Zq3d-_9xX1a,30,"waterfall, burbling",train\n--aB3dE6gH9,1,people marching,test\n'
AUDIOSET = (
    "# Segments csv created Mon Jan  1 00:00:00 2024\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    '--aB3dE6gH9, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    'Zq3d-_9xX1a, 0.000, 10.000, "/m/04rlf"\n'
)
AUDIOCAPS = (
    "audiocap_id,youtube_id,start_time,caption\n"
    "91139,Zq3d-_9xX1a,120,Constant rattling noise and sharp vibrations\n"
    '58146,--aB3dE6gH9,1,"A man, near the ""sea"", talks"\n'
)
AVE2 = "youtube_id,segment_start_time,segment_end_time\nZq3d-_9xX1a,1.5,4.5\n"
PUBLISHED = {
    "vggsound": (VGGSOUND, [("Zq3d-_9xX1a_000030.mp4", None, None), ("--aB3dE6gH9_000001.mp4", None, None)]),
    "audioset": (AUDIOSET, [("--aB3dE6gH9.mp4", 30.0, 40.0), ("Zq3d-_9xX1a.mp4", 0.0, 10.0)]),
    "audiocaps": (AUDIOCAPS, [("Zq3d-_9xX1a.mp4", 120.0, 130.0), ("--aB3dE6gH9.mp4", 1.0, 11.0)]),
    "ave2": (AVE2, [("Zq3d-_9xX1a.mp4", 1.5, 4.5)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("is_named", [True, False])
def test_published_tables(tmp_path, name, is_named):
    text, expected = PUBLISHED[name]
    clips = clips_in(tmp_path, text, columns=FORMATS[name] if is_named else None)
    assert told(clips) == expected
    assert {clip.source for clip in clips} <= {"Zq3d-_9xX1a", "--aB3dE6gH9"}


def test_published_tables_with_files_of_other_names(tmp_path):
    columns = Columns(path="clips/{YTID}_{start_seconds:03d}.wav", start="", end="")
    assert told(clips_in(tmp_path, AUDIOSET, columns=columns)) == [
        ("--aB3dE6gH9_030.wav", None, None),
        ("Zq3d-_9xX1a_000.wav", None, None),
    ]
    (first, _) = clips_in(tmp_path, AUDIOCAPS, columns=Columns(source="audiocap_id"))
    assert (first.id, first.source, first.end) == ("91139", "91139", 130.0)
    bare = AUDIOSET.rpartition("#")[2].partition("\n")[2]  # without its comments
    assert len(told(clips_in(tmp_path, bare, columns=FORMATS["audioset"]))) == 2


def test_numbers_in_patterns(tmp_path):
    text = "id,start\nab,7\ncd,12.000\nef,1.5\ngh,x\n"
    columns = Columns(path="{id}_{start:06d}.mp4", start="")
    *good, half, letter = clips_in(tmp_path, text, columns=columns)
    assert told(good) == [("ab_000007.mp4", None, None), ("cd_000012.mp4", None, None)]
    assert half.fault == "its start is '1.5', not a whole number"
    assert letter.fault == "its start is 'x', not a whole number"
    with pytest.raises(ValueError, match="no column 'begin' for the path"):
        clips_in(tmp_path, text, columns=Columns(path="{id}_{begin:06d}.mp4"))


# Addresses


@pytest.mark.parametrize(
    "address, reason",
    [
        ("https://example.org/a.mp4?x=1", "it is an address: download the file, and give its path"),
        ("s3://bucket/a.wav", "it is an address"),
        ("file:///home/a.wav", "it is an address"),
        ("data:audio/wav;base64,UklGRg==", "it is a data URI: save its content to a file, and give its path"),
    ],
)
def test_an_address_is_refused_with_what_to_do(tmp_path, address, reason):
    from llava_soundclip.media import MediaError, load_audio, load_frame

    for clip in (*clips_in(tmp_path, f'path\n"{address}"\n'), *read_clips([address])):
        with pytest.raises(MediaError, match=reason):
            sound_of(clip, 16_000)
        with pytest.raises(MediaError, match=reason):
            frame_of(clip)
    for read in (lambda: load_audio(address, sampling_rate=16_000), lambda: load_frame(address)):
        with pytest.raises(MediaError, match=reason) as error:
            read()
        assert len(str(error.value)) < 200


def test_a_long_data_uri_is_cut_in_its_error(tmp_path):
    (clip,) = clips_in(tmp_path, f'path\n"data:video/mp4;base64,{"A" * 10_000}"\n')
    from llava_soundclip.media import MediaError

    with pytest.raises(MediaError, match="data:video/mp4;base64,AAA.*… *: it is a data URI") as error:
        sound_of(clip, 16_000)
    assert len(str(error.value)) < 200


# Contents in Parquet

HELD = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The bytes of two sounds, a picture, and a film."""
    folder = tmp_path_factory.mktemp("contents")
    for name, seconds in (("a.wav", 0.2), ("b.wav", 0.3)):
        write(folder / name, sound=to_format(chirp(seconds, 16_000), "s16"))
    Image.new("RGB", (8, 6), "red").save(folder / "c.png")
    film(folder / "d.mkv", seconds=0.5)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def held(content, path=None):
    return {"bytes": content, "path": path}


@pytest.mark.parametrize("group", [1, 2, 1000])
def test_sounds_and_pictures_in_parquet(tmp_path, contents, group):
    table = pa.table(
        {
            "audio": pa.array(
                [held(contents["a.wav"], "x.wav"), held(contents["b.wav"], "x.wav"), held(None)], HELD
            ),
            "image": pa.array([held(contents["c.png"])] * 3, HELD),
            "start": [None, 0.1, None],
            "embedding": [[1.0, 2.0]] * 3,
        }
    )
    pq.write_table(table, tmp_path / "train-00000.parquet", row_group_size=group)
    clips = read_clips([str(tmp_path / "*.parquet")])
    assert clips == read_clips([str(tmp_path / "*.parquet")], columns=Columns(path="audio", picture="image"))
    assert [clip.id for clip in clips] == [
        "train-00000/00000000",
        "train-00000/00000001#0.1-",
        "train-00000/00000002",
    ]
    assert [sound_of(clip, 16_000)[0].shape[1] for clip in clips[:2]] == [3_200, 3_200]
    assert np.asarray(frame_of(clips[0])).mean(axis=(0, 1)).tolist() == [255, 0, 0]
    with pytest.raises(ValueError, match=r"train-00000.parquet, row 3, audio: it is empty"):
        sound_of(clips[2], 16_000)


def test_parquet_of_bytes_and_of_paths(tmp_path, contents):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "d.mkv").write_bytes(contents["d.mkv"])
    rows = pa.array([held(None, "clips/d.mkv"), held(contents["d.mkv"], "clips/d.mkv")], HELD)
    pq.write_table(pa.table({"video": rows, "id": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"film": pa.array([contents["d.mkv"]], pa.binary())}), tmp_path / "b.parquet")
    first, second = read_clips([str(tmp_path / "a.parquet")])
    (third,) = read_clips([str(tmp_path / "b.parquet")], columns=Columns(path="film"))
    assert [clip.id for clip in (first, second, third)] == ["one", "two", "b/00000000"]
    for clip in (first, second, third):
        assert sound_of(clip, 16_000)[0].shape == (2, 8_000)
        assert frame_of(clip).size == (64, 48)


def test_what_is_no_path_is_named_and_not_printed(tmp_path):
    pq.write_table(pa.table({"path": [1.5, 2.5]}), tmp_path / "a.parquet")
    first, _ = read_clips([str(tmp_path / "a.parquet")])
    assert first.fault == "its path is a float, not a path"
    (tmp_path / "a.json").write_text('[{"path": {"bytes": "' + "A" * 5000 + '"}}]')
    (clip,) = read_clips([str(tmp_path / "a.json")])
    assert clip.fault == "its path is a dict, not a path" and len(clip.id) < 100
