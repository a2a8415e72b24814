"""Recomputations of the claims: functions of the tables, or functions that return one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from itertools import pairwise
from statistics import mean

import torch
from claim import Found
from tables import Table

from llava_soundclip.alignment.projector import Projector

Tables = dict[str, Table]
Recompute = Callable[[Tables], Found | Decimal | str]

RETRIEVAL = ("1", "4", "5", "6")  # one data set per table; Table 3 is Table 1 without Whisper
QUALITY = ("BLEU", "ROUGE-L", "BERTScore", "CLIPScore", "GPT-4o")
TEXT = ("CLAP", "Whisper", "ImageBind")  # trained with text, as Finding 4 has it
SIGHT = ("AudioCLIP", "Wav2CLIP")
# d_a: Whisper's from tiny to large; Wav2CLIP and CLAP have 512, AudioCLIP and ImageBind 1024.
WIDTHS = (384, 512, 768, 1024, 1280)
SIZES = {"7B": 7, "13B": 13, "34B": 34}  # of LLaVA-1.6, in units of 10^9 parameters; not in the paper


def names(found: list[str]) -> str:
    """A list in the page's form."""
    return ", ".join(found)


def highest(figures: Mapping[str, Decimal]) -> str:
    """The name of the highest figure; several names if they are equal."""
    return names([name for name, figure in figures.items() if figure == max(figures.values())])


def lowest(figures: Mapping[str, Decimal]) -> str:
    """The name of the lowest figure; several names if they are equal."""
    return highest({name: -figure for name, figure in figures.items()})


def listed(figures: Mapping[str, Decimal], digits: int | None = None) -> str:
    """Figures with their names, the highest first."""
    ordered = sorted(figures.items(), key=lambda item: -item[1])
    return names(
        [f"{name} {figure if digits is None else round(figure, digits)}" for name, figure in ordered]
    )


def gains(table: Table, measure: str) -> dict[str, Decimal]:
    """Points gained by projecting."""
    return {encoder: pair.gain for encoder, pair in table.pairs(measure).items()}


def drops(table: Table, measure: str) -> dict[str, Decimal]:
    """Points lost by projecting."""
    return {encoder: -gain for encoder, gain in gains(table, measure).items()}


def losses(table: Table, measure: str) -> dict[str, Decimal]:
    """Percent lost by projecting."""
    return {encoder: pair.loss for encoder, pair in table.pairs(measure).items()}


def side(table: Table, measure: str, which: str) -> dict[str, Decimal]:
    """Raw or projected figures by encoder."""
    return {encoder: getattr(pair, which) for encoder, pair in table.pairs(measure).items()}


def exceptions(found: list[str]) -> str:
    """ "all", or all but these."""
    return f"all but {names(found)}" if found else "all"


def top1_gain(t: Tables) -> Found:
    """The largest gain in Top-1 over the data sets, A2V and V2A."""
    there, back = (
        max(max(gains(t[number], f"{way} T1").values()) for number in RETRIEVAL) for way in ("A2V", "V2A")
    )
    return Found(there, f"Audio to video. Video to audio it is {back}.")


def all_lower(t: Tables, numbers: tuple[str, ...], lower: str) -> Found:
    """Whether all cells of one side are below those of the other, and the exceptions."""
    found = [
        f"{encoder} in {table.name}, {measure} ({pair.raw} → {pair.projected})"
        for table in (t[number] for number in numbers)
        for measure in table.measures
        for encoder, pair in table.pairs(measure).items()
        if (pair.gain if lower == "raw" else -pair.gain) <= 0
    ]
    return Found(exceptions(found))


def drop(encoder: str, measure: str) -> Recompute:
    """A claim's drop of one encoder, as a negative number."""
    return lambda t: gains(t["Figure 6"], measure)[encoder]


def gain_of(encoder: str) -> Recompute:
    """Points of Top-1 that an encoder gains, AudioCaps, A2V."""
    return lambda t: gains(t["1"], "A2V T1")[encoder]


def largest_drop(measure: str) -> Recompute:
    """The largest loss of any encoder, in points."""

    def recompute(t: Tables) -> Found:
        found = drops(t["Figure 6"], measure)
        return Found(max(found.values()), f"The largest. {listed(found)}.")

    return recompute


def whisperclips(which: str) -> Recompute:
    """WhisperCLIP's scores as Finding 5 lists them."""
    measures = ("BLEU", "BERTScore", "GPT-4o")
    return lambda t: names([str(t["Figure 6"][f"WhisperCLIP {which}", measure]) for measure in measures])


