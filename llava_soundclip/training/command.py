"""`llava-soundclip train`: a projector out of a features folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip.running import command_line, progress_bar


def train(
    features: Annotated[Path, typer.Argument(help="Folder made by `llava-soundclip features`.")],
    out: Annotated[Path, typer.Option(help="The projector's folder; a run that was stopped in it goes on.")],
    loss: Annotated[
        str, typer.Option(help="cosine, mse, distribution, infonce or infonce+distribution.")
    ] = "infonce+distribution",
    fusion: Annotated[
        str | None, typer.Option(help="Of whisperclip's blocks: average_all, weighted_sum ...")
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Blocks of --fusion last_n.")] = None,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the hidden layers.")] = 1024,
    dropout: Annotated[float, typer.Option(min=0, max=1, help="After each activation.")] = 0.1,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 5e-5,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the clips.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a step, over all processes.")] = 256,
    accumulate: Annotated[int, typer.Option(min=1, help="Steps whose gradients are added up.")] = 1,
    factor: Annotated[float, typer.Option(help="ReduceLROnPlateau's.")] = 0.1,
    patience: Annotated[int, typer.Option(min=0, help="Epochs before the rate is lowered.")] = 10,
    early_stopping: Annotated[
        int | None, typer.Option(min=1, help="Epochs without a better one before the end.")
    ] = None,
    validation: Annotated[float, typer.Option(help="Share to validate on, whole sources of it.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of weights, split, order and dropout.")] = 0,
    precision: Annotated[str, typer.Option(help="no, fp16 or bf16.")] = "no",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log to runs/, too.")] = False,
    push: Annotated[str | None, typer.Option(help="Hub id to send the projector to, user/name.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the Hub's repository a private one.")
    ] = False,
) -> None:
    """Train a projector. The defaults are the paper's recipe (Appendix E, F.4).

    In several processes: accelerate launch -m llava_soundclip train ...
    """
    from llava_soundclip.training.fit import Recipe
    from llava_soundclip.training.fit import train as run

    bar = progress_bar(shown=True, unit="steps")
    task = bar.add_task("steps", total=None)

    def tell(row: Mapping[str, Any]) -> None:
        typer.echo(
            f"epoch {row['epoch']}: loss {row['loss']:.3f}, validation {row['validation_loss']:.3f}, mean rank "
            f"{row['A2V_mean_rank']:.1f} (A2V) {row['V2A_mean_rank']:.1f} (V2A), R@1 {row['A2V_R@1']:.2f}",
            err=True,
        )

    try:
        recipe = Recipe(
            loss=loss,
            fusion=fusion,  # type: ignore[arg-type]  # it is checked there
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
        with bar:
            run(
                features,
                out,
                recipe,
                tensorboard=tensorboard,
                command=command_line(),
                on_step=lambda done, total: bar.update(task, completed=done, total=total),
                on_epoch=tell,
            )
        if push:
            typer.echo(f"pushed to {_push(out, push, private)}", err=True)
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"the projector is in {out}", err=True)


def _push(folder: Path, repo_id: str, private: bool) -> str:
    """Send a projector's files, its card with the figures too, to the Hub; the commit's address."""
    from huggingface_hub import HfApi

    from llava_soundclip.alignment.files import CONFIG, WEIGHTS
    from llava_soundclip.features.splits import RECIPE
    from llava_soundclip.training.fit import METRICS

    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    files = [WEIGHTS, CONFIG, "README.md", METRICS, RECIPE]
    return api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=files).commit_url
