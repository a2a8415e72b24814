"""Frames and patch maps as data URIs.

A page shows what its JSON names, and no more. A path is relative to the captions' folder, and may lead out of it, since
videos are often beside it. Only pixels that could be decoded are taken, shrunk and encoded anew: no file gets into a page as it
is, and one that leads elsewhere, such as a playlist, isn't followed.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_soundclip.evaluation.report.read import Run
from llava_soundclip.media import MediaError, load_frame

FRAME_SIDE = 320  # pixels
MAP_SIDE = 640  # two panels and text
QUALITY = 80  # of JPEG


def embed(run: Run, clip: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """A clip's pictures.

    Args:
        run: the captions run.
        clip: one of its clips.

    Returns:
        Data URIs by "frame" and "map", and a sentence for each one that is named, but can't be shown.
    """
    folder = run.file.parent / str(run.data.get("folder") or ".")
    found, missing = {}, []
    for what, key, side in (("frame", "image", FRAME_SIDE), ("map", "map", MAP_SIDE)):
        path = clip.get(key)
        if path is None:
            continue
        if not isinstance(path, str) or Path(path).is_absolute() or not (folder / path).is_file():
            missing.append(f"no {what}: {path} is no file in the captions' folder")
            continue
        try:
            found[what] = _uri(folder / path, side)
        except MediaError:  # its message has the whole path, which is nobody's business on a page
            missing.append(f"no {what}: {path} can't be decoded")
    return found, missing


def _uri(file: Path, side: int) -> str:
    picture = load_frame(file)
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
