"""Draw the README's picture: one frame without a sound and with two, and the miniature's three captions.

python recipes/pages/picture.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_soundclip import load_demo
from llava_soundclip.demo.kinds import make_scene, synthesise
from llava_soundclip.maps import draw_map
from llava_soundclip.prompts import chat_prompt

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "demo.png"
RATE = 16_000  # Hz
SIDE = 400  # pixels of a panel
GAP = 20  # pixels around and between the panels
TITLE, TEXT = 30, 42  # sizes of the two fonts, readable on a phone
INK, PAPER, FAINT = (16, 18, 24), (238, 238, 232), (150, 154, 166)
MARGIN = 24  # pixels that `draw_map` leaves around a panel


def main() -> None:
    soundclip = load_demo()
    scene = make_scene(["bell", "whistle"], 288, np.random.default_rng(1))
    question = chat_prompt(soundclip.processor, soundclip.prompt)
    inputs = soundclip.processor(images=scene, text=question, return_tensors="pt")
    output = soundclip.model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = soundclip.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    panels: list[tuple[str, Image.Image, str]] = []
    for kind in ("bell", "whistle"):
        sound = synthesise(kind, 3, RATE, np.random.default_rng(2))
        trace = soundclip.trace(sound, scene, sampling_rate=RATE)
        text = soundclip.caption(sound, picture=scene, sampling_rate=RATE, do_sample=False)
        panels.append((f"sound of a {kind}", draw_map(trace.frame, trace.kept), text))
    panels.insert(0, ("without a sound", draw_map(trace.frame, np.ones_like(trace.kept)), answer.strip()))
    picture = join(panels)
    picture.save(OUT, optimize=True)
    print(f"{OUT}: {picture.width} x {picture.height}, {OUT.stat().st_size // 1024} KB")
    for title, _, text in panels:
        print(f"{title}: {text}")


def join(panels: list[tuple[str, Image.Image, str]]) -> Image.Image:
    """Put panels side by side, each with its title above and its caption below."""
    top, bottom = GAP + TITLE + GAP, GAP + round(2.6 * TEXT)
    page = Image.new("RGB", (GAP + len(panels) * (SIDE + GAP), top + SIDE + bottom), INK)
    draw = ImageDraw.Draw(page)
    for column, (title, frame, text) in enumerate(panels):
        x = GAP + column * (SIDE + GAP)
        draw.text((x, GAP), title, FAINT, ImageFont.load_default(size=TITLE))
        panel = frame.crop((MARGIN, MARGIN, frame.width - MARGIN, frame.height - MARGIN))
        page.paste(panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, top))
        lines = text.replace(". ", ".\n") if ". " in text else text.replace(" and ", "\nand ")
        draw.multiline_text(
            (x, top + SIDE + GAP // 2), lines, PAPER, ImageFont.load_default(size=TEXT), spacing=8
        )
    return page


if __name__ == "__main__":
    main()