def best_raw(number: str, measure: str) -> Recompute:
    """The best raw encoder for captions, and its score."""

    def recompute(t: Tables) -> str:
        scores = side(t[number], measure, "raw")
        return f"{highest(scores)} {max(scores.values())}"

    return recompute


def most_severe(measure: str) -> Recompute:
    """The encoder with the largest loss."""

    def recompute(t: Tables) -> Found:
        found = drops(t["Figure 6"], measure)
        return Found(highest(found), f"{listed(found)}.")

    return recompute


def largest_two(t: Tables) -> Found:
    """The two largest A2V gains of Table 2."""
    table = t["2"]
    found = {
        f"{encoder} on {measure.removesuffix(' A2V')}": gain
        for measure in table.measures
        if measure.endswith("A2V")
        for encoder, gain in gains(table, measure).items()
    }
    top = sorted(found, key=found.__getitem__, reverse=True)[:3]
    return Found(names(sorted(top[:2])), f"{names([f'{name} {found[name]}' for name in top])}.")


def rank_factor(encoder: str) -> Recompute:
    """The factor by which the mean rank falls."""

    def recompute(t: Tables) -> Found:
        raw, projected = (t["Figure 5"][encoder, which] for which in ("raw", "projected"))
        return Found(raw / projected, f"{encoder}, {raw} to {projected}. Only two encoders' ranks are given.")

    return recompute


def whisperclips_lead(t: Tables) -> dict[str, Decimal]:
    """Top-1 of WhisperCLIP, projected, minus Whisper's; only Table 1 has both."""
    return {
        way: t["1"]["WhisperCLIP", f"{way} T1 projected"] - t["1"]["Whisper", f"{way} T1 projected"]
        for way in ("A2V", "V2A")
    }


def separated(t: Tables) -> Found:
    """Whether encoders pretrained with pictures all gain more than the others."""
    found = gains(t["1"], "A2V T1")
    sighted = {name: found[name] for name in ("ImageBind", *SIGHT)}
    others = {name: found[name] for name in found if name not in sighted}
    return Found(
        "more" if min(sighted.values()) > max(others.values()) else "not always more",
        f"With: {listed(sighted)}. Without: {listed(others)}.",
    )


def same_order(t: Tables) -> Found:
    """Whether both directions rank the projected encoders in the same order."""
    orders = [
        [side(t["3"], f"{way} {top}", "projected") for way in ("A2V", "V2A")] for top in ("T1", "T3", "T10")
    ]
    ranked = [[sorted(each, key=each.__getitem__) for each in both] for both in orders]
    return Found("same order" if all(one == other for one, other in ranked) else "not the same order")


def figure7(measure: str) -> Recompute:
    """Percent by which ImageBind changes at k = 150."""
    return lambda t: -t["11"].pair("ImageBind-150tk", measure).loss


def worst_dimensions(t: Tables) -> Found:
    """The two dimensions with ImageBind's largest losses."""
    found = {
        name: t["11"].pair("ImageBind-150tk", name).loss for name in t["11"].measures if name != "Overall"
    }
    top = sorted(found, key=found.__getitem__, reverse=True)[:2]
    return Found(names(sorted(top)), f"Losses in %: {listed(found, 1)}.")


def text_ahead(which: str) -> Recompute:
    """Whether all encoders trained with text are above all others."""

    def recompute(t: Tables) -> Found:
        scores = side(t["Figure 6"], "GPT-4o", which)
        mine, others = ({name: scores[name] for name in group} for group in (TEXT, SIGHT))
        ahead, behind = min(mine.values()) > max(others.values()), max(mine.values()) < min(others.values())
        return Found(
            "above" if ahead else "below" if behind else "mixed",
            f"{listed(mine)}; {listed(others)}.",
        )

    return recompute


def best(number: str, which: str, measures: tuple[str, ...] = QUALITY) -> Recompute:
    """The best encoder in each measure; one name if it is the same in all."""

    def recompute(t: Tables) -> Found:
        found = {measure: side(t[number], measure, which) for measure in measures}
        winners = [highest(scores) for scores in found.values()]
        value = winners[0] if len(set(winners)) == 1 else names(sorted(set(winners)))
        own = [
            f"{m}: {highest(s)} {max(s.values())}, WhisperCLIP {s['WhisperCLIP']}" for m, s in found.items()
        ]
        return Found(value, "; ".join(own) + "." if value != "WhisperCLIP" else "")

    return recompute


