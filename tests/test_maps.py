"""Maps: what is lit, what is dark, what is written below."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageStat

from llava_soundclip.maps import draw_map, save_map

MARGIN = 24
FRAME = Image.new("RGB", (96, 96), (200, 180, 160))


def cells(page: Image.Image, grid: tuple[int, int], panel: int = 0) -> np.ndarray:
    """Mean colour inside each patch of a panel, away from its outline."""
    cell = -(-672 // min(grid))
    left = MARGIN + panel * (grid[1] * cell + MARGIN)
    means = np.empty((*grid, 3))
    for row in range(grid[0]):
        for column in range(grid[1]):
            x, y = left + column * cell, MARGIN + row * cell
            means[row, column] = ImageStat.Stat(page.crop((x + 5, y + 5, x + cell - 5, y + cell - 5))).mean
    return means


@pytest.mark.parametrize("grid", [(6, 6), (24, 24), (2, 3), (1, 1)])
def test_kept_patches_are_lit_and_others_dark(grid):
    kept = np.random.default_rng(0).random(grid) < 0.4
    colours = cells(draw_map(FRAME, kept), grid)
    assert np.allclose(colours[kept], (200, 180, 160), atol=2)
    assert (colours[~kept].max(axis=1, initial=0) < 80).all()


def test_the_second_panel_is_brighter_where_patches_are_more_alike():
    similarity = np.linspace(-0.1, 0.3, 36, dtype=np.float32).reshape(6, 6)
    alone = draw_map(FRAME, similarity > 0.1)
    page = draw_map(FRAME, similarity > 0.1, similarity=similarity)
    assert page.width == alone.width + 672 + MARGIN
    brightness = cells(page, (6, 6), panel=1).sum(axis=2).ravel()[:-4]  # the legend is in the last corner
    assert (np.diff(brightness) > 0).all()


def test_one_similarity_everywhere_is_no_division_by_zero():
    draw_map(FRAME, np.ones((6, 6), bool), similarity=np.zeros((6, 6), np.float32))


@pytest.mark.parametrize("k", [0, 36])
def test_nothing_and_everything_kept(k):
    kept = np.arange(36).reshape(6, 6) < k
    assert (cells(draw_map(FRAME, kept), (6, 6)).mean() > 100) == (k == 36)


def test_a_long_caption_is_wrapped_inside_the_page():
    short = draw_map(FRAME, np.ones((6, 6), bool), caption="A bell.")
    words = draw_map(FRAME, np.ones((6, 6), bool), caption="A bell that rings. " * 20)
    one_word = draw_map(FRAME, np.ones((6, 6), bool), caption="a" * 300)
    assert short.width == words.width == one_word.width
    assert min(words.height, one_word.height) > short.height
    for page in (words, one_word):
        edge = np.asarray(page.crop((page.width - MARGIN + 1, 0, page.width, page.height)))
        assert (edge == edge[0, 0]).all()  # nothing is written into the margin


def test_every_word_of_a_caption_is_drawn(monkeypatch):
    from PIL import ImageDraw

    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *rest, **more: drawn.append(text))
    caption = "One two  three\nfour " + "x" * 200 + " five"
    draw_map(FRAME, np.ones((6, 6), bool), title="whisper", caption=caption)
    assert "".join("".join(drawn).split()) == "whisper" + "".join(caption.split())


def test_other_grids_are_refused():
    with pytest.raises(ValueError, match="kept must be"):
        draw_map(FRAME, np.ones(36, bool))
    with pytest.raises(ValueError, match=r"similarity is \(6, 5\), but kept is \(6, 6\)"):
        draw_map(FRAME, np.ones((6, 6), bool), similarity=np.ones((6, 5)))


def test_a_trace_is_saved_with_its_encoder_and_k(tmp_path, monkeypatch):
    from PIL import ImageDraw

    drawn = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, *rest, **more: (drawn.append(text), original(self, at, text, *rest, **more)),
    )
    kept = np.arange(36).reshape(6, 6) < 18
    trace = SimpleNamespace(
        frame=FRAME, kept=kept, similarity=kept.astype(np.float32), k=18, encoder="whisperclip"
    )
    path = save_map(trace, tmp_path / "map.png", "I hear a bell.")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
    text = " ".join(drawn)
    assert "whisperclip" in text and "k = 18 of 36" in text and "I hear a bell." in text


def test_a_map_is_written_into_a_new_folder(tmp_path):
    kept = np.eye(3, dtype=bool)
    trace = SimpleNamespace(encoder="clap", k=3, kept=kept, frame=FRAME, similarity=kept.astype(np.float32))
    path = save_map(trace, tmp_path / "not" / "there" / "map.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    with pytest.raises(ValueError, match="use .png"):
        save_map(trace, tmp_path / "map.nonsense")
    assert [each.name for each in path.parent.iterdir()] == ["map.png"]
