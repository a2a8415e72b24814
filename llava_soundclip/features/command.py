"""The command `llava-soundclip features`. Imports what is heavy when it runs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_soundclip.commands import ENCODER_OPTION_HELP, encoder_options, named_model
from llava_soundclip.running import default_device, failures_text

if TYPE_CHECKING:
    from llava_soundclip.features.sources import Clip, Columns
    from llava_soundclip.features.store import StoredDType

DEFAULT_TOWER = "openai/clip-vit-large-patch14-336"
_DATASET = "dataset:"


def features(
    clips: Annotated[
        list[str],
        typer.Argument(
            help="Films, sounds, folders of them, patterns; tables (csv, jsonl, parquet); WebDataset tars; "
            "dataset:NAME[:SPLIT]."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; clips in it are done already.")],
    encoder: Annotated[str, typer.Option(help="See `llava-soundclip encoders`.")] = "whisperclip",
    checkpoint: Annotated[str | None, typer.Option(help="The encoder's weights, or demo.")] = None,
    encoder_option: Annotated[list[str] | None, typer.Option(help=ENCODER_OPTION_HELP)] = None,
    tower: Annotated[str, typer.Option(help="LLaVA's vision tower: Hub id, folder or demo.")] = DEFAULT_TOWER,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a clip; their mean is stored.")] = 1,
    patches: Annotated[bool, typer.Option("--patches", help="Store the patch tokens, too.")] = False,
    dtype: Annotated[str, typer.Option(help="Of what is stored: float16 or float32.")] = "float16",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode; half of the cores, or all if there is a GPU."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 8,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips of a file.")] = 1000,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Work on a Ray cluster: "auto" for the one that this machine is part of, HOST:PORT, or "local" to '
            "start Ray here.",
        ),
    ] = None,
    ave2: Annotated[bool, typer.Option("--ave2", help="Tables have AVE-2's columns.")] = False,
    root: Annotated[Path | None, typer.Option(help="Where a table's relative paths begin.")] = None,
    path_column: Annotated[
        str | None, typer.Option(help='The film or sound: a column, or a pattern like "{youtube_id}.mp4".')
    ] = None,
    picture_column: Annotated[str | None, typer.Option(help="A picture for the sound.")] = None,
    start_column: Annotated[str | None, typer.Option(help='Seconds; "" for none.')] = None,
    end_column: Annotated[str | None, typer.Option(help='Seconds; "" for none.')] = None,
    id_column: Annotated[str | None, typer.Option(help="The clip's name.")] = None,
    source_column: Annotated[str | None, typer.Option(help="The film that it is of.")] = None,
) -> None:
    """Make the features that a projector is trained on. A run that was stopped goes on where it was.

    One bad clip doesn't stop the rest; bad ones are listed at the end (exit code 1). Several of these may work on one
    folder at the same time.
    """
    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.features.cluster import extract_features_on_ray
    from llava_soundclip.features.extract import extract_features
    from llava_soundclip.features.sources import AVE2, Columns, read_clips
    from llava_soundclip.features.towers import VisionTower

    options = encoder_options(encoder_option or ())
    if dtype not in ("float16", "float32"):
        raise typer.BadParameter(f"--dtype is float16 or float32, not {dtype}")
    if ray is not None and (workers is not None or device is not None):
        raise typer.BadParameter(
            "--workers and --device don't go with --ray: the cluster's CPUs and GPUs are used"
        )
    given = {
        "path": path_column,
        "picture": picture_column,
        "start": start_column,
        "end": end_column,
        "id": id_column,
        "source": source_column,
    }
    columns = replace(
        AVE2 if ave2 else Columns(), **{name: value for name, value in given.items() if value is not None}
    )
    try:
        if checkpoint is not None:
            options["checkpoint"] = named_model(checkpoint, "encoder")
        tower = named_model(tower, "tower")
        found = read_clips(
            [name for name in clips if not name.startswith(_DATASET)], columns=columns, root=root
        )
        for name in clips:
            if name.startswith(_DATASET):
                found += _read_dataset(name, columns, path_column, picture_column)
        stored: StoredDType = "float16" if dtype == "float16" else "float32"
        if ray is None:
            where = device or default_device()
            done = extract_features(
                found,
                load_encoder(encoder, device=where, **options),
                VisionTower.load(tower, device=where),
                out,
                frames=frames,
                patches=patches,
                dtype=stored,
                shard_size=shard_size,
                workers=workers,
                batch_size=batch_size,
                progress=True,
            )
        else:
            options = {
                name: _whole(str(value)) if name == "checkpoint" else value for name, value in options.items()
            }
            seeing = _whole(tower)
            done = extract_features_on_ray(
                found,
                lambda device: load_encoder(encoder, device=device, **options),
                lambda device: VisionTower.load(seeing, device=device),
                out,
                address=ray,
                frames=frames,
                patches=patches,
                dtype=stored,
                shard_size=shard_size,
                batch_size=batch_size,
                progress=True,
            )
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    there = f", {done.there} were there already" if done.there else ""
    typer.echo(f"{done.made} of {len(found)} clips' features made in {out}{there}", err=True)
    if done.bad:
        typer.echo(f"\n{failures_text(done.bad, len(found), 'have no features')}", err=True)
    if done.interrupted:
        typer.echo("Stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130)
    if done.bad:
        raise typer.Exit(1)


def _read_dataset(name: str, columns: "Columns", sound: str | None, picture: str | None) -> "list[Clip]":
    """The clips of "dataset:NAME[:SPLIT]", NAME being a Hub id or a folder."""
    from llava_soundclip._extras import require
    from llava_soundclip.features.sources import read_dataset

    datasets = require("datasets", extra="datasets")
    path, _, split = name.removeprefix(_DATASET).rpartition(":")
    if not path:
        path, split = split, "train"
    is_saved = (Path(path) / "dataset_info.json").exists()
    dataset = datasets.load_from_disk(path) if is_saved else datasets.load_dataset(path, split=split)
    return read_dataset(dataset, name=path, sound=sound or "audio", picture=picture, columns=columns)


def _whole(name: str) -> str:
    """A path that the nodes of a cluster find, too; other names as they are."""
    return os.path.abspath(name) if os.path.exists(name) else name
