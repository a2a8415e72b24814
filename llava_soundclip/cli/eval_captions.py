"""The command `llava-soundclip eval captions`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.evaluation.output import interval_text, write_figures


def captions(
    captions: Annotated[
        Path, typer.Argument(help="JSON Lines file, such as the output of `llava-soundclip caption --out`.")
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            help='JSON Lines: {"id": ..., "references": [...]}. CLIPScore needs none. Ids may also match by file name.'
        ),
    ] = None,
    metrics: opt.Metrics = "all",
    bertscore: opt.BERTScoreModel = "roberta-large",
    clipscore: opt.CLIPScoreModel = "openai/clip-vit-base-patch32",
    against: Annotated[
        str | None,
        typer.Option(help="Baseline setting: the paired differences of all others from it are shown."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge, as openai:MODEL; it scores six dimensions from 1 to 5. Needs OPENAI_API_KEY."
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="Server with OpenAI's API; by default OPENAI_BASE_URL.")
    ] = None,
    judged: Annotated[
        Path | None,
        typer.Option(
            help="File for the judge's answers, from which a run resumes; by default next to the captions."
        ),
    ] = None,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="Maximum rate of requests to the judge.")
    ] = None,
    input_price: Annotated[
        float | None, typer.Option(help="Price of a million tokens that the judge reads.")
    ] = None,
    output_price: Annotated[
        float | None, typer.Option(help="Price of a million tokens that the judge writes.")
    ] = None,
    device: opt.Device = None,
    seed: Annotated[int, typer.Option(help="Random seed for the judge's order and its intervals.")] = 0,
    out: opt.Json = None,
) -> None:
    """Score captions against references and pictures (Tables 12 and 13), and with a judge (Table 11)."""
    from llava_soundclip.evaluation.captions import evaluate_captions
    from llava_soundclip.evaluation.judge import Judge

    wanted = opt.named_metrics(metrics)
    provider, _, model = (judge or "openai:").partition(":")
    if provider != "openai" or (judge is not None and not model):
        raise typer.BadParameter(f"--judge must be openai:MODEL, not {judge}")
    opt.prepare_file(out, "--json")
    answers = judged or captions.with_suffix(".judged.jsonl")
    if judge is not None:
        opt.prepare_file(answers, "--judged")

    def saved() -> str:
        there = judge is not None and answers.is_file()
        return (
            f"the judge's answers so far are in {answers}, and the same command resumes"
            if there
            else "nothing was written"
        )

    with opt.exit_codes(saved):
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
        texts, pictures = opt.load_scorers(wanted, bertscore, clipscore, device)
        found = evaluate_captions(
            captions,
            references,
            wanted,
            bertscore=texts,
            clipscore=pictures,
            judge=asked,
            judged=answers,
            before_judging=lambda usage: opt.say(f"the judge: about {usage}", err=True),
        )
        opt.say(captions_text(found, against))
        if out is not None:  # pictures are found relative to it
            found["folder"] = os.path.relpath(captions.parent, out.parent)
        write_figures(out, found)


def captions_text(found: Mapping[str, Any], against: str | None = None) -> str:
    """The figures for a terminal.

    Raises:
        ValueError: if there is no setting `against`.
    """
    from llava_soundclip.evaluation.captions.naming import WHY_BLANK

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
        for setting in settings:
            figure = part["figures"].get(setting)
            if figure is None:
                why = WHY_BLANK.get(name, "the judge scored none of its captions")
                lines.append(f"  {setting:{width}}–   {why}")
                continue
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
    """The difference with the opposite sign."""
    value, low, high = (-difference[key] for key in ("value", "high", "low"))
    return {**difference, "value": value, "low": low, "high": high}
