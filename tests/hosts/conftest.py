"""What the tests of hosts share."""

from importlib.util import find_spec
from typing import Any

import pytest

from tests.hosts.families import FAMILIES, Family


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(family: Family) -> Any:
    return family.build()


@pytest.fixture(params=["zero", "drop"])
def tokens(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def narrow_4bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bitsandbytes hold layers narrower than its blocks of 64 columns in 4 bits, on any CPU.

    On one with AVX512-BF16 it packs weights anew in their first call, and can't pack such narrow ones.
    """
    if find_spec("bitsandbytes") is not None:
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
