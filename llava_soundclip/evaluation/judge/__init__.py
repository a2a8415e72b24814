"""Caption quality as a language model judges it: six dimensions, 1 to 5 (4.1 and Table 11 of the paper)."""

from llava_soundclip.evaluation.judge.figures import Consistency, Judgement, Usage
from llava_soundclip.evaluation.judge.prompt import DIMENSIONS, PROMPT_HASH, JudgedCaption
from llava_soundclip.evaluation.judge.run import Judge

Caption = JudgedCaption  # its first name, which callers use

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
