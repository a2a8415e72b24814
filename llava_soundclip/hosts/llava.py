"""LLaVA-1.5 as Hugging Face ports it: `LlavaForConditionalGeneration`."""

from typing import Any

from llava_soundclip.hosts.huggingface import HuggingFaceHost


class LlavaHost(HuggingFaceHost):
    """All that is special to LLaVA-1.5: its config says whether the CLS token goes or stays."""

    def cuts_first(self, arguments: dict[str, Any]) -> bool:
        strategy = arguments.get("vision_feature_select_strategy")
        return (strategy or self.model.config.vision_feature_select_strategy) == "default"
