"""Write whisper.safetensors: what openai-whisper itself gives for drawn weights and synthetic sounds.

    python -m tests.encoders.data.make_whisper_goldens

Made with openai-whisper 20250625 and torch 2.13 on a CPU. Nothing of llava_soundclip computes here: only its
list of tensor names is used, to draw the weights.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import whisper
from safetensors.torch import save_file
from torch import Tensor
from whisper.model import AudioEncoder

from tests.encoders.fake_whisper import GOLDEN_SIZES, golden_sound, weights

FILE = Path(__file__).with_name("whisper.safetensors")


def main() -> None:
    goldens = {}
    for case, (sound, sizes) in GOLDEN_SIZES.items():
        for stage, value in stages(golden_sound(sound), sizes).items():
            goldens[f"{case}/{stage}"] = value.contiguous()
    save_file(goldens, FILE)


@torch.no_grad()
def stages(sound: np.ndarray, sizes: dict[str, int]) -> dict[str, Tensor]:
    """The mel, the means of all blocks' outputs, and those of a run without the padding."""
    drawn = weights(**sizes)
    encoder = AudioEncoder(drawn.n_mels, 1500, drawn.n_state, drawn.n_head, drawn.n_layer).eval()
    encoder.load_state_dict(dict(drawn.state))
    outputs: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda block, args, output: outputs.append(output[0]))

    padded = torch.from_numpy(whisper.pad_or_trim(sound))
    mel = whisper.log_mel_spectrogram(padded, n_mels=drawn.n_mels)
    tokens = min(-(-len(sound) // 320), 1500)
    final = encoder(mel[None])[0]
    result = {
        "mel": mel[:, : min(2 * tokens, 20)].clone(),
        "mel_last": mel[:, -1].clone(),
        "layer_means.valid": torch.stack([output[:tokens].mean(0) for output in outputs]),
        "layer_means.all": torch.stack([output.mean(0) for output in outputs]),
        "ln_post_mean.valid": final[:tokens].mean(0),
        "ln_post_mean.all": final.mean(0),
    }
    # Without the padding: the input of block 1 is cut, the blocks themselves take any length.
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel[None]))))
    x = x.permute(0, 2, 1)[:, :tokens] + encoder.positional_embedding[:tokens]
    alone = []
    for block in encoder.blocks:
        x = block(x)
        alone.append(x[0].mean(0))
    result["layer_means.clip"] = torch.stack(alone)
    result["ln_post_mean.clip"] = encoder.ln_post(x)[0].mean(0)
    return result


if __name__ == "__main__":
    main()
