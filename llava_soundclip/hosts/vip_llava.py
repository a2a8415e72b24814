"""ViP-LLaVA as Hugging Face ports it: `VipLlavaForConditionalGeneration`."""

from collections.abc import Sequence
from typing import Any

from llava_soundclip.hosts.huggingface import HuggingFaceHost


class VipLlavaHost(HuggingFaceHost):
    """Five layers of the tower side by side, always without the CLS token.

    Each of them is edited: its slot gets the sound, and the same patches stay in all. They are chosen once, at
    the deepest of the layers (-2 in the released models, though 6 stands last in their list).
    """

    @property
    def selected_layers(self) -> int | Sequence[int]:
        return self.model.config.vision_feature_layers  # the newer name's alias from 5.23 on

    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        return True
