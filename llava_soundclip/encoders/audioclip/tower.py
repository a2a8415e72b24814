"""AudioCLIP's network: a ResNeXt-50 with attention, and the transform in front of it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip.encoders.audioclip.fbsp import BANDS, FBSP
from llava_soundclip.encoders.resnet import Bottleneck, Norm, ResNet

FEATURES = 2048
DIM = 1024


class AudioTower(ResNet):
    """The network, with the transform in front of it."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3), BANDS)
        self.att1 = Attention(64, 256, (3, 1))
        self.att2 = Attention(256, 512, (1, 5))
        self.att3 = Attention(512, 1024, (3, 1))
        self.att4 = Attention(1024, FEATURES, (1, 5))
        self.att5 = Attention(FEATURES, FEATURES, (3, 5))
        self.fc = nn.Linear(FEATURES, DIM)
        self.fbsp = FBSP()

    def forward(self, spectrograms: Tensor) -> Tensor:
        """(B, 3, 341, frames) to (B, 2048) float32 pooled features."""
        x = self.stem(spectrograms)
        for layer, attention in (
            (self.layer1, self.att1),
            (self.layer2, self.att2),
            (self.layer3, self.att3),
            (self.layer4, self.att4),
        ):
            y = layer(x)
            x = y * attention(x, y.shape[-2:])
        mean = F.adaptive_avg_pool2d(x, 1)
        return (mean * self.att5(x, mean.shape[-2:])).flatten(1).float()

    def project(self, pooled: Tensor) -> Tensor:
        """(B, 2048) to (B, 1024) float32."""
        return self.fc(pooled.to(self.fc.weight.dtype)).float()


class Attention(nn.Module):
    """Weights in (0, 1) for a layer's output, computed from its input."""

    def __init__(self, channels: int, out: int, size: tuple[int, int]) -> None:
        super().__init__()
        padding = (size[0] // 2, size[1] // 2)
        self.conv_depth = nn.Conv2d(channels, channels, size, padding=padding, groups=channels)
        self.conv_point = nn.Conv2d(channels, out, 1)
        self.bn = Norm(out)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, channels, H, W) to (B, out, *size)."""
        x = F.adaptive_max_pool2d(x, list(size))
        return self.bn(self.conv_point(self.conv_depth(x))).sigmoid()
