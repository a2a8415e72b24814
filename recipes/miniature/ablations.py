"""Tables 7, 8 and 10 of the paper on the miniature's world: losses, poolings of Whisper's blocks, its last n blocks.

Each seed holds out one recording of every kind that has several, and trains projectors on all others with
`llava_soundclip.training`. Retrieval is then measured on variations of the held-out recordings. An interrupted run
resumes.
Writes `figures/ablations.json`, and from it docs/ablations.md and its plot.

python recipes/miniature/ablations.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from card import table, write_between_marks
from common import parser, start
from settings import ABLATIONS, DOCS
from sound_projector import RECIPE, kinds_of, make_features, mean_cls, nearest
from torch import Tensor
from world import SOUNDING

from llava_soundclip.alignment.projector import Projector
from llava_soundclip.evaluation.retrieval import ITEMS, retrieval
from llava_soundclip.features import FeatureFolder, FeatureWriter
from llava_soundclip.training.fit import LAST, Model, Recipe, train

SEEDS = 5
BOTH = "infonce+distribution"


@dataclass(frozen=True)
class Row:
    """A row of one of the paper's tables.

    Attributes:
        name: the row's name in the paper.
        loss: the recipe's loss.
        fusion: how Whisper's blocks are pooled.
        n: number of blocks for "last_n".
        paper: the paper's mean ranks among 100, A2V and V2A; None if it has no such row.
    """

    name: str
    loss: str = BOTH
    fusion: str = "average_all"
    n: int | None = None
    paper: tuple[float, float] | None = None

    @property
    def key(self) -> str:
        return f"{self.loss}, {self.fusion}{'' if self.n is None else f' {self.n}'}"


TABLES: dict[str, tuple[Row, ...]] = {
    "Table 7: losses (average of all blocks)": (
        Row("Cosine Similarity", "cosine", paper=(39.1, 18.8)),
        Row("MSE Loss", "mse", paper=(48.3, 38.5)),
        Row("Distribution Matching", "distribution", paper=(37.8, 16.6)),
        Row("InfoNCE", "infonce", paper=(14.3, 12.2)),
        Row("InfoNCE + Distribution Match", BOTH, paper=(12.4, 11.6)),
    ),
    "Table 8: poolings (InfoNCE + Distribution Match)": (
        Row("Final-layer only", fusion="final_only", paper=(38.8, 19.7)),
        Row("Middle-layer only", fusion="middle_only", paper=(28.3, 23.2)),
        Row("Last-n layers (n=1)", fusion="final_only", paper=(38.8, 19.7)),
        Row("Last-n layers (n=2)", fusion="last_n", n=2, paper=(27.4, 16.4)),
        Row("Last-n layers (n=3)", fusion="last_n", n=3, paper=(27.4, 16.4)),
        Row("Average-all layers", paper=(11.4, 10.7)),
        Row("Weighted-sum-all layers", fusion="weighted_sum", paper=(13.6, 12.0)),
    ),
    "Table 10: last n blocks (InfoNCE)": (
        Row("1", "infonce", "last_n", 1, (38.8, 19.7)),
        Row("2", "infonce", "last_n", 2, (37.1, 23.8)),
        Row("3", "infonce", "last_n", 3, (27.4, 16.4)),
        Row("4, all of tiny.en's", "infonce"),
    ),
}


@dataclass
class Rows:
    """Rows of features: sounds (n, L, d_a), CLS tokens (n, D), their kinds and sources."""

    audio: Tensor
    cls: Tensor
    kinds: list[str]
    sources: list[str]

    @classmethod
    def of(cls, *folders: FeatureFolder) -> Rows:
        """The rows of several folders."""
        parts = [folder.rows(torch.arange(len(folder))) for folder in folders]
        return cls(
            *(torch.cat(column) for column in zip(*parts, strict=True)),
            [kind for folder in folders for kind in kinds_of(folder)],
            [source for folder in folders for source in folder.sources],
        )

    def split(self, sources: Collection[str]) -> tuple[Rows, Rows]:
        """Rows of some sources, and all other rows."""

        def take(chosen: list[int]) -> Rows:
            kinds, origins = ([names[i] for i in chosen] for names in (self.kinds, self.sources))
            return Rows(self.audio[chosen], self.cls[chosen], kinds, origins)

        wanted = [source in sources for source in self.sources]
        return take([i for i, is_in in enumerate(wanted) if is_in]), take(
            [i for i, is_in in enumerate(wanted) if not is_in]
        )


def left_out(sources: Sequence[str], seed: int) -> set[str]:
    """One recording of each kind that has several; seeds take turns through a kind's recordings."""
    chosen = set()
    for kind in SOUNDING:
        recordings = sorted({s for s in sources if s.startswith(f"{kind}, ") and "imitation" not in s})
        if len(recordings) > 1:
            chosen.add(recordings[seed % len(recordings)])
    return chosen


