"""Algorithm 1 against a slow loop written from the paper's text."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llava_soundclip import AudioTokenSubstituter
from tests.hosts.reference import algorithm_1, cosine

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
        expected, kept = algorithm_1(image, sound, k)
        if sound.any() and _rounding_decides(image, sound, kept):
            continue  # the cosines differ by less than float32 can tell
        assert torch.equal(edited, expected.to(tokens.dtype))


def _rounding_decides(image: Tensor, sound: Tensor, kept: list[int]) -> bool:
    """Whether a kept patch and one that is left have the same cosine along different directions."""
    patches = image[1:].double()
    cosines = torch.tensor([cosine(sound.tolist(), patch) for patch in patches.tolist()])
    directions = (patches / patches.abs().amax(1, keepdim=True).clamp_min(1)).tolist()
    left = set(range(len(patches))) - set(kept)
    return any(
        abs(cosines[i] - cosines[j]) < 1e-6 and directions[i] != directions[j] for i in kept for j in left
    )


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


def test_ties_among_many_patches_go_to_the_lower_index() -> None:
    """CPUs with wide registers sort more than 16 values in another way, which moves ties unless it is told not to."""
    directions = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    tokens = directions[torch.randint(0, 4, (3, 577), generator=generator)]
    audio = torch.tensor([[1.0, 0.0], [0.0, -2.0], [-3.0, 0.0]])
    for k in (5, 150, 400):
        kept = AudioTokenSubstituter(k).select(tokens, audio).kept
        for image, sound, found in zip(tokens, audio, kept, strict=True):
            assert found.tolist() == algorithm_1(image, sound, k)[1]


def test_an_image_may_have_no_patches() -> None:
    """Then the sound is all that is left; without a CLS token there is nowhere to put it."""
    tokens, audio = torch.randn(2, 1, 4), torch.randn(2, 4)
    substituter = AudioTokenSubstituter(0)
    selection = substituter.select(tokens, audio)
    assert selection.similarity.shape == selection.kept.shape == (2, 0)
    for edited in (substituter(tokens, audio), substituter.drop(tokens, audio, selection)):
        assert torch.equal(edited, audio[:, None])
    with pytest.raises(ValueError, match=r"with CLS first, not \(2, 0, 4\)"):
        substituter(tokens[:, :0], audio)


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


def test_each_vector_has_a_size_of_its_own() -> None:
    """Squares of the smallest and the largest leave float32's range, in one image and among the images of a batch."""
    generator = torch.Generator().manual_seed(0)
    tokens, audio = torch.randn(2, 20, 8, generator=generator), torch.randn(2, 8, generator=generator)
    sizes = torch.tensor([1e-30, 1.0, 1e30])[torch.arange(20) % 3]
    selection = AudioTokenSubstituter(5).select(
        tokens * sizes[:, None], audio * torch.tensor([[1e30], [1e-30]])
    )
    for image, sound, kept, similarity in zip(
        tokens, audio, selection.kept, selection.similarity, strict=True
    ):
        assert kept.tolist() == algorithm_1(image, sound, 5)[1]
        expected = torch.nn.functional.cosine_similarity(image[1:].double(), sound.double(), dim=1)
        torch.testing.assert_close(similarity.double(), expected, rtol=1e-5, atol=1e-6)


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
