"""BLEU and ROUGE: the words that captions and references have in common.

Tokenization and formulas are those of sacrebleu and rouge-score. Only the counting is done here. Each text is counted
once, however many captions it is compared with, and common subsequences are found with bits instead of a table. The
figures equal theirs to the last digit.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np

from llava_soundclip._extras import require

ORDER = 4  # BLEU's longest n-gram
ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
_RECENT = 4096  # texts whose counts are cached: captions of one clip are neighbours


def bleu(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """BLEU-4 of each caption, and the counts for the BLEU of any set of captions.

    Args:
        texts: n captions.
        references: references of each caption, at least one.

    Returns:
        (n,) floats from 0 to 1, sacrebleu's sentence BLEU of each caption, without n-grams longer than the caption;
        (n, 10) counts for `corpus_bleu`; and how the figures were made.

    Raises:
        ImportError: if sacrebleu isn't installed.
    """
    sacrebleu = require("sacrebleu", extra="evaluation")
    metric = sacrebleu.BLEU()

    @lru_cache(_RECENT)
    def counted(text: str) -> tuple[int, list[Counter]]:
        words = metric.tokenizer(text.rstrip()).split()
        return len(words), [_ngrams(words, n) for n in range(1, ORDER + 1)]

    counts = np.zeros((len(texts), 2 + 2 * ORDER))
    alone = np.zeros(len(texts))
    for row, (text, own) in enumerate(zip(texts, references, strict=True)):
        length, grams = counted(text)
        known = [counted(reference) for reference in own]
        # The reference nearest in length; the shorter one of two equally near.
        _, nearest = min((abs(words - length), words) for words, _ in known)
        correct = [_clipped(grams[n], [other[n] for _, other in known]) for n in range(ORDER)]
        total = [max(length - n, 0) for n in range(ORDER)]
        counts[row] = [length, nearest, *correct, *total]
        found = metric.compute_bleu(
            correct, total, length, nearest, smooth_method="exp", effective_order=True
        )
        alone[row] = min(found.score / 100, 1)
    sizes = {len(own) for own in references}
    signature = (
        f"nrefs:{sizes.pop() if len(sizes) == 1 else 'var'}|case:mixed|eff:no|tok:13a|smooth:exp"
        f"|version:{sacrebleu.__version__}"
    )
    return alone, counts, {"implementation": f"sacrebleu {sacrebleu.__version__}", "signature": signature}


def corpus_bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-4 of sets of captions, as by sacrebleu's `corpus_score`, but from 0 to 1.

    Args:
        counts: (..., 10) sums of `bleu`'s counts over the captions of a set.

    Returns:
        (...) floats, one figure per set.
    """
    length, nearest = counts[..., 0], counts[..., 1]
    correct, total = counts[..., 2 : 2 + ORDER], counts[..., 2 + ORDER :]
    missed = correct == 0
    # Orders without a match count as half a match, then a quarter, and so on ("exp").
    smoothed = np.where(missed, 0.5 ** missed.cumsum(-1), correct)
    whole = (total > 0).all(-1) & ~missed.all(-1)
    precision = np.where(whole[..., None], smoothed / np.maximum(total, 1), 1)
    brevity = np.exp(np.minimum(0, 1 - nearest / np.maximum(length, 1)))
    return np.where(whole, brevity * np.exp(np.log(precision).mean(-1)), 0)


def rouge(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """ROUGE-1, -2 and -L of each caption: the highest F-measure over its references.

    Words are lower case, not stemmed, and made of the letters a to z and digits. Other scripts have no ROUGE: the number
    of captions without such a word, except empty ones, is reported.

    Args:
        texts: n captions.
        references: references of each caption, at least one.

    Returns:
        (n,) floats by name, 0 to 1, and how they were made.

    Raises:
        ImportError: if rouge-score isn't installed.
    """
    tokenizer = require("rouge_score.tokenizers", extra="evaluation").DefaultTokenizer(use_stemmer=False)
    fmeasure = require("rouge_score.scoring", extra="evaluation").fmeasure

    @lru_cache(_RECENT)
    def counted(text: str) -> tuple[list[str], Counter, Counter]:
        words = tokenizer.tokenize(text)
        return words, _ngrams(words, 1), _ngrams(words, 2)

    def f(hits: int, predicted: int, wanted: int) -> float:
        return fmeasure(hits / max(predicted, 1), hits / max(wanted, 1))

    values = np.zeros((len(texts), len(ROUGE)))
    wordless = 0
    for row, (text, own) in enumerate(zip(texts, references, strict=True)):
        words, ones, twos = counted(text)
        wordless += not words and bool(text.strip())
        for reference in own:
            other_words, other_ones, other_twos = counted(reference)
            length, other_length = len(words), len(other_words)
            scores = (
                f(_clipped(ones, [other_ones]), length, other_length),
                f(_clipped(twos, [other_twos]), max(length - 1, 0), max(other_length - 1, 0)),
                f(common_subsequence(words, other_words), length, other_length),
            )
            values[row] = np.maximum(values[row], scores)
    made = {
        "implementation": f"rouge-score {version('rouge-score')}",
        "figure": "F-measure, best of the references, no stemming",
        "captions_without_a_latin_word": wordless,
    }
    return {name: values[:, column] for column, name in enumerate(ROUGE)}, made


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the usual table at a time (Hyyrö 2004).

    Bit j of `row` is 0 where the table grows from column j to the next.
    """
    places: dict[str, int] = {}
    for j, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(second)) - 1
    row = full
    for word in first:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & full
    return len(second) - row.bit_count()


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _clipped(grams: Counter, known: Sequence[Counter]) -> int:
    """Number of n-grams that are in a reference, each counted at most as often as there."""
    shared: dict[tuple[str, ...], int] = {}
    for other in known:
        for gram in grams.keys() & other.keys():
            shared[gram] = max(shared.get(gram, 0), min(grams[gram], other[gram]))
    return sum(shared.values())
