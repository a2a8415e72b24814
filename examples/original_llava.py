"""Captions by a model of the original LLaVA package: one picture, without a sound and with one.

pip install --no-deps llava-torch==1.2.2.post1
python examples/original_llava.py bark.wav dog.jpg
python examples/original_llava.py bark.wav dog.jpg --model liuhaotian/llava-v1.5-13b

With transformers 4.57 the package loads its models, but its `generate` stops. With 5.23 both work, except that
checkpoints with a vision tower of their own (LLaVA-1.6, `unfreeze_mm_vision_tower`) don't load.
"""

import argparse

import torch
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from PIL import Image

from llava_soundclip import patch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sound", help="sound or video")
parser.add_argument("picture", help="picture to show")
parser.add_argument("--model", default="liuhaotian/llava-v1.5-7b", help="Hub id or folder")
parser.add_argument(
    "--template", default="vicuna_v1", help="conversation template, a name in llava.conversation"
)
parser.add_argument(
    "--prompt",
    default="What is the main object that is sounding in this image?",
    help="question to ask",
)
parser.add_argument("--checkpoint", default="small", help="Whisper checkpoint: name, Hub id, file or folder")
parser.add_argument("--k", type=int, default=150, help="number of patches that keep their value")
parser.add_argument("--device", default="cuda", help="device of the model")
args = parser.parse_args()

name = get_model_name_from_path(args.model)
tokenizer, model, image_processor, _ = load_pretrained_model(args.model, None, name, device=args.device)

picture = Image.open(args.picture).convert("RGB")
images = process_images([picture], image_processor, model.config).to(model.device, model.dtype)
conversation = conv_templates[args.template].copy()
conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{args.prompt}")
conversation.append_message(conversation.roles[1], None)
ids = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
ids = ids[None].to(model.device)


def answer() -> str:
    with torch.inference_mode():
        output = model.generate(ids, images=images, image_sizes=[picture.size], max_new_tokens=128)
    return tokenizer.batch_decode(output, skip_special_tokens=True)[0].strip()


soundclip = patch(model, checkpoint=args.checkpoint, k=args.k)
print("without a sound:", answer())
with soundclip.audio(args.sound):
    print("with the sound: ", answer())
