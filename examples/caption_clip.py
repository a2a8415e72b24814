"""What a LLaVA sees and hears in a clip.

python examples/caption_clip.py                                      # the miniature, on a clip of its own
python examples/caption_clip.py my_clip.mp4 --map map.png
python examples/caption_clip.py bark.wav --picture dog.jpg --model llava-hf/llava-1.5-7b-hf --device cuda
"""

import argparse
import tempfile
from pathlib import Path

from llava_soundclip import load_demo, patch
from llava_soundclip.maps import save_map
from llava_soundclip.media import load_frame


def alignment(text: str) -> str | float:
    return text if text in ("raw", "projected") else float(text)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("clip", nargs="?", help="film or sound")
parser.add_argument("--model", help="Hub id or folder of a LLaVA; the miniature by default")
parser.add_argument("--encoder", help="one of `llava-soundclip encoders`; whisperclip by default")
parser.add_argument("--checkpoint", help="the encoder's weights: name, file, folder or Hub id")
parser.add_argument("--alignment", type=alignment, help="raw, projected, or alpha in [0, 1]")
parser.add_argument("--projector", help="folder, .safetensors file or Hub id")
parser.add_argument("--k", type=int, help="patches that keep their value")
parser.add_argument("--prompt", help="the question")
parser.add_argument("--picture", help="what is seen instead of the film's middle frame")
parser.add_argument("--map", help="where to save which patches the sound kept, as a PNG")
parser.add_argument("--device", default="auto", help="where a --model goes")
parser.add_argument("--dtype", default="auto", help="of a --model: float32, float16 or bfloat16")
args = parser.parse_args()

names = ("encoder", "checkpoint", "projector", "k", "alignment")
options = {name: getattr(args, name) for name in names}
options = {name: value for name, value in options.items() if value is not None}

if args.model is None:
    soundclip = load_demo(**options)
else:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype, device_map=args.device)
    soundclip = patch(model, processor=AutoProcessor.from_pretrained(args.model), **options)

clip, picture, map_path = args.clip, args.picture, args.map
if clip is None:  # the same picture without sound, with another sound, and with its own
    from llava_soundclip.demo.kinds import make_clip
    from llava_soundclip.prompts import chat_prompt

    folder = Path(tempfile.mkdtemp(prefix="soundclip-"))
    clip = make_clip(folder / "bell.mp4", picture=["bell", "whistle"], sound="bell")
    other = make_clip(folder / "whistle.mp4", picture=["bell", "whistle"], sound="whistle")
    picture, map_path = clip, map_path or folder / "map.png"
    processor, prompt = soundclip.processor, args.prompt or soundclip.prompt
    inputs = processor(images=load_frame(clip), text=chat_prompt(processor, prompt), return_tensors="pt")
    output = soundclip.model.generate(
        **inputs, max_new_tokens=128
    )  # a patched model without a sound is stock
    words = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"clip:               {clip}\nwithout sound:      {words.strip()}")
    print("with another sound:", soundclip.caption(other, prompt=args.prompt, picture=picture))

text = soundclip.caption(clip, prompt=args.prompt, picture=picture)
print(text if args.clip else f"with its sound:     {text}")
if map_path is not None:
    print("map:", save_map(soundclip.trace(clip, picture=picture), map_path, text).resolve())
