"""Scores of captions in one or more settings, per clip, with intervals."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from llava_soundclip.captioning.lines import listed
from llava_soundclip.captioning.rows import Caption
from llava_soundclip.evaluation.captions import overlap
from llava_soundclip.evaluation.captions.models import BERTScore, CLIPScore
from llava_soundclip.evaluation.captions.naming import naming
from llava_soundclip.evaluation.captions.references import Things
from llava_soundclip.evaluation.intervals import Interval, bootstrap, difference, mean, sums_by

METRICS = ("bleu", "rouge", "bertscore", "clipscore")
KNOWN = (*METRICS, "naming")  # naming needs the things in the clips


@dataclass(frozen=True)
class CaptionScores:
    """All metrics of all clips in all settings.

    Attributes:
        clips: ids of the captioned clips, by setting.
        per_clip: (n,) float64 scores in the order of `clips`, by metric and setting. Metrics have the paper's names:
            BLEU, ROUGE-1, ROUGE-2, ROUGE-L, BERTScore, CLIPScore. Those of `naming.NAMING` are NaN if a clip has
            nothing to name. The BLEU of a clip is sentence BLEU.
        made_by: implementation, version, model and options, by metric.
        empty: ids of the clips with an empty caption, by setting; they are scored like others.
        missing: ids of the clips with references but no caption, by setting.
        bleu_counts: (n, 10) counts that BLEU is computed from, by setting; empty without BLEU.
        sources: video or recording by clip, if known: intervals are over these. A clip without one is its own source.
    """

    clips: dict[str, list[str]]
    per_clip: dict[str, dict[str, np.ndarray]]
    made_by: dict[str, dict[str, Any]]
    empty: dict[str, list[str]]
    missing: dict[str, list[str]]
    bleu_counts: dict[str, np.ndarray]
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def figures(self) -> dict[str, dict[str, Interval]]:
        """Figures by metric and setting: the mean over clips, or corpus BLEU over all captions."""
        return {
            metric: {
                setting: mean(scores[known], groups[known])
                if metric != "BLEU"
                else _of_drawn_clips(overlap.corpus_bleu, self.bleu_counts[setting], groups)
                for setting, scores in by_setting.items()
                if (known := np.isfinite(scores)).any()
                for groups in [self._groups(self.clips[setting])]
            }
            for metric, by_setting in self.per_clip.items()
        }

    def difference(self, metric: str, first: str, second: str) -> Interval:
        """A metric in one setting minus the same in another, on the clips captioned in both.

        Args:
            metric: name of a metric, such as "BLEU".
            first: a setting, such as "raw".
            second: another setting.

        Raises:
            ValueError: if there is no such metric or setting, or no clip is captioned in both.
        """
        for kind, name, known in (
            ("metric", metric, self.per_clip),
            ("setting", first, self.clips),
            ("setting", second, self.clips),
        ):
            if name not in known:
                raise ValueError(f"there is no {kind} {name!r}; there are {', '.join(known)}")
        places = {clip: row for row, clip in enumerate(self.clips[second])}
        pairs = [(row, places[clip]) for row, clip in enumerate(self.clips[first]) if clip in places]
        if not pairs:
            raise ValueError(f"no clip is captioned in both {first!r} and {second!r}")
        ours, theirs = np.array(pairs).T
        groups = self._groups([self.clips[first][row] for row in ours])
        if metric != "BLEU":
            scores = self.per_clip[metric]
            both = np.stack([scores[first][ours], scores[second][theirs]])
            known = np.isfinite(both).all(0)
            if not known.any():
                raise ValueError(f"no clip has {metric} in both {first!r} and {second!r}")
            return difference(both[0, known], both[1, known], groups[known])
        counts = np.stack([self.bleu_counts[first][ours], self.bleu_counts[second][theirs]], axis=1)
        return _of_drawn_clips(_bleu_difference, counts, groups)

    def _groups(self, clips: Sequence[str]) -> np.ndarray:
        """Numbers of the clips' sources, (n,) integers."""
        numbers: dict[tuple[bool, str], int] = {}
        sources = [(clip in self.sources, self.sources.get(clip, clip)) for clip in clips]
        return np.array([numbers.setdefault(source, len(numbers)) for source in sources], dtype=np.int64)

    def as_dict(self, pairs: Iterable[tuple[str, str]] | None = None) -> dict[str, Any]:
        """The figures and differences as plain data, for JSON.

        Args:
            pairs: pairs of settings to compare; all pairs that share clips by default.
        """
        if pairs is None:
            pairs = [
                (first, second)
                for first, second in combinations(self.clips, 2)
                if not set(self.clips[first]).isdisjoint(self.clips[second])
            ]
        pairs = list(pairs)
        return {
            "settings": {
                setting: {"clips": len(ids), "empty": self.empty[setting], "missing": self.missing[setting]}
                for setting, ids in self.clips.items()
            },
            "metrics": {
                metric: {
                    "made_by": self.made_by[metric],
                    "figures": {setting: figure.as_dict() for setting, figure in figures.items()},
                    "differences": [
                        {"first": first, "second": second, **self.difference(metric, first, second).as_dict()}
                        for first, second in pairs
                        if {first, second} <= figures.keys()
                    ],
                }
                for metric, figures in self.figures.items()
            },
        }


