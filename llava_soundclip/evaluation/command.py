"""The commands `llava-soundclip eval retrieval`, `captions` and `information`. Import what is heavy when they run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.evaluation.information.command import information
from llava_soundclip.evaluation.output import interval_text, write_figures

app = typer.Typer(
    no_args_is_help=True,
    help="Measure retrieval, captions and information, as the paper does and with intervals.",
)


@app.command()
def retrieval(
    features: Annotated[Path, typer.Argument(help="Folder made by `llava-soundclip features`.")],
    projector: Annotated[
        str | None,
        typer.Option(help="Folder, .safetensors file or Hub id; without one only raw is measured."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            help="validation: what the projector's training kept aside of this folder, its default where it was "
            "trained on it; all: every clip."
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Among all clips at once, not 100 of up to 500, five times.")
    ] = False,
    right: Annotated[
        str, typer.Option(help="pair: a clip's own picture is right; source: any of its film's.")
    ] = "pair",
    alphas: Annotated[
        str | None,
        typer.Option(help="Mixes of raw (1) and projected (0) to measure, too, such as 0.25,0.5,0.75."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws and the intervals.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='With --full, rank on a Ray cluster: "auto" for the one that this machine is part of, HOST:PORT, '
            'or "local" to start Ray here.',
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
) -> None:
    """Sounds find pictures and pictures find sounds (Appendix E): mean rank and recall, raw and projected."""
    from llava_soundclip.alignment.projector import Projector
    from llava_soundclip.evaluation.run import evaluate_retrieval

    if ray is not None and not full:
        raise typer.BadParameter("--ray goes with --full alone: draws of 100 need no cluster")
    try:
        found = evaluate_retrieval(
            features,
            None if projector is None else Projector.from_pretrained(projector),
            rows=rows,
            trained_in=projector,
            full=full,
            right=right,
            alphas=[float(alpha) for alpha in alphas.split(",")] if alphas else [],
            seed=seed,
            ray=ray,
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(retrieval_text(found))
    write_figures(out, found)


@app.command()
def captions(
    captions: Annotated[
        Path, typer.Argument(help="JSON Lines, such as `llava-soundclip caption --out` writes.")
    ],
    references: Annotated[
        Path | None, typer.Option(help='JSON Lines: {"id": ..., "references": [...]}; CLIPScore needs none.')
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="all, or some of bleu,rouge,bertscore,clipscore; none with --judge alone.")
    ] = "all",
    bertscore: Annotated[
        str, typer.Option(help="BERTScore's text encoder: Hub id, folder or demo.")
    ] = "roberta-large",
    clipscore: Annotated[
        str, typer.Option(help="CLIPScore's CLIP: Hub id, folder or demo.")
    ] = "openai/clip-vit-base-patch32",
    against: Annotated[
        str | None, typer.Option(help="Show how far every setting is from this one, clip by clip.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="openai:MODEL scores six dimensions from 1 to 5 (OPENAI_API_KEY).")
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Any server that speaks OpenAI's API; OPENAI_BASE_URL by default.")
    ] = None,
    judged: Annotated[
        Path | None,
        typer.Option(help="File of the judge's answers, gone on with; beside the captions by default."),
    ] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="Of the judge, at most.")] = None,
    input_price: Annotated[
        float | None, typer.Option(help="Of a million tokens that the judge reads.")
    ] = None,
    output_price: Annotated[float | None, typer.Option(help="Of a million tokens that it writes.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    seed: Annotated[int, typer.Option(help="Of the judge's order and its intervals.")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
) -> None:
    """Score captions against references and pictures (Tables 12 and 13), and by a judge (Table 11)."""
    from llava_soundclip.commands import load_bertscore, load_clipscore
    from llava_soundclip.evaluation.captions import METRICS
    from llava_soundclip.evaluation.judge import Judge
    from llava_soundclip.evaluation.run import evaluate_captions
    from llava_soundclip.running import default_device

    wanted = {"all": METRICS, "none": ()}.get(metrics) or tuple(
        name for name in metrics.split(",") if name != "none"
    )
    provider, _, model = (judge or "openai:").partition(":")
    if provider != "openai" or (judge is not None and not model):
        raise typer.BadParameter(f"--judge is openai:MODEL, not {judge}")
    where = device or default_device()
    try:
        asked = None
        if judge is not None:
            asked = Judge(
                model,
                base_url=judge_url,
                seed=seed,
                requests_per_minute=requests_per_minute,
                input_price=input_price,
                output_price=output_price,
            )
        found = evaluate_captions(
            captions,
            references,
            wanted,
            bertscore=load_bertscore(bertscore, where) if "bertscore" in wanted else None,
            clipscore=load_clipscore(clipscore, where) if "clipscore" in wanted else None,
            judge=asked,
            judged=judged or captions.with_suffix(".judged.jsonl"),
            before_judging=lambda usage: typer.echo(f"the judge: about {usage}", err=True),
        )
        text = captions_text(found, against)
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(text)
    if out is not None:  # so that pictures are found from there
        found["folder"] = os.path.relpath(captions.parent, out.parent)
    write_figures(out, found)


app.command()(information)


def captions_text(found: Mapping[str, Any], against: str | None = None) -> str:
    """The figures for a terminal.

    Raises:
        ValueError: if there is no setting `against`.
    """
    settings = list(found["settings"])
    if against is not None and against not in settings:
        raise ValueError(f"there is no setting {against!r}; there are {', '.join(settings)}")
    parts = {**found["metrics"], **found["judge"].get("dimensions", {})}
    width = max(map(len, settings)) + 2
    lines = []
    for name, part in parts.items():
        lines.append(f"{name}")
        apart = {
            row["first"] if row["second"] == against else row["second"]: (
                row if row["second"] == against else _turned(row)
            )
            for row in part["differences"]
            if against in (row["first"], row["second"])
        }
        for setting, figure in part["figures"].items():
            more = f"   {interval_text(apart[setting])} above {against}" if setting in apart else ""
            lines.append(f"  {setting:{width}}{interval_text(figure)}{more}")
    for setting, about in found["settings"].items():
        for what in ("empty", "missing"):
            if about.get(what):
                lines.append(f"{setting}: {len(about[what])} captions {what}")
    for setting, counts in found["judge"].get("counts", {}).items():
        others = {reason: count for reason, count in counts.items() if reason != "scored"}
        if others:
            told = ", ".join(f"{count} {reason}" for reason, count in others.items())
            lines.append(f"{setting}: not scored by the judge: {told}")
    return "\n".join(lines)


def _turned(difference: Mapping[str, Any]) -> dict[str, Any]:
    """The same difference the other way round."""
    value, low, high = (-difference[key] for key in ("value", "high", "low"))
    return {**difference, "value": value, "low": low, "high": high}


def retrieval_text(found: Mapping[str, Any]) -> str:
    """The figures for a terminal."""
    from llava_soundclip.evaluation.retrieval import FIGURES

    lines = [f"{found['clips']} clips ({found['rows']}), {found['protocol']}", ""]
    lines.append(f"{'':16}" + "".join(f"{name:>26}" for name in FIGURES))
    for name, sides in found["figures"].items():
        for side, figures in sides.items():
            cells = "".join(f"{interval_text(figures[figure]):>26}" for figure in FIGURES)
            lines.append(f"{name + ' ' + side:16}{cells}")
    lines.append(f"{'chance':16}" + "".join(f"{found['chance'][name]:>26.3g}" for name in FIGURES))
    return "\n".join(lines)
