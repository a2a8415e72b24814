"""Algorithm 1 against a slow loop written from the paper's text."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava_soundclip import AudioTokenSubstituter
from tests.hosts.reference import algorithm_1

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Tokens, sounds and a budget; small integers, so that ties and zero vectors are common."""
    images, patches, width = (draw(st.integers(1, size)) for size in (3, 7, 6))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(-2, 3, (images, patches + 1, width), generator=generator).to(
        draw(st.sampled_from(DTYPES))
    )
    audio = torch.randint(-2, 3, (images, width), generator=generator).to(draw(st.sampled_from(DTYPES)))
    return tokens, audio, draw(st.integers(0, patches))


@settings(deadline=None)
@given(problems())
def test_equals_the_slow_loop(problem: tuple[Tensor, Tensor, int]) -> None:
    tokens, audio, k = problem
    before = tokens.clone()
    result = AudioTokenSubstituter(k)(tokens, audio)
    assert result.dtype == tokens.dtype and result.shape == tokens.shape
    assert torch.equal(tokens, before)
    for image, sound, edited in zip(tokens, audio, result, strict=True):
        exact = [int(a * b) for a, b in zip(sound.tolist(), sound.tolist(), strict=True)]
        if sum(exact) and _near_ties(image, sound):
            continue  # the cosines differ by less than float32 can tell
        expected, _ = algorithm_1(image, sound, k)
        assert torch.equal(edited, expected.to(tokens.dtype))


def _near_ties(image: Tensor, sound: Tensor) -> bool:
    """Whether two patches have the same cosine along different directions: rounding decides then."""

    def key(patch: list[float]) -> tuple[int, float]:
        dot = sum(a * b for a, b in zip(patch, sound.tolist(), strict=True))
        return (int(math.copysign(1, dot)) if dot else 0, dot * dot / (sum(a * a for a in patch) or 1))

    keys: dict[tuple[int, float], set[tuple[float, ...]]] = {}
    for patch in image[1:].tolist():
        sign, value = key(patch)
        keys.setdefault((sign, round(value, 9)), set()).add(tuple(patch))
    return any(sign and len(patches) > 1 for (sign, _), patches in keys.items())


