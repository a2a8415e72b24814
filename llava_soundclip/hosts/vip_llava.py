"""ViP-LLaVA in transformers: `VipLlavaForConditionalGeneration`."""

from collections.abc import Sequence
from typing import Any

from llava_soundclip.hosts.huggingface import HuggingFaceHost


class VipLlavaHost(HuggingFaceHost):
    """The host of ViP-LLaVA, which reads five layers of the tower side by side, always without the CLS token.

    Each layer is edited: its slot gets the sound, and the same patches stay in all layers. They are chosen once, at
    the deepest layer, which is -2 in the released models, although 6 is last in their list.
    """

    @property
    def selected_layers(self) -> int | Sequence[int]:
        return self.model.config.vision_feature_layers  # since 5.23 an alias of a new name

    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        return True
