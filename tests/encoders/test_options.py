"""The base of every encoder's options."""

from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest
import torch

from llava_soundclip.encoders.base import LoadOptions


@dataclass(frozen=True, kw_only=True)
class Options(LoadOptions):
    checkpoint: str = "small"
    mode: Literal["fast", "exact"] = "exact"
    n: int | None = None


def test_none_stands_for_the_default():
    nothing = Options(checkpoint=None, mode=None, n=None, device=None, dtype=None, revision=None)
    assert nothing == Options()
    assert (nothing.checkpoint, nothing.mode, nothing.torch_dtype) == ("small", "exact", torch.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "torch.bfloat16"])
def test_a_dtype_by_name_or_as_torch_has_it(dtype):
    assert Options(dtype=dtype).torch_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "slow"}, ValueError, "mode='slow' is unknown; known: fast, exact"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' is unknown; known: float32, float16, bfloat16"),
        ({"ears": 2}, TypeError, "ears"),
    ],
)
def test_what_is_not_an_option_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        Options(**options)


def test_options_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Options().mode = "fast"


def test_an_unknown_option_is_named_beside_the_known_ones():
    assert Options.given(mode="fast") == Options(mode="fast")
    with pytest.raises(
        TypeError, match="unknown option of the encoder: 'mod'; known: checkpoint, device, .*, mode, n"
    ):
        Options.given(mod="fast")
