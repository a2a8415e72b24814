"""One call for each of the paper's evaluations: from files to figures that can be written as JSON."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_soundclip._version import __version__
from llava_soundclip.alignment.projector import Projector
from llava_soundclip.captioning.lines import listed
from llava_soundclip.captioning.rows import OPTIONS, read_rows
from llava_soundclip.evaluation.captions import (
    METRICS,
    BERTScore,
    Caption,
    CLIPScore,
    read_captions,
    read_references,
    read_sources,
    read_things,
    score,
)
from llava_soundclip.evaluation.captions.references import read_labels
from llava_soundclip.evaluation.information import measure_information
from llava_soundclip.evaluation.judge import Caption as JudgedCaption
from llava_soundclip.evaluation.judge import Judge, Judgement, Usage
from llava_soundclip.evaluation.judge.prompt import PICTURE_TYPES
from llava_soundclip.evaluation.retrieval import group_rows, retrieval
from llava_soundclip.evaluation.vectors import aligned, seen
from llava_soundclip.features.splits import RECIPE, split_by_source
from llava_soundclip.features.store import FeatureFolder


def evaluate_retrieval(
    features: str | os.PathLike[str],
    projector: Projector | None = None,
    *,
    trained_in: str | os.PathLike[str] | None = None,
    rows: str | None = None,
    full: bool = False,
    right: str = "pair",
    alphas: Sequence[float] = (),
    seed: int = 0,
    ray: str | None = None,
) -> dict[str, Any]:
    """Retrieval of a features folder's clips (Appendix E), raw and projected, with intervals over their films.

    Args:
        features: a folder made by `llava-soundclip features`.
        projector: None for raw alone.
        trained_in: the projector's folder, which says what its training kept aside; None or a Hub id: unknown.
        rows: "validation", the clips that the projector's training kept aside, or "all"; by default "validation" if
            the projector was trained on this folder, else "all".
        full: among all clips at once instead of Appendix E's draws.
        right: "pair", a clip's own picture is right, or "source", any of its film's.
        alphas: mixes of raw (1) and projected (0) that are measured, too (B.1).
        seed: of the draws and the intervals.
        ray: with `full`, the address of a Ray cluster that ranks; see `ranks_on_ray`. None: this process does.

    Returns:
        "figures" by alignment, side ("A2V", "V2A") and name, each an `Interval`'s fields with "repeats"; "gain", what
        projecting changes, paired by clip; "chance"; and what was measured on what.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a projector that doesn't fit, `rows="validation"` of a folder that it wasn't trained on, an
            unknown choice, or `ray` without `full`.
        ImportError: if scipy isn't installed.
        ConnectionError, RuntimeError: with `ray`, as `ranks_on_ray`.
    """
    if right not in ("pair", "source"):
        raise ValueError(f"right is pair or source, not {right!r}")
    folder = FeatureFolder(features)
    rows, chosen = measured_rows(folder, trained_in, rows)
    c = seen(folder, chosen)
    sources = group_rows([folder.sources[row] for row in chosen.tolist()])
    groups = sources if right == "source" else None
    mixes: dict[str, float] = {"raw": 1.0}
    if projector is not None:
        mixes |= {"projected": 0.0, **{f"alpha {alpha:g}": alpha for alpha in alphas}}
    elif alphas:
        raise ValueError("alphas mix raw and projected: give a projector")
    found = {
        name: retrieval(
            aligned(folder, chosen, projector, alpha),
            c,
            groups,
            seed=seed,
            full=full,
            ray=ray,
            sources=sources,
        )
        for name, alpha in mixes.items()
    }
    drawn = found["raw"]["A2V"]
    return {
        "what": "retrieval",
        "protocol": f"{drawn.items} at a time, drawn {len(drawn.rows)} times"
        if len(drawn.rows) > 1
        else "all at once",
        "clips": len(chosen),
        "rows": rows,
        "right": right,
        "figures": {
            name: {side: each.figures(seed=seed) for side, each in sides.items()}
            for name, sides in found.items()
        },
        "histogram": {
            name: {side: each.histogram() for side, each in sides.items()} for name, sides in found.items()
        },
        "gain": {
            side: {
                name: interval.as_dict()
                for name, interval in each.minus(found["raw"][side], seed=seed).items()
            }
            for side, each in found.get("projected", {}).items()
        },
        "chance": drawn.chance(),
        "provenance": _provenance(folder, projector, seed),
    }


def evaluate_information(
    features: str | os.PathLike[str],
    projector: Projector | None = None,
    *,
    trained_in: str | os.PathLike[str] | None = None,
    rows: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    apart: str = "source",
    seed: int = 0,
) -> dict[str, Any]:
    """What sounds share with pictures and what is their own (F.1), raw and projected; intervals over sources.

    Args:
        features: a folder made by `llava-soundclip features`.
        projector: None for raw alone.
        trained_in: as `evaluate_retrieval` takes it.
        rows: as `evaluate_retrieval` takes them.
        labels: JSON Lines of what probes read off the vectors; see `captions.references.read_labels`. Clips are named
            by their ids in the folder.
        apart: what the probes hold out together; "clip" is for labels that are finer than sources.
        seed: of what is drawn and the intervals.

    Returns:
        What `measure_information` does, with "unmatched", the clips with labels that the folder hasn't.

    Raises:
        FileNotFoundError, OSError: if there is no such folder or file.
        ValueError: as `evaluate_retrieval` and `measure_information` have it, and for labels that aren't such,
            or of no clip in the folder.
        ImportError: if scipy or, for labels, scikit-learn isn't installed.
    """
    folder = FeatureFolder(features)
    rows, chosen = measured_rows(folder, trained_in, rows)
    known = {} if labels is None else read_labels(labels)
    labelled = sorted({id for values in known.values() for id in values})
    unmatched = len(set(labelled).difference(folder.ids))
    if labelled and unmatched == len(labelled):
        raise ValueError(
            f"{labels} has labels of other clips than {features} holds: of {listed(labelled, 3)}, not of "
            f"{listed(folder.ids, 3)}"
        )
    return {
        **measure_information(folder, projector, chosen, known, apart=apart, seed=seed),
        "rows": rows,
        "unmatched": unmatched,
        "provenance": {
            **_provenance(folder, projector, seed),
            "labels": None if labels is None else _sha256(labels),
        },
    }


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
        references: JSON Lines; see `captions.read_references`. Where they say what sounds and what is silent
            (`captions.read_things`), it is counted whether captions name it; where they say of which film clips are
            (`captions.read_sources`), intervals are over films.
        metrics: some of `captions.METRICS`; none if only a judge is asked.
        bertscore: the model for it.
        clipscore: the model for it.
        judge: who scores the captions, too.
        judged: the judge's file of answers, made or continued.
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
                # Of a film the judge has the references alone.
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
            "captions": _sha256(captions),
            "references": None if references is None else _sha256(references),
        },
    }


def _told(captions: str | os.PathLike[str], said: Sequence[Caption]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the rows of `llava-soundclip caption` tell besides: each setting's options, and each clip's map."""
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


