"""Retrieval of pictures by sounds and of sounds by pictures: by the paper's protocol (Appendix E), or over all clips."""

from llava_soundclip.evaluation.retrieval.evaluate import evaluate_retrieval
from llava_soundclip.evaluation.retrieval.measure import (
    FIGURES,
    ITEMS,
    POOL,
    TOPS,
    Retrieval,
    group_rows,
    retrieval,
)

__all__ = ["FIGURES", "ITEMS", "POOL", "TOPS", "Retrieval", "evaluate_retrieval", "group_rows", "retrieval"]
