"""Frames and patch maps as data URIs.

A page shows only the files that its JSON names. A path is relative to the captions' folder and may lead out of it,
since videos are often beside that folder. Only decoded pixels are used, shrunk and encoded again: no file is copied
into a page unchanged. Files that point elsewhere, such as playlists, aren't followed.
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_soundclip.evaluation.report.read import Run
from llava_soundclip.media import MediaError, load_frame

FRAME_SIDE = 320  # pixels
MAP_SIDE = 640  # pixels, for two panels and text
QUALITY = 80  # JPEG quality


def embed(run: Run, clip: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """A clip's pictures.

    Args:
        run: the captions run.
        clip: one of its clips.

    Returns:
        Data URIs by "frame" and "map", and a sentence for each named picture that can't be shown.
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
        except MediaError:  # its message has the whole path, which must not be published
            missing.append(f"no {what}: {path} can't be decoded")
    return found, missing


def _uri(file: Path, side: int) -> str:
    picture = load_frame(file)
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
