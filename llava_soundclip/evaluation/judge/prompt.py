"""The judge's prompt, and its answers."""

import base64
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

DIMENSIONS = ("audio_quality", "visual_accuracy", "coherence", "reasoning", "fluency", "usefulness")
SCORES = range(1, 6)

_PROMPT = (Path(__file__).parent / "prompt.md").read_text(encoding="utf-8")
_SYSTEM, _USER = _PROMPT.removeprefix("# System\n").split("\n# User\n")
PROMPT_HASH = hashlib.sha256(_PROMPT.encode()).hexdigest()[:12]  # hash of the file, as by sha256sum

RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "scores",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {name: {"type": "integer", "enum": list(SCORES)} for name in DIMENSIONS},
            "required": list(DIMENSIONS),
            "additionalProperties": False,
        },
    },
}

_MARKUP = re.compile(r"<(?=[\s/]*(?:references|description)\b)", re.IGNORECASE)  # the prompt's own
_CHARACTERS_PER_TOKEN = 4  # for English
_PICTURE_TOKENS = 425  # GPT-4o's tokens for a frame of 640 x 360: 85, plus 170 for each of two tiles
ANSWER_TOKENS = 50

PICTURE_TYPES = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif"}


@dataclass(frozen=True)
class JudgedCaption:
    """A caption to judge, with references or a picture of its clip.

    Args:
        id: id of the clip.
        text: the caption.
        setting: setting of the caption, such as "raw" or "projected"; the judge doesn't see it.
        references: descriptions of the clip that count as true.
        picture: file of a frame that the judge sees: JPEG, PNG, WebP or GIF.

    Raises:
        TypeError: if `references` is one text.
        ValueError: if there is neither a reference nor a picture, or the picture is of another type.
        FileNotFoundError: if there is no such picture.
    """

    id: str
    text: str
    setting: str = ""
    references: tuple[str, ...] = ()
    picture: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.references, str):
            raise TypeError(f"{self.id}: references must be a tuple of texts, not one text")
        if self.picture is not None:
            if Path(self.picture).suffix.lower() not in PICTURE_TYPES:
                raise ValueError(
                    f"{self.id}: a picture must be {', '.join(PICTURE_TYPES)}, not {self.picture}"
                )
            if not Path(self.picture).is_file():
                raise FileNotFoundError(f"{self.id}: there is no picture {self.picture}")
        elif not self.references:
            raise ValueError(f"{self.id}: to judge a caption, give a reference or a picture of its clip")


@dataclass(frozen=True)
class Question:
    """A caption as the judge is asked about it; `repeat` is 1 for a second question, which tests consistency."""

    caption: JudgedCaption
    repeat: int

    @cached_property
    def key(self) -> tuple[str, str, int, str]:
        """The key of its answer. The hash covers all that the judge sees, so a changed caption is asked again."""
        shown = hashlib.sha256(self._text.encode())
        if self.caption.picture is not None:
            shown.update(Path(self.caption.picture).read_bytes())
        return self.caption.id, self.caption.setting, self.repeat, shown.hexdigest()[:12]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages for the API, without the clip's id and the setting."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self._text}]
        if self.caption.picture is not None:
            path = Path(self.caption.picture)
            data = base64.b64encode(path.read_bytes()).decode()
            url = f"data:image/{PICTURE_TYPES[path.suffix.lower()]};base64,{data}"
            content.append({"type": "image_url", "image_url": {"url": url}})
        return [{"role": "system", "content": _SYSTEM.strip()}, {"role": "user", "content": content}]

    @property
    def tokens(self) -> int:
        """Estimated number of prompt tokens; the server has its own count."""
        characters = len(_SYSTEM) + len(self._text) + len(json.dumps(RESPONSE_FORMAT))
        return math.ceil(characters / _CHARACTERS_PER_TOKEN) + _PICTURE_TOKENS * (
            self.caption.picture is not None
        )

    @property
    def _text(self) -> str:
        lines = "".join(f"- {_as_material(reference)}\n" for reference in self.caption.references)
        references = f"<references>\n{lines}</references>\n" if lines else ""
        return _USER.strip().format(references=references, description=_as_material(self.caption.text))


def _as_material(text: str) -> str:
    """A text that can't end the part of the prompt that it is in."""
    return _MARKUP.sub("&lt;", text)


@dataclass(frozen=True)
class Reading:
    """A parsed answer.

    Attributes:
        outcome: "scored", "refused", "filtered" or one of `MALFORMED`.
        scores: scores by dimension, if scored.
        text: the answer, if not scored.
    """

    outcome: str
    scores: dict[str, int] | None = None
    text: str = ""


MALFORMED = ("truncated", "not_json", "not_the_schema", "out_of_range", "not_a_completion")


def read(completion: Any) -> Reading:
    """Parse an answer strictly: only six whole numbers from 1 to 5 count as scores."""
    try:
        choice = completion.choices[0]
        refusal, content, finish = choice.message.refusal, choice.message.content, choice.finish_reason
    except (AttributeError, LookupError, TypeError):
        return Reading("not_a_completion", text="" if completion is None else _as_text(completion))
    if refusal:
        return Reading("refused", text=_as_text(refusal))
    if finish == "content_filter":
        return Reading("filtered", text=_as_text(content))
    if not isinstance(content, str):
        return Reading("not_a_completion", text=_as_text(content))
    if finish == "length":
        return Reading("truncated", text=content)
    try:
        scores = json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return Reading("not_json", text=content)
    if not isinstance(scores, dict) or scores.keys() != set(DIMENSIONS):
        return Reading("not_the_schema", text=content)
    if any(type(score) is not int for score in scores.values()):  # True and 4.0 aren't scores either
        return Reading("not_the_schema", text=content)
    if any(score not in SCORES for score in scores.values()):
        return Reading("out_of_range", text=content)
    return Reading("scored", {name: scores[name] for name in DIMENSIONS})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; empty, and so not of the schema, if a key is there twice with different values."""
    found = dict(pairs)
    return found if all(found[name] == value for name, value in pairs) else {}


def _as_text(value: object) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError):  # nested too deeply, or a number of thousands of digits
        return f"a {type(value).__name__} that can't be shown"
