"""The three answers at the top of a report: is the sound heard, what does projecting cost, do chosen patches help."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava_soundclip.evaluation.output import interval_text, number
from llava_soundclip.evaluation.report.figures import OVERALL, better
from llava_soundclip.evaluation.report.settings import ReportSetting, controls, raw_and_projected
from llava_soundclip.evaluation.report.summary import UNTOLD, apart, difference_of, verdict

# The most telling figures come first: things that only the sound tells, sounding things, then overall quality.
_HEARD = ("unseen named", "sounding named", f"judge: {OVERALL}")
_QUALITY = (f"judge: {OVERALL}", "BLEU", "ROUGE-L", "BERTScore", "CLIPScore")
_INSTEAD = {"another": "another clip's sound", "noise": "noise", "zero": "no sound"}

_UNMEASURED = {
    "Is the sound heard?": "Not measured: this needs captions with another clip's sound, or with noise.",
    "What does projecting cost?": "Not measured: this needs captions with raw and with projected vectors.",
    "Does it matter which patches stay?": "Not measured: this needs captions with random patches.",
}


def verdicts(
    retrievals: Sequence[Mapping[str, Any]],
    captions: Sequence[tuple[Mapping[str, Any], Sequence[ReportSetting]]],
) -> list[dict[str, str]]:
    """One sentence for each question and file of captions.

    Args:
        retrievals: `retrieval_figures` of each retrieval run.
        captions: `captions_figures` of each captions run, with its settings.

    Returns:
        A dict with "question", "answer" and "file" for each.
    """
    answers = (_heard, lambda shown, settings: _cost(shown, settings, retrievals), _chosen)
    return [
        {"question": question, "answer": answer(shown, settings) or unmeasured, "file": shown["file"]}
        for (question, unmeasured), answer in zip(_UNMEASURED.items(), answers, strict=True)
        for shown, settings in captions
    ]


def _heard(shown: Mapping[str, Any], settings: Sequence[ReportSetting]) -> str:
    for control, instead in _INSTEAD.items():
        told = _against(shown, settings, control, _HEARD + _QUALITY)
        if told:
            name = told[0][1]
            parts = [
                f"{alignment} {'yes' if _is_for(name, row) else 'no sign of it'}, {_by(name, row)}"
                for alignment, _, row in told
            ]
            return _sentence(f"{'; '.join(parts)} ({name}, own sound against {instead})")
    return ""


def _chosen(shown: Mapping[str, Any], settings: Sequence[ReportSetting]) -> str:
    parts = []
    for alignment, name, row in _against(shown, settings, "random", _QUALITY):
        if verdict(row) == UNTOLD:
            parts.append(f"{alignment} no sign of it, {_by(name, row)}")
        elif _is_for(name, row):
            parts.append(f"{alignment} yes, patches similar to the sound are better, {_by(name, row)}")
        else:
            parts.append(f"{alignment} random patches are better, {_by(name, row)}")
    return _sentence(f"{'; '.join(parts)} (similar against random patches)") if parts else ""


def _cost(
    shown: Mapping[str, Any],
    settings: Sequence[ReportSetting],
    retrievals: Sequence[Mapping[str, Any]],
) -> str:
    for raw, projected in raw_and_projected(settings):
        name, row = difference_of(shown, raw.name, projected.name, _QUALITY)
        if row is None:
            continue
        if verdict(row) == UNTOLD:
            said = f"no measurable cost in {name}, raw minus projected {interval_text(row)}"
        elif _is_for(name, row):
            said = f"{name}: raw is better by {apart(row)}"
        else:
            said = f"nothing in {name}: projected is better by {apart(row)}"
        return _sentence(said + _gained(retrievals))
    return ""


def _gained(retrievals: Sequence[Mapping[str, Any]]) -> str:
    for found in retrievals:
        gain = found["gain"].get("A2V", {}).get("R@1")
        if gain is not None:
            return f"; retrieval (R@1, A2V) changes by {interval_text(gain)}"
    return ""


def _against(
    shown: Mapping[str, Any], settings: Sequence[ReportSetting], control: str, names: Sequence[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Raw and projected against a control, at the first budget that has both, by one figure."""
    for name in names:
        found: dict[str, tuple[str, str, dict[str, Any]]] = {}
        for own, other in controls(settings):
            alignment = {1.0: "raw", 0.0: "projected"}.get(-1.0 if own.alpha is None else own.alpha)
            if alignment is None or alignment in found or other.control != control:
                continue
            _, row = difference_of(shown, own.name, other.name, (name,))
            if row is not None:
                found[alignment] = (alignment, name, row)
        if found:
            return list(found.values())
    return []


def _is_for(name: str, row: Mapping[str, Any]) -> bool:
    """Whether the first of two is better, over the whole interval."""
    return verdict(row) == ("below" if better(name) == "lower" else "above")


def _by(name: str, row: Mapping[str, Any]) -> str:
    return f"{name} {'+' if row['value'] > 0 else ''}{interval_text(row)}, n = {number(row.get('n'))}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
