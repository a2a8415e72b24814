"""Scores and a judge's scores of captions: from files to figures that can be written as JSON."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llava_soundclip._version import __version__
from llava_soundclip.captioning.rows import OPTIONS, Caption, read_captions, read_rows
from llava_soundclip.evaluation.captions.models import BERTScore, CLIPScore
from llava_soundclip.evaluation.captions.references import (
    match_ids,
    read_references,
    read_sources,
    read_things,
)
from llava_soundclip.evaluation.captions.scores import METRICS, score
from llava_soundclip.evaluation.judge import Judge, JudgedCaption, Judgement, Usage
from llava_soundclip.evaluation.judge.prompt import PICTURE_TYPES
from llava_soundclip.evaluation.output import hash_of

Value = TypeVar("Value")


def evaluate_captions(
    captions: str | os.PathLike[str],
    references: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    bertscore: BERTScore | None = None,
    clipscore: CLIPScore | None = None,
    judge: Judge | None = None,
    judged: str | os.PathLike[str] | None = None,
    before_judging: Callable[[Usage], None] | None = None,
) -> dict[str, Any]:
    """Score captions in all their settings, with intervals over clips and paired differences between settings.

    Args:
        captions: JSON Lines file; see `captions.read_captions`.
        references: JSON Lines file; see `captions.read_references`. Ids are those of the captions, or match them by
            name: see `captions.references.match_ids`. If rows list sounding and silent things (`captions.read_things`),
            "naming" is also measured. If they name the video of each clip (`captions.read_sources`), intervals are over
            videos.
        metrics: some of `captions.METRICS`; empty if only a judge scores.
        bertscore: model for BERTScore.
        clipscore: model for CLIPScore.
        judge: a judge that also scores the captions.
        judged: file of the judge's answers, created or resumed.
        before_judging: called with the estimated usage before the judge is asked.

    Returns:
        "metrics" and "judge": by name, the "figures" of each setting and the "differences" of each pair of settings.
        "settings": empty and missing captions, and options. "clips": every clip with its captions and scores.

    Raises:
        OSError, ValueError, RuntimeError, ImportError: as for `captions.score` and `Judge.run`.
    """
    said = read_captions(captions)
    known = {} if references is None else read_references(references)
    things = {} if references is None else read_things(references)
    sources = {} if references is None else read_sources(references)
    try:
        matched = match_ids([id for caption in said for id in (caption.id, caption.heard) if id], known)
    except ValueError as error:
        raise ValueError(f"{references}: {error}") from None
    known, things, sources = _renamed(known, matched), _renamed(things, matched), _renamed(sources, matched)
    if things and metrics:
        metrics = (*metrics, "naming")
    found: dict[str, Any] = {"metrics": {}, "settings": {}}
    per_clip: dict[str, dict[str, dict[str, float]]] = {}
    if metrics:
        scores = score(
            said, known, metrics, bertscore=bertscore, clipscore=clipscore, things=things, sources=sources
        )
        found = scores.as_dict()
        for metric, by_setting in scores.per_clip.items():
            for setting, values in by_setting.items():
                for clip, value in zip(scores.clips[setting], values.tolist(), strict=True):
                    if math.isnan(value):
                        continue
                    per_clip.setdefault(clip, {}).setdefault(metric, {})[setting] = value
    elif judge is None:
        raise ValueError("there is nothing to do: name metrics, or a judge")
    opinion: dict[str, Any] = {}
    if judge is not None:
        shown = [
            JudgedCaption(
                caption.id,
                caption.text,
                caption.setting,
                tuple(known.get(caption.id, ())),
                # For a video the judge has only the references.
                picture=caption.image
                if caption.image and caption.image.suffix.lower() in PICTURE_TYPES
                else None,
            )
            for caption in said
        ]
        if before_judging is not None:
            before_judging(judge.estimate(shown, judged or "judged.jsonl"))
        found_by_judge = judge.run(shown, judged or "judged.jsonl", progress=True)
        opinion = {**found_by_judge.as_dict(), "dimensions": _by_dimension(found_by_judge)}
    folder = Path(captions).parent
    clips: dict[str, dict[str, Any]] = {}
    for caption in said:
        row = clips.setdefault(
            caption.id,
            {"references": known.get(caption.id, []), "captions": {}, "scores": per_clip.get(caption.id, {})},
        )
        row["captions"][caption.setting] = caption.text
        if caption.image is not None:
            row["image"] = os.path.relpath(caption.image, folder)
    options, maps = _told(captions, said)
    for clip, path in maps.items():
        clips[clip]["map"] = path
    settings = {caption.setting: {"clips": 0} for caption in said} | found["settings"]
    return {
        "what": "captions",
        "settings": settings,
        "options": options,
        "intervals_over": "sources" if sources else "clips",
        "metrics": found["metrics"],
        "judge": opinion,
        "clips": clips,
        "provenance": {
            "library": __version__,
            "captions": hash_of(captions),
            "references": None if references is None else hash_of(references),
        },
    }


def _renamed(by_reference: Mapping[str, Value], matched: Mapping[str, str]) -> dict[str, Value]:
    """Replace the references' ids with those of the captions."""
    return {matched.get(id, id): value for id, value in by_reference.items()}


def _told(captions: str | os.PathLike[str], said: Sequence[Caption]) -> tuple[dict[str, Any], dict[str, str]]:
    """Further fields of `llava-soundclip caption`'s rows: the options of each setting and the map of each clip."""
    options: dict[str, Any] = {}
    maps: dict[str, str] = {}
    for row, caption in zip(read_rows(captions), said, strict=True):
        options.setdefault(caption.setting, {name: row[name] for name in OPTIONS if name in row})
        if isinstance(row.get("map"), str):
            maps.setdefault(caption.id, row["map"])
    return options, maps


def _by_dimension(opinion: Judgement) -> dict[str, Any]:
    """A judge's figures in the form of metrics."""
    dimensions: dict[str, Any] = {}
    for setting, scores in opinion.scores.items():
        for name, figure in scores.items():
            part = dimensions.setdefault(name, {"figures": {}, "differences": []})
            part["figures"][setting] = figure.as_dict()
    for (first, second), scores in opinion.differences.items():
        for name, figure in scores.items():
            dimensions[name]["differences"].append({"first": first, "second": second, **figure.as_dict()})
    return dimensions
