"""The settings of a run: alignments, budgets and mixes, with their controls, and whose sound plays for whom."""

from collections.abc import Mapping, Sequence
from typing import get_args

from llava_soundclip.captioning import Setting, next_clips
from llava_soundclip.clips import Clip
from llava_soundclip.controls import CaptionControl
from llava_soundclip.evaluation.captions import Things

ALPHAS = (0.25, 0.5, 0.75)  # of B.1, between projected and raw
BUDGETS = (15, 150)  # k of Table 14


def plan_settings(
    *,
    k: int,
    patches: int,
    projected: bool,
    budgets: Sequence[int] = (),
    alphas: Sequence[float] = (),
) -> list[Setting]:
    """Raw and projected with every control, both over k with random patches beside them, and mixes.

    Args:
        k: k of every setting that isn't about k.
        patches: N, the number of patches per image.
        projected: whether there is a projector; without one all is raw.
        budgets: further k.
        alphas: mixes, strictly between 0 and 1; none without a projector.

    Returns:
        Settings with names of their own: "raw", "raw, noise", "projected, k=15, random", "alpha 0.5".

    Raises:
        ValueError: for a k above the number of patches, an alpha that is no mix, or mixes without a projector.
    """
    for budget in (k, *budgets):
        if not 0 <= budget <= patches:
            raise ValueError(f"k is {budget}, but an image has {patches} patches")
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha:g} is no mix: 0 is projected, 1 is raw")
    if alphas and not projected:
        raise ValueError("alphas mix raw and projected: give a projector")
    found: dict[str, Setting] = {}

    def add(alignment: str | float, budget: int, control: CaptionControl | None = None) -> None:
        if control == "random" and budget in (0, patches):
            return  # there is nothing to choose
        name = alignment if isinstance(alignment, str) else f"alpha {alignment:g}"
        name += "" if budget == k else f", k={budget}"
        name += "" if control is None else f", {control}"
        found.setdefault(name, Setting(alignment, budget, control, name))

    alignments = ("raw", "projected") if projected else ("raw",)
    for control in (None, *get_args(CaptionControl)):
        for alignment in alignments:
            add(alignment, k, control)
    for alpha in sorted(set(alphas)):
        add(alpha, k)
    for budget in sorted(set(budgets)):
        for alignment in alignments:
            add(alignment, budget)
            add(alignment, budget, "random")
    return list(found.values())


def partners(clips: Sequence[Clip], things: Mapping[str, Things]) -> dict[str, str]:
    """The clip whose sound the control "another" plays with each clip's picture, by id.

    It is the next one whose sound is of nothing that this clip holds. Where that isn't known, or there is none, it is
    the one of `next_clips`.

    Args:
        clips: clips in order; the last one is followed by the first.
        things: the things in each clip, by id, where known.
    """
    found = next_clips(clips)
    for row, clip in enumerate(clips):
        if clip.id not in things:
            continue
        held = {*things[clip.id].sounding, *things[clip.id].silent}
        for other in [*clips[row + 1 :], *clips[:row]]:
            if other.id in things and not held & set(things[other.id].sounding):
                found[clip.id] = other.id
                break
    return found