def figures(f_a: Tensor, rows: Rows, means: Tensor, seed: int) -> dict[str, float]:
    """Retrieval of vectors (n, D) and their pictures, and the share of vectors that are nearest to their own kind."""
    found = retrieval(f_a, rows.cls, seed=seed)
    told = [name == kind for name, kind in zip(nearest(f_a, means), rows.kinds, strict=True)]
    ranks = {
        f"{side} {name}": value for side, part in found.items() for name, value in part.as_dict().items()
    }
    norm = (f_a.norm(dim=1).mean() / rows.cls.norm(dim=1).mean()).item()
    return ranks | {"kind told": mean(told), "norm": norm, "n": len(rows.kinds)}


def measure(row: Row, folder: Path, unseen: Rows, means: Tensor, seed: int) -> dict[str, float]:
    """Train on a folder and measure the last checkpoint on held-out rows; no checkpoint is selected."""
    out = folder.with_name("ablation-projector")
    shutil.rmtree(out, ignore_errors=True)
    recipe = Recipe(
        loss=row.loss,
        fusion=row.fusion,  # type: ignore[arg-type]
        n=row.n,
        learning_rate=RECIPE["learning-rate"],
        validation=RECIPE["validation"],
        seed=seed,
    )
    train(folder, out, recipe)
    projector = Projector.from_pretrained(out / LAST)
    with torch.no_grad():
        f_a = Model(projector, row.fusion, row.n)(unseen.audio)  # type: ignore[arg-type]
    return figures(f_a, unseen, means, seed)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over the seeds: "12.4 ± 1.1"."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def render(results: Mapping[str, Mapping[str, dict[str, float]]]) -> str:
    """All tables, with the paper's figures beside ours."""
    head = ("", "A2V mean rank", "V2A mean rank", "A2V R@1", "R@10", "kind told", "norm")

    def line(name: str, key: str) -> list[str]:
        seeds = list(results[key].values())
        columns = [("A2V mean_rank", 1), ("V2A mean_rank", 1), ("A2V R@1", 2), ("A2V R@10", 2)]
        columns += [("kind told", 2), ("norm", 2)]
        return [name, *(spread([figure[column] for figure in seeds], digits) for column, digits in columns)]

    def behind(key: str, best: str) -> str:
        """Difference in A2V mean rank from the paper's choice, paired by seed."""
        pairs = [
            (found["A2V mean_rank"], results[best][seed]["A2V mean_rank"])
            for seed, found in results[key].items()
        ]
        return "" if key == best else spread([one - other for one, other in pairs])

    parts = []
    for title, rows in TABLES.items():
        best = min((row for row in rows if row.fusion == "average_all"), key=lambda row: row.loss != BOTH).key
        lines = [
            [*line(row.name, row.key), behind(row.key, best), *map(str, row.paper or ("", ""))]
            for row in rows
        ]
        own = (*head, "A2V behind the paper's choice, by seed", "paper: A2V", "V2A")
        parts.append(f"### {title}\n\n{table(own, lines)}")
    controls = [line(name, key)[:-1] for key, name in CONTROLS.items()]
    chance = ["chance", f"{(ITEMS + 1) / 2}", f"{(ITEMS + 1) / 2}", f"{1 / ITEMS:.2f}", f"{10 / ITEMS:.2f}"]
    chance += [f"{1 / len(SOUNDING):.2f}"]
    parts.append(f"### Controls\n\n{table(head[:-1], [*controls, chance])}")
    return "\n".join(parts)


