"""LLaVA-1.5 in transformers: `LlavaForConditionalGeneration`."""

from typing import Any

from llava_soundclip.hosts.huggingface import HuggingFaceHost


class LlavaHost(HuggingFaceHost):
    """The host of LLaVA-1.5, whose config says whether the CLS token is removed."""

    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        strategy = arguments.get("vision_feature_select_strategy")
        return (strategy or self.model.config.vision_feature_select_strategy) == "default"
