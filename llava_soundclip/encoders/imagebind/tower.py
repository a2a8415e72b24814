"""ImageBind's audio network, a small ViT.

Written from a description of the original's behaviour, without reading its code, which is CC-BY-NC-SA.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64

_PATCH, _STRIDE = 16, 10  # of the spectrogram
_LARGEST_SCALE = 100.0


class ImageBindTower(nn.Module):
    """The network after the filter banks.

    Args:
        width: width of the hidden states.
        depth: number of blocks.
        mlp_width: width of the blocks' hidden layers.
        patches: patches per spectrogram, 228 for a window of 2 s.
        dim: width of the vectors.
    """

    log_logit_scale: Tensor

    def __init__(self, width: int, depth: int, mlp_width: int, patches: int, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.patches = nn.Conv2d(1, width, _PATCH, _STRIDE, bias=False)
        self.patches_norm = nn.LayerNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(_Block(width, mlp_width) for _ in range(depth))
        self.head_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, dim, bias=False)
        self.register_buffer("log_logit_scale", torch.empty(()))

    def forward(self, banks: Tensor) -> Tensor:
        """Embed windows.

        Args:
            banks: (W, 1, 128, 204) float32.

        Returns:
            (W, dim) float32. Each vector has the length min(exp(log_logit_scale), 100).
        """
        vectors = self.head(self.head_norm(self.trunk(self.tokens(banks)))).float()
        return F.normalize(vectors, dim=-1) * self.log_logit_scale.float().exp().clamp(max=_LARGEST_SCALE)

    def tokens(self, banks: Tensor) -> Tensor:
        """(W, 1, 128, 204) to (W, 1 + patches, width): CLS and patches with their positions."""
        patches = self.patches(banks.to(self.patches.weight.dtype)).flatten(2).transpose(1, 2)
        patches = self.patches_norm(patches)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.positions

    def trunk(self, tokens: Tensor) -> Tensor:
        """(W, 1 + patches, width) to (W, width): CLS after the last block."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


class _Attention(nn.Module):
    """Attention with an additional learned key and value. Its tensors are those of nn.MultiheadAttention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width))
        self.bias_v = nn.Parameter(torch.empty(1, 1, width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(W, tokens, width) to the same shape."""
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        key = torch.cat([key, self.bias_k.expand(len(x), -1, -1)], dim=1)
        value = torch.cat([value, self.bias_v.expand(len(x), -1, -1)], dim=1)
        query, key, value = (
            part.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp_width), "fc2": nn.Linear(mlp_width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))
