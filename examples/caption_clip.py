"""Caption a clip with a LLaVA that sees and hears it.

python examples/caption_clip.py                                      # the miniature, on a clip of its own
python examples/caption_clip.py my_clip.mp4 --map map.png
python examples/caption_clip.py bark.wav --picture dog.jpg --model llava-hf/llava-1.5-7b-hf --device cuda

Without --model the miniature answers. It knows 18 sounds, listed in llava_soundclip.demo.SOUNDS, and gives any other
sound one of their names.
"""

import argparse
import sys
import tempfile
from pathlib import Path


def alignment(text: str) -> str | float:
    return text if text in ("raw", "projected") else float(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", nargs="?", help="video or sound; without it, a bell and a whistle are drawn")
    parser.add_argument("--model", help="Hub id or folder of a LLaVA; the miniature by default")
    parser.add_argument("--encoder", help="one of `llava-soundclip encoders`; whisperclip by default")
    parser.add_argument("--checkpoint", help="the encoder's weights: name, Hub id, file, folder or demo")
    parser.add_argument("--alignment", type=alignment, help="raw, projected, or alpha from 0 to 1")
    parser.add_argument("--projector", help="folder, .safetensors file or Hub id")
    parser.add_argument("--k", type=int, help="number of patches that keep their value")
    parser.add_argument("--prompt", help="question to ask")
    parser.add_argument("--picture", help="picture or video to show instead of the clip's middle frame")
    parser.add_argument("--map", help="PNG file for a map of the patches that the sound kept")
    parser.add_argument("--device", default="auto", help="device for --model, such as cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="precision of --model: float32, float16 or bfloat16")
    return parser.parse_args()


def check_clip(clip: str, picture: str | None) -> None:
    """Refuse a clip that can't be seen or heard, before a model is loaded."""
    from llava_soundclip.media import MediaError, load_frame, probe

    try:
        info = probe(clip)
        if not info.has_audio:
            sys.exit(f"{clip}: it has no sound")
        if not info.has_video and picture is None:
            sys.exit(f"{clip}: it has no picture; give one with --picture")
        load_frame(picture or clip)
    except MediaError as error:
        sys.exit(str(error))


def main() -> None:
    args = read_arguments()
    if args.clip is not None:
        check_clip(args.clip, args.picture)

    from llava_soundclip import load_demo, patch
    from llava_soundclip.demo import SOUNDS
    from llava_soundclip.maps import save_map

    names = ("encoder", "checkpoint", "projector", "k", "alignment")
    options = {name: getattr(args, name) for name in names}
    options = {name: value for name, value in options.items() if value is not None}
    try:
        if args.model is None:
            soundclip = load_demo(**options)
        else:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            model = AutoModelForImageTextToText.from_pretrained(
                args.model, dtype=args.dtype, device_map=args.device
            )
            soundclip = patch(model, processor=AutoProcessor.from_pretrained(args.model), **options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(str(error))

    clip, picture, map_path = args.clip, args.picture, args.map
    if clip is None:  # the same picture without sound, with another sound, and with its own
        from llava_soundclip.demo.kinds import make_clip
        from llava_soundclip.media import load_frame
        from llava_soundclip.prompts import chat_prompt

        folder = Path(tempfile.mkdtemp(prefix="soundclip-"))
        clip = make_clip(folder / "bell.mp4", picture=["bell", "whistle"], sound="bell")
        other = make_clip(folder / "whistle.mp4", picture=["bell", "whistle"], sound="whistle")
        picture, map_path = clip, map_path or folder / "map.png"
        processor, prompt = soundclip.processor, args.prompt or soundclip.prompt
        inputs = processor(images=load_frame(clip), text=chat_prompt(processor, prompt), return_tensors="pt")
        # Without a sound, a patched model is the stock model.
        output = soundclip.model.generate(**inputs, max_new_tokens=128)
        words = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"clip:               {clip}\nwithout sound:      {words.strip()}")
        print("with another sound:", soundclip.caption(other, prompt=args.prompt, picture=picture))

    text = soundclip.caption(clip, prompt=args.prompt, picture=picture)
    print(text if args.clip else f"with its sound:     {text}")
    if map_path is not None:
        print("map:", save_map(soundclip.trace(clip, picture=picture), map_path, text).resolve())
    if args.model is None and args.clip is not None:
        print(f"(The miniature knows {len(SOUNDS)} sounds: {', '.join(SOUNDS)}.)", file=sys.stderr)


if __name__ == "__main__":
    main()
