"""AudioCLIP's input: a spectrogram of learned filters (frequency B-splines) instead of a Fourier transform.

All steps are float32 in the original's order. A filter's phase is a learned frequency times the time, which magnifies
one rounding of the time up to 1000 times. With float64 or another order, the vectors are 0.2 to 6 % off.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLING_RATE = 44_100  # Hz
WINDOW = 1654  # samples, 37.5 ms
HOP = 561  # samples, 12.7 ms: one frame
WIDTH = 2048  # samples of a filter; a frame has zeros on both sides
FILTERS = WIDTH // 2 + 1
BANDS = 3  # input channels of the network with 341 filters each; the top two filters are not used

_FRAMES_AT_ONCE = 512  # bounds the memory
_EPSILON = 1e-8
_FLOOR = 1e-18  # replaces a power of 0


class FBSP(nn.Module):
    """The transform, always in float32.

    Attributes:
        m: (1025,) exponents of the filters' envelopes.
        fb: (1025,) bandwidths of the filters.
        fc: (1025,) frequencies of the filters.
        bias: (0,), as in the checkpoint.
        kernel: (1025, 2048, 2) filters, real and imaginary, computed from the parameters after loading. It has
            the original's layout, since another layout sums a single frame in another order.
        window: (1654,) Blackman-Harris.
    """

    kernel: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.m, self.fb, self.fc = (nn.Parameter(torch.empty(FILTERS)) for _ in range(3))
        self.bias = nn.Parameter(torch.empty(0))
        self.register_buffer("kernel", torch.empty(FILTERS, WIDTH, 2), persistent=False)
        self.register_buffer("window", torch.empty(WINDOW), persistent=False)
        self.register_load_state_dict_post_hook(FBSP._loaded)

    @torch.no_grad()
    def rebuild(self) -> None:
        """Compute the kernel and the window on the CPU, since other devices round sines differently."""
        device = self.m.device
        self.kernel = make_kernel(self.m.cpu(), self.fb.cpu(), self.fc.cpu()).to(device)
        self.window = blackman_harris().to(device)

    def forward(self, frames: Tensor) -> Tensor:
        """(F, 1654) windowed frames to (F, 1025, 2), real and imaginary parts."""
        side = (WIDTH - WINDOW) // 2
        padded = F.pad(frames, (side, side))
        return torch.stack([F.linear(padded, part) for part in self.kernel.unbind(-1)], dim=-1)

    def frontend(self, channel: Tensor) -> Tensor:
        """Compute the network's input.

        Args:
            channel: (samples,) float32 in 16-bit range at 44.1 kHz, at least one sample.

        Returns:
            (3, 341, frames) float32, in dB.
        """
        frames = cut(scale(channel))
        levels = [decibels(self(part * self.window)) for part in frames.split(_FRAMES_AT_ONCE)]
        height = FILTERS // BANDS
        return torch.cat(levels).T[: BANDS * height].unflatten(0, (BANDS, height))

    def _loaded(self, keys: object) -> None:
        self.rebuild()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FBSP":
        """Move to another device, but keep the dtype."""
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self


def make_kernel(m: Tensor, fb: Tensor, fc: Tensor) -> Tensor:
    """The filters: sqrt(fb) sinc(fb t / m)^m exp(-i fc t) for t from -pi to pi, divided by sqrt(2048).

    Args:
        m: (filters,) exponents.
        fb: (filters,) bandwidths.
        fc: (filters,) frequencies.

    Returns:
        (filters, 2048, 2): real and imaginary.
    """
    m, fb, fc = m[:, None], fb[:, None], fc[:, None]
    time = math.pi * torch.linspace(-1.0, 1.0, WIDTH) + _EPSILON
    real, imaginary = power(sinc(fb * time / (m + _EPSILON)), m)
    cosine, sine = torch.cos(fc * time), -torch.sin(fc * time)
    gain, norm = fb.sqrt(), WIDTH**0.5
    return torch.stack(
        [
            gain * (real * cosine - imaginary * sine) / norm,
            gain * (real * sine + imaginary * cosine) / norm,
        ],
        dim=-1,
    )


def sinc(x: Tensor) -> Tensor:
    """sin(x) / x, 1 at 0."""
    return torch.where(x == 0, torch.ones(()), torch.sin(x) / x)


def power(base: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts of real numbers to real powers. A negative number has the phase pi."""
    magnitude = ((base**2) ** 0.5) ** 2
    phase = torch.atan2(torch.zeros_like(base), base)
    size = magnitude ** (0.5 * exponent)
    return size * torch.cos(exponent * phase), size * torch.sin(exponent * phase)


def blackman_harris() -> Tensor:
    """(1654,) float32 periodic window, with scipy's numbers."""
    angle = torch.linspace(-math.pi, math.pi, WINDOW + 1, dtype=torch.float64)[:-1]
    window = torch.zeros_like(angle)
    for k, term in enumerate((0.35875, 0.48829, 0.14128, 0.01168)):
        window += term * torch.cos(k * angle)
    return window.float()


def scale(channel: Tensor) -> Tensor:
    """Scale from 16-bit range to [-1, 1], with the original's rounding: 0 becomes 1.526e-5."""
    return ((channel + 32768.0) * 2.0) / 65535.0 + (-1.0)


def cut(signal: Tensor) -> Tensor:
    """Cut a signal into (frames, 1654), padded with zeros on both sides so that the last frame is complete."""
    missing = (frame_count(len(signal)) - 1) * HOP + WINDOW - len(signal)
    return F.pad(signal, (missing // 2, missing - missing // 2)).unfold(0, WINDOW, HOP)


def frame_count(samples: int) -> int:
    """Number of frames of a sound, at least one."""
    return 1 + max(-(-(samples - WINDOW) // HOP), 0)


def decibels(spectrum: Tensor) -> Tensor:
    """(F, 1025, 2) to (F, 1025) power in dB."""
    power = spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2
    return 10.0 * torch.where(power > 0, power, torch.full((), _FLOOR, device=power.device)).log10()
