"""The command `llava-soundclip train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.cli import options as opt
from llava_soundclip.running import command_line, progress_bar


def train(
    features: opt.Features,
    out: Annotated[Path, typer.Option(help="Folder for the projector; an interrupted run in it resumes.")],
    loss: Annotated[
        str, typer.Option(help="Training loss: cosine, mse, distribution, infonce or infonce+distribution.")
    ] = "infonce+distribution",
    temperature: Annotated[float, typer.Option(help="Temperature of InfoNCE.")] = 0.07,
    fusion: Annotated[
        str | None, typer.Option(help="Fusion of whisperclip's blocks: average_all, weighted_sum ...")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Number of blocks for --fusion last_n.")] = None,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")] = 1024,
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout after each activation.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 5e-5,
    epochs: Annotated[int, typer.Option(min=1, help="Number of passes over the clips.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per step, summed over all processes.")] = 256,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Number of steps whose gradients are summed before an update.")
    ] = 1,
    factor: Annotated[float, typer.Option(help="Factor of ReduceLROnPlateau.")] = 0.1,
    patience: Annotated[
        int, typer.Option(min=0, help="Epochs without improvement before the learning rate is lowered.")
    ] = 10,
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Epochs without improvement before training stops.")
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the clips that is held out for validation, in whole sources.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Random seed for weights, split, order and dropout.")] = 0,
    precision: Annotated[str, typer.Option(help="Mixed precision: no, fp16 or bf16.")] = "no",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also log to runs/.")] = False,
    push: Annotated[str | None, typer.Option(help="Hub id, user/name, to upload the projector to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the Hub repository private.")] = False,
) -> None:
    """Train a projector. The defaults are the paper's recipe (Appendix E, F.4).

    In several processes: accelerate launch -m llava_soundclip train ...
    """
    from llava_soundclip.training.fit import STATE, FinishedRunError, Recipe
    from llava_soundclip.training.fit import train as run
    from llava_soundclip.training.push import push_projector

    bar = progress_bar(shown=True, unit="steps")
    task = bar.add_task("steps", total=None)

    def tell(row: Mapping[str, Any]) -> None:
        opt.say(
            f"epoch {row['epoch']}: loss {row['loss']:.3f}, validation {row['validation_loss']:.3f}, mean rank "
            f"{row['A2V_mean_rank']:.1f} (A2V) {row['V2A_mean_rank']:.1f} (V2A) of {row['items']}, "
            f"R@1 {row['A2V_R@1']:.2f}",
            err=True,
        )

    def saved() -> str:
        there = (out / STATE).is_file()
        return f"the state is in {out}, and the same command resumes" if there else "nothing was written"

    with opt.exit_codes(saved):
        recipe = Recipe(
            loss=loss,
            temperature=temperature,
            fusion=fusion,  # type: ignore[arg-type]  # checked there
            n=n,
            hidden=hidden,
            dropout=dropout,
            learning_rate=learning_rate,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            factor=factor,
            patience=patience,
            early_stopping=early_stopping,
            validation=validation,
            seed=seed,
            precision=precision,  # type: ignore[arg-type]
        )
        try:
            with bar:
                run(
                    features,
                    out,
                    recipe,
                    tensorboard=tensorboard,
                    command=command_line(),
                    on_note=lambda note: opt.say(f"Note: {note}", err=True),
                    on_step=lambda done, total: bar.update(task, completed=done, total=total),
                    on_epoch=tell,
                )
        except FinishedRunError as error:
            opt.say(f"Note: {error}", err=True)
        if push:
            opt.say(f"pushed to {push_projector(out, push, private=private)}", err=True)
    opt.say(f"the projector is in {out}", err=True)
