"""Texts that leave the process, for the screen and for files: without secrets and bad advice."""

import base64
import os
import re
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"

_SECRET_NAMES = (
    r"(?:api[-_]?key|access[-_]?key|key|token|secret|password|passwd|pwd|auth|signature|sig|credentials?)"
)
_IN_ENVIRONMENT = re.compile(rf"(?:^|_){_SECRET_NAMES}$", re.IGNORECASE)
_SHORTEST = 8  # characters of a secret in the environment; shorter values are words such as "none" and "true"
_SHORTEST_GIVEN = 4  # characters of a secret that is known to be one
_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s?#]*@"), f"{HIDDEN}@"),  # user and password of an address
    (re.compile(rf"([?&;][\w.-]*{_SECRET_NAMES}=)[^&;#\s'\"]+", re.IGNORECASE), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE), rf"\g<1> {HIDDEN}"),
)
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# Sentences of torch's errors that explain how to run the code in a file.
_ADVICE = re.compile(
    r"weights.?(?:only|unpickler)|torch\.(?:load|serialization)|trust|file an issue|two options|in pytorch|https?://",
    re.IGNORECASE,
)


def scrub(text: str, *secrets: str) -> str:
    """A text without passwords and keys.

    Removed are the user and password of addresses, values such as "?api_key=...", credentials of a header, and all
    values of environment variables such as OPENAI_API_KEY and HF_TOKEN.

    Args:
        text: any text.
        secrets: further secrets; also removed as they look in addresses, headers and JSON.
    """
    known = [
        value
        for name, value in os.environ.items()
        if _IN_ENVIRONMENT.search(name) and len(value) >= _SHORTEST
    ]
    known += [secret for secret in secrets if len(secret) >= _SHORTEST_GIVEN]
    forms = {form for secret in known for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def secrets_of(address: str) -> list[str]:
    """The password of an address, and the header that a client makes of it; empty if it has none."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    if parts.username is None and parts.password is None:
        return []
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    header = base64.b64encode(f"{user}:{password}".encode()).decode()
    return [secret for secret in (password or user, header) if secret]


def _forms(secret: str) -> set[str]:
    escaped = secret.encode("unicode_escape").decode()
    return {secret, quote(secret, safe=""), escaped, escaped.replace('"', '\\"')}


def sentence(error: BaseException) -> str:
    """An error for a user: without secrets, colours, and torch's advice to run the code in a file."""
    text = without_advice(_ESCAPES.sub("", _words(error))).strip() or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"there isn't enough memory ({text})"
    return scrub(text)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def without_advice(text: str) -> str:
    """An error of `torch.load` without its advice; any other text unchanged."""
    if "weights_only" not in text and "Weights only" not in text:
        return text
    sentences = re.split(r"(?<=[.:?!])\s+|\n+", text)
    return " ".join(part.strip() for part in sentences if part.strip() and not _ADVICE.search(part))
