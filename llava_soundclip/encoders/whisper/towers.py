"""Whisper's encoder from transformers and from openai-whisper, run block by block, with the same results."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_soundclip._extras import require
from llava_soundclip.encoders.whisper.mel import WINDOW_TOKENS
from llava_soundclip.encoders.whisper.weights import WhisperWeights, transformers_name


class WhisperTower(nn.Module, ABC):
    """One library's encoder module, run block by block.

    The libraries' own forward methods don't suffice: both require 3000 frames, and transformers' `hidden_states`
    hold the last block only after the final LayerNorm.

    Attributes:
        encoder: module of the library, with the weights of the checkpoint.
    """

    encoder: Any  # a module of a library without types

    def __init__(self, weights: WhisperWeights, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.device("meta"):  # without memory or random numbers: the weights are replaced at once
            self.encoder = self._build(weights)
        state = {self._name(name): tensor.to(dtype, copy=True) for name, tensor in weights.state.items()}
        self.encoder.load_state_dict(state, assign=True)
        self.to(dtype)  # a tower may keep some parts in another dtype

    def states(self, mel: Tensor, tokens: int) -> Iterator[Tensor]:
        """The input of block 1, then the output of every block.

        Args:
            mel: (B, n_mels, frames) log-mel spectrograms.
            tokens: number of the convolutions' tokens to use.

        Yields:
            (B, tokens, n_state) in the weights' dtype; 1 + n_layer times.
        """
        conv1, conv2 = self.encoder.conv1, self.encoder.conv2
        x = F.gelu(conv1(mel.to(conv1.weight.dtype)))
        x = F.gelu(conv2(x)).transpose(1, 2)[:, :tokens]
        x = x + self.positions[:tokens]
        yield x
        for block in self.blocks:
            x = self._run(block, x)
            yield x

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """(1500, n_state) positional embedding, as in the checkpoint."""

    @property
    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, first to last."""

    @property
    @abstractmethod
    def ln_post(self) -> nn.Module:
        """The final LayerNorm, before the decoder."""

    @abstractmethod
    def _build(self, weights: WhisperWeights) -> nn.Module:
        """The library's encoder with the sizes of the checkpoint."""

    @abstractmethod
    def _name(self, name: str) -> str:
        """The library's name of openai-whisper's tensor `name`."""

    @abstractmethod
    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block on (B, tokens, n_state)."""


class TransformersTower(WhisperTower):
    """transformers' `WhisperEncoder`, for the layer signatures of 4.57 and 5.x."""

    @property
    def positions(self) -> Tensor:
        return self.encoder.embed_positions.weight

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.encoder.layers

    @property
    def ln_post(self) -> nn.Module:
        return self.encoder.layer_norm

    def _build(self, weights: WhisperWeights) -> nn.Module:
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        config = WhisperConfig(
            num_mel_bins=weights.n_mels,
            d_model=weights.n_state,
            encoder_layers=weights.n_layer,
            encoder_attention_heads=weights.n_head,
            encoder_ffn_dim=4 * weights.n_state,
            max_source_positions=WINDOW_TOKENS,
        )
        encoder = WhisperEncoder(config)
        # This argument is required in 4.x and refused in 5.x.
        wants_head_mask = "layer_head_mask" in inspect.signature(encoder.layers[0].forward).parameters
        self._arguments = {"layer_head_mask": None} if wants_head_mask else {}
        return encoder

    def _name(self, name: str) -> str:
        return transformers_name(name)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        output = block(x, attention_mask=None, **self._arguments)
        return output[0] if isinstance(output, tuple) else output


class OpenAITower(WhisperTower):
    """openai-whisper's `AudioEncoder`."""

    @property
    def positions(self) -> Tensor:
        return self.encoder.positional_embedding

    @property
    def blocks(self) -> Iterable[nn.Module]:
        return self.encoder.blocks

    @property
    def ln_post(self) -> nn.Module:
        return self.encoder.ln_post

    def _build(self, weights: WhisperWeights) -> nn.Module:
        encoder_class = require("whisper", extra="whisper").model.AudioEncoder
        return encoder_class(
            n_mels=weights.n_mels,
            n_ctx=WINDOW_TOKENS,
            n_state=weights.n_state,
            n_head=weights.n_head,
            n_layer=weights.n_layer,
        )

    def _name(self, name: str) -> str:
        return name

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return block(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OpenAITower":
        super()._apply(fn, recurse)
        self._keep_norms_in_float32()
        return self

    def _keep_norms_in_float32(self) -> None:
        """Keep LayerNorms in float32: openai-whisper computes them in float32 without casting their weights."""
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()


TOWERS: dict[str, type[WhisperTower]] = {"transformers": TransformersTower, "openai": OpenAITower}
