"""A tour of the miniature: captions without and with a sound, the patches that a sound keeps, k and alpha.

python examples/miniature_tour.py [folder for the pictures]

Run it whole, or cell by cell in an editor that knows "# %%". All pictures are drawn and all sounds synthesised here.
"""

# %% A small LLaVA, patched: unchanged Whisper and SmolLM2, and a vision tower trained for it
import sys
from pathlib import Path

import numpy as np

from llava_soundclip import load_demo
from llava_soundclip.demo.kinds import make_scene, synthesise
from llava_soundclip.maps import save_map
from llava_soundclip.prompts import chat_prompt

RATE = 16_000  # Hz
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tour")
folder.mkdir(parents=True, exist_ok=True)

soundclip = load_demo()
picture = make_scene(["bell", "whistle"], 288, np.random.default_rng(1))
bell, whistle, rain = (
    synthesise(kind, 3, RATE, np.random.default_rng(2)) for kind in ("bell", "whistle", "rain")
)


def caption(sound: np.ndarray) -> str:
    return soundclip.caption(sound, picture=picture, sampling_rate=RATE, do_sample=False)


# %% Without a sound, the patched model is the stock model
question = chat_prompt(soundclip.processor, soundclip.prompt)
inputs = soundclip.processor(images=picture, text=question, return_tensors="pt")
output = soundclip.model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(
    "no sound:        ",
    soundclip.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True),
)

# %% The same picture, with the sound of one of the two things
print("bell:            ", caption(bell))
print("whistle:         ", caption(whistle))

# %% The sound of something that isn't in the picture
print("rain:            ", caption(rain))

# %% Maps of the patches that each sound kept, and of the similarity of all patches to it
for name, sound in {"bell": bell, "whistle": whistle, "rain": rain}.items():
    trace = soundclip.trace(sound, picture, sampling_rate=RATE)
    print("map:             ", save_map(trace, folder / f"{name}.png", caption(sound)))

# %% k, the number of patches that keep their value: with 0 the model only hears, with 36 it sees everything
for k in (0, 9, 18, 36):
    soundclip.k = k
    print(f"whistle, k = {k:2}: ", caption(whistle))
soundclip.k = 18

# %% alpha: from the trained projector (0) to Whisper's raw vector (1)
for alpha in (0.0, 0.5, 1.0):
    soundclip.alignment = alpha
    print(f"whistle, alpha {alpha}:", caption(whistle))
soundclip.alignment = "projected"

# %% The other patches can leave the prompt: the language model then reads 19 tokens instead of 37
soundclip.tokens = "drop"
print("whistle, drop:   ", caption(whistle))

# %% Restore the model
soundclip.unpatch()
