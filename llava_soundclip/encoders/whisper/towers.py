"""Whisper's encoder as transformers and as openai-whisper build it, block by block, with the same numbers."""

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

    Neither library's own forward will do: both insist on 3000 frames, and transformers' `hidden_states`
    have the last block only after the final LayerNorm.

    Attributes:
        encoder: the library's module, with the checkpoint's weights in it.
    """

    encoder: Any  # a module of a library without types

    def __init__(self, weights: WhisperWeights, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            self.encoder = self._build(weights)
        state = {self._name(name): tensor.to(dtype, copy=True) for name, tensor in weights.state.items()}
        self.encoder.load_state_dict(state, assign=True)
        self.to(dtype)  # a tower may want some parts in another one

    def states(self, mel: Tensor, tokens: int) -> Iterator[Tensor]:
        """The input of block 1, then the output of every block.

        Args:
            mel: (B, n_mels, frames) log-mel.
            tokens: how many of the tokens that the convolutions give are used.

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
        """(1500, n_state) positional embedding, as the checkpoint has it."""

    @property
    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks, first to last."""

    @property
    @abstractmethod
    def ln_post(self) -> nn.Module:
        """The final LayerNorm, after which Whisper hands its states to the decoder."""

    @abstractmethod
    def _build(self, weights: WhisperWeights) -> nn.Module:
        """The library's encoder in the checkpoint's sizes."""

    @abstractmethod
    def _name(self, name: str) -> str:
        """The library's name of a tensor that openai-whisper calls `name`."""

    @abstractmethod
    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block on (B, tokens, n_state)."""


class TransformersTower(WhisperTower):
    """transformers' `WhisperEncoder`; its layers are called as 4.57 and as 5.x want them."""

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
        # Required where it exists (4.x), refused where it doesn't (5.x).
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
        """Its LayerNorm computes in float32 and doesn't cast its weights, as its Linear and Conv1d do."""
        for module in self.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()


TOWERS: dict[str, type[WhisperTower]] = {"transformers": TransformersTower, "openai": OpenAITower}
