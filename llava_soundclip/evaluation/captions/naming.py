"""Whether captions name what sounds, what is only seen, and what isn't there at all (as CHAIR counts objects)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llava_soundclip.evaluation.captions.files import Things

NAMING = ("sounding named", "silent named", "absent named")


def naming(
    texts: Sequence[str], clips: Sequence[str], things: Mapping[str, Things]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of each caption: does it name a sounding thing, a silent one, and one that is neither?

    A thing is named by its words, whole and in any case, with or without a plural's s. What may be absent is every thing
    of any clip.

    Args:
        texts: n captions.
        clips: the clip of each.
        things: of each clip.

    Returns:
        (n,) 0 or 1 by name of `NAMING`, NaN where a clip has no sounding, or no silent, thing; and how the figures were
        made.
    """
    known = sorted({name for own in things.values() for name in (*own.sounding, *own.silent)})
    patterns = {name: re.compile(rf"\b{re.escape(name)}s?\b", re.IGNORECASE) for name in known}
    rows = []
    for text, clip in zip(texts, clips, strict=True):
        own = things[clip]
        named = {name for name, pattern in patterns.items() if pattern.search(text)}
        rows.append(
            [
                float(bool(named.intersection(own.sounding))) if own.sounding else np.nan,
                float(bool(named.intersection(own.silent))) if own.silent else np.nan,
                float(bool(named.difference(own.sounding, own.silent))),
            ]
        )
    columns = np.array(rows).reshape(len(rows), len(NAMING)).T
    return dict(zip(NAMING, columns, strict=True)), {
        "implementation": "llava_soundclip",
        "things": len(known),
        "matching": "whole words in any case, plural in s",
    }
