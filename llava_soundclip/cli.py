"""The command line: `llava-soundclip caption`, `embed`, `features`, `train` ... Imports what is heavy inside commands."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llava_soundclip._version import __version__
from llava_soundclip.clips import CaptionFile, file_name, find_clips
from llava_soundclip.commands import DEMO, ENCODER_OPTION_HELP, encoder_options, named_model
from llava_soundclip.evaluation import command as evaluation
from llava_soundclip.evaluation.report.command import report
from llava_soundclip.experiment.command import tradeoff
from llava_soundclip.features.command import features
from llava_soundclip.running import PROGRAM, default_device, failures_text, progress_bar, work_through
from llava_soundclip.training.command import train

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_soundclip.patching import SoundCLIP

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
app.command()(features)
app.command()(train)
evaluation.app.command()(tradeoff)
app.add_typer(evaluation.app, name="eval")
app.command()(report)


def main() -> None:
    """Entry point of `llava-soundclip` and `python -m llava_soundclip`."""
    app(prog_name=PROGRAM)


@app.callback()
def _about() -> None:
    """Let a LLaVA hear: SoundCLIP, sound in place of vision tokens."""


@app.command()
def caption(
    clips: Annotated[list[str], typer.Argument(help="Films or sounds, folders of them, or patterns.")],
    out: Annotated[Path | None, typer.Option(help="JSON Lines file; clips in it are done already.")] = None,
    model: Annotated[str, typer.Option(help="A LLaVA's Hub id or folder; the miniature by default.")] = DEMO,
    encoder: Annotated[str | None, typer.Option(help="See `llava-soundclip encoders`.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The encoder's weights, or demo.")] = None,
    encoder_option: Annotated[list[str] | None, typer.Option(help=ENCODER_OPTION_HELP)] = None,
    alignment: Annotated[str | None, typer.Option(help="raw, projected, or alpha from 0 to 1.")] = None,
    projector: Annotated[str | None, typer.Option(help="Folder, .safetensors file or Hub id.")] = None,
    k: Annotated[int | None, typer.Option(min=0, help="Patches that keep their value.")] = None,
    tokens: Annotated[str | None, typer.Option(help="zero or drop.")] = None,
    norm: Annotated[str | None, typer.Option(help="keep or match.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="What is seen with sounds that have no picture.")
    ] = None,
    frame: Annotated[str, typer.Option(help="Frame of a film: middle, first, or seconds.")] = "middle",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a caption at most.")] = 128,
    setting: Annotated[
        str | None, typer.Option(help="What rows of --out call this run: one file may hold several.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="To compare with: another (the next clip's sound), noise or zero in the sound's place, random patches."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="Folder for a picture of each clip's kept patches; rows of --out name it."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto ...")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
) -> None:
    """Caption clips. One bad clip doesn't stop the rest; bad ones are listed at the end (exit code 1).

    With --out a run that was stopped goes on where it was.
    """
    when = _parse_frame(frame)
    options = {
        "encoder": encoder,
        "alignment": None if alignment is None else _parse_alignment(alignment),
        "projector": projector,
        "k": k,
        "tokens": tokens,
        "norm": norm,
    }
    given = {name: value for name, value in options.items() if value is not None}
    given |= encoder_options(encoder_option or ())
    try:
        captions = None if out is None else CaptionFile(out, setting)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--out: {error}") from error
    if control not in (None, "another", "noise", "zero", "random"):
        raise typer.BadParameter(f"--control is another, noise, zero or random, not {control}")
    found = find_clips(clips)
    if control == "another" and len(found) < 2:
        raise typer.BadParameter("--control another needs two clips or more")
    heard = dict(zip(found, found[1:] + found[:1] if control == "another" else found, strict=True))
    todo = [clip for clip in found if captions is None or clip not in captions]
    if len(todo) < len(found):
        typer.echo(f"{len(found) - len(todo)} of {len(found)} clips are in {out} already", err=True)
    if not todo:
        return
    seen = _load_picture(picture)
    try:
        if checkpoint is not None:
            given["checkpoint"] = named_model(checkpoint, "encoder")
        soundclip = load_soundclip(model, device=device, dtype=dtype, **given)
    except (ImportError, OSError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    about = {
        "encoder": soundclip.encoder.name,
        "alignment": soundclip.alignment,
        "k": soundclip.k,
        "tokens": soundclip.tokens,
        "model": model,
    }
    about |= {
        name: value for name, value in (("setting", setting), ("control", control)) if value is not None
    }
    soundclip.control = None if control == "another" else control  # type: ignore[assignment]  # checked above

    def ask(batch: Sequence[str]) -> list[dict[str, str]]:
        pictures: list[Any] = [
            seen if seen is not None and not _has_picture(clip) else None for clip in batch
        ]
        if control == "another":  # with the clip's own picture
            pictures = [clip if shown is None else shown for clip, shown in zip(batch, pictures, strict=True)]
        texts = soundclip.caption(
            [heard[clip] for clip in batch],
            prompt=prompt,
            picture=pictures,
            frame=when,
            max_new_tokens=max_new_tokens,
        )
        rows = []
        for clip, shown, text in zip(batch, pictures, texts, strict=True):
            row = {"caption": text}
            if control == "another":
                row["heard"] = heard[clip]
            if out is not None:  # paths as they are seen from there
                row["image"] = os.path.relpath(
                    picture if picture is not None and shown is seen else clip, out.parent
                )
            if maps is not None:
                path = maps / f"{file_name(os.path.abspath(clip))}.png"
                _save_map(soundclip, heard[clip], shown, when, path, text)
                row["map"] = os.path.relpath(path, maps.parent if out is None else out.parent)
            rows.append(row)
        return rows

    bad: dict[str, str] = {}
    with progress_bar(shown=out is not None) as progress:
        task = progress.add_task("captions", total=len(todo))
        for rows, failed in work_through(todo, ask, batch_size):
            bad |= failed
            if captions is None:
                for clip, row in rows.items():
                    typer.echo(f"{clip}\t{' '.join(row['caption'].split())}")
            else:
                captions.add({"clip": clip, **row, **about} for clip, row in rows.items())
            progress.advance(task, len(rows) + len(failed))
    _tell_failed(bad, len(todo), "captioned")


@app.command()
def embed(
    clips: Annotated[list[str], typer.Argument(help="Sounds or films, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option(help="Safetensors file: each clip's vector under its name.")],
    encoder: Annotated[str, typer.Option(help="See `llava-soundclip encoders`.")] = "whisperclip",
    checkpoint: Annotated[str | None, typer.Option(help="The encoder's weights, or demo.")] = None,
    encoder_option: Annotated[list[str] | None, typer.Option(help=ENCODER_OPTION_HELP)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips at once.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
) -> None:
    """Embed clips. One bad clip doesn't stop the rest; bad ones are listed at the end (exit code 1).

    The vectors are float32; the file's metadata say of which encoder and weights they are.
    """
    import json

    from safetensors.torch import save

    from llava_soundclip.alignment.files import METADATA_KEY
    from llava_soundclip.encoders import load_encoder
    from llava_soundclip.running import write_file
    from llava_soundclip.sounds import as_waveforms

    if not out.parent.is_dir():
        raise typer.BadParameter(f"--out: there is no folder {out.parent}")
    found = find_clips(clips)
    given: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    given |= encoder_options(encoder_option or ())
    try:
        if checkpoint is not None:
            given["checkpoint"] = named_model(checkpoint, "encoder")
        hearing = load_encoder(encoder, device=device or default_device(), **given)
    except (ImportError, OSError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    vectors: dict[str, Tensor] = {}
    bad: dict[str, str] = {}
    with progress_bar(shown=True) as progress:
        task = progress.add_task("vectors", total=len(found))
        work = work_through(
            found, lambda batch: hearing.embed(*as_waveforms(batch, None, hearing)).cpu().unbind(), batch_size
        )
        for rows, failed in work:
            vectors |= rows
            bad |= failed
            progress.advance(task, len(rows) + len(failed))
    about = json.dumps({**hearing.signature(), "library_version": __version__})
    copies = {clip: vector.clone() for clip, vector in vectors.items()}
    write_file(out, save(copies, metadata={METADATA_KEY: about}))
    typer.echo(f"{len(vectors)} vectors of {hearing.dim} numbers in {out}", err=True)
    _tell_failed(bad, len(found), "embedded")


@app.command()
def encoders() -> None:
    """List the audio encoders: what they hear and give, their licences, and where their weights come from."""
    import inspect

    from llava_soundclip.encoders import available_encoders, encoder_class

    for name in available_encoders():
        try:
            cls = encoder_class(name)
        except ImportError as error:
            typer.echo(f"{name:<13}{error}")
            continue
        rate, card = getattr(cls, "sampling_rate", "?"), cls.card
        if card is None:
            typer.echo(f"{name:<13}{rate} Hz; {(inspect.getdoc(cls) or '').partition(chr(10))[0]}")
            continue
        typer.echo(f"{name:<13}{card.dim} numbers, {rate} Hz, hears {card.window}")
        typer.echo(f"{'':<13}weights: {card.source}; licence {card.weights}; code: {card.code}")


@app.command()
def info() -> None:
    """Versions, device and supported models: what a bug report needs."""
    import torch

    from llava_soundclip.demo import assemble
    from llava_soundclip.hosts import supported_models

    rows = {"llava_soundclip": __version__, "python": platform.python_version()}
    rows |= {name: _version(name) for name in ("torch", "transformers", "accelerate", "av")}
    rows["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else default_device()
    rows["models"] = ", ".join(supported_models())
    parts = (assemble.WHISPER_FILE[0], assemble.SMOLLM2_FILE[0])
    missing = [name for name in parts if _version(name) == "not installed"]
    rows["miniature"] = (
        f"{' and '.join(missing)} missing: {assemble.PIP_LINE}" if missing else "its packages are there"
    )
    for name, value in rows.items():
        typer.echo(f"{name:<16}{value}")


def load_llava(model_id: str, *, device: str | None = None, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a LLaVA and its processor.

    Args:
        model_id: Hub id or folder.
        device: where to, "auto" to spread it; the accelerator by default, if there is one.
        dtype: "auto" for the one that it was saved in, or "float32", "float16", "bfloat16".

    Returns:
        The model and its processor.

    Raises:
        TypeError: if it is no model that `patch` takes. Its weights aren't downloaded to find that out.
        OSError: if it can't be found or reached.
    """
    import transformers

    from llava_soundclip.hosts import supported_models

    architectures = transformers.AutoConfig.from_pretrained(model_id).architectures or []
    # The original package's models are patched by a program that loads them, not from here.
    supported = [name for name in supported_models() if hasattr(transformers, name)]
    known = [name for name in architectures if name in supported]
    if not known:
        raise TypeError(
            f"{model_id} is a {' or '.join(architectures) or 'model without a name'}; "
            f"supported are {', '.join(supported)}"
        )
    model = getattr(transformers, known[0]).from_pretrained(
        model_id, dtype=dtype, device_map=device or default_device()
    )
    return model.eval(), transformers.AutoProcessor.from_pretrained(model_id)


