"""Splits by source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_soundclip.features.splits import split_by_source


def can_be_split(sources):
    """Whether whole sources can leave two rows on each side."""
    return len(sources) >= 4 and max(map(sources.count, sources)) <= len(sources) - 2


ANY = st.lists(st.integers(0, 9).map(str), min_size=2, max_size=60)
SOURCES = ANY.filter(can_be_split)


@given(sources=SOURCES, share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_no_source_is_on_both_sides(sources, share, seed):
    training, validation = (rows.tolist() for rows in split_by_source(sources, share, seed))
    assert sorted(training + validation) == list(range(len(sources)))
    assert training == sorted(training) and validation == sorted(validation)
    assert len(training) >= 2 and len(validation) >= 2
    assert not {sources[row] for row in training} & {sources[row] for row in validation}


@given(sources=ANY.filter(lambda sources: not can_be_split(sources)), share=st.floats(0.01, 0.99))
def test_only_what_no_split_can_serve_is_refused(sources, share):
    with pytest.raises(ValueError, match="validation needs clips of another video|can't be split"):
        split_by_source(sources, share)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.19])
def test_two_rows_are_held_out_where_fewer_fit(share):
    for seed in range(8):
        assert len(split_by_source([*"abcdefghij"], share, seed)[1]) == 2
        assert len(split_by_source([*"aaabbbcccddd"], share, seed)[1]) == 3  # one whole source


@given(sources=SOURCES, share=st.floats(0.01, 0.99))
def test_the_order_of_rows_means_nothing(sources, share):
    def chosen(rows):
        return {rows[row] for row in split_by_source(rows, share)[1].tolist()}

    assert chosen(sources) == chosen(sources[::-1])


def test_the_share_is_met_from_below():
    sources = [f"{i // 3}.mp4" for i in range(3000)]
    for share in (0.05, 0.1, 0.5):
        rows = len(split_by_source(sources, share)[1])
        assert share * 3000 - 3 < rows <= share * 3000
    first, second = (set(split_by_source(sources, 0.1, seed)[1].tolist()) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_absurd_shares(share):
    with pytest.raises(ValueError, match="share to validate on"):
        split_by_source(["a", "b"], share)


def test_one_film_is_too_few():
    with pytest.raises(ValueError, match="1 source: validation needs clips of another video"):
        split_by_source(["a", "a", "a"], 0.5)
