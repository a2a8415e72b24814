"""The command `llava-soundclip caption`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from llava_soundclip._text import printable
from llava_soundclip.cli import options as opt
from llava_soundclip.demo.parts import DEMO
from llava_soundclip.running import progress_bar

OUTCOME = "could not be captioned"


def caption(
    clips: opt.Clips,
    out: Annotated[
        Path | None, typer.Option(help="JSON Lines file for the captions; clips in it are skipped.")
    ] = None,
    model: opt.Model = DEMO,
    encoder: opt.Encoder = None,
    checkpoint: opt.Checkpoint = None,
    encoder_option: opt.EncoderOption = None,
    alignment: opt.Alignment = None,
    projector: opt.Projector = None,
    k: opt.Budget = None,
    tokens: opt.Tokens = None,
    norm: opt.Norm = None,
    prompt: opt.Prompt = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Picture for sounds that have none. A picture with a sound's name next to it is found."
        ),
    ] = None,
    frame: Annotated[
        str, typer.Option(help="Frame of a video: middle, first, or a time in seconds.")
    ] = "middle",
    batch_size: opt.Batch = 8,
    max_new_tokens: opt.MaxNewTokens = 128,
    setting: Annotated[
        str | None, typer.Option(help="Name of this run in the rows of --out; a file may hold several runs.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="Baseline: another (the next clip's sound), noise or zero (in the sound's place), or random (patches)."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a picture of each clip's kept patches; the rows of --out name the file."
        ),
    ] = None,
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
    device: opt.LLaVADevice = None,
    dtype: opt.LLaVADType = "auto",
    trust_remote_code: opt.TrustRemoteCode = False,
) -> None:
    """Caption clips. A bad clip doesn't stop the rest; bad clips are listed at the end (exit code 1).

    With --out, an interrupted run resumes.
    """
    from rich.markup import escape

    from llava_soundclip.captioning import CaptionFile, CaptionOptions, Setting, caption_clips
    from llava_soundclip.captioning.rows import ROW_OPTIONS
    from llava_soundclip.media import MediaError, load_frame

    when = opt.parse_frame(frame)
    hearing = opt.ModelOptions(
        model=model,
        device=device,
        dtype=dtype,
        encoder=encoder,
        checkpoint=checkpoint,
        encoder_option=encoder_option or (),
        alignment=opt.parse_alignment(alignment),
        projector=projector,
        k=k,
        tokens=tokens,
        norm=norm,
        prompt=prompt,
        trust_remote_code=trust_remote_code,
    )
    opt.prepare_file(out, "--out")
    opt.prepare_folder(maps, "--maps")
    try:
        if picture is not None:
            load_frame(picture)
    except MediaError as error:
        raise typer.BadParameter(f"--picture {error}") from error
    with opt.exit_codes(lambda: _saved(out)):
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
        planned = Setting(control=control, name=setting)  # type: ignore[arg-type]  # checked there
        if control == "another" and len(found) < 2:
            raise ValueError("--control another needs two clips or more")
        described = [hearing.others(), when, max_new_tokens, None if picture is None else _digest(picture)]
        fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:8]
        file = None
        if out is not None:  # before the model is loaded
            made_with = {**hearing.heard_with(), "control": control, ROW_OPTIONS: fingerprint}
            file = CaptionFile(out, setting, made_with)
            done = sum(clip.id in file for clip in found)
            if done:
                opt.say(f"{done} of {len(found)} clips are in {out} already", err=True)
            if done == len(found):
                return
        opt.check_usable([clip for clip in found if file is None or clip.id not in file], OUTCOME)
        bar = progress_bar(shown=out is not None)
        task = bar.add_task("captions", total=len(found))

        def show(rows: list[dict[str, Any]]) -> None:
            if out is None:
                for row in rows:
                    opt.say(f"{printable(row['clip'])}\t{' '.join(row['caption'].split())}")
            elif rows:
                bar.update(task, description=f"captions, the last “{escape(_short(rows[-1]['caption']))}”")

        with bar:
            soundclip = hearing.load()
            captioned = caption_clips(
                soundclip,
                found,
                out,
                options=CaptionOptions(frame=when, max_new_tokens=max_new_tokens, batch_size=batch_size),
                settings=[planned],
                model=model,
                picture=picture,
                maps=maps,
                fingerprint=fingerprint,
                workers=workers,
                on_rows=show,
                on_clips=lambda count: bar.advance(task, count),
            )
    if out is not None:
        count = len(captioned.rows)
        opt.say(f"{count} caption{'' if count == 1 else 's'} in {printable(str(out))}", err=True)
    opt.tell_failed(captioned.bad, len(found) - captioned.there, OUTCOME)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _saved(out: Path | None) -> str:
    """The outcome of an interrupted run."""
    if out is None or not out.is_file():
        return "nothing was written"
    return f"the captions so far are in {out}, and the same command resumes"


def _short(text: str, width: int = 40) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