def load_soundclip(model: str, *, device: str | None, dtype: str, **options: Any) -> "SoundCLIP":
    """The handle of the miniature, or of any LLaVA; `options` are those of `patch`."""
    if model == DEMO:
        import torch

        from llava_soundclip.demo import load_demo

        soundclip = load_demo(**options)
        soundclip.model.to(device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))
        return soundclip
    from llava_soundclip.patching import patch

    loaded, processor = load_llava(model, device=device, dtype=dtype)
    return patch(loaded, processor=processor, **options)


def _parse_frame(frame: str) -> float | Literal["first", "middle"]:
    if frame == "first":
        return "first"
    if frame == "middle":
        return "middle"
    try:
        return float(frame)
    except ValueError:
        raise typer.BadParameter(f"--frame is middle, first, or seconds, not {frame!r}") from None


def _parse_alignment(alignment: str) -> float | str:
    try:
        return float(alignment)
    except ValueError:
        return alignment


def _load_picture(path: Path | None) -> "Image | None":
    from llava_soundclip.media import MediaError, load_frame

    try:
        return None if path is None else load_frame(path)
    except MediaError as error:
        raise typer.BadParameter(f"--picture {error}") from error


def _has_picture(clip: str) -> bool:
    from llava_soundclip.media import probe

    return probe(clip).has_video


def _save_map(
    soundclip: "SoundCLIP",
    sound: str,
    picture: Any,
    when: float | Literal["first", "middle"],
    path: Path,
    text: str,
) -> None:
    from llava_soundclip.maps import save_map

    path.parent.mkdir(parents=True, exist_ok=True)
    save_map(soundclip.trace(sound, picture, when), path, text)


def _tell_failed(bad: Mapping[str, str], total: int, done: str) -> None:
    """List the clips that failed, and end with exit code 1 if there are any."""
    if not bad:
        return
    typer.echo(f"\n{failures_text(bad, total, f'could not be {done}')}", err=True)
    raise typer.Exit(1)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