@settings(deadline=None)
@given(problems())
def test_drop_is_zero_without_its_zeros(problem: tuple[Tensor, Tensor, int]) -> None:
    tokens, audio, k = problem
    substituter = AudioTokenSubstituter(k)
    selection = substituter.select(tokens, audio)
    dropped = substituter.drop(tokens, audio, selection)
    assert dropped.shape == (len(tokens), k + 1, tokens.shape[-1])
    zeroed = substituter(tokens, audio)
    for image, kept, row in zip(zeroed, selection.kept, dropped, strict=True):
        assert kept.tolist() == sorted(kept.tolist())
        assert torch.equal(row, image[[0, *(kept + 1).tolist()]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_tokens_at_clip_size(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 577, 64, generator=generator).to(dtype)
    audio = torch.randn(2, 64, generator=generator)
    result = AudioTokenSubstituter(150)(tokens, audio)
    for image, sound, edited in zip(tokens, audio, result, strict=True):
        assert torch.equal(edited, algorithm_1(image, sound, 150)[0].to(dtype))


def test_ties_go_to_the_lower_index() -> None:
    tokens = torch.tensor([[[9.0, 9.0], [0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    selection = AudioTokenSubstituter(2).select(tokens, torch.tensor([[1.0, 0.0]]))
    assert selection.kept.tolist() == [[1, 2]]
    assert selection.similarity.tolist() == [[0.0, 1.0, 1.0, 1.0]]


def test_cosines_never_leave_their_range() -> None:
    """Rounding takes the cosine of equal and of opposite vectors above 1 and below -1 here and there."""
    audio = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    unit = audio / audio.norm(dim=1, keepdim=True)
    assert ((unit * unit).sum(1) > 1).any()
    tokens = torch.stack([audio, audio, -audio], dim=1)
    similarity = AudioTokenSubstituter(1).select(tokens, audio).similarity
    assert similarity.min() == -1 and similarity.max() == 1


def test_a_sound_goes_to_where_the_tokens_are() -> None:
    tokens, audio = torch.empty(2, 6, 4, device="meta"), torch.randn(2, 4)
    for norm in ("keep", "match"):
        substituter = AudioTokenSubstituter(2, norm=norm)  # type: ignore[arg-type]
        selection = substituter.select(tokens, audio)
        for edited in (substituter(tokens, audio), substituter.drop(tokens, audio, selection)):
            assert edited.device.type == selection.kept.device.type == "meta"


@pytest.mark.parametrize("norm", ["keep", "match"])
def test_silence_keeps_the_first_patches_and_gives_no_nan(norm: str) -> None:
    tokens = torch.randn(1, 6, 4)
    tokens[0, 3] = 0
    substituter = AudioTokenSubstituter(2, norm=norm)
    result = substituter(tokens, torch.zeros(1, 4))
    assert substituter.select(tokens, torch.zeros(1, 4)).kept.tolist() == [[0, 1]]
    assert result.isfinite().all() and (result[0, 0] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_size_of_vectors_does_not_matter(scale: float) -> None:
    tokens, audio = torch.randn(1, 20, 8), torch.randn(1, 8)
    substituter = AudioTokenSubstituter(5)
    want = substituter.select(tokens, audio)
    got = substituter.select(tokens * scale, audio * scale)
    assert torch.equal(got.kept, want.kept)
    torch.testing.assert_close(got.similarity, want.similarity)


def test_candidates_come_first() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, audio = torch.randn(2, 8, 5, generator=generator), torch.randn(2, 5, generator=generator)
    candidates = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 1, 0, 0]]).bool()
    kept = AudioTokenSubstituter(3).select(tokens, audio, candidates).kept.tolist()
    without = tokens[0, [0, 1, 2, 4, 6, 7]]  # the CLS token and the first image's candidates
    _, best = algorithm_1(without, audio[0], 3)
    assert kept[0] == [[0, 1, 3, 5, 6][i] for i in best]
    assert kept[1] == [0, 2, 4]  # too few: the first of the others fills up


def test_match_gives_the_sound_the_norm_of_the_cls_token() -> None:
    tokens, audio = torch.randn(3, 5, 8), torch.randn(3, 8) * 7
    slot = AudioTokenSubstituter(1, norm="match")(tokens, audio)[:, 0]
    torch.testing.assert_close(
        slot, audio / audio.norm(dim=1, keepdim=True) * tokens[:, 0].norm(dim=1, keepdim=True)
    )


def test_gradient_flows_through_the_sound_and_the_kept_tokens() -> None:
    tokens, audio = torch.randn(1, 6, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    substituter = AudioTokenSubstituter(2)
    kept = substituter.select(tokens, audio).kept[0].tolist()
    substituter(tokens, audio).sum().backward()
    assert tokens.grad is not None and audio.grad is not None
    assert [bool(row.any()) for row in tokens.grad[0]] == [False, *(i in kept for i in range(5))]
    assert audio.grad.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("k", [True, 1.0, "3", None])
def test_k_of_another_type_is_refused(k: object) -> None:
    with pytest.raises(TypeError, match=f"^k must be an int.*, not {type(k).__name__} {re.escape(repr(k))}$"):
        AudioTokenSubstituter(k)  # type: ignore[arg-type]


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, not -1"):
        AudioTokenSubstituter(-1)
    with pytest.raises(ValueError, match="'keep', 'match', not 'l2'"):
        AudioTokenSubstituter(1, norm="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k is 6, but an image has only 5 patches"):
        AudioTokenSubstituter(6)(torch.randn(1, 6, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match="2 sounds for 3 images"):
        AudioTokenSubstituter(1)(torch.randn(3, 6, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="width 5 for tokens of width 4"):
        AudioTokenSubstituter(1)(torch.randn(1, 6, 4), torch.randn(1, 5))
    with pytest.raises(ValueError, match=r"\(B, N\+1, D\)"):
        AudioTokenSubstituter(1)(torch.randn(6, 4), torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        AudioTokenSubstituter(1)(torch.randn(1, 6, 4), torch.randn(1, 1, 4))
    with pytest.raises(ValueError, match="must be floats"):
        AudioTokenSubstituter(1)(torch.ones(1, 6, 4, dtype=torch.int64), torch.randn(1, 4))
