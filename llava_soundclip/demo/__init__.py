"""The miniature: a small LLaVA of real parts that runs anywhere and hears real sounds.

`llava_soundclip.load_demo` gives it. Whisper tiny.en and SmolLM2-135M-Instruct are used as they are. The vision
tower, two mm_projectors and the SoundCLIP projector were trained by the scripts in `recipes/miniature`;
`weights/demo/README.md` is their card.
"""

from typing import Literal

MMProjector = Literal["prepared", "stock"]
PROMPT = "What do you hear and see?"
STOCK_PROMPT = "What do you see?"  # the only question that the stock mm_projector was trained with
K = 18  # patches that keep their value, of 36
WINDOW = "clip"  # Whisper hears the sound alone, without the padding to 30 s

# The sounds that the miniature knows. It calls any other sound by one of these names.
SOUNDS = (
    *("dog", "cat", "cow", "horse", "sheep", "duck", "rooster", "frog", "bird"),
    *("violin", "guitar", "drum", "fire truck", "car", "alarm clock", "bell", "whistle", "rain"),
)

__all__ = ["PROMPT", "SOUNDS", "STOCK_PROMPT", "WINDOW", "K", "MMProjector"]
