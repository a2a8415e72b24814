"""From a model and clips to figures and a page: `eval tradeoff`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_soundclip._version import __version__
from llava_soundclip.captioning import CaptionOptions, caption_clips
from llava_soundclip.captioning.settings import describe
from llava_soundclip.clips import Clip
from llava_soundclip.evaluation.tradeoff.plan import ALPHAS, BUDGETS, partners, plan_settings
from llava_soundclip.features.splits import RECIPE as TRAINING
from llava_soundclip.files import read_json, write_file

if TYPE_CHECKING:
    from llava_soundclip.evaluation.captions import BERTScore, CLIPScore
    from llava_soundclip.patching import SoundCLIP

FEATURES, CAPTIONS, MAPS, REPORT = "features", "captions.jsonl", "maps", "report.html"
RUN = "run.json"  # the model and options of the run, so that another run doesn't continue it


@dataclass
class Measured:
    """The result of a run.

    Attributes:
        report: all figures of the page.
        bad: for each clip without features or captions, the reason, by id.
        notes: parts that couldn't be measured, and reasons why figures may be too good.
    """

    report: dict[str, Any]
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure_tradeoff(
    soundclip: "SoundCLIP",
    clips: Sequence[Clip],
    references: Path,
    out: Path,
    *,
    model: str,
    trained_in: str | Path | None = None,
    budgets: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    metrics: Sequence[str] | None = None,
    bertscore: "BERTScore | None" = None,
    clipscore: "CLIPScore | None" = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    examples: int = 6,
    seed: int = 0,
    on_start: Callable[[str, int], None] = lambda what, count: None,
    on_clips: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Measure a model's retrieval and captions, raw and projected, with controls for both.

    Writes `features/`, `retrieval.json`, `information.json`, `captions.jsonl`, `captions.json` and `report.html` into
    `out`. An interrupted run resumes. If the features are those that the projector was trained on, its training clips
    are left out. Clips whose references list "unseen" things are captioned, but have no features: their picture doesn't
    show what sounds, so retrieval could not find the pair.

    Args:
        soundclip: a patched model with a known processor. Its k applies to all settings that don't vary k; its other
            options apply to all captions.
        clips: clips whose ids are also those of the references.
        references: JSON Lines file; see `evaluate_captions`.
        out: output folder, new or from an earlier run of the same model with the same options.
        model: name of the model in rows.
        trained_in: the projector's folder, which says what its training held out.
        budgets: further values of k; by default those of Table 14 that are at most the number of patches.
        alphas: mixes; by default those of B.1, if there is a projector.
        metrics: some of `evaluation.captions.METRICS`; all by default.
        bertscore: model for BERTScore.
        clipscore: model for CLIPScore.
        max_new_tokens: maximum length of a caption in tokens.
        batch_size: clips per batch.
        examples: number of clips in the report, with maps.
        seed: random seed for draws and intervals.
        on_start: called with the name of each part and its number of steps, 0 if unknown.
        on_clips: called with the number of steps done since the last call.

    Returns:
        The figures, the clips that failed, and notes.

    Raises:
        ValueError: if clips lack references, an option is invalid, or the folder holds another run; the message names
            the differences.
        OSError: if a file can't be read or written.
        ImportError: if the extra `evaluation` isn't installed.
    """
    from llava_soundclip.captioning.lines import listed
    from llava_soundclip.evaluation.captions import METRICS, evaluate_captions, read_references, read_things
    from llava_soundclip.evaluation.information import evaluate_information
    from llava_soundclip.evaluation.output import write_figures
    from llava_soundclip.evaluation.report.page import drawn_examples, write_report
    from llava_soundclip.evaluation.retrieval import evaluate_retrieval
    from llava_soundclip.features.extract import extract_features

    metrics = METRICS if metrics is None else metrics
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics are some of {', '.join(METRICS)}, not {listed([*map(repr, unknown)])}")
    patches = soundclip.host.patches
    projector = soundclip.projector
    settings = plan_settings(
        k=soundclip.k,
        patches=patches,
        projected=projector is not None,
        budgets=[k for k in BUDGETS if k <= patches] if budgets is None else budgets,
        alphas=(ALPHAS if projector is not None else ()) if alphas is None else alphas,
    )
    _check_references(clips, read_references(references), references)
    things = read_things(references)
    out.mkdir(parents=True, exist_ok=True)
    _check_run(out / RUN, _describe(soundclip, model, max_new_tokens))

    pairs = [clip for clip in clips if clip.id not in things or not things[clip.id].unseen]
    if not pairs:
        raise ValueError(f"{references} lists unseen things for every clip: no picture shows what sounds")
    on_start("features", 0)
    made = extract_features(
        pairs, soundclip.encoder, tower_of(soundclip), out / FEATURES, batch_size=batch_size
    )
    if made.interrupted:
        raise KeyboardInterrupt
    bad = dict(made.bad)

    on_start("retrieval", 0)
    common: dict[str, Any] = {"trained_in": trained_in, "seed": seed}
    mixes = [setting.alignment for setting in settings if isinstance(setting.alignment, float)]
    found = evaluate_retrieval(out / FEATURES, projector, alphas=sorted(set(mixes)), **common)
    write_figures(out / "retrieval.json", found)
    measured = Measured({}, bad)
    on_start("information", 0)
    try:
        labels = references if things else None
        found = evaluate_information(out / FEATURES, projector, labels=labels, **common)
        write_figures(out / "information.json", found)
    except ValueError as error:  # too few clips or labels
        (out / "information.json").unlink(missing_ok=True)
        measured.notes.append(f"information was not measured: {error}")

    rows_name, trained_on = _trained_on(out / FEATURES, trained_in)
    if rows_name == "all" and trained_in is not None and (Path(trained_in) / TRAINING).is_file():
        measured.notes.append(
            f"{trained_in} was trained on other features: if they include these clips, the figures are too good"
        )
    captioned = [clip for clip in clips if clip.id not in trained_on and clip.id not in bad]
    on_start("captions", len(settings) * len(captioned))
    captions = caption_clips(
        soundclip,
        captioned,
        out / CAPTIONS,
        options=CaptionOptions(max_new_tokens=max_new_tokens, batch_size=batch_size, do_sample=False),
        settings=settings,
        model=model,
        heard=lambda good: partners(good, things),
        maps=out / MAPS,
        mapped=drawn_examples([clip.id for clip in captioned], examples, seed),
        on_clips=on_clips,
    )
    bad |= captions.bad
    on_start("scores", 0)
    found = evaluate_captions(
        out / CAPTIONS,
        references,
        metrics,
        bertscore=bertscore,
        clipscore=clipscore,
    )
    write_figures(out / "captions.json", {**found, "folder": "."})
    on_start("report", 0)
    measured.report = write_report(
        out, out / REPORT, examples=examples, seed=seed, title=f"SoundCLIP on {model}"
    )
    return measured


