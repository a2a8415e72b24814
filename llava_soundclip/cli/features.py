"""The command `llava-soundclip features`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_soundclip._text import printable
from llava_soundclip.cli import options as opt
from llava_soundclip.demo.parts import DEMO
from llava_soundclip.running import default_device

if TYPE_CHECKING:
    from llava_soundclip.features.store import StoredDType

OUTCOME = "have no features"
DEFAULT_TOWER = "openai/clip-vit-large-patch14-336"


def features(
    clips: opt.Clips,
    out: Annotated[Path, typer.Option(help="Folder for the features; clips in it are skipped.")],
    encoder: Annotated[
        str, typer.Option(help="Audio encoder; see `llava-soundclip encoders`.")
    ] = "whisperclip",
    checkpoint: opt.Checkpoint = None,
    encoder_option: opt.EncoderOption = None,
    tower: Annotated[
        str, typer.Option(help="Vision tower of the LLaVA: Hub id, folder or demo.")
    ] = DEFAULT_TOWER,
    frames: Annotated[int, typer.Option(min=1, help="Frames per clip; their mean is stored.")] = 1,
    patches: Annotated[bool, typer.Option("--patches", help="Also store the patch tokens.")] = False,
    dtype: Annotated[
        str, typer.Option(help="Precision of the stored numbers: float16 or float32.")
    ] = "float16",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of processes that decode; by default half of the cores, or all with a GPU."
        ),
    ] = None,
    batch_size: opt.Batch = 8,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips per shard.")] = 1000,
    device: opt.Device = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Ray cluster to work on: "auto" for the cluster of this machine, HOST:PORT, or "local" to '
            "start Ray here.",
        ),
    ] = None,
    ave2: Annotated[bool, typer.Option("--ave2", help="The same as --format ave2.")] = False,
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
) -> None:
    """Make the features for training a projector. An interrupted run resumes.

    A bad clip doesn't stop the rest; bad clips are listed at the end (exit code 1). Several processes may work on the
    same folder at the same time.
    """
    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.features.cluster import extract_features_on_ray
    from llava_soundclip.features.extract import extract_features
    from llava_soundclip.features.towers import VisionTower

    if dtype not in ("float16", "float32"):
        raise typer.BadParameter(f"--dtype must be float16 or float32, not {dtype}")
    if ray is not None and (workers is not None or device is not None):
        raise typer.BadParameter(
            "--workers and --device can't be combined with --ray, which uses the cluster's CPUs and GPUs"
        )
    stored: StoredDType = "float16" if dtype == "float16" else "float32"
    with opt.exit_codes():
        options = opt.encoder_options(encoder_option, checkpoint)
        clips_as = opt.ClipOptions(
            format="ave2" if ave2 else format,
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
    there = f", {done.there} were there already" if done.there else ""
    opt.say(f"{done.made} of {len(found)} clips' features made in {printable(str(out))}{there}", err=True)
    if done.interrupted:
        opt.list_failed(done.bad, len(found), OUTCOME)
        opt.stopped(f"the features so far are in {out}, and the same command resumes")
    opt.tell_failed(done.bad, len(found), OUTCOME)


def _whole(name: str) -> str:
    """The absolute path of a file or folder, for the nodes of a cluster; other names unchanged."""
    return os.path.abspath(name) if name != DEMO and os.path.exists(name) else name
