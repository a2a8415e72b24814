"""LLaVA-NeXT in 4 bits. Every tile gets the sound, and the other patches leave the prompt.

pip install bitsandbytes
python examples/llava_next_4bit.py my_clip.mp4
python examples/llava_next_4bit.py bark.wav --picture dog.jpg --model llava-hf/llava-v1.6-vicuna-7b-hf
"""

import argparse

import torch
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaNextForConditionalGeneration

from llava_soundclip import patch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("clip", help="video or sound")
parser.add_argument("--picture", help="picture or video to show instead of the clip's middle frame")
parser.add_argument("--model", default="llava-hf/llava-v1.6-mistral-7b-hf", help="Hub id or folder")
parser.add_argument("--checkpoint", default="small", help="Whisper checkpoint: name, Hub id, file or folder")
parser.add_argument("--k", type=int, default=150, help="number of patches that stay in each tile")
parser.add_argument("--device", default="auto", help="device of the model")
args = parser.parse_args()

quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
model = LlavaNextForConditionalGeneration.from_pretrained(
    args.model, quantization_config=quantization, device_map=args.device
)
processor = AutoProcessor.from_pretrained(args.model)

soundclip = patch(model, checkpoint=args.checkpoint, k=args.k, tokens="drop", processor=processor)
print(soundclip.caption(args.clip, picture=args.picture))