def score(
    captions: Sequence[Caption],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    *,
    bertscore: BERTScore | None = None,
    clipscore: CLIPScore | None = None,
    things: Mapping[str, Things] | None = None,
    sources: Mapping[str, str] | None = None,
) -> CaptionScores:
    """Score captions.

    Args:
        captions: captions in one or more settings, at most one per clip and setting.
        references: references by clip; clips without a caption are listed as missing. CLIPScore needs no references.
        metrics: some of `METRICS`, and "naming"; "rouge" is all three.
        bertscore: model for BERTScore; roberta-large by default.
        clipscore: model for CLIPScore; CLIP ViT-B/32 by default.
        things: the things in each clip, for "naming".
        sources: video or recording by clip: intervals are over these. A clip without one is its own source.

    Raises:
        ValueError: if there is no caption or no such metric, or a clip is twice in a setting. Also if a clip lacks a
            reference, a picture for CLIPScore, or its things for naming, or if a score is NaN or infinite; the message
            names the clips.
        MediaError: if a picture can't be read.
        ImportError: if a metric's package isn't installed.
    """
    # A clip's picture may be given in one setting only.
    pictures = {caption.id: caption.image for caption in captions if caption.image is not None}
    _check(captions, references, pictures, things or {}, metrics)
    # In the order of clips, so that shared references and pictures are computed once.
    first_seen = {caption.id: row for row, caption in reversed(list(enumerate(captions)))}
    captions = sorted(captions, key=lambda caption: first_seen[caption.id])
    texts = [caption.text for caption in captions]
    wanted = [references.get(caption.id, ()) for caption in captions]
    values: dict[str, np.ndarray] = {}
    made_by: dict[str, dict[str, Any]] = {}
    counts = np.zeros((len(captions), 0))
    if "bleu" in metrics:
        values["BLEU"], counts, made_by["BLEU"] = overlap.bleu(texts, wanted)
    if "rouge" in metrics:
        found, about = overlap.rouge(texts, wanted)
        values |= found
        made_by |= dict.fromkeys(found, about)
    if "bertscore" in metrics:
        bertscore = bertscore or BERTScore()
        values["BERTScore"] = bertscore.score(texts, wanted)
        made_by["BERTScore"] = bertscore.about(texts)
    if "clipscore" in metrics:
        clipscore = clipscore or CLIPScore()
        values["CLIPScore"] = clipscore.score(
            texts, [caption.image or pictures[caption.id] for caption in captions]
        )
        made_by["CLIPScore"] = clipscore.about(texts)
    for metric, column in values.items():  # naming has NaN, for clips without such things
        bad = [caption.id for caption, value in zip(captions, column, strict=True) if not np.isfinite(value)]
        if bad:
            raise ValueError(
                f"{metric} is NaN or infinite for {len(bad)} of {len(captions)} captions: {listed(bad)}. Does its model "
                "have broken weights?"
            )
    if "naming" in metrics:
        found, about = naming(
            texts,
            [caption.id for caption in captions],
            things or {},
            [caption.played for caption in captions],
        )
        values |= found
        made_by |= dict.fromkeys(found, about)

    rows: dict[str, list[int]] = {}
    for row, caption in enumerate(captions):
        rows.setdefault(caption.setting, []).append(row)
    clips = {setting: [captions[row].id for row in own] for setting, own in rows.items()}
    return CaptionScores(
        clips=clips,
        per_clip={
            metric: {setting: column[own] for setting, own in rows.items()}
            for metric, column in values.items()
        },
        made_by=made_by,
        empty={
            setting: [captions[row].id for row in own if not captions[row].text.strip()]
            for setting, own in rows.items()
        },
        missing={setting: _others(references, ids) for setting, ids in clips.items()},
        bleu_counts={setting: counts[own] for setting, own in rows.items()} if "bleu" in metrics else {},
        sources=sources or {},
    )


