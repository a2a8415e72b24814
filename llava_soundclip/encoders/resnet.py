"""Residual networks under torchvision's names, and the assignment of their weights.

The networks are not trained here: BatchNorm uses its stored statistics in any mode.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip.encoders.checkpoints import check_tensors

_COMPUTED = ("num_batches_tracked", "window")  # stored in some files, but not read


class Norm(nn.Module):
    """BatchNorm with its stored statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Block(nn.Module):
    """Base class of residual blocks.

    Attributes:
        expansion: output channels per plane.
        downsample: module that maps the input to the output's shape; None if they are the same.
    """

    expansion: ClassVar[int]

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        out = planes * self.expansion
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(_conv(channels, out, 1, stride), Norm(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.residual(x) + shortcut)

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BasicBlock(Block):
    """Block of ResNet-18: two 3 x 3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__(channels, planes, stride)
        self.conv1, self.bn1 = _conv(channels, planes, 3, stride), Norm(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3), Norm(planes)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """Block of ResNeXt-50 32x4d: 1 x 1, then 3 x 3 in 32 groups, then 1 x 1."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__(channels, planes, stride)
        width, out = 2 * planes, planes * self.expansion
        self.conv1, self.bn1 = _conv(channels, width, 1), Norm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, groups=32), Norm(width)
        self.conv3, self.bn3 = _conv(width, out, 1), Norm(out)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class ResNet(nn.Module):
    """A stem and four layers without a head. All layers except the first have stride 2.

    Args:
        block: class of the layers' blocks.
        depths: number of blocks in each layer.
        channels: number of channels of the input.
    """

    def __init__(self, block: type[Block], depths: tuple[int, int, int, int], channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(channels, 64, 7, 2), Norm(64)
        e = block.expansion
        self.layer1 = _layer(block, 64, 64, depths[0], 1)
        self.layer2 = _layer(block, 64 * e, 128, depths[1], 2)
        self.layer3 = _layer(block, 128 * e, 256, depths[2], 2)
        self.layer4 = _layer(block, 256 * e, 512, depths[3], 2)

    def stem(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) of any dtype to (B, 64, H / 4, W / 4)."""
        x = F.relu(self.bn1(self.conv1(x.to(self.conv1.weight.dtype))))
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, 512 * expansion, H / 32, W / 32); sizes are rounded up."""
        x = self.stem(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x


def assign_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: object,
    what: str,
    dtype: torch.dtype,
    float32: tuple[str, ...] = (),
) -> None:
    """Put copies of weights into a module that was built on the meta device.

    Args:
        module: module whose state dict has the names of the file.
        state: tensors by name. Windows and counters among them are ignored.
        source: file of the tensors, for messages.
        what: name of the model, for messages.
        dtype: dtype of the copies.
        float32: prefixes of names that stay in float32.

    Raises:
        ValueError: if names or shapes differ from the module's, or weights aren't floats.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_COMPUTED)}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_tensors(source, state, expected, what)
    copies = {
        name: tensor.to(
            torch.float32 if name.startswith(float32) else dtype,
            copy=True,
            # With this layout, kernels are 1.1 to 1.6 times faster on a CPU.
            memory_format=torch.channels_last if tensor.ndim == 4 else torch.preserve_format,
        )
        for name, tensor in state.items()
    }
    module.load_state_dict(copies, assign=True)


def _conv(channels: int, out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, padding=size // 2, groups=groups, bias=False)


def _layer(block: type[Block], channels: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    out = planes * block.expansion
    rest = [block(out, planes, 1) for _ in range(depth - 1)]
    return nn.Sequential(block(channels, planes, stride), *rest)
