"""Pictures of the patches that a sound kept."""

import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_soundclip.files import write_picture

if TYPE_CHECKING:
    from llava_soundclip.patching import Trace

_SIDE = 672  # minimum side of a panel, in pixels
_MARGIN = 24  # pixels around and between the parts
_INK = (16, 18, 24)  # background
_PAPER = (238, 238, 232)  # text
_FAINT = (150, 154, 166)  # small text
_LIGHT = (255, 196, 61)  # outline of kept patches
_DIMMED = 0.30  # brightness of the other patches

# From least to most similar, dark to bright, so that it is also readable in grey.
_HEAT = np.array([(20, 14, 54), (84, 24, 110), (170, 44, 96), (232, 96, 44), (252, 178, 60), (252, 250, 190)])


def draw_map(
    frame: Image.Image,
    kept: np.ndarray,
    *,
    similarity: np.ndarray | None = None,
    title: str = "",
    caption: str = "",
) -> Image.Image:
    """Draw a frame with its kept patches lit and, next to it, the similarity of each patch to the sound.

    Args:
        frame: the picture as the vision tower saw it; the patches divide it evenly.
        kept: (rows, columns) bool, true for kept patches.
        similarity: (rows, columns) cosines, for the second panel; None for a single panel.
        title: small line below the panels.
        caption: text below the title, wrapped. The built-in font has Latin letters only.

    Returns:
        RGB picture. Each side of a panel has 672 pixels or slightly more.

    Raises:
        ValueError: if `kept` isn't a grid, or `similarity` isn't the same grid.
    """
    kept = np.asarray(kept, bool)
    if kept.ndim != 2 or kept.size == 0:
        raise ValueError(f"kept must be (rows, columns), not {kept.shape}")
    if similarity is not None and np.shape(similarity) != kept.shape:
        raise ValueError(f"similarity is {np.shape(similarity)}, but kept is {kept.shape}")
    cell = math.ceil(_SIDE / min(kept.shape))
    rows, columns = kept.shape
    enlarged = frame.convert("RGB").resize((columns * cell, rows * cell), Image.Resampling.LANCZOS)
    panels = [_lit(enlarged, kept, cell)]
    if similarity is not None:
        panels.append(_heat(enlarged, np.asarray(similarity, np.float32), kept, cell))
    return _page(panels, title, caption)


def save_map(trace: "Trace", path: str | PathLike[str], caption: str = "") -> Path:
    """Draw a trace and save it, in the format of the path's suffix (usually ".png").

    Args:
        trace: the trace of one sound and picture.
        path: file to write. Its folder is created if needed.
        caption: the model's caption, drawn below; empty for none.

    Returns:
        The path.

    Raises:
        ValueError: for a suffix that Pillow doesn't know.
        OSError: if the file can't be written; the message names it.
    """
    title = f"{trace.encoder}   ·   k = {trace.k} of {trace.kept.size} patches kept"
    picture = draw_map(trace.frame, trace.kept, similarity=trace.similarity, title=title, caption=caption)
    write_picture(path, picture)
    return Path(path)