def tower_of(soundclip: "SoundCLIP") -> Any:
    """The model's own vision tower with its image processor, in the form that features need."""
    from PIL import Image

    from llava_soundclip.features.towers import VisionTower

    host = soundclip.host
    tower: Any = host.vision_tower
    processor = soundclip.load_processor().image_processor
    trial = processor(Image.new("RGB", (16, 16)), return_tensors="np")["pixel_values"]
    if trial.ndim == 5:
        processor = FirstTile(processor)
    inside = getattr(tower, "vision_tower", tower)  # the original package wraps CLIP's tower
    return VisionTower(inside, processor, layer=host.tower_layer)


@dataclass(frozen=True)
class FirstTile:
    """An image processor that cuts pictures into tiles, reduced to the first tile, which shows the whole picture."""

    processor: Any

    def __call__(self, pictures: Sequence[Any], **options: Any) -> dict[str, Any]:
        return {"pixel_values": self.processor(pictures, **options)["pixel_values"][:, 0]}


def _check_references(clips: Sequence[Clip], known: Mapping[str, Any], file: Path) -> None:
    from llava_soundclip.captioning.lines import listed

    missing = [clip.id for clip in clips if clip.id not in known]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(clips)} clips have no references in {file}: {listed([*map(repr, missing)], 3)}; it has "
            f"references of {listed([*map(repr, known)], 3)}"
        )
    if not clips:
        raise ValueError("there are no clips")


def _describe(soundclip: "SoundCLIP", model: str, max_new_tokens: int) -> dict[str, Any]:
    """All options that change captions: rows made with other options can't be mixed with these."""
    return {"model": model, **describe(soundclip), "k": soundclip.k, "max_new_tokens": max_new_tokens}


def _check_run(file: Path, described: Mapping[str, Any]) -> None:
    if not file.exists():
        text = json.dumps({**described, "library": __version__}, indent=2)
        write_file(file, text + "\n")
        return
    before = read_json(file)
    other = [
        f"{name} {before.get(name)!r}, not {value!r}"
        for name, value in described.items()
        if before.get(name) != value
    ]
    if other:
        raise ValueError(f"{file.parent} holds a run with {'; '.join(other)}: give another folder")


def _trained_on(features: Path, trained_in: str | Path | None) -> tuple[str, set[str]]:
    """The name of the measured rows, and the other clips, which the projector was trained on."""
    from llava_soundclip.evaluation.vectors import measured_rows
    from llava_soundclip.features.store import FeatureFolder

    folder = FeatureFolder(features)
    name, rows = measured_rows(folder, trained_in)
    return name, set(folder.ids).difference(folder.ids[row] for row in rows.tolist())
