"""Whether captions name sounding things, things that are only seen, and absent things (as CHAIR counts objects)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llava_soundclip.evaluation.captions.references import Things

NAMING = ("sounding named", "unseen named", "silent named", "absent named", "played named")
WHY_BLANK = {  # reasons why a setting may have no figure
    "sounding named": 'no clip has anything in "sounding"',
    "unseen named": 'no clip has anything in "unseen"',
    "silent named": 'no clip has anything in "silent"',
    "played named": 'no clip\'s sound was played, or none with anything in "sounding"',
}


def naming(
    texts: Sequence[str],
    clips: Sequence[str],
    things: Mapping[str, Things],
    played: Sequence[str | None] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Whether each caption names a sounding thing, one that only sounds, one that is only seen, or an absent one.

    A thing is named by its whole words, in upper or lower case, with or without a plural s. Things of any clip count as
    absent, except those in the picture, in the clip's own sound, and in the sound that was played.

    Args:
        texts: n captions.
        clips: the clip of each caption.
        things: the things in each clip.
        played: the clip whose sound was played with each caption, or None for no clip; each clip's own by default.
            "played named" is whether a thing of that sound is named. With another clip's sound, it tells whether the
            sound was heard at all.

    Returns:
        (n,) floats by name of `NAMING`: 1 if named, 0 if not, NaN if there is no such thing. Then how the figures were
        made.
    """
    known = sorted({name for own in things.values() for name in (*own.sounding, *own.silent)})
    patterns = {name: re.compile(rf"\b{re.escape(name)}s?\b", re.IGNORECASE) for name in known}
    rows = []
    for text, clip, heard in zip(texts, clips, clips if played is None else played, strict=True):
        own = things[clip]
        sounding = () if heard is None else things[heard].sounding
        named = {name for name, pattern in patterns.items() if pattern.search(text)}
        rows.append(
            [
                *(
                    float(not named.isdisjoint(wanted)) if wanted else np.nan
                    for wanted in (own.sounding, own.unseen, own.silent)
                ),
                float(bool(named.difference(own.sounding, own.silent, sounding))),
                float(not named.isdisjoint(sounding)) if sounding else np.nan,
            ]
        )
    columns = np.array(rows).reshape(len(rows), len(NAMING)).T
    return dict(zip(NAMING, columns, strict=True)), {
        "implementation": "llava_soundclip",
        "things": len(known),
        "matching": "whole words in any case, plural in s",
    }