def _provenance(folder: FeatureFolder, projector: Projector | None, seed: int) -> dict[str, Any]:
    """What figures of a features folder were made of."""
    return {
        "library": __version__,
        "torch": torch.__version__,
        "seed": seed,
        "features": folder.digest(),
        "encoder": dict(folder.header.encoder),
        "tower": folder.header.tower,
        "projector": None if projector is None else projector.config,
    }


def _sha256(path: str | os.PathLike[str]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def measured_rows(
    folder: FeatureFolder, projector: str | os.PathLike[str] | None, rows: str | None = None
) -> tuple[str, Tensor]:
    """Which rows are measured: "validation" or "all", and (n,) integers. Arguments are `evaluate_retrieval`'s.

    Raises:
        ValueError: for something else, or `rows="validation"` of a folder that the projector wasn't trained on.
    """
    if rows not in ("validation", "all", None):
        raise ValueError(f"rows are validation or all, not {rows!r}")
    path = None if projector is None else Path(projector) / RECIPE
    trained = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    is_its_own = trained is not None and trained["features"] == folder.digest()
    if rows == "all" or (rows is None and not is_its_own):
        return "all", torch.arange(len(folder))
    if not is_its_own or trained is None:
        raise ValueError(
            f"what was kept aside is only known of the folder that the projector was trained on: "
            f"{'there is no ' + RECIPE + ' with it' if trained is None else 'that is another one'}"
        )
    recipe = trained["recipe"]
    return "validation", split_by_source(folder.sources, recipe["validation"], recipe["seed"])[1]