def budget_gain(which: str) -> Recompute:
    """Rise of the encoders' mean score from k = 15 to 150, in percent."""

    def recompute(t: Tables) -> Found:
        each = {
            encoder: 100 * (t["14"][encoder, f"150 {which}"] / t["14"][encoder, f"15 {which}"] - 1)
            for encoder in t["14"].rows
        }
        low, high = (mean(t["14"][encoder, f"{k} {which}"] for encoder in t["14"].rows) for k in (15, 150))
        return Found(
            100 * (high / low - 1),
            f"The rise of the encoders' mean score. The mean of their own rises is {mean(each.values()):.1f}: "
            f"{listed(each, 1)}.",
        )

    return recompute


def gap(t: Tables) -> Found:
    """Raw minus projected at each budget, as the mean over encoders."""
    small, large = (mean(drops(t["14"], k).values()) for k in ("15", "150"))
    return Found("gap remains" if large > 0 else "no gap", f"{small:.3f} at 15, {large:.3f} at 150.")


def mean_change(measure: str) -> Recompute:
    """Change of the captions' score in percent: the mean of the encoders' changes, and each encoder's."""

    def recompute(t: Tables) -> Found:
        low, high = (mean(side(t["Figure 6"], measure, which).values()) for which in ("projected", "raw"))
        found = {name: -loss for name, loss in losses(t["Figure 6"], measure).items()}
        raw, projected = (t["13"][f"CLAP-{which}-15tk", measure] for which in ("raw", "proj"))
        return Found(
            mean(found.values()),
            f"The mean of the encoders' own changes: {listed(found, 1)}. Their mean score changes by "
            f"{100 * (low / high - 1):.1f}. CLAP at k = 15 (Table 13) {100 * (projected - raw) / raw:.1f}.",
        )

    return recompute


def more_than(first: str, second: str) -> Recompute:
    """Whether every encoder loses more, in percent, in the first measure than in the second."""

    def recompute(t: Tables) -> Found:
        one, other = losses(t["Figure 6"], first), losses(t["Figure 6"], second)
        return Found(
            exceptions([name for name in one if one[name] <= other[name]]),
            f"{first} loses {mean(one.values()):.1f} % on average over encoders, {second} {mean(other.values()):.1f} %. "
            f"{second} by encoder: {listed(other, 1)}.",
        )

    return recompute


CHOICES = {  # of A.3, with the words for them in tables' titles
    "loss function": ("loss",),
    "layer selection": ("layer",),
    "pooling policy": ("pooling",),
    "backbone size": ("backbone", "size"),
    "regularization strategy": ("regulari", "dropout", "decay"),
}


def choices_with_a_table(t: Tables) -> Found:
    """The modeling choices that a table's title names."""
    found = {
        choice: [table.name for table in t.values() if any(word in table.title.lower() for word in words)]
        for choice, words in CHOICES.items()
    }
    return Found(
        names([choice for choice, tables in found.items() if tables]),
        "; ".join(f"{choice}: {names(tables) or 'no table'}" for choice, tables in found.items()) + ".",
    )


def per_point(t: Tables) -> dict[str, Decimal]:
    """Percent of GPT-4o's score lost for each point of Top-1 gained, AudioCaps, A2V."""
    gained, lost = gains(t["3"], "A2V T1"), losses(t["12"], "GPT-4o")
    return {name: lost[name] / gained[name] for name in gained}


def per_point_of(encoder: str) -> Recompute:
    """`per_point` of one encoder."""
    return lambda t: Found(per_point(t)[encoder], f"{listed(per_point(t), 2)}.")


def correlation(t: Tables) -> Found:
    """Pearson's r of gain and loss, from sums of products."""
    gained, lost = gains(t["3"], "A2V T1"), losses(t["12"], "GPT-4o")
    x, y = ([each[name] - mean(each.values()) for name in gained] for each in (gained, lost))
    products = [Decimal(sum(a * b for a, b in zip(*both, strict=True))) for both in ((x, y), (x, x), (y, y))]
    return Found(
        products[0] / (products[1] * products[2]).sqrt(),
        f"Gain in points: {listed(gained)}. Loss in %: {listed(lost, 1)}. See below for other pairs of columns.",
    )


def severest(t: Tables) -> Found:
    """The encoders of the appendix that lose most."""
    lost = losses(t["12"], "GPT-4o")
    top = sorted(lost, key=lost.__getitem__, reverse=True)[:2]
    return Found(names(sorted(top)), f"Loss in %: {listed(lost, 1)}.")


