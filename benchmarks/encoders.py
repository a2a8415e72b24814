"""Clips per second and memory of each encoder: ours against the plain way, one clip at a time.

    python benchmarks/encoders.py
    python benchmarks/encoders.py --encoders wav2clip --seconds 3 --batches 32 --device cuda

Weights are random and full-size (Whisper: base). The plain way is the code that a user of the original writes:

- whisperclip: openai-whisper's `pad_or_trim`, `log_mel_spectrogram` and encoder, with a hook on every block;
- clap: transformers' `ClapFeatureExtractor` and `ClapAudioModelWithProjection`;
- audioclip, imagebind, wav2clip: the originals can't be installed (no packages; ImageBind's licence). Their plain way
  is our own network and frontend, one clip after the other. AudioCLIP's original rebuilds its filters in every call,
  and so does its plain way here.

Both take the same clips in turns; the ratio is the median over the rounds. Memory is measured in a separate process:
its peak resident size minus its size with the encoder loaded (Linux). `frontend` is the frontend's share of our time.
The last ratio is with `dtype="bfloat16"`.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from llava_soundclip.encoders import AudioEncoder, load_encoder

NAMES = ("whisperclip", "whisperclip, window=clip", "clap", "imagebind", "audioclip", "wav2clip")
Sounds = Sequence[np.ndarray]


def build(name: str, checkpoint: Path, device: str, dtype: str = "float32") -> AudioEncoder:
    encoder_name, _, window = name.partition(", window=")
    options = {"window": window} if window else {}
    return load_encoder(encoder_name, checkpoint=checkpoint, device=device, dtype=dtype, **options)


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Small random weights for a module's state dict; variances and scales near 1."""
    state = {}
    for name, tensor in module.state_dict().items():
        if name.endswith(("running_var", "norm.weight")) or "bn" in name and name.endswith("weight"):
            state[name] = torch.ones(tensor.shape)
        elif tensor.is_floating_point():
            state[name] = (
                torch.randn(tensor.shape) / max(tensor[0].numel() if tensor.ndim > 1 else 100, 1) ** 0.5
            )
    return state


def whisper_checkpoint(folder: Path) -> Path:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        d_model=512,
        encoder_layers=6,
        encoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_layers=1,
        decoder_attention_heads=8,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder / "whisper")
    return folder / "whisper"


def clap_checkpoint(folder: Path) -> Path:
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection

    ClapAudioModelWithProjection(ClapAudioConfig()).save_pretrained(folder / "clap")
    return folder / "clap"


def imagebind_checkpoint(folder: Path) -> Path:
    from llava_soundclip.encoders.imagebind.tower import ImageBindTower
    from llava_soundclip.encoders.imagebind.weights import original_name

    with torch.device("meta"):
        tower = ImageBindTower(768, 12, 3072, 228, 1024)
    state = {original_name(name): tensor for name, tensor in random_state(tower).items()}
    torch.save(state, folder / "imagebind_huge.pth")
    return folder / "imagebind_huge.pth"


def audioclip_checkpoint(folder: Path) -> Path:
    from llava_soundclip.encoders.audioclip.tower import AudioTower

    with torch.device("meta"):
        tower = AudioTower()
    state = random_state(tower)
    count = len(state["fbsp.fc"])
    state |= {
        "fbsp.m": torch.zeros(count),
        "fbsp.fb": torch.ones(count),
        "fbsp.fc": torch.arange(count).float(),
    }
    torch.save({f"audio.{name}": tensor for name, tensor in state.items()}, folder / "AudioCLIP.pt")
    return folder / "AudioCLIP.pt"


def wav2clip_checkpoint(folder: Path) -> Path:
    from torch import nn

    from llava_soundclip.encoders.resnet import BasicBlock, ResNet

    with torch.device("meta"):
        parts = {"audio_encoder": ResNet(BasicBlock, (2, 2, 2, 2), 1)}
        parts["audio_transform.sequential.0"] = parts["audio_transform.sequential.3"] = nn.Linear(512, 512)
    state = {f"{at}.{name}": t for at, part in parts.items() for name, t in random_state(part).items()}
    torch.save(state, folder / "Wav2CLIP.pt")
    return folder / "Wav2CLIP.pt"


CHECKPOINTS = {
    "whisperclip": whisper_checkpoint,
    "clap": clap_checkpoint,
    "imagebind": imagebind_checkpoint,
    "audioclip": audioclip_checkpoint,
    "wav2clip": wav2clip_checkpoint,
}


def plain_whisper(encoder: AudioEncoder, device: str) -> Callable[[Sounds], object]:
    import whisper
    from whisper.model import AudioEncoder as OpenAIEncoder

    model = OpenAIEncoder(80, 1500, 512, 8, 6).to(device).eval()
    states: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: states.append(output))

    def run(sounds: Sounds) -> None:
        for sound in sounds:
            states.clear()
            model(whisper.log_mel_spectrogram(whisper.pad_or_trim(sound)).to(device)[None])
            torch.stack([state[0].mean(0) for state in states]).mean(0)

    return run


