"""Retrieval against a slow loop, and where the answer is known."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_soundclip.evaluation.intervals import bootstrap
from llava_soundclip.evaluation.retrieval import ITEMS, Retrieval, cluster, group_rows, retrieval
from llava_soundclip.evaluation.retrieval.ranks import Places, Ranks, ranks, strip_counts


def slow_rank(queries: np.ndarray, items: np.ndarray, row: int, groups: list[int] | None = None) -> float:
    """From the definition, in float64."""
    groups = list(range(len(items))) if groups is None else groups

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / norms) if norms else 0.0

    cosines = [cosine(queries[row], item) for item in items]
    own = [value for value, group in zip(cosines, groups, strict=True) if group == groups[row]]
    right = max(own)
    wrong = [value for value, group in zip(cosines, groups, strict=True) if group != groups[row]]
    ahead = sum(value > right + 1e-6 for value in wrong)
    tied, rights = (sum(abs(value - right) <= 1e-6 for value in side) for side in (wrong, own))
    return 1 + ahead + tied / (rights + 1)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 14),
    width=st.integers(1, 6),
    block=st.integers(1, 15),
    grouped=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_ranks_are_the_slow_ones(n, width, block, grouped, whole, seed):
    rng = np.random.default_rng(seed)
    # Whole numbers have many cosines that are level, and rows of zeros.
    f_a, c = rng.integers(-1, 2, (2, n, width)) if whole else rng.normal(0, 1, (2, n, width + 1))
    f_a, c = f_a.astype(np.float64), c.astype(np.float64)
    groups = rng.integers(0, 4, n).tolist() if grouped else None
    numbers = None if groups is None else torch.tensor(groups)
    a2v, v2a = ranks(torch.from_numpy(f_a), torch.from_numpy(c), numbers, block=block)
    assert a2v.mean.tolist() == [slow_rank(f_a, c, row, groups) for row in range(n)]
    assert v2a.mean.tolist() == [slow_rank(c, f_a, row, groups) for row in range(n)]


@pytest.mark.parametrize("grouped", [False, True])
def test_no_more_than_a_block_is_in_memory(monkeypatch, grouped):
    from llava_soundclip.evaluation.retrieval import ranks as module

    count, shapes = module._counts, []

    def seen(cosines, right, marks):
        shapes.append(cosines.shape)
        return count(cosines, right, marks)

    monkeypatch.setattr(module, "_counts", seen)
    ranks(*torch.randn(2, 30, 4), torch.arange(30) // 3 if grouped else None, block=8)
    assert {size for shape in shapes for size in shape} == {8, 6}  # 30 is three blocks and a part of one


def test_recall_is_torchmetrics():
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR

    f_a = torch.randn(40, 5)
    c = f_a + torch.randn(40, 5)
    groups = torch.randint(0, 12, (40,))
    # torchmetrics takes an answer of 0 or less for a wrong one.
    cosines = 2 + torch.nn.functional.cosine_similarity(f_a[:, None], c[None], dim=2)
    queries = torch.arange(40)[:, None].expand(40, 40)
    own = ranks(f_a, c)[0]
    relevant = torch.eye(40, dtype=torch.bool)
    for top in (1, 3, 10):
        theirs = RetrievalHitRate(top_k=top)(cosines.flatten(), relevant.flatten(), queries.flatten())
        assert own.within(top).mean() == pytest.approx(theirs.item())
    # With several right answers the best of them counts; wrong ones alone are in its way.
    best = ranks(f_a, c, groups)[0]
    theirs = RetrievalMRR()(cosines.flatten(), (groups[:, None] == groups).flatten(), queries.flatten())
    assert (1 / best.mean).mean() == pytest.approx(theirs.item())


def test_level_answers_share_their_places():
    same = torch.ones(5, 3)
    for side in ranks(same, same):
        assert side.mean.tolist() == [3.0] * 5  # the mean of 1 to 5: what chance gives


def orders(wrong: int, right: int) -> list[int]:
    """The rank of the first right answer in each order of tied answers."""
    answers = [False] * wrong + [True] * right
    return [order.index(True) + 1 for order in permutations(answers)]


@pytest.mark.parametrize(("wrong", "right"), [(0, 1), (3, 1), (1, 3), (4, 2), (2, 4), (5, 1)])
@pytest.mark.parametrize("ahead", [0, 2])
def test_tied_answers_are_in_every_order(wrong, right, ahead):
    found = Ranks(*(torch.tensor([[each]]) for each in (ahead, wrong, right)))
    places = [ahead + place for place in orders(wrong, right)]
    assert found.mean.item() == pytest.approx(np.mean(places))
    for top in range(1, 9):
        assert found.within(top).item() == pytest.approx(np.mean([place <= top for place in places]))
    items = ahead + wrong + right
    histogram = Retrieval(torch.zeros(1, items), found, torch.tensor([[right]])).histogram()
    assert histogram == pytest.approx(
        [np.mean([place == rank for place in places]) for rank in range(1, items + 1)]
    )


@pytest.mark.parametrize("same", [torch.ones(230, 4), torch.zeros(230, 4), torch.full((230, 4), -3.0)])
@pytest.mark.parametrize(
    "groups", [None, torch.arange(230) // 10, torch.arange(230) % 3, torch.zeros(230).long()]
)
@pytest.mark.parametrize("full", [False, True])
def test_equal_vectors_are_at_chance_in_every_figure(same, groups, full):
    c = torch.randn(230, 4)
    for f_a, seen in ((same, same), (same, c), (c, same)):
        found = retrieval(f_a, seen, groups, full=full)
        for way in ("A2V", "V2A") if f_a is seen else ("A2V",) if f_a is c else ("V2A",):
            each, chance = found[way], found[way].chance()
            told = {"mean_rank": each.mean_rank, **{f"R@{top}": share for top, share in each.recall.items()}}
            assert told == pytest.approx(chance), (way, f_a is seen)
            assert {name: figure["value"] for name, figure in each.figures().items()} == pytest.approx(chance)
            counts = np.cumsum(each.histogram())
            assert counts[-1] == pytest.approx(each.rows.numel())
            for top in (1, 3, 10):
                assert counts[top - 1] / counts[-1] == pytest.approx(chance[f"R@{top}"])


@pytest.mark.parametrize("block", [1, 7, 64])
def test_equal_vectors_are_at_chance_in_blocks(block):
    same, groups = torch.ones(40, 3), torch.arange(40) // 4
    for found in ranks(same, same, groups, block=block):
        assert found.mean.tolist() == pytest.approx([1 + 36 / 5] * 40)


def test_a_random_order_of_duplicates_has_the_same_figures():
    """Vectors that occur several times; a tiny shift of each copy puts them in a random order instead."""
    rng = torch.Generator().manual_seed(0)
    which = torch.randint(0, 12, (60,), generator=rng)
    kinds, c = torch.randn(12, 6, generator=rng)[which], torch.randn(12, 6, generator=rng)[which]
    f_a, groups = kinds + 0.5 * c, torch.randint(0, 20, (60,), generator=rng)
    tied = retrieval(f_a, c, groups)["A2V"]
    shaken = [
        retrieval(f_a, c + 1e-3 * torch.randn(c.shape, generator=rng), groups)["A2V"] for _ in range(300)
    ]
    for name, value in tied.as_dict().items():
        draws = [each.as_dict()[name] for each in shaken]
        assert np.mean(draws) == pytest.approx(value, abs=1e-9 + 4 * np.std(draws) / 300**0.5), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, 1e300])
@pytest.mark.parametrize("grouped", [False, True])
def test_vectors_without_a_cosine_are_refused(bad, grouped):
    """Nothing is nearer than NaN, so it would count as found first."""
    good, broken = torch.randn(2, 30, 4, dtype=torch.float64)
    broken[17, 2] = bad
    groups = torch.arange(30) // 3 if grouped else None
    with pytest.raises(ValueError, match=r"f_a\[17\] is NaN, infinite or too long"):
        retrieval(broken, good, groups, full=True)
    with pytest.raises(ValueError, match=r"c\[17\] is NaN, infinite or too long"):
        retrieval(good, broken, groups)
    many = torch.cat([good] * 20 + [broken])  # draws of 100 may leave it out
    for seed in range(5):
        with pytest.raises(ValueError, match=r"f_a\[617\] is NaN"):
            retrieval(many, many[:1].expand_as(many), seed=seed)
    with pytest.raises(ValueError, match=r"c\[17\] is NaN, infinite or too long"):
        ranks(good, broken, groups, block=4)


@pytest.mark.parametrize("rows", [[0, 5], [29], [3, 4, 29]])
@pytest.mark.parametrize("block", [1, 4, 2048])
def test_the_first_vector_without_a_cosine_is_named(rows, block):
    good = torch.randn(30, 4)
    broken = good.clone()
    broken[rows] = float("nan")
    with pytest.raises(ValueError, match=rf"c\[{rows[0]}\] is NaN"):
        ranks(good, broken, block=block)


def test_scale_means_nothing():
    f_a, c = torch.randn(2, 9, 4)
    for plain, scaled in zip(ranks(f_a, c), ranks(f_a * 100, c * torch.rand(9, 1)), strict=True):
        assert torch.equal(plain.mean, scaled.mean)


def test_half_precision_is_read_as_it_is():
    f_a, c = torch.randn(2, 50, 8).half()
    for half, full in zip(ranks(f_a, c, block=7), ranks(f_a.double(), c.double()), strict=True):
        assert torch.equal(half.mean, full.mean)


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
    assert retrieval(f_a, c, seed=4)["A2V"].mean_rank != result.mean_rank


@pytest.mark.parametrize(("n", "shape"), [(99, (1, 99)), (100, (1, 100)), (101, (5, 100)), (900, (5, 100))])
def test_draws_are_of_a_hundred(n, shape):
    found = retrieval(*torch.randn(2, n, 4))["V2A"]
    assert found.rows.shape == found.ranks.shape == found.right.shape == shape
    assert all(len(set(draw.tolist())) == len(draw) for draw in found.rows)
    assert found.right.dtype == torch.int64 and found.right.eq(1).all()


def test_draws_are_those_of_the_seed():
    f_a, c = torch.randn(2, 300, 4)
    plain, same, other = (retrieval(f_a, c, **seed)["A2V"] for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(plain.rows, same.rows) and not torch.equal(plain.rows, other.rows)


def test_the_two_sides_are_each_others():
    f_a, c = torch.randn(2, 30, 8)
    there, back = retrieval(f_a, c), retrieval(c, f_a)
    assert torch.equal(there["A2V"].ranks, back["V2A"].ranks)
    assert torch.equal(there["V2A"].ranks, back["A2V"].ranks)
    assert there["A2V"].items == 30


def test_all_pairs_at_once():
    f_a, c = torch.randn(2, 620, 8)
    found = retrieval(f_a, c, full=True)
    for side, expected in zip(("A2V", "V2A"), ranks(f_a, c), strict=True):
        assert found[side].items == 620 and torch.equal(found[side].ranks[0], expected.mean)


def test_all_pairs_are_read_where_they_are(monkeypatch):
    """They may be mapped from a file that is larger than memory."""
    f_a, c = torch.randn(2, 7, 4)

    def same(*vectors):
        assert vectors[0] is f_a and vectors[1] is c
        return ranks(*vectors)

    monkeypatch.setattr("llava_soundclip.evaluation.retrieval.measure.ranks", same)
    assert retrieval(f_a, c, full=True)["A2V"].items == 7


def test_films_are_groups():
    assert group_rows(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert group_rows([]).dtype == group_rows(["a"]).dtype == torch.int64
    f_a = torch.randn(300, 8)
    films = group_rows([f"film {row // 3}" for row in range(300)])
    c = f_a[(torch.arange(300) // 3) * 3]  # what is seen is that of the film's first clip
    found = retrieval(f_a, c, films, full=True)
    assert found["V2A"].mean_rank == 1 < retrieval(f_a, c, full=True)["V2A"].mean_rank


@pytest.mark.parametrize("films", [None, 3])
def test_chance_is_what_random_vectors_have(films):
    torch.manual_seed(0)
    groups = None if films is None else torch.arange(60) // films
    found = [
        retrieval(torch.randn(60, 4), torch.randn(60, 4), groups, seed=seed)["A2V"] for seed in range(60)
    ]
    chance = found[0].chance()
    assert films or chance["mean_rank"] == 30.5 and chance["R@10"] == pytest.approx(10 / 60)
    for name, value in chance.items():
        draws = [result.as_dict()[name] for result in found]
        assert np.mean(draws) == pytest.approx(value, abs=4 * np.std(draws) / 60**0.5)


def untied(places):
    ahead = torch.tensor(places) - 1
    return Ranks(ahead, torch.zeros_like(ahead), torch.ones_like(ahead))


def test_chance_is_the_mean_over_all_orders():
    right = [1, 2, 4, 5, 2]
    groups = torch.tensor([0, 1, 1, 2, 3])
    found = Retrieval(torch.arange(5)[None], untied([[1] * 5]), torch.tensor([right])).chance()
    firsts = [
        [1 + min(order.index(answer) for answer in range(count)) for order in permutations(range(5))]
        for count in right
    ]
    assert found["mean_rank"] == pytest.approx(np.mean(firsts))
    for top in (1, 3, 10):
        assert found[f"R@{top}"] == pytest.approx(np.mean(np.array(firsts) <= top))
    found = retrieval(*torch.randn(2, 5, 3), groups)["A2V"]
    assert found.right[0].tolist() == [[1, 2, 2, 1, 1][row] for row in found.rows[0]]


def test_the_histogram_counts_every_rank():
    rows, found = torch.arange(4).expand(2, 4), untied([[1, 1, 3, 1], [2, 2, 1, 1]])
    assert Retrieval(rows, found, torch.ones(2, 4).long()).histogram() == [5, 2, 1, 0]


def test_differences_are_paired_by_clip():
    torch.manual_seed(1)
    c = torch.randn(60, 8)
    f_a, other = c + 2 * torch.randn(60, 8), c + 4 * torch.randn(60, 8)
    sources = torch.arange(60) // 5
    first, second = (retrieval(sounds, c)["A2V"] for sounds in (f_a, other))
    grouped = retrieval(f_a, c, sources=sources)["A2V"].minus(second, seed=2)
    differences = {"mean_rank": (first.ranks - second.ranks)[0].numpy()}
    for top in (1, 3, 10):
        differences[f"R@{top}"] = ((first.ranks <= top) * 1.0 - (second.ranks <= top) * 1.0)[0].numpy()
    found = first.minus(second, seed=2)
    assert list(found) == list(grouped) == list(differences)
    in_order = first.rows[0].argsort().numpy()
    for name, drawn in differences.items():
        each = drawn[in_order]
        by_clip = bootstrap(each, seed=2)
        assert (found[name].value, found[name].n) == (pytest.approx(each.mean(), rel=1e-6), 60)
        assert (found[name].low, found[name].high) == pytest.approx((by_clip.low, by_clip.high), rel=1e-6)
        by_source = bootstrap(each.reshape(12, 5).mean(1), seed=2)
        assert grouped[name].n == 12
        assert (grouped[name].low, grouped[name].high) == pytest.approx(
            (by_source.low, by_source.high), rel=1e-6
        )
    assert first.minus(second) == first.minus(second, seed=0) != found
    assert {each.value for each in first.minus(first).values()} == {0}
    more = torch.randn(300, 4)
    with pytest.raises(ValueError, match="weren't measured with the same draws: give both the same seed"):
        retrieval(more, more)["A2V"].minus(retrieval(more, more, seed=1)["A2V"])


def test_a_cluster_gets_what_was_given(monkeypatch):
    """What it computes is in test_cluster.py."""

    def here(f_a, c, groups, *, address):
        assert address == "ray://there"
        return ranks(f_a, c, groups)

    f_a, c = torch.randn(2, 150, 4)
    groups = torch.arange(150) // 3
    monkeypatch.setattr(cluster, "ranks_on_ray", here)
    plain = retrieval(f_a, c, groups, full=True)
    found = retrieval(f_a, c, groups, full=True, ray="ray://there")
    for side in ("A2V", "V2A"):
        assert torch.equal(found[side].ranks, plain[side].ranks)
        assert torch.equal(found[side].right, plain[side].right)


def test_counts_are_whole_numbers():
    """float32 counts no further than 2^24, which is fewer than there may be rows."""
    f_a, c = torch.randn(2, 12, 4)
    for groups in (None, torch.arange(12) // 2):
        places = Places(f_a, c, groups, block=5)
        assert places.right.shape == places.own.shape == (2, 12) and places.counts.shape == (2, 2, 12)
        counts = strip_counts(f_a, c, places.right, slice(0, 5), block=5)
        assert {each.dtype for each in (places.own, places.counts, *counts)} == {torch.int32}


def test_figures_have_intervals_over_clips_and_their_repeats():
    torch.manual_seed(0)
    f_a = torch.randn(700, 16)
    result = retrieval(f_a, f_a + 2 * torch.randn(700, 16))["A2V"]
    figures = result.figures()
    assert figures["mean_rank"]["value"] == pytest.approx(result.mean_rank)
    assert figures["R@3"]["value"] == pytest.approx(result.recall[3])
    assert figures["mean_rank"]["n"] == len(result.rows.unique()) < 500
    assert figures["mean_rank"]["repeats"] == pytest.approx(result.ranks.mean(1).tolist())
    # Of repeats without a clip in common it is the plain bootstrap of the mean.
    rank = result.ranks.flatten()
    assert figures == result.figures(seed=0) != result.figures(seed=1)
    apart = Retrieval(torch.arange(500).view(5, 100), result.places, result.right).figures(seed=1)[
        "mean_rank"
    ]
    plain = bootstrap(rank.numpy(), seed=1)
    assert (apart["low"], apart["high"]) == pytest.approx((plain.low, plain.high), rel=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"expected two \(n, D\), got \(3, 2\) and \(4, 2\)"):
        ranks(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"groups must be \(3,\) integers"):
        ranks(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2))
    for groups in (torch.zeros(3), torch.zeros(2).long(), torch.zeros(3, 1).long()):
        with pytest.raises(ValueError, match=r"groups must be \(3,\) integers"):
            ranks(torch.zeros(3, 2), torch.zeros(3, 2), groups)
    with pytest.raises(ValueError, match=r"got \(3, 2, 1\) and \(3, 2, 1\)"):
        ranks(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match="ray needs full=True"):
        retrieval(torch.zeros(3, 2), torch.zeros(3, 2), ray="local")
    with pytest.raises(ValueError, match="at least one pair"):
        retrieval(torch.zeros(0, 2), torch.zeros(0, 2))


def test_intervals_are_over_sources():
    torch.manual_seed(7)
    centres = torch.randn(8, 6)
    sources = torch.arange(80) // 10
    c = centres[sources] + 0.1 * torch.randn(80, 6)
    f_a = c + torch.where(sources < 4, 0.02, 2.0)[:, None] * torch.randn(80, 6)  # half of the films are heard
    over_films = retrieval(f_a, c, sources=sources)["A2V"].figures()["R@10"]
    over_clips = retrieval(f_a, c)["A2V"].figures()["R@10"]
    assert over_films["value"] == over_clips["value"] and (over_films["n"], over_clips["n"]) == (8, 80)
    assert over_films["high"] - over_films["low"] > 1.5 * (over_clips["high"] - over_clips["low"])


def test_all_found_is_not_certain():
    c = torch.randn(12, 6)
    found = retrieval(c, c)["A2V"].figures()["R@1"]
    assert (found["value"], found["high"]) == (1, 1) and 0.6 < found["low"] < 0.9  # Wilson's
