"""Write clap.safetensors: what laion_clap's own network gives for drawn weights and synthetic sounds.

    python -m tests.encoders.data.make_clap_goldens

Made with laion_clap 1.1.7, torchlibrosa 0.1.0, librosa 0.11.0 and torch 2.13 on a CPU. Nothing of llava_soundclip
computes here: only its list of tensor names is used, to draw the weights. The fused network's spectrogram is librosa's,
which the original's, torchaudio's, is written to agree with.
"""

from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.encoders.fake_clap import GOLDEN_CASES, SMALL, golden_sound, import_laion, weights

FILE = Path(__file__).with_name("clap.safetensors")
SAMPLES, FRAMES = 480_000, 1001


def main() -> None:
    goldens = {}
    for case, (sound, fused, crops) in GOLDEN_CASES.items():
        for stage, value in stages(golden_sound(sound), fused, crops).items():
            goldens[f"{case}/{stage}"] = value.clone().contiguous()
    save_file(goldens, FILE)


def network(fused: bool) -> tuple[nn.Module, nn.Module]:
    """HTSAT, and the projection behind it."""
    sizes = {"sample_rate": 48_000, "window_size": 1024, "hop_size": 480, "mel_bins": 64}
    branch = import_laion().HTSAT_Swin_Transformer(
        embed_dim=SMALL["width"],
        depths=SMALL["depths"],
        num_heads=SMALL["heads"],
        config=SimpleNamespace(**sizes, fmin=50, fmax=14_000),
        enable_fusion=fused,
        fusion_type="aff_2d" if fused else "None",
    )
    dim = SMALL["dim"]
    projection = nn.Sequential(nn.Linear(8 * SMALL["width"], dim), nn.ReLU(), nn.Linear(dim, dim))
    both = nn.ModuleDict({"audio_branch": branch, "audio_projection": projection}).eval()
    both.load_state_dict({**both.state_dict(), **weights(fused=fused).state})
    return branch, projection


def prepared(sound: np.ndarray) -> np.ndarray:
    """16-bit samples, and 10 s of them at least."""
    integers = (np.clip(sound, -1, 1) * 32767.0).astype(np.int16)
    sound = (integers / 32767.0).astype(np.float32)
    if len(sound) < SAMPLES:
        sound = np.tile(sound, SAMPLES // len(sound))
        sound = np.concatenate([sound, np.zeros(SAMPLES - len(sound), np.float32)])
    return sound


def fused_mel(sound: np.ndarray, crops: tuple[int, int, int] | None) -> Tensor:
    """(4, 1001, 64): the whole, and the crops."""
    power = librosa.feature.melspectrogram(
        y=sound, sr=48_000, n_fft=1024, hop_length=480, n_mels=64, fmin=50, fmax=14_000, htk=True, norm=None,
        pad_mode="reflect",
    )  # fmt: skip
    mel = torch.from_numpy(10.0 * np.log10(np.maximum(power, 1e-10)).T).float()
    if crops is None:
        return mel.expand(4, -1, -1)
    whole = F.interpolate(mel[None, None], (FRAMES, 64), mode="bilinear", antialias=True)[0, 0]
    return torch.stack([whole, *(mel[start : start + FRAMES] for start in crops)])


@torch.no_grad()
def stages(sound: np.ndarray, fused: bool, crops: tuple[int, int, int] | None) -> dict[str, Tensor]:
    branch, projection = network(fused)
    result = {}

    def keep(stage: str) -> None:
        module = branch.patch_embed if stage == "patch_embed" else branch.layers[int(stage[-1])]

        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            result[f"{stage}_mean"] = (output[0] if isinstance(output, tuple) else output)[0].mean(0)

        module.register_forward_hook(hook)

    for stage in ("patch_embed", "layer0", "layer1", "layer2", "layer3"):
        keep(stage)
    signal = prepared(sound)
    if fused:
        mel = fused_mel(signal, crops)
        inputs = {"mel_fusion": mel[None], "longer": torch.tensor([[crops is not None]])}
    else:
        waveform = torch.from_numpy(signal)[None]
        mel = branch.logmel_extractor(branch.spectrogram_extractor(waveform))[0]
        inputs = {"waveform": waveform}
    result["over_frequency"], result["over_time"] = mel.mean(-1)[:, ::10], mel.mean(-2)
    result["audio_branch"] = branch(inputs)["embedding"][0]
    result["projected"] = projection(result["audio_branch"])
    result["embedding"] = F.normalize(result["projected"], dim=-1)
    return result


if __name__ == "__main__":
    main()
