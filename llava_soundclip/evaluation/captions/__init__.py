"""Caption quality by the metrics of the paper's Tables 12 and 13: BLEU, ROUGE-1/2/L, BERTScore and CLIPScore.

captions = read_captions("captions.jsonl")
references = read_references("refs.jsonl")
scores = score(captions, references, bertscore=BERTScore("all-MiniLM-L6-v2/"))
print(scores.figures["BLEU"]["raw"], scores.difference("BLEU", "raw", "projected"))
"""

from llava_soundclip.captioning.rows import Caption, read_captions
from llava_soundclip.evaluation.captions.evaluate import evaluate_captions
from llava_soundclip.evaluation.captions.models import BERTScore, CLIPScore
from llava_soundclip.evaluation.captions.references import (
    Things,
    read_references,
    read_sources,
    read_things,
)
from llava_soundclip.evaluation.captions.scores import METRICS, CaptionScores, score

__all__ = [
    "METRICS",
    "BERTScore",
    "CLIPScore",
    "Caption",
    "CaptionScores",
    "Things",
    "evaluate_captions",
    "read_captions",
    "read_references",
    "read_sources",
    "read_things",
    "score",
]