def _check(
    captions: Sequence[Caption],
    references: Mapping[str, Sequence[str]],
    pictures: Mapping[str, Path],
    things: Mapping[str, Things],
    metrics: Sequence[str],
) -> None:
    unknown = [metrics] if isinstance(metrics, str) else [name for name in metrics if name not in KNOWN]
    if unknown or not metrics:
        raise ValueError(f"metrics are a list of {', '.join(KNOWN)}, not {listed([*map(repr, unknown)])}")
    if not captions:
        raise ValueError("there are no captions")
    times = Counter((caption.setting, caption.id) for caption in captions)
    twice = [f"{clip} in {setting}" for (setting, clip), found in times.items() if found > 1]
    if twice:
        raise ValueError(f"clips are captioned twice in a setting: {listed(twice)}")
    clips = list(dict.fromkeys(caption.id for caption in captions))
    if set(metrics) - {"clipscore", "naming"}:
        bare = [clip for clip in clips if not all(text.strip() for text in references.get(clip) or [""])]
        if bare:
            others = _others(references, clips)
            unmatched = f"; references of clips without captions: {listed(others, 3)}" if others else ""
            raise ValueError(
                f"{len(bare)} of {len(clips)} clips have no reference, or an empty one: {listed(bare)}{unmatched}"
            )
    if "clipscore" in metrics:
        unseen = [clip for clip in clips if clip not in pictures]
        if unseen:
            raise ValueError(
                f'clipscore needs an "image" of each clip, but {len(unseen)} of {len(clips)} have none: '
                f"{listed(unseen)}. Name them, or leave clipscore out."
            )
        files = dict.fromkeys(str(file) for file in pictures.values() if not file.is_file())
        if files:
            raise ValueError(f"{len(files)} pictures are no files: {listed(list(files))}")
    if "naming" in metrics:
        played = [caption.played for caption in captions if caption.played is not None]
        told = list(dict.fromkeys([*clips, *played]))
        unknown = [clip for clip in told if clip not in things]
        if unknown:
            raise ValueError(
                f'naming needs "sounding" and "silent" of each clip, but {len(unknown)} of {len(told)} have neither: '
                f"{listed(unknown)}"
            )


def _others(references: Iterable[str], captioned: Iterable[str]) -> list[str]:
    known = set(captioned)
    return [clip for clip in references if clip not in known]


def _bleu_difference(counts: np.ndarray) -> np.ndarray:
    bleu = overlap.corpus_bleu(counts)
    return bleu[..., 0] - bleu[..., 1]


def _of_drawn_clips(
    figure: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, groups: np.ndarray
) -> Interval:
    """Bootstrap a figure of sums over clips: sources are drawn and their counts added; no text is read again.

    Args:
        figure: function from sums (..., *shape) to figures (...).
        counts: (n, *shape) counts of each clip.
        groups: (n,) integers, the source of each clip.
    """
    counts = sums_by(groups, counts)
    n, *shape = counts.shape

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        clips = drawn.reshape(-1, n).astype(np.int64)
        draws = np.arange(len(clips))[:, None] * n
        times = np.bincount((clips + draws).ravel(), minlength=clips.size).reshape(-1, n)
        sums = times.astype(np.float64) @ counts.reshape(n, -1)
        return figure(sums.reshape(*drawn.shape[:-1], *shape))

    return bootstrap(np.arange(n), statistic=statistic)
