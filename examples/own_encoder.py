"""An encoder of your own: any audio model of transformers with states over time (WavLM, HuBERT, AST ...).

python examples/own_encoder.py bark.wav --picture dog.jpg
python examples/own_encoder.py bark.wav --picture dog.jpg --checkpoint MIT/ast-finetuned-audioset-10-10-0.4593

docs/adding-an-encoder.md explains the steps. The miniature gets this encoder's raw vectors, which it was never trained on. A
LLaVA needs a projector trained for the encoder.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llava_soundclip import load_demo
from llava_soundclip.encoders import AudioEncoder, register_encoder
from llava_soundclip.encoders.base import check_dtype
from llava_soundclip.fingerprints import fingerprint

SHORTEST = 0.1  # seconds: the convolutions in front of these models need some sound


class TransformersEncoder(AudioEncoder):
    """The last hidden state of a transformers audio model, averaged over time."""

    name = "transformers"

    def __init__(self, extractor, model) -> None:
        super().__init__()
        self.extractor, self.model = extractor, model
        self.sampling_rate = extractor.sampling_rate
        self.dim = model.config.hidden_size
        self.checkpoint = f"{model.config.model_type}-{fingerprint(model.state_dict())}"

    @classmethod
    def load(cls, *, checkpoint: str, device=None, dtype=None) -> "TransformersEncoder":
        from transformers import AutoFeatureExtractor, AutoModel

        dtype = check_dtype(dtype)
        extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        return cls(extractor, AutoModel.from_pretrained(checkpoint, dtype=dtype)).to(device)

    def _embed(self, waveforms: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([self._vector(waveform.mean(axis=0)) for waveform in waveforms])

    def _vector(self, mono: np.ndarray) -> Tensor:
        missing = round(SHORTEST * self.sampling_rate) - len(mono)
        mono = np.pad(mono, (0, max(missing, 0)))
        features = self.extractor(mono, sampling_rate=self.sampling_rate, return_tensors="pt")
        inputs = features[self.model.main_input_name].to(self.model.device, self.model.dtype)
        return self.model(inputs).last_hidden_state[0].float().mean(dim=0)


register_encoder("transformers", TransformersEncoder)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", help="video or sound")
    parser.add_argument("--picture", help="picture or video to show instead of the clip's middle frame")
    parser.add_argument("--checkpoint", default="microsoft/wavlm-base-plus", help="Hub id or folder")
    args = parser.parse_args()

    soundclip = load_demo(encoder="transformers", checkpoint=args.checkpoint)
    print(soundclip.caption(args.clip, picture=args.picture))
