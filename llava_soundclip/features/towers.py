"""The vision tower without its LLaVA: CLIP's tokens of a picture, at the layer that LLaVA reads."""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from llava_soundclip._quiet import quiet_loading
from llava_soundclip.demo.clip import clip_folder
from llava_soundclip.demo.parts import DEMO
from llava_soundclip.fingerprints import clip_fingerprint, fingerprint
from llava_soundclip.pretrained import load_pretrained

LLAVA_LAYER = -2  # in LLaVA-1.5 and LLaVA-NeXT


class VisionTower(nn.Module):
    """A `CLIPVisionModel` with its image processor.

    Attributes:
        model: the tower.
        processor: its image processor; picklable, so that worker processes prepare the pictures.
        layer: index into the tower's hidden states.
        name: name of the architecture, as in hosts and projectors.
        weights: fingerprint of the weights.
        width: D, the width of the tokens.
        patch_count: P, the number of patches.
    """

    def __init__(self, model: nn.Module, processor: Any, *, layer: int = LLAVA_LAYER) -> None:
        super().__init__()
        config: Any = model.config
        depth = config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"layer {layer} is outside the tower's range, from {-depth - 1} to {depth}")
        self.model = model
        self.processor = processor
        self.layer = layer
        self._read = layer % (depth + 1)  # number of layers below the one that is read
        self.name = clip_fingerprint(config)
        # The names in transformers 4 have one more level than in 5.
        names = {name.removeprefix("vision_model."): weight for name, weight in model.state_dict().items()}
        self.weights = fingerprint(names)
        self.width: int = config.hidden_size
        self.patch_count = (config.image_size // config.patch_size) ** 2

    @classmethod
    def load(
        cls,
        checkpoint: str | PathLike[str],
        *,
        layer: int = LLAVA_LAYER,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "VisionTower":
        """Load a tower and its image processor.

        Args:
            checkpoint: Hub id or folder of a CLIP model or a CLIP vision tower, or "demo" for the miniature's.
            layer: index into the tower's hidden states.
            device: device that the tower runs on; by default the CPU.
            dtype: dtype of the weights.

        Raises:
            OSError: if the checkpoint can't be found or reached.
            ValueError: if it isn't a CLIP tower, has no such layer, or its files are damaged.
        """
        import transformers

        if checkpoint == DEMO:
            checkpoint = clip_folder()
        config = load_pretrained(transformers.AutoConfig, checkpoint)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise ValueError(
                f"{checkpoint} is a {config.model_type}: a tower with a CLS token is needed, "
                "such as openai/clip-vit-large-patch14-336"
            )
        with quiet_loading():
            model = load_pretrained(transformers.CLIPVisionModel, checkpoint, dtype=dtype)
        processor = load_pretrained(transformers.AutoImageProcessor, checkpoint)
        tower = cls(model.eval().requires_grad_(False), processor, layer=layer)
        encoder = getattr(model, "vision_model", model).encoder  # one more level in transformers 4 than in 5
        encoder.layers = encoder.layers[: max(1, tower._read)]  # the output of the other layers isn't read
        return tower.to(device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """The tower's tokens.

        Args:
            pixels: (n, 3, H, W) floats from the image processor.

        Returns:
            (n, P+1, D) float32 on the tower's device, with CLS first.
        """
        dtype = next(self.model.parameters()).dtype
        output = self.model(pixels.to(self.device, dtype), output_hidden_states=True)
        return output.hidden_states[self._read].float()