def _lit(frame: Image.Image, kept: np.ndarray, cell: int) -> Image.Image:
    pixels = np.asarray(frame, np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    dark = _DIMMED * (0.35 * pixels + 0.65 * grey) + np.array(_INK) * 0.4
    mask = np.kron(kept, np.ones((cell, cell)))[:, :, None]
    panel = Image.fromarray(np.clip(np.where(mask, pixels, dark), 0, 255).astype(np.uint8))
    _grid(panel, kept.shape, cell)
    _outline(panel, kept, cell, _LIGHT)
    return panel


def _heat(frame: Image.Image, similarity: np.ndarray, kept: np.ndarray, cell: int) -> Image.Image:
    low, high = float(similarity.min()), float(similarity.max())
    level = (similarity - low) / max(high - low, 1e-9)
    grey = np.asarray(frame.convert("L"), np.float32)[:, :, None] / 255
    colours = np.kron(_colour(level), np.ones((cell, cell, 1)))
    panel = Image.fromarray(np.clip(colours * (0.62 + 0.5 * grey), 0, 255).astype(np.uint8))
    _grid(panel, kept.shape, cell)
    _outline(panel, kept, cell, _PAPER)
    _scale(panel, low, high)
    return panel


def _colour(level: np.ndarray) -> np.ndarray:
    """Heat colours of levels in [0, 1]: (...) to (..., 3), 0 to 255."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(level, steps, _HEAT[:, channel]) for channel in range(3)], axis=-1)


def _grid(panel: Image.Image, shape: tuple[int, ...], cell: int) -> None:
    """Draw hairlines between the patches."""
    lines = Image.new("L", panel.size, 0)
    draw = ImageDraw.Draw(lines)
    for row in range(1, shape[0]):
        draw.line((0, row * cell, panel.width, row * cell), 46)
    for column in range(1, shape[1]):
        draw.line((column * cell, 0, column * cell, panel.height), 46)
    panel.paste(Image.new("RGB", panel.size, (255, 255, 255)), mask=lines)


def _outline(panel: Image.Image, kept: np.ndarray, cell: int, colour: tuple[int, int, int]) -> None:
    """Draw a line wherever a kept patch meets the edge or a patch that isn't kept."""
    draw = ImageDraw.Draw(panel)
    width = 3
    padded = np.pad(kept, 1)
    for row, column in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        y = min(max(row * cell, width // 2), panel.height - 1 - width // 2)
        draw.line((column * cell - 1, y, (column + 1) * cell + 1, y), colour, width)
    for row, column in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        x = min(max(column * cell, width // 2), panel.width - 1 - width // 2)
        draw.line((x, row * cell - 1, x, (row + 1) * cell + 1), colour, width)


def _scale(panel: Image.Image, low: float, high: float) -> None:
    """Draw a legend with the least and the greatest cosine in the lower right corner."""
    font = ImageFont.load_default(size=17)
    bar = Image.fromarray(np.tile(_colour(np.linspace(0, 1, 120))[None], (12, 1, 1)).astype(np.uint8))
    left, right = f"{low:.2f}", f"cosine {high:.2f}"
    widths = font.getlength(left), font.getlength(right)
    box = Image.new("RGB", (round(sum(widths)) + bar.width + 40, 32), _INK)
    draw = ImageDraw.Draw(box)
    draw.text((10, 16), left, _PAPER, font, anchor="lm")
    box.paste(bar, (round(20 + widths[0]), 10))
    draw.text((round(30 + widths[0] + bar.width), 16), right, _PAPER, font, anchor="lm")
    panel.paste(box, (panel.width - box.width, panel.height - box.height))


def _page(panels: list[Image.Image], title: str, caption: str) -> Image.Image:
    width = sum(panel.width for panel in panels) + _MARGIN * (len(panels) + 1)
    inside = width - 2 * _MARGIN
    texts = [  # text, size in pixels, colour
        *((line, 22, _FAINT) for line in _wrap(title, 22, inside)),
        *((line, 30, _PAPER) for line in _wrap(caption, 30, inside)),
    ]
    height = panels[0].height + 2 * _MARGIN + sum(round(size * 1.45) for _, size, _ in texts)
    page = Image.new("RGB", (width, height + (_MARGIN // 2 if texts else 0)), _INK)
    x = _MARGIN
    for panel in panels:
        page.paste(panel, (x, _MARGIN))
        x += panel.width + _MARGIN
    draw = ImageDraw.Draw(page)
    y = panels[0].height + _MARGIN + _MARGIN // 2
    for line, size, colour in texts:
        draw.text((_MARGIN, y), line, colour, ImageFont.load_default(size=size))
        y += round(size * 1.45)
    return page


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Split text into lines of at most `width` pixels. A single word that is wider is cut."""
    font = ImageFont.load_default(size=size)
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width:
                fits = next(
                    n for n in range(len(word) - 1, 0, -1) if font.getlength(word[:n]) <= width or n == 1
                )
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines if text else []