def parameters(width: int) -> int:
    """Number of parameters of the module in F.2."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Projector(width).parameters())


def counted(t: Tables) -> Found:
    """Millions of parameters, for the narrowest encoder."""
    found = {width: Decimal(parameters(width)) / 10**6 for width in WIDTHS}
    rest = Decimal(parameters(1) - 1024) / 10**6  # without W1
    each = names([f"{count:.2f} M for d_a = {width}" for width, count in found.items()])
    return Found(
        min(found.values()),
        f"{each}. W2, W3, biases and norms alone are {rest:.2f} M, so no d_a gives 1.9.",
    )


def memory(t: Tables) -> Found:
    """Megabytes of the narrowest encoder's projector in half precision."""
    megabytes = Decimal(2 * min(parameters(width) for width in WIDTHS)) / 10**6
    return Found(
        "under 2" if megabytes < 2 else "over 2",
        f"{megabytes:.1f} MB for the narrowest encoder in half precision. 1.9 M parameters would be 3.8 MB so, "
        "and 1.9 MB with one byte each.",
    )


def share_of_llava(t: Tables) -> Found:
    """1.9 M in percent of LLaVA-1.6-7B."""
    shares = {name: Decimal("1.9") / (10 * size) for name, size in SIZES.items()}
    each = names([f"{share:.3f} of {name}" for name, share in shares.items()])
    return Found(
        shares["7B"], f"{each}, by the models' names: the paper has no size. 0.02 is 1.9 M of 7.6 to 12.7 B."
    )


def patch_size(t: Tables) -> Found:
    """Patch size, from the paper's own name for the tower."""
    return Found("14×14", "By the name ViT-L/14 (3.1). 576 patches are 24 × 24; 36 × 36 would be 1296.")


def segments(kind: str | None = None) -> Recompute:
    """Segments of Table 16 that have something visible, invisible or silent; all segments without a kind."""

    def recompute(t: Tables) -> Decimal:
        counts = {row: t["16"][row, "count"] for row in t["16"].rows}
        every = "All three types present"
        return Decimal(
            sum(
                count
                for row, count in counts.items()
                if kind is None or row == every or kind in row.lower().split()
            )
        )

    return recompute


def percentage(row: str) -> Recompute:
    """A kind's share of all segments."""
    return lambda t: 100 * t["16"][row, "count"] / segments()(t)


def mean_score(t: Tables) -> Found:
    """The mean of the five means, next to the threshold of D.3."""
    value = mean(t["2.1"][row, "mean"] for row in t["2.1"].rows)
    return Found(
        None,
        "How five scores make one isn't said. It can hardly be their mean: that of 2.1's five is "
        f"{value:.2f}{', below the threshold' if value <= 8 else ''}.",
    )


def best_loss(t: Tables) -> Found:
    """The lowest mean rank of Table 7."""
    found = {row: t["7"][row, "A2V"] for row in t["7"].rows}
    return Found(lowest(found), f"{listed(found)} (A2V).")


def best_row(number: str) -> Recompute:
    """The lowest mean rank in both directions."""

    def recompute(t: Tables) -> str:
        ways = [{row: t[number][row, way] for row in t[number].rows} for way in ("A2V", "V2A")]
        return names(sorted({lowest(way) for way in ways}))

    return recompute


def falling(t: Tables) -> str:
    """Whether ranks fall with every larger size, in both directions."""
    sizes = list(t["9"].rows)
    found = [
        f"{large} ({way})"
        for way in ("A2V", "V2A")
        for small, large in pairwise(sizes)
        if t["9"][large, way] >= t["9"][small, way]
    ]
    return exceptions(found)


def better_than_last(t: Tables) -> Found:
    """Numbers of layers that are better than the final layer alone."""
    found = [
        f"n={row} ({way}: {t['10'][row, way]} against {t['10']['1', way]})"
        for row in ("2", "3")
        for way in ("A2V", "V2A")
        if t["10"][row, way] >= t["10"]["1", way]
    ]
    return Found(exceptions(found))


def best_retriever(t: Tables) -> Found:
    """Tables in which ImageBind, projected, isn't best at Top-1."""
    columns = [(number, f"{way} T1") for number in RETRIEVAL for way in ("A2V", "V2A")]
    found = []
    for number, measure in columns + [("2", measure) for measure in t["2"].measures]:
        scores = side(t[number], measure, "projected")
        if highest(scores) != "ImageBind":
            found.append(
                f"{t[number].name}, {measure} ({highest(scores)} {max(scores.values())}, ImageBind "
                f"{scores['ImageBind']})"
            )
    return Found(exceptions(found))


def recommended(t: Tables) -> Found:
    """Whether Figure 9 and Table 15 recommend the same, and their differences."""
    figure, table = t["Figure 9"], t["15"]
    found = [
        f"{row}, {column}: {figure[row, column]} and {table[row, column]}"
        for row in table.rows
        for column in table.columns
        if figure[row, column] != table[row, column]
    ]
    return Found("not the same" if found else "same", f"{'; '.join(found)}." if found else "")
