"""What the commands share."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import typer

if TYPE_CHECKING:
    from llava_soundclip.evaluation.captions import BERTScore, CLIPScore

DEMO = "demo"  # the word for the miniature, where a command takes a model
ENCODER_OPTION_HELP = "An option of the encoder, such as window=clip; may be given several times."


def named_model(name: str, part: Literal["encoder", "tower"]) -> str:
    """A Hub id, folder or file as it is; "demo" is the miniature's own Whisper, or a CLIP with its tower.

    Raises:
        FileNotFoundError: if a package or the demo's weights aren't there; the message has the pip line.
        ValueError: if a package's file is not the expected one.
    """
    if name != DEMO:
        return name
    from llava_soundclip.demo import assemble
    from llava_soundclip.demo.clip import clip_folder

    return str(assemble.package_file(*assemble.WHISPER_FILE).parent if part == "encoder" else clip_folder())


def load_bertscore(name: str, device: str) -> "BERTScore":
    """BERTScore by a Hub id or folder; "demo" is all-MiniLM-L6-v2 in a pip package. Errors are `named_model`'s, too."""
    from llava_soundclip.evaluation.captions import BERTScore

    if name != DEMO:
        return BERTScore(name, device=device)
    from llava_soundclip.demo.clip import TEXT_ENCODER, text_encoder_folder

    return BERTScore(text_encoder_folder(), known_as=TEXT_ENCODER, device=device)


def load_clipscore(name: str, device: str) -> "CLIPScore":
    """CLIPScore by a Hub id or folder; "demo" is the miniature's own CLIP. Errors are `named_model`'s, too."""
    from llava_soundclip.evaluation.captions import CLIPScore

    if name != DEMO:
        return CLIPScore(name, device=device)
    from llava_soundclip.demo.clip import clip_folder

    return CLIPScore(clip_folder(), known_as="the miniature's", device=device)


def encoder_options(pairs: Iterable[str]) -> dict[str, str | int]:
    """The options of an encoder out of NAME=VALUE; whole numbers become ones.

    Raises:
        BadParameter: for something else.
    """
    options: dict[str, str | int] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"--encoder-option is NAME=VALUE, not {pair!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options
