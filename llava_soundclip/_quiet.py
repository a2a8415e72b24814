"""Loading with transformers, without its progress bars and tables on the screen."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

_LOGGER = "transformers.modeling_utils"
_lock = threading.Lock()
_undo = ExitStack()
_inside = 0  # number of open blocks, over all threads


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' loading bars and its reports of unused weights off the screen.

    Loading a tower from a whole CLIP leaves half of the file unused, so such a report means nothing here. Missing and
    mismatched weights are still reported. Downloads keep their bars. The user's settings return after the block, or
    after the last block if several threads are inside.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _silence(_undo)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _undo.close()


def _silence(undo: ExitStack) -> None:
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as transformers_logging

    if hasattr(
        transformers_logging, "set_tqdm_hook"
    ):  # transformers 4 has no bar for one file, and no report
        undo.callback(transformers_logging.set_tqdm_hook, transformers_logging.set_tqdm_hook(_no_bar))
    undo.callback(setattr, gguf, "tqdm", gguf.tqdm)  # no switch turns this bar off
    gguf.tqdm = _unchanged
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(_matters)
    undo.callback(logger.removeFilter, _matters)


def _no_bar(factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return factory(*args, **{**options, "disable": True})


def _unchanged(items: Any, **options: Any) -> Any:
    return items


def _matters(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    if "LOAD REPORT" not in text:
        return True
    return any(status in text for status in ("MISSING", "MISMATCH", "CONVERSION"))
