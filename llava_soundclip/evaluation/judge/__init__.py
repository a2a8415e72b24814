"""Caption quality judged by a language model: six dimensions, 1 to 5 (4.1 and Table 11 of the paper)."""

from llava_soundclip.evaluation.judge.figures import Consistency, Judgement, Usage
from llava_soundclip.evaluation.judge.prompt import DIMENSIONS, PROMPT_HASH, JudgedCaption
from llava_soundclip.evaluation.judge.run import Judge

Caption = JudgedCaption  # the earlier name, which callers still use

__all__ = [
    "DIMENSIONS",
    "PROMPT_HASH",
    "Caption",
    "Consistency",
    "Judge",
    "JudgedCaption",
    "Judgement",
    "Usage",
]
