"""The miniature: a small LLaVA of real parts that runs anywhere and hears real sounds.

`llava_soundclip.load_demo` loads it. Whisper tiny.en and SmolLM2-135M-Instruct are used unchanged. The vision
tower, two mm_projectors and the SoundCLIP projector were trained by the scripts in `recipes/miniature`;
`weights/demo/README.md` is their model card.
"""

from typing import Literal

MMProjector = Literal["prepared", "stock"]
PROMPT = "What do you hear and see?"
STOCK_PROMPT = "What do you see?"  # the only question in the stock mm_projector's training
K = 18  # number of patches that keep their value, out of 36
WINDOW = "clip"  # Whisper hears the sound without padding to 30 s

# The sounds that the miniature knows. It calls any other sound by one of these names.
SOUNDS = (
    *("dog", "cat", "cow", "horse", "sheep", "duck", "rooster", "frog", "bird"),
    *("violin", "guitar", "drum", "fire truck", "car", "alarm clock", "bell", "whistle", "rain"),
)

__all__ = ["PROMPT", "SOUNDS", "STOCK_PROMPT", "WINDOW", "K", "MMProjector"]