def plain_clap(encoder: AudioEncoder, device: str) -> Callable[[Sounds], object]:
    from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

    model = ClapAudioModelWithProjection(ClapAudioConfig()).to(device).eval()
    extractor = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50)

    def run(sounds: Sounds) -> None:
        for sound in sounds:
            inputs = extractor(sound, sampling_rate=48_000, return_tensors="pt").to(device)
            torch.nn.functional.normalize(model(**inputs).audio_embeds, dim=-1)

    return run


def one_by_one(encoder: AudioEncoder, device: str) -> Callable[[Sounds], object]:
    def run(sounds: Sounds) -> None:
        for sound in sounds:
            encoder.embed([sound], encoder.sampling_rate)

    return run


def plain_audioclip(encoder: AudioEncoder, device: str) -> Callable[[Sounds], object]:
    def run(sounds: Sounds) -> None:
        for sound in sounds:
            encoder.audio.fbsp.rebuild()
            encoder.embed([sound], encoder.sampling_rate)

    return run


PLAIN = {
    "whisperclip": plain_whisper,
    "clap": plain_clap,
    "imagebind": one_by_one,
    "audioclip": plain_audioclip,
    "wav2clip": one_by_one,
}


def frontend(encoder: AudioEncoder, sound: np.ndarray) -> object:
    """Run the part that comes before the network, for one clip."""
    from llava_soundclip.encoders import wav2clip
    from llava_soundclip.encoders.clap import frontend as clap_frontend
    from llava_soundclip.encoders.imagebind import fbank
    from llava_soundclip.encoders.whisper.mel import log_mel

    if encoder.name == "whisperclip":
        return log_mel(torch.from_numpy(sound), 80)
    if encoder.name == "clap":
        return clap_frontend.plain_input(clap_frontend.quantised(torch.from_numpy(sound)))
    if encoder.name == "imagebind":
        return fbank.frontend(sound[None])
    if encoder.name == "audioclip":
        return encoder._frontend(sound)
    return wav2clip.frontend(sound[None])


def clips(encoder: AudioEncoder, seconds: float, count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    samples = round(seconds * encoder.sampling_rate)
    return [rng.normal(0, 0.1, samples).astype(np.float32) for _ in range(count)]


def spent(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(name: str, checkpoint: Path, plain: bool, seconds: float, batch: int, device: str) -> int:
    """Bytes that embedding adds to this process; run in a separate process."""
    with torch.inference_mode():
        encoder = build(name, checkpoint, device)
        run = PLAIN[encoder.name](encoder, device)
        sounds = clips(encoder, seconds, batch)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size
        before = highest()
        run(sounds) if plain else encoder.embed(sounds, encoder.sampling_rate)
        return highest() - before


def highest() -> int:
    """Peak resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoders", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--seconds", nargs="+", type=float, default=[3.0, 10.0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    print(f"{options.device}, {torch.get_num_threads()} threads, {options.rounds} rounds; clips per second")
    print(
        f"{'':26}{'seconds':>8}{'batch':>6}{'plain':>9}{'ours':>9}{'ratio':>8}{'frontend':>10}{'bfloat16':>10}{'MiB plain':>11}{'ours':>7}"
    )
    for name in options.encoders:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            checkpoint = CHECKPOINTS[name.partition(",")[0]](Path(folder))
            pair = [build(name, checkpoint, options.device, dtype) for dtype in ("float32", "bfloat16")]
            for seconds in options.seconds:
                for batch in options.batches:
                    line = compare(pair, seconds, batch, options)
                    for plainly in (True, False):
                        arguments = (name, checkpoint, plainly, seconds, batch, options.device)
                        with multiprocessing.get_context("spawn").Pool(1) as pool:
                            line += f"{pool.apply(memory, arguments) / 2**20:9.0f}"
                    print(f"{name:26}{line}", flush=True)


def compare(pair: list[AudioEncoder], seconds: float, batch: int, options: argparse.Namespace) -> str:
    """Time one setting."""
    encoder, half = pair
    plain = PLAIN[encoder.name](encoder, options.device)
    sounds, rate = clips(encoder, seconds, batch), encoder.sampling_rate
    calls = (
        lambda sounds: plain(sounds),
        lambda sounds: encoder.embed(sounds, rate),
        lambda sounds: half.embed(sounds, rate),
        lambda sounds: [frontend(encoder, sound) for sound in sounds],
    )
    for call in calls:
        call(sounds[:2])  # warm up
    rows = [
        [spent(lambda call=call: call(sounds), options.device) for call in calls]
        for _ in range(options.rounds)
    ]
    slow, fast, _, front = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio, halved = (statistics.median(row[0] / row[i] for row in rows) for i in (1, 2))
    return (
        f"{seconds:8g}{batch:6}{batch / slow:9.2f}{batch / fast:9.2f}{ratio:7.2f}x{front / fast:10.0%}"
        f"{halved:9.2f}x"
    )


if __name__ == "__main__":
    main()
