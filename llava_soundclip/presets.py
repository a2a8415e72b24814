"""The paper's recommendations by application (4.5: Figure 9 and Table 15).

Both name the same encoders and alignments. For the two retrieval applications Figure 9 leaves the budget open
("-") and Table 15 says 15; Appendix E compares the sound's vector with CLS, so there k changes nothing.

For captions the paper contradicts itself. Appendix B.2 recommends CLAP, raw, k = 150, with 1.92 by GPT-4o: the best of
Tables 11 and 14, where WhisperCLIP has 1.87. In Table 12 and the table of 4.3, WhisperCLIP has 1.93. The presets
follow 4.5.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """A configuration, as arguments of `patch`.

    Attributes:
        encoder: a name of `available_encoders()`.
        alignment: "raw" or "projected".
        k: number of patches that keep their value.
        source: the place in the paper, with its wording.
    """

    encoder: str
    alignment: Literal["raw", "projected"]
    k: int
    source: str


PRESETS = MappingProxyType(
    {
        "cross_modal_retrieval": Preset(
            "imagebind", "projected", 15, "Table 15: Cross-modal retrieval, ImageBind, CLIP-aligned, 15"
        ),
        "audio_visual_search": Preset(
            "imagebind", "projected", 15, "Table 15: Audio-visual search, ImageBind, CLIP-aligned, 15"
        ),
        "audio_question_answering": Preset(
            "whisperclip", "raw", 150, "Table 15: Audio question answering, WhisperCLIP, Raw, 150"
        ),
        "dense_captioning": Preset(
            "whisperclip", "raw", 150, "Table 15: Dense captioning, WhisperCLIP, Raw, 150"
        ),
        "general_understanding": Preset(
            "whisperclip", "raw", 150, "Table 15: General understanding, WhisperCLIP, Raw, 150"
        ),
    }
)
