"""The settings of a run: alignments, budgets and mixes with their controls, and the clip that lends its sound."""

from collections.abc import Mapping, Sequence
from typing import get_args

from llava_soundclip.captioning import Setting, next_clips
from llava_soundclip.clips import Clip
from llava_soundclip.controls import CaptionControl
from llava_soundclip.evaluation.captions import Things

ALPHAS = (0.25, 0.5, 0.75)  # mixes of B.1, between projected and raw
BUDGETS = (15, 150)  # values of k in Table 14


def plan_settings(
    *,
    k: int,
    patches: int,
    projected: bool,
    budgets: Sequence[int] = (),
    alphas: Sequence[float] = (),
) -> list[Setting]:
    """Raw and projected with every control, both at further k with random patches as a control, and mixes.

    Args:
        k: k of all settings that don't vary it.
        patches: N, the number of patches per image.
        projected: whether there is a projector; without one all settings are raw.
        budgets: further values of k.
        alphas: mixes, strictly between 0 and 1; empty without a projector.

    Returns:
        Settings with unique names: "raw", "raw, noise", "projected, k=15, random", "alpha 0.5".

    Raises:
        ValueError: if a k is above the number of patches, an alpha isn't a mix, or there are mixes without a projector.
    """
    for budget in (k, *budgets):
        if not 0 <= budget <= patches:
            raise ValueError(f"k is {budget}, but an image has {patches} patches")
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha {alpha:g} is not a mix: 0 is projected, 1 is raw")
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

    It is the next clip whose sounding things aren't in this clip. If the things are unknown or there is no such clip, it
    is that of `next_clips`.

    Args:
        clips: clips in order; the last one is followed by the first.
        things: the known things in each clip, by id.
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
