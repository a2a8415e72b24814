"""Settings of captions: the options of each, and pairs that differ in one option only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOWER_IS_BETTER = ("mean_rank", "absent named")
NEITHER_IS_BETTER = ("silent named",)  # a caption may name a visible thing that doesn't sound


@dataclass(frozen=True)
class ReportSetting:
    """One setting.

    Attributes:
        name: name of the setting, such as "whisperclip-raw-150tk".
        alpha: alpha of its alignment: 1 for raw, 0 for projected, a mix in between; None if unknown.
        k: number of patches that keep their value; None if unknown.
        control: "another", "noise", "zero" or "random", or None for the clip's own sound.
        others: further options: encoder, tokens and model.
    """

    name: str
    alpha: float | None
    k: float | None
    control: str | None
    others: tuple[str, ...]

    @property
    def encoder(self) -> str:
        """The encoder's name; empty if unknown."""
        return self.others[0]


def read_settings(data: Mapping[str, Any]) -> list[ReportSetting]:
    """The settings of captions, each followed by its controls.

    Without options, settings named "raw" and "projected" are taken for these alignments; nothing is known of others.
    """
    named = {name: {"alignment": name} for name in ("raw", "projected")}
    given = data.get("options") or {}
    settings = []
    for name in data["settings"]:
        options = given.get(name) or named.get(name, {})
        k, control = options.get("k"), options.get("control")
        others = tuple(
            str(options[key]) if options.get(key) is not None else ""
            for key in ("encoder", "tokens", "model")
        )
        settings.append(
            ReportSetting(
                name,
                _alpha(options.get("alignment")),
                _number(k),
                None if control is None else str(control),
                others,
            )
        )
    partners = controls(settings)
    ordered: list[ReportSetting] = []
    for setting in settings:
        if setting.control is None:
            ordered += [setting, *(control for own, control in partners if own == setting)]
    return ordered + [setting for setting in settings if setting not in ordered]


def _alpha(alignment: Any) -> float | None:
    if alignment in ("raw", "projected"):
        return 1.0 if alignment == "raw" else 0.0
    return _number(alignment)


def _number(value: Any) -> float | None:
    """A number, also from text, since command-line options are text."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def alignment_name(alpha: float) -> str:
    """The name of an alpha in a retrieval run."""
    return {1.0: "raw", 0.0: "projected"}.get(alpha, f"alpha {alpha:g}")


def raw_and_projected(settings: Sequence[ReportSetting]) -> list[tuple[ReportSetting, ReportSetting]]:
    """Pairs of settings that differ only in the alignment, raw and projected; without controls."""
    return [
        (raw, projected)
        for raw in settings
        for projected in settings
        if raw.control is projected.control is None
        and (raw.alpha, projected.alpha) == (1, 0)
        and (raw.k, raw.others) == (projected.k, projected.others)
    ]


def controls(settings: Sequence[ReportSetting]) -> list[tuple[ReportSetting, ReportSetting]]:
    """Pairs of a setting and one of its controls, which differ in nothing else."""
    return [
        (own, control)
        for own in settings
        for control in settings
        if own.control is None
        and control.control is not None
        and (own.alpha, own.k, own.others) == (control.alpha, control.k, control.others)
    ]
