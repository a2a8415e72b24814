"""The trained projector into CLIP's token space: the paper's MLP, its file, and its upload to the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from llava_soundclip._version import __version__
from llava_soundclip.alignment import files
from llava_soundclip.alignment.checks import as_number, check_vectors, checked_dim
from llava_soundclip.files import write_file

_MODEL_CARD = """---
{{ card_data }}
---

# SoundCLIP projector

Takes the vector of an audio encoder into CLIP's token space, so that a LLaVA hears
(SoundCLIP, Appendix F.2: an MLP of three blocks). For the library `llava_soundclip`:

```python
from llava_soundclip import Projector, patch

projector = Projector.from_pretrained("<this repository or folder>")
soundclip = patch(model, encoder=projector.encoder, alignment="projected", projector=projector)
```

| | |
|---|---|
{% for field, value in fields.items() %}| {{ field }} | {{ value }} |
{% endfor %}"""


class Projector(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="llava_soundclip",
    tags=["soundclip", "llava", "audio"],
    model_card_template=_MODEL_CARD,
):
    """The CLIP-Aligned form, a three-block MLP (F.2):

        f_a = W3 gelu(LN(W2 gelu(LN(W1 z_a + b1)) + b2)) + b3

    with the exact GELU and dropout after each activation, in training only (Appendix E).

    The keyword arguments after `dropout` are labels: they say what the projector was trained on. They are stored in
    `config.json` and in the weights file, and `check` compares them. A label that is None is unknown and isn't
    compared.

    Args:
        audio_dim: d_a, the encoder's width.
        width: D, the width of the tower's tokens.
        hidden: width of the two hidden layers.
        dropout: dropout probability in [0, 1).
        encoder: the encoder's name, as in `patch`.
        checkpoint: the encoder's weights.
        fusion: the fusion of the encoder's blocks.
        pooling: the pooling over frames.
        window: the windowing of a sound.
        encoder_options: the rest of the encoder's signature, such as AudioCLIP's amplitude; strings by name.
        tower: the vision tower that it was trained for.
        tower_layer: the layer of the tower, or several layers.
        loss: the training loss.
        layers: L, the number of the encoder's blocks; only with fusion "weighted_sum". Then `layer_weights` (L,), the
            logits of the softmax over the blocks, is trained and stored with the projector.

    Raises:
        ValueError: if a width isn't a positive int, `dropout` is out of range, a label has a wrong type,
            or `layers` doesn't match `fusion`.
    """

    ARGUMENTS: ClassVar[tuple[str, ...]] = (
        "audio_dim", "width", "hidden", "dropout", "encoder", "checkpoint", "fusion", "pooling", "window",
        "encoder_options", "tower", "tower_layer", "loss", "layers",
    )  # fmt: skip

    def __init__(
        self,
        audio_dim: int,
        width: int = 1024,
        hidden: int = 1024,
        *,
        dropout: float = 0.1,
        encoder: str | None = None,
        checkpoint: str | None = None,
        fusion: str | None = None,
        pooling: str | None = None,
        window: str | None = None,
        encoder_options: Mapping[str, str] | None = None,
        tower: str | None = None,
        tower_layer: int | Sequence[int] | None = None,
        loss: str | None = None,
        layers: int | None = None,
    ) -> None:
        super().__init__()
        self.audio_dim = checked_dim("audio_dim", audio_dim)
        self.width = checked_dim("width", width)
        self.hidden = checked_dim("hidden", hidden)
        self.encoder = _checked_label("encoder", encoder)
        self.checkpoint = _checked_label("checkpoint", checkpoint)
        self.fusion = _checked_label("fusion", fusion)
        self.pooling = _checked_label("pooling", pooling)
        self.window = _checked_label("window", window)
        self.encoder_options = _checked_options(encoder_options)
        self.tower = _checked_label("tower", tower)
        self.tower_layer = _checked_layer(tower_layer)
        self.loss = _checked_label("loss", loss)
        self.layers = None if layers is None else checked_dim("layers", layers)
        self.dropout = as_number(dropout)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}.")
        if (fusion == "weighted_sum") != (layers is not None):
            raise ValueError(
                f"layers goes with fusion='weighted_sum', and only with it; got layers={layers!r} and "
                f"fusion={fusion!r}. Give the number of the encoder's blocks, or another fusion."
            )

        self.linear1 = nn.Linear(audio_dim, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.linear3 = nn.Linear(hidden, width)
        if layers is not None:
            self.layer_weights = nn.Parameter(torch.zeros(layers))  # equal weights at first

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, d_a) of any float dtype to (B, D), computed and returned in the weights' dtype.

        Raises:
            ValueError: if `z` isn't a 2-D float tensor of width `audio_dim`.
        """
        check_vectors(z)
        if z.shape[1] != self.audio_dim:
            raise ValueError(
                f"The projector takes vectors of width {self.audio_dim}, got {z.shape[1]}: "
                "give it vectors of the encoder that it was trained on."
            )
        z = z.to(self.linear1.weight.dtype)
        h = F.dropout(F.gelu(self.norm1(self.linear1(z))), self.dropout, self.training)
        h = F.dropout(F.gelu(self.norm2(self.linear2(h))), self.dropout, self.training)
        return self.linear3(h)

    @property
    def config(self) -> dict[str, Any]:
        """The content of `config.json` and of the weights' metadata: the arguments and the library version."""
        return {name: getattr(self, name) for name in self.ARGUMENTS} | {"library_version": __version__}

    @classmethod
    def labels(cls, signature: Mapping[str, str]) -> dict[str, Any]:
        """An `AudioEncoder.signature()` as keyword arguments of a projector for that encoder."""
        known = {name: value for name, value in signature.items() if name in cls.ARGUMENTS}
        others = {name: value for name, value in signature.items() if name not in cls.ARGUMENTS}
        return known | ({"encoder_options": others} if others else {})

    def check(
        self,
        signature: Mapping[str, str],
        *,
        audio_dim: int,
        width: int,
        tower: str | None = None,
        tower_layer: int | Sequence[int] | None = None,
    ) -> None:
        """Refuse an encoder and a tower that this projector wasn't trained on.

        Args:
            signature: the result of `AudioEncoder.signature()`. A key that one side lacks isn't compared.
            audio_dim: the encoder's `dim`.
            width: the width of the tower's tokens.
            tower: the tower's name; None if it has none.
            tower_layer: the layer or layers that the tokens come from.


        Raises:
            ValueError: if a field differs or a weight isn't float. The message names every such field with both values.
        """
        for name, weight in self.named_parameters():
            if not weight.is_floating_point():
                raise ValueError(
                    f"The projector's {name} is {weight.dtype}: it was quantised. It is small, so load it as float: "
                    "Projector.from_pretrained(..., dtype=torch.float16)."
                )
        here = {
            **signature,
            "audio_dim": audio_dim,
            "width": width,
            "tower": tower,
            "tower_layer": _checked_layer(tower_layer),
        }
        labels = self.config | (self.encoder_options or {})
        wrong = [
            f"{field} is {trained!r} in the projector and {here[field]!r} here"
            for field, trained in labels.items()
            if trained is not None and here.get(field) is not None and trained != here[field]
        ]
        if wrong:
            raise ValueError(
                f"The projector doesn't fit: {'; '.join(wrong)}. "
                "Patch with what it was trained on, or take a projector that was trained on these."
            )

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the mixin's arguments that apply here
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> "Projector":
        """Load a projector in evaluation mode. Only safetensors files are opened, and all keys must match.

        Args:
            pretrained_model_name_or_path: a folder, a `.safetensors` file that `save_pretrained` wrote, or
                a Hub id, "user/name".
            revision: branch, tag or commit on the Hub.
            token: for private repositories; by default the token of `hf auth login`.
            cache_dir: folder for downloads; by default the Hub's cache.
            local_files_only: use the cached files and send no request.
            force_download: download again even if the files are cached.
            dtype: dtype of the loaded weights. By default, half-precision files are converted to float32.

        Raises:
            FileNotFoundError: if there is no such path, or no `model.safetensors` in it.
            ValueError: if the file is truncated, in another format or from another model, or its config is wrong.
            OSError: if the Hub can't be reached or refuses; often one of huggingface_hub's subclasses.
        """
        weights, config_file = files.find(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return files.load(cls, cls.ARGUMENTS, weights, config_file, dtype)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = json.dumps(self.config, indent=2) + "\n"
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        metadata = {files.METADATA_KEY: json.dumps(self.config)}
        write_file(save_directory / files.WEIGHTS, save(state, metadata=metadata))
        write_file(save_directory / files.CONFIG, config.encode())

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        labels = self.config | (self.encoder_options or {})
        known = {
            field: value
            for field, value in labels.items()
            if value is not None and field != "encoder_options"
        }
        return super().generate_model_card(*args, fields=known, **kwargs)


def _checked_label(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a string or None, got {value!r}.")
    return value


def _checked_options(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or any(
        not isinstance(part, str) for item in value.items() for part in item
    ):
        raise ValueError(f"encoder_options must be strings by name or None, got {value!r}.")
    return dict(value)


def _checked_layer(value: Any) -> int | list[int] | None:
    layers = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError(f"tower_layer must be an int, several ints or None, got {value!r}.")
    return list(value) if isinstance(value, tuple) else value
