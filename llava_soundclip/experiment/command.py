"""The command `llava-soundclip eval tradeoff`. Imports what is heavy when it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.commands import (
    DEMO,
    ENCODER_OPTION_HELP,
    encoder_options,
    load_bertscore,
    load_clipscore,
    named_model,
)
from llava_soundclip.running import default_device, failures_text, progress_bar


def tradeoff(
    clips: Annotated[
        list[str],
        typer.Argument(help="Films, sounds, folders, patterns, tables, tars: what `features` takes."),
    ],
    references: Annotated[
        Path,
        typer.Option(
            help='JSON Lines: {"id": ..., "references": [...], "sounding": [...], "silent": [...]}.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; what is in it is done already.")],
    model: Annotated[str, typer.Option(help="A LLaVA's Hub id or folder; the miniature by default.")] = DEMO,
    encoder: Annotated[str | None, typer.Option(help="See `llava-soundclip encoders`.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The encoder's weights, or demo.")] = None,
    encoder_option: Annotated[list[str] | None, typer.Option(help=ENCODER_OPTION_HELP)] = None,
    projector: Annotated[str | None, typer.Option(help="Folder, .safetensors file or Hub id.")] = None,
    k: Annotated[int | None, typer.Option(min=0, help="Patches that stay, of what isn't about k.")] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Further k, such as 15,64; by default those of Table 14 that fit.")
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help='Mixes of raw (1) and projected (0); 0.25,0.5,0.75 by default; "" none.'),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="zero or drop.")] = None,
    norm: Annotated[str | None, typer.Option(help="keep or match.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    metrics: Annotated[str, typer.Option(help="all, or some of bleu,rouge,bertscore,clipscore.")] = "all",
    bertscore: Annotated[
        str, typer.Option(help="BERTScore's text encoder: Hub id, folder or demo.")
    ] = "roberta-large",
    clipscore: Annotated[
        str, typer.Option(help="CLIPScore's CLIP: Hub id, folder or demo.")
    ] = "openai/clip-vit-base-patch32",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a caption at most.")] = 128,
    examples: Annotated[int, typer.Option(min=0, help="Clips that the report shows.")] = 6,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and the intervals.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto ...")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """What projecting gains in retrieval and costs in captions, measured for your model, with controls, in one go.

    Writes features, figures, captions in every setting and report.html. A run that was stopped goes on where it was.
    A judge comes after it: llava-soundclip eval captions OUT/captions.jsonl --judge ...
    """
    from llava_soundclip.cli import load_soundclip
    from llava_soundclip.evaluation.captions import METRICS
    from llava_soundclip.experiment.run import REPORT, measure_tradeoff
    from llava_soundclip.features.sources import read_clips

    options: dict[str, Any] = {
        "encoder": encoder,
        "projector": projector,
        "k": k,
        "tokens": tokens,
        "norm": norm,
    }
    given = {name: value for name, value in options.items() if value is not None}
    given |= encoder_options(encoder_option or ())
    wanted = METRICS if metrics == "all" else tuple(metrics.split(","))
    where = default_device() if device in (None, "auto") else device
    bar = progress_bar(shown=True, unit="captions")
    tasks: list[Any] = []

    def start(what: str, count: int) -> None:
        while tasks:
            bar.remove_task(tasks.pop())
        tasks.append(bar.add_task(what, total=count or None))

    try:
        if checkpoint is not None:
            given["checkpoint"] = named_model(checkpoint, "encoder")
        found = read_clips(clips)
        soundclip = load_soundclip(model, device=device, dtype=dtype, **given)
        if prompt is not None:
            soundclip.prompt = prompt
        with bar:
            measured = measure_tradeoff(
                soundclip,
                found,
                references,
                out,
                model=model,
                trained_in=projector,
                budgets=None if budgets is None else _numbers(budgets, int, "--budgets"),
                alphas=None if alphas is None else _numbers(alphas, float, "--alphas"),
                metrics=wanted,
                bertscore=load_bertscore(bertscore, where) if "bertscore" in wanted else None,
                clipscore=load_clipscore(clipscore, where) if "clipscore" in wanted else None,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                examples=examples,
                seed=seed,
                on_start=start,
                on_clips=lambda count: bar.advance(tasks[-1], count),
            )
    except KeyboardInterrupt:
        typer.echo("Stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(summary_text(measured.report))
    for note in measured.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"\n{out / REPORT}")
    if measured.bad:
        typer.echo(f"\n{failures_text(measured.bad, len(found), 'could not be measured')}", err=True)
        raise typer.Exit(1)


def summary_text(report: dict[str, Any]) -> str:
    """The report's answers for a terminal."""
    lines = []
    for part in report["summary"]:
        lines.append(f"{part['question']} ({part['measured']})")
        lines += [f"  {answer}" for answer in part["answers"]]
    return "\n".join(lines)


def _numbers(text: str, kind: type, option: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option} are numbers with commas between them, not {text!r}") from None
