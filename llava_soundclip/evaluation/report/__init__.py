"""The report: the results of `eval` on one self-contained page."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava_soundclip.evaluation.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:  # the command line imports this package, and should stay quick
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llava_soundclip.evaluation.report import page

    return getattr(page, name)
