"""The settings that clips are captioned in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ControlName: TypeAlias = Literal["another", "noise", "zero", "random"]

CONTROLS: tuple[ControlName, ...] = ("another", "noise", "zero", "random")
ALPHAS = (0.25, 0.5, 0.75)  # of B.1, between projected and raw
BUDGETS = (15, 150)  # k of Table 14


@dataclass(frozen=True)
class Setting:
    """How clips are captioned.

    Attributes:
        alignment: "raw", "projected" or alpha.
        k: patches that keep their value.
        control: "another" clip's sound, "noise" or "zero" in the sound's place, "random" patches; None for none.
        name: what rows and figures call it.
    """

    alignment: str | float
    k: int
    control: ControlName | None = None
    name: str = ""


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
        k: of what isn't about k.
        patches: N, that an image has.
        projected: whether there is a projector; without one all is raw.
        budgets: further k.
        alphas: mixes, strictly between 0 and 1; none without a projector.

    Returns:
        Settings with names of their own: "raw", "raw, noise", "projected, k=15, random", "alpha 0.5".

    Raises:
        ValueError: for a k that an image hasn't got, an alpha that is no mix, or mixes without a projector.
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

    def add(alignment: str | float, budget: int, control: ControlName | None = None) -> None:
        if control == "random" and budget in (0, patches):
            return  # there is nothing to choose
        name = alignment if isinstance(alignment, str) else f"alpha {alignment:g}"
        name += "" if budget == k else f", k={budget}"
        name += "" if control is None else f", {control}"
        found.setdefault(name, Setting(alignment, budget, control, name))

    alignments = ("raw", "projected") if projected else ("raw",)
    for control in (None, *CONTROLS):
        for alignment in alignments:
            add(alignment, k, control)
    for alpha in sorted(set(alphas)):
        add(alpha, k)
    for budget in sorted(set(budgets)):
        for alignment in alignments:
            add(alignment, budget)
            add(alignment, budget, "random")
    return list(found.values())
