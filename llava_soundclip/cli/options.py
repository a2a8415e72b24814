"""Options, errors and exit codes that commands share."""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llava_soundclip._text import printable, printable_lines
from llava_soundclip.files import check_file, check_folder
from llava_soundclip.messages import sentence
from llava_soundclip.running import default_device, failures_text, stop_code

MAX_SECONDS = 3600.0  # the defaults of llava_soundclip.media, whose import takes a while
MAX_PIXELS = 2**26

if TYPE_CHECKING:
    from llava_soundclip.clips import Clip, FrameTime
    from llava_soundclip.evaluation.captions import BERTScore, CLIPScore
    from llava_soundclip.patching import SoundCLIP

# Arguments and options of several commands.
Clips = Annotated[
    list[str],
    typer.Argument(
        help="Videos, sounds, folders and patterns of them; tables (csv, jsonl, parquet); WebDataset tars; "
        "dataset:NAME[:SPLIT]."
    ),
]
Model = Annotated[
    str, typer.Option(help="Hub id or folder of a LLaVA; by default the miniature, which knows 18 sounds.")
]
Encoder = Annotated[str | None, typer.Option(help="Audio encoder; see `llava-soundclip encoders`.")]
Checkpoint = Annotated[
    str | None, typer.Option(help="Weights of the encoder: name, file, folder, Hub id or demo.")
]
EncoderOption = Annotated[
    list[str] | None,
    typer.Option(help="Option of the encoder, such as window=clip; can be given several times."),
]
Alignment = Annotated[
    str | None, typer.Option(help="Alignment of sounds: raw, projected, or alpha from 0 to 1.")
]
Projector = Annotated[str | None, typer.Option(help="Projector: folder, .safetensors file or Hub id.")]
Budget = Annotated[int | None, typer.Option("--k", min=0, help="Number of patches that keep their value.")]
Tokens = Annotated[
    str | None,
    typer.Option(help="Other patches: zero puts zeros in their place, drop removes them from the prompt."),
]
Norm = Annotated[
    str | None, typer.Option(help="Norm of the sound: keep its own, or match that of the CLS token.")
]
Prompt = Annotated[str | None, typer.Option(help="Question for the model.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Clips per batch.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of a caption, in tokens.")]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1 ...")]
LLaVADevice = Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1, auto ...")]
LLaVADType = Annotated[str, typer.Option(help="Precision of the LLaVA: auto, float32, float16 or bfloat16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Features = Annotated[Path, typer.Argument(help="Folder made by `llava-soundclip features`.")]
MeasuredProjector = Annotated[
    str | None,
    typer.Option(
        "--projector",
        help="Projector: folder, .safetensors file or Hub id. Without one, only raw is measured.",
    ),
]
MeasuredRows = Annotated[
    str | None,
    typer.Option(
        "--rows",
        help="Clips to measure: validation for the held-out clips, which is the default if the projector was trained "
        "on this folder; all for every clip.",
    ),
]
Metrics = Annotated[str, typer.Option(help="Metrics: all, none, or some of bleu,rouge,bertscore,clipscore.")]
BERTScoreModel = Annotated[
    str, typer.Option("--bertscore", help="Text encoder of BERTScore: Hub id, folder or demo.")
]
CLIPScoreModel = Annotated[
    str, typer.Option("--clipscore", help="CLIP model of CLIPScore: Hub id, folder or demo.")
]
TableFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Published table: ave2, audioset, audiocaps or vggsound. Each is recognised by its own columns.",
    ),
]
Root = Annotated[Path | None, typer.Option(help="Folder that a table's relative paths start from.")]
PathColumn = Annotated[
    str | None,
    typer.Option(
        help='Column of the video or sound, or a pattern like "{youtube_id}.mp4" or "{id}_{start:06d}.mp4".'
    ),
]
PictureColumn = Annotated[str | None, typer.Option(help="Column of the picture for the sound.")]
StartColumn = Annotated[str | None, typer.Option(help='Column of the start in seconds; "" for none.')]
EndColumn = Annotated[str | None, typer.Option(help='Column of the end in seconds; "" for none.')]
IdColumn = Annotated[str | None, typer.Option(help="Column of the clip's id.")]
SourceColumn = Annotated[str | None, typer.Option(help="Column of the video that the clip comes from.")]
SoundTrack = Annotated[
    int | None,
    typer.Option(
        "--track",
        min=0,
        help="Number of the sound track, from 0; by default the best one that can be decoded.",
    ),
]
MaxSeconds = Annotated[
    float, typer.Option(min=0, help="Length of sound in seconds above which a clip is refused.")
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Number of pixels above which a picture is refused.")]
Workers = Annotated[
    int,
    typer.Option(
        min=0, help="Processes that decode, so that a bad file fails alone; 0 decodes without them."
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]


# Arguments of functions that options set under the same name.
_ARGUMENTS = (
    r"(?<![\w./-])(alignment|batch_size|checkpoint|control|device|dtype|encoder|examples|frames?|k|learning_rate|"
    r"max_new_tokens|max_pixels|max_seconds|model|norm|picture|projector|prompt|seed|shard_size|temperature|tokens|track|workers)"
)


@dataclass(frozen=True)
class ModelOptions:
    """Options of a LLaVA and its hearing, as typed. None means the default of `patch` or of the miniature."""

    model: str
    device: str | None
    dtype: str
    encoder: str | None = None
    checkpoint: str | None = None
    encoder_option: Sequence[str] = ()
    alignment: str | float | None = None
    projector: str | None = None
    k: int | None = None
    tokens: str | None = None
    norm: str | None = None
    prompt: str | None = None
    trust_remote_code: bool = False

    def heard_with(self) -> dict[str, Any]:
        """The fields of a caption's row that say how it was made."""
        from llava_soundclip.loading import heard_with

        return {
            "model": self.model,
            **heard_with(
                self.model, encoder=self.encoder, alignment=self.alignment, k=self.k, tokens=self.tokens
            ),
        }

    def others(self) -> dict[str, Any]:
        """The options that change captions and aren't fields of a row, as plain data."""
        places = {name: getattr(self, name) for name in ("checkpoint", "projector")}
        return {
            **{
                name: os.path.abspath(value) if value and os.path.exists(value) else value
                for name, value in places.items()
            },
            "encoder_option": sorted(self.encoder_option),
            "norm": self.norm or "keep",
            "prompt": self.prompt,
        }

    def load(self) -> "SoundCLIP":
        """Load the model. Errors are those of `load_soundclip`."""
        from llava_soundclip.loading import load_soundclip

        names = ("encoder", "alignment", "projector", "k", "tokens", "norm")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.trust_remote_code:
            given["trust_remote_code"] = True
        soundclip = load_soundclip(
            self.model,
            device=self.device,
            dtype=self.dtype,
            **given,
            **encoder_options(self.encoder_option, self.checkpoint),
        )
        if self.prompt is not None:
            soundclip.prompt = self.prompt
        return soundclip


@dataclass(frozen=True)
class ClipOptions:
    """Options of clips and of the tables that name them, as typed. None means the table's default."""

    format: str | None = None
    root: Path | None = None
    path: str | None = None
    picture: str | None = None
    start: str | None = None
    end: str | None = None
    id: str | None = None
    source: str | None = None
    track: int | None = None
    max_seconds: float = MAX_SECONDS
    max_pixels: int = MAX_PIXELS

    def find(self, names: Sequence[str], *, by_path: bool = False) -> "list[Clip]":
        """The clips of some names. Errors are those of `read_clips`.

        Raises:
            BadParameter: for an unknown format.
        """
        from llava_soundclip.clips import FORMATS, Columns, read_clips

        if self.format is not None and self.format not in FORMATS:
            raise typer.BadParameter(f"--format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        columns = Columns() if self.format is None else FORMATS[self.format]
        columns = replace(
            columns,
            **{
                name: getattr(self, name)
                for name in ("path", "picture", "start", "end", "id", "source")
                if getattr(self, name) is not None
            },
        )
        found = read_clips(
            names,
            columns=columns,
            root=self.root,
            by_path=by_path,
            track=self.track,
            max_seconds=self.max_seconds,
            max_pixels=self.max_pixels,
        )
        if not found:
            say(
                f"There are no clips in {', '.join(map(printable, names))}: no file has the suffix of a video or a "
                "sound. A file that is named directly, or by a pattern such as clips/*.dat, may have any suffix.",
                err=True,
            )
            raise typer.Exit(1)
        return found


def say(text: str, *, err: bool = False) -> None:
    """Print text for a terminal, with escape codes and the like escaped."""
    typer.echo(printable_lines(text), err=err)


def in_options(text: str) -> str:
    """A message that names arguments of Python, such as `picture=`, with the options that set them: `--picture`."""
    text = re.sub(rf"{_ARGUMENTS}=(?=[\w'])", lambda found: f"{_option(found[1])} ", text)
    text = re.sub(rf"{_ARGUMENTS}=", lambda found: _option(found[1]), text)
    return re.sub(rf"^{_ARGUMENTS}(?= (?:must|is|can't) )", lambda found: _option(found[1]), text)


def _option(argument: str) -> str:
    return f"--{argument.replace('_', '-')}"


@contextmanager
def exit_codes(saved: Callable[[], str] = lambda: "nothing was written") -> Iterator[None]:
    """Turn errors that users can fix into one line and exit code 2, and interruptions into exit code 130 or 143.

    Warnings of the library are lines, too.

    Args:
        saved: function that says what an interrupted run has saved, and how to resume.
    """
    try:
        with _warnings_as_lines():
            yield
    except (typer.Exit, typer.Abort):  # both are RuntimeErrors
        raise
    except KeyboardInterrupt:
        stopped(saved())
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        say(f"Error: {in_options(sentence(error))}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if category.__module__.startswith("llava_soundclip"):
                say(f"Note: {in_options(str(message))}", err=True)
            else:
                show(message, category, *place)

        warnings.showwarning = line  # type: ignore[assignment]  # its other arguments are the place
        yield


def stopped(saved: str) -> NoReturn:
    """Say that a run was interrupted and what it saved. The exit code is a shell's: 130 for Ctrl-C, 143 for SIGTERM."""
    say(f"Stopped; {saved}.", err=True)
    raise typer.Exit(stop_code())


def list_failed(bad: Mapping[str, str], total: int, outcome: str) -> None:
    """List the clips that failed, if there are any."""
    if bad:
        say(f"\n{in_options(failures_text(bad, total, outcome))}", err=True)


def tell_failed(bad: Mapping[str, str], total: int, outcome: str) -> None:
    """List the clips that failed, and end with exit code 1 if there are any."""
    list_failed(bad, total, outcome)
    if bad:
        raise typer.Exit(1)


def check_usable(clips: "Sequence[Clip]", outcome: str) -> None:
    """End with exit code 1 if it is known already that no clip can be used, before anything is loaded."""
    from llava_soundclip.clips import known_fault

    faults: dict[str, str] = {}
    for clip in clips:
        fault = known_fault(clip)
        if fault is None:
            return
        faults[clip.id] = fault
    tell_failed(faults, len(clips), outcome)


def prepare_file(path: Path | None, option: str) -> None:
    """Check before the work that a file can be written. Its folder is created if needed."""
    _prepare(check_file, path, option)


def prepare_folder(path: Path | None, option: str) -> None:
    """Check before the work that files can be written into a folder. It is created if needed."""
    _prepare(check_folder, path, option)


def _prepare(check: Callable[[Path], None], path: Path | None, option: str) -> None:
    try:
        if path is not None:
            check(path)
    except OSError as error:
        is_folder = isinstance(error, IsADirectoryError)
        why = "is a folder, not a file" if is_folder else f"can't be written: {error.strerror}"
        say(f"Error: {option}: {printable(str(path))} {why}", err=True)
        raise typer.Exit(2) from error


def encoder_options(pairs: Sequence[str] | None, checkpoint: str | None = None) -> dict[str, Any]:
    """Options of an encoder from NAME=VALUE pairs and a checkpoint. Whole numbers become ints.

    Raises:
        BadParameter: for anything but NAME=VALUE.
    """
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--encoder-option must be NAME=VALUE, not {pair!r}")
        options[name] = int(value) if value.isdecimal() else value
    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    return options


def load_scorers(
    metrics: Sequence[str], bertscore: str, clipscore: str, device: str | None
) -> "tuple[BERTScore | None, CLIPScore | None]":
    """The models of BERTScore and CLIPScore if they are among the metrics, by Hub id, folder or "demo"."""
    from llava_soundclip.evaluation.captions import BERTScore, CLIPScore

    where = default_device() if device in (None, "auto") else device
    return (
        BERTScore(bertscore, device=where) if "bertscore" in metrics else None,
        CLIPScore(clipscore, device=where) if "clipscore" in metrics else None,
    )


def named_metrics(metrics: str) -> tuple[str, ...]:
    """The metrics of "all", "none", or names separated by commas."""
    from llava_soundclip.evaluation.captions import METRICS

    if metrics == "all":
        return METRICS
    return tuple(name for name in metrics.split(",") if name != "none")


def numbers(text: str, kind: type, option: str) -> list[Any]:
    """Numbers separated by commas.

    Raises:
        BadParameter: for anything else.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option} must be numbers separated by commas, not {text!r}") from None


def parse_alignment(alignment: str | None) -> float | str | None:
    """Convert a number to a float; "raw" and "projected" are unchanged."""
    try:
        return None if alignment is None else float(alignment)
    except ValueError:
        return alignment


def parse_frame(frame: str) -> "FrameTime":
    """Convert seconds to a float; "middle" and "first" are unchanged.

    Raises:
        BadParameter: for anything else.
    """
    if frame == "first":
        return "first"
    if frame == "middle":
        return "middle"
    try:
        return float(frame)
    except ValueError:
        raise typer.BadParameter(f"--frame must be middle, first, or seconds, not {frame!r}") from None
