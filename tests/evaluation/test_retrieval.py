"""Retrieval against a slow loop, and where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip.evaluation.retrieval import ITEMS, ranks, retrieval


def slow_rank(queries: np.ndarray, items: np.ndarray, row: int) -> float:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    right = cosine(queries[row], items[row])
    others = [cosine(queries[row], item) for index, item in enumerate(items) if index != row]
    return 1 + sum(other > right for other in others)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_ranks_are_the_slow_ones(n, width, seed):
    rng = np.random.default_rng(seed)
    queries, items = rng.normal(0, 1, (2, n, width + 1))
    found = ranks(torch.from_numpy(queries), torch.from_numpy(items))
    assert found.tolist() == [slow_rank(queries, items, row) for row in range(n)]


def test_level_items_share_their_places():
    same = torch.ones(5, 3)
    assert ranks(same, same).tolist() == [3.0] * 5  # the mean of 1 to 5: what chance gives


def test_scale_means_nothing():
    queries, items = torch.randn(2, 9, 4)
    assert torch.equal(ranks(queries, items), ranks(queries * 100, items * torch.rand(9, 1)))


def test_perfect_and_by_chance():
    torch.manual_seed(0)
    c = torch.randn(400, 64)
    perfect = retrieval(c * 3, c)
    for side in ("A2V", "V2A"):
        assert perfect[side].as_dict() == {"mean_rank": 1, "R@1": 1, "R@3": 1, "R@10": 1, "items": ITEMS}
    chance = retrieval(torch.randn(400, 64), c)
    for side in ("A2V", "V2A"):
        assert abs(chance[side].mean_rank - (ITEMS + 1) / 2) < 5
        assert chance[side].recall[1] < 0.05 and abs(chance[side].recall[10] - 0.1) < 0.06


def test_it_is_the_mean_over_the_same_draws():
    torch.manual_seed(0)
    f_a, c = torch.randn(2, 700, 8)
    generator = torch.Generator().manual_seed(3)
    pool = torch.randperm(700, generator=generator)[:500]
    found = []
    for _ in range(5):
        rows = pool[torch.randperm(500, generator=generator)[:100]]
        found += [slow_rank(f_a[rows].numpy(), c[rows].numpy(), row) for row in range(100)]
    result = retrieval(f_a, c, seed=3)["A2V"]
    assert result.mean_rank == pytest.approx(np.mean(found), rel=1e-6)
    assert result.recall[3] == pytest.approx(np.mean(np.array(found) <= 3), rel=1e-6)
    assert retrieval(f_a, c, seed=4)["A2V"] != result


def test_the_two_sides_are_each_others():
    f_a, c = torch.randn(2, 30, 8)
    there, back = retrieval(f_a, c), retrieval(c, f_a)
    assert (there["A2V"], there["V2A"]) == (back["V2A"], back["A2V"])
    assert there["A2V"].items == 30


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"expected two \(n, D\), got \(3, 2\) and \(4, 2\)"):
        ranks(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="one pair at least"):
        retrieval(torch.zeros(0, 2), torch.zeros(0, 2))
