"""Names of files as text: for terminals, for JSON, and in one line."""

import unicodedata

# Characters that end or turn a line around. The others of their kind (joiners) belong to scripts and emoji.
_TURNING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_LONGEST = 1000  # characters of one text in a message


def as_unicode(text: str) -> str:
    r"""Text that can be written as UTF-8. Bytes of a file name that aren't Unicode are escaped, as in "caf\xe9"."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone surrogate that comes from no file name
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def printable(text: str, longest: int = _LONGEST) -> str:
    r"""Text in one line, safe for a terminal: line ends, escape codes and the like are escaped, as in "a\x1bb".

    Args:
        text: any text, such as a file name.
        longest: number of characters after which it is cut.
    """
    text = as_unicode(text if len(text) <= longest else f"{text[:longest]}…")
    if text.isprintable():
        return text
    return "".join(_escaped(one) if _is_hidden(one) else one for one in text)


def printable_lines(text: str) -> str:
    """As `printable`, but line ends and tabs stay, and nothing is cut."""
    kept = as_unicode(text)
    return "".join(_escaped(one) if _is_hidden(one) and one not in "\n\t" else one for one in kept)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN or character in _TURNING


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
