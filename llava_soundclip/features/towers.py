"""The vision tower by itself: CLIP's tokens of a picture, at the layer that LLaVA reads."""

from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from llava_soundclip._quiet import quiet_loading
from llava_soundclip.demo.clip import clip_folder
from llava_soundclip.demo.parts import DEMO
from llava_soundclip.fingerprints import clip_fingerprint, fingerprint

LLAVA_LAYER = -2  # of LLaVA-1.5 and LLaVA-NeXT


class VisionTower(nn.Module):
    """A `CLIPVisionModel` with its image processor.

    Attributes:
        model: the tower.
        processor: its image processor; picklable, so that worker processes prepare the pictures.
        layer: index into the tower's hidden states.
        name: architecture, as LLaVA's hosts and projectors name it.
        weights: fingerprint of the weights.
        width: D.
        patch_count: P.
    """

    def __init__(self, model: nn.Module, processor: Any, *, layer: int = LLAVA_LAYER) -> None:
        super().__init__()
        config: Any = model.config
        depth = config.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layer {layer} is outside of the tower's: it has {depth}, from {-depth - 1} to {depth}"
            )
        self.model = model
        self.processor = processor
        self.layer = layer
        self._read = layer % (depth + 1)  # layers below what is read
        self.name = clip_fingerprint(config)
        # transformers 4 has one more level of names than 5.
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
            layer: index into its hidden states.
            device: device that it runs on; the CPU by default.
            dtype: dtype of its weights.

        Raises:
            OSError: if it can't be found or reached.
            ValueError: if it is no CLIP tower, or has no such layer.
        """
        import transformers

        if checkpoint == DEMO:
            checkpoint = clip_folder()
        config = transformers.AutoConfig.from_pretrained(checkpoint)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise ValueError(
                f"{checkpoint} is a {config.model_type}: a tower with a CLS token is wanted, "
                "such as openai/clip-vit-large-patch14-336"
            )
        with quiet_loading():
            model = transformers.CLIPVisionModel.from_pretrained(checkpoint, dtype=dtype)
        processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
        tower = cls(model.eval().requires_grad_(False), processor, layer=layer)
        encoder = getattr(model, "vision_model", model).encoder  # transformers 4 has one more level than 5
        encoder.layers = encoder.layers[: max(1, tower._read)]  # the others would be computed for nothing
        return tower.to(device)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """The tower's tokens.

        Args:
            pixels: (n, 3, H, W) as the image processor gives them.

        Returns:
            (n, P+1, D) float32 on the tower's device, CLS first.
        """
        dtype = next(self.model.parameters()).dtype
        output = self.model(pixels.to(self.device, dtype), output_hidden_states=True)
        return output.hidden_states[self._read].float()
