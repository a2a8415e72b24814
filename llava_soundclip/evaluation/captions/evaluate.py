"""Scores and a judge's opinion of captions: from files to figures that can be written as JSON."""

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
    """Scores of captions in all their settings, with intervals over clips and paired differences of settings.

    Args:
        captions: JSON Lines; see `captions.read_captions`.
        references: JSON Lines; see `captions.read_references`. Ids are those of the captions, or match them by name:
            see `captions.references.match_ids`. Where they say what sounds and what is silent
            (`captions.read_things`), it is counted whether captions name it; where they name the video of each clip
            (`captions.read_sources`), intervals are over videos.
        metrics: some of `captions.METRICS`; none if only a judge is asked.
        bertscore: the model for it.
        clipscore: the model for it.
        judge: a judge that also scores the captions.
        judged: file of the judge's answers, made or resumed.
        before_judging: told about how much is left to ask.

    Returns:
        "metrics" and "judge", by name the "figures" of each setting and the "differences" of every two; "settings",
        what they lack; "clips", every clip with its captions and scores.

    Raises:
        OSError, ValueError, RuntimeError, ImportError: as `captions.score` and `Judge.run` do.
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
                # For a video the judge has the references alone.
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
    """By the ids of the captions."""
    return {matched.get(id, id): value for id, value in by_reference.items()}


def _told(captions: str | os.PathLike[str], said: Sequence[Caption]) -> tuple[dict[str, Any], dict[str, str]]:
    """Further fields of `llava-soundclip caption`'s rows: each setting's options, and each clip's map."""
    options: dict[str, Any] = {}
    maps: dict[str, str] = {}
    for row, caption in zip(read_rows(captions), said, strict=True):
        options.setdefault(caption.setting, {name: row[name] for name in OPTIONS if name in row})
        if isinstance(row.get("map"), str):
            maps.setdefault(caption.id, row["map"])
    return options, maps


def _by_dimension(opinion: Judgement) -> dict[str, Any]:
    """A judge's figures in the form that metrics have."""
    dimensions: dict[str, Any] = {}
    for setting, scores in opinion.scores.items():
        for name, figure in scores.items():
            part = dimensions.setdefault(name, {"figures": {}, "differences": []})
            part["figures"][setting] = figure.as_dict()
    for (first, second), scores in opinion.differences.items():
        for name, figure in scores.items():
            dimensions[name]["differences"].append({"first": first, "second": second, **figure.as_dict()})
    return dimensions