CONTROLS = {
    "raw": "raw, the average of all blocks, unprojected",
    "perfect ear": "a perfect ear: the mean CLS of the sound's kind",
}


def plot(results: Mapping[str, Mapping[str, dict[str, float]]], path: Path) -> None:
    """Plot the mean ranks of every seed, and the paper's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(rows) for rows in TABLES.values()]
    figure, panels = pyplot.subplots(
        len(TABLES), 1, figsize=(7, 7), sharex=True, height_ratios=heights, layout="constrained"
    )
    for panel, (title, rows) in zip(panels, TABLES.items(), strict=True):
        for at, row in enumerate(rows):
            for side, colour, shift in (("A2V", "tab:blue", -0.15), ("V2A", "tab:orange", 0.15)):
                values = [found[f"{side} mean_rank"] for found in results[row.key].values()]
                height = [at + shift] * len(values)
                panel.plot(values, height, "o", color=colour, alpha=0.5, label=f"{side}, a seed each")
                if row.paper is not None:
                    theirs = row.paper[side == "V2A"]
                    panel.plot(theirs, at + shift, "x", color=colour, label=f"{side}, the paper")
        panel.axvline((ITEMS + 1) / 2, color="grey", linestyle=":", label="chance")
        perfect = mean(found["A2V mean_rank"] for found in results["perfect ear"].values())
        panel.axvline(perfect, color="grey", linestyle="--", label="a perfect ear")
        panel.set_yticks(range(len(rows)), [row.name for row in rows])
        panel.invert_yaxis()
        panel.set_title(title, fontsize=10, loc="left")
    panels[-1].set_xlabel("mean rank of 100, 1 is best")
    labels = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Train what is missing, then write the figures, the page and the plot."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=ABLATIONS, help="JSON file for the figures")
    arguments.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds")
    arguments = arguments.parse_args()
    known, unseen = make_features(start(arguments), arguments)
    everything, means = Rows.of(known, unseen), mean_cls(known)
    results: dict[str, dict[str, Any]] = (
        json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    )

    def keep(key: str, seed: int, found: dict[str, float]) -> None:
        results.setdefault(key, {})[str(seed)] = {name: round(value, 4) for name, value in found.items()}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{key}, seed {seed}: {results[key][str(seed)]}", flush=True)

    for seed in range(arguments.seeds):
        recordings = left_out(everything.sources, seed)
        fold = arguments.work / "ablation-features"
        shutil.rmtree(fold, ignore_errors=True)
        tested, kept = everything.split(recordings)
        with FeatureWriter(fold, known.header) as writer:
            for number, (source, audio, cls) in enumerate(
                zip(kept.sources, kept.audio, kept.cls, strict=True)
            ):
                writer.add(f"{number:05}", source, audio, cls)
        truth = torch.stack([means[SOUNDING.index(kind)] for kind in tested.kinds])
        keep("raw", seed, figures(tested.audio.mean(1), tested, means, seed))
        keep("perfect ear", seed, figures(truth, tested, means, seed))
        for row in {row.key: row for rows in TABLES.values() for row in rows}.values():
            if str(seed) not in results.get(row.key, {}):
                keep(row.key, seed, measure(row, fold, tested, means, seed))
    write_between_marks(DOCS / "ablations.md", render(results))
    plot(results, DOCS / "images" / "ablations.png")


if __name__ == "__main__":
    main()
