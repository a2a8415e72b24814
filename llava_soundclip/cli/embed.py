"""The command `llava-soundclip embed`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip._text import printable
from llava_soundclip.cli import options as opt
from llava_soundclip.running import default_device, progress_bar

OUTCOME = "could not be embedded"


def embed(
    clips: opt.Clips,
    out: Annotated[
        Path, typer.Option(help="Safetensors file for the vectors, one per clip, by the clip's name.")
    ],
    encoder: Annotated[
        str, typer.Option(help="Audio encoder; see `llava-soundclip encoders`.")
    ] = "whisperclip",
    checkpoint: opt.Checkpoint = None,
    encoder_option: opt.EncoderOption = None,
    batch_size: opt.Batch = 8,
    format: opt.TableFormat = None,
    root: opt.Root = None,
    path_column: opt.PathColumn = None,
    picture_column: opt.PictureColumn = None,
    start_column: opt.StartColumn = None,
    end_column: opt.EndColumn = None,
    id_column: opt.IdColumn = None,
    track: opt.SoundTrack = None,
    max_seconds: opt.MaxSeconds = opt.MAX_SECONDS,
    max_pixels: opt.MaxPixels = opt.MAX_PIXELS,
    workers: opt.Workers = 1,
    device: opt.Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the encoder: float32, float16 or bfloat16.")
    ] = None,
) -> None:
    """Embed clips. A bad clip doesn't stop the rest; bad clips are listed at the end (exit code 1).

    An interrupted run resumes; clips in the file are skipped. The vectors are float32. The file's metadata name the
    encoder and its weights.
    """
    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.features.vectors import embed_clips

    opt.prepare_file(out, "--out")
    given: dict[str, Any] = {} if dtype is None else {"dtype": dtype}

    def saved() -> str:
        return (
            f"the vectors so far are in {out}, and the same command resumes"
            if out.is_file()
            else "nothing was written"
        )

    with opt.exit_codes(saved):
        clips_as = opt.ClipOptions(
            format=format,
            root=root,
            path=path_column,
            picture=picture_column,
            start=start_column,
            end=end_column,
            id=id_column,
            track=track,
            max_seconds=max_seconds,
            max_pixels=max_pixels,
        )
        found = clips_as.find(clips, by_path=True)
        opt.check_usable(found, OUTCOME)
        given |= opt.encoder_options(encoder_option, checkpoint)
        bar = progress_bar(shown=True)
        task = bar.add_task("vectors", total=len(found))
        with bar:
            hearing = load_encoder(encoder, device=device or default_device(), **given)
            embedded = embed_clips(
                found,
                hearing,
                out,
                batch_size=batch_size,
                workers=workers,
                on_clips=lambda count: bar.advance(task, count),
            )
    there = f", {embedded.there} of {len(found)} clips were there already" if embedded.there else ""
    if embedded.vectors:
        opt.say(
            f"{len(embedded.vectors)} vectors of {hearing.dim} numbers in {printable(str(out))}{there}",
            err=True,
        )
    opt.tell_failed(embedded.bad, len(found), OUTCOME)
