"""The command `llava-soundclip eval tradeoff`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.demo.parts import DEMO
from llava_soundclip.running import progress_bar

OUTCOME = "could not be measured"


def tradeoff(
    clips: opt.Clips,
    references: Annotated[
        Path,
        typer.Option(
            help='JSON Lines: {"id": ..., "references": [...], "sounding": [...], "silent": [...]}.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results; an interrupted run in it resumes.")],
    model: opt.Model = DEMO,
    encoder: opt.Encoder = None,
    checkpoint: opt.Checkpoint = None,
    encoder_option: opt.EncoderOption = None,
    projector: opt.Projector = None,
    k: opt.Budget = None,
    budgets: Annotated[
        str | None,
        typer.Option(help="Further values of k, such as 15,64; by default those of Table 14 that fit."),
    ] = None,
    alphas: Annotated[
        str | None,
        typer.Option(help='Mixes of raw (1) and projected (0); by default 0.25,0.5,0.75; "" for none.'),
    ] = None,
    tokens: opt.Tokens = None,
    norm: opt.Norm = None,
    prompt: opt.Prompt = None,
    metrics: opt.Metrics = "all",
    bertscore: opt.BERTScoreModel = "roberta-large",
    clipscore: opt.CLIPScoreModel = "openai/clip-vit-base-patch32",
    batch_size: opt.Batch = 8,
    max_new_tokens: opt.MaxNewTokens = 128,
    examples: Annotated[int, typer.Option(min=0, help="Number of clips that the report shows.")] = 6,
    seed: Annotated[int, typer.Option(help="Random seed for draws and intervals.")] = 0,
    format: opt.TableFormat = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = None,
    picture_column: opt.PictureColumn = None,
    start_column: opt.StartColumn = None,
    end_column: opt.EndColumn = None,
    id_column: opt.IdColumn = None,
    source_column: opt.SourceColumn = None,
    track: opt.SoundTrack = None,
    max_seconds: opt.MaxSeconds = opt.MAX_SECONDS,
    max_pixels: opt.MaxPixels = opt.MAX_PIXELS,
    device: opt.LLaVADevice = None,
    dtype: opt.LLaVADType = "auto",
    trust_remote_code: opt.TrustRemoteCode = False,
) -> None:
    """Measure the gain in retrieval and the loss in captions from projecting, with controls, in one run.

    Writes features, figures, captions in every setting and report.html. An interrupted run resumes.
    For a judge, run afterwards: llava-soundclip eval captions OUT/captions.jsonl --judge ...
    """
    hearing = opt.ModelOptions(
        model=model,
        device=device,
        dtype=dtype,
        encoder=encoder,
        checkpoint=checkpoint,
        encoder_option=encoder_option or (),
        projector=projector,
        k=k,
        tokens=tokens,
        norm=norm,
        prompt=prompt,
        trust_remote_code=trust_remote_code,
    )
    further = None if budgets is None else opt.numbers(budgets, int, "--budgets")
    mixes = None if alphas is None else opt.numbers(alphas, float, "--alphas")
    wanted = opt.named_metrics(metrics)
    bar = progress_bar(shown=True, unit="captions")
    tasks: list[Any] = []

    def start(part: str, count: int) -> None:
        while tasks:
            bar.remove_task(tasks.pop())
        tasks.append(bar.add_task(part, total=count or None))

    with opt.exit_codes(lambda: f"what is done is in {out}, and the same command resumes"), bar:
        start("loading the model", 0)  # the imports alone take seconds
        from llava_soundclip.evaluation.tradeoff.run import REPORT, measure_tradeoff

        clips_as = opt.ClipOptions(
            format=format,
            root=root,
            path=path_column,
            picture=picture_column,
            start=start_column,
            end=end_column,
            id=id_column,
            source=source_column,
            track=track,
            max_seconds=max_seconds,
            max_pixels=max_pixels,
        )
        found = clips_as.find(clips)
        opt.check_usable(found, OUTCOME)
        opt.prepare_folder(out, "--out")
        soundclip = hearing.load()
        texts, pictures = opt.load_scorers(wanted, bertscore, clipscore, device)
        measured = measure_tradeoff(
            soundclip,
            found,
            references,
            out,
            model=model,
            trained_in=projector,
            budgets=further,
            alphas=mixes,
            metrics=wanted,
            bertscore=texts,
            clipscore=pictures,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            examples=examples,
            seed=seed,
            on_start=start,
            on_clips=lambda count: bar.advance(tasks[-1], count),
        )
    opt.say(summary_text(measured.report))
    for note in measured.notes:
        opt.say(f"note: {note}", err=True)
    opt.say(f"\n{out / REPORT}")
    opt.tell_failed(measured.bad, len(found), OUTCOME)


def summary_text(report: dict[str, Any]) -> str:
    """The report's answers for a terminal."""
    lines = []
    for part in report["summary"]:
        lines.append(f"{part['question']} ({part['measured']})")
        lines += [f"  {answer}" for answer in part["answers"]]
    return "\n".join(lines)
