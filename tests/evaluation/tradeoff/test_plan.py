"""Which settings clips are captioned in, and whose sound stands in for whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_soundclip.clips import Clip
from llava_soundclip.evaluation.captions import Things
from llava_soundclip.evaluation.report.settings import controls, raw_and_projected, read_settings
from llava_soundclip.evaluation.tradeoff.plan import partners, plan_settings


def test_the_whole_plan():
    plan = plan_settings(k=4, patches=9, projected=True, budgets=[9, 0, 2], alphas=[0.5])
    assert [setting.name for setting in plan] == [
        "raw",
        "projected",
        "raw, another",
        "projected, another",
        "raw, noise",
        "projected, noise",
        "raw, zero",
        "projected, zero",
        "raw, random",
        "projected, random",
        "alpha 0.5",
        "raw, k=0",
        "projected, k=0",
        "raw, k=2",
        "raw, k=2, random",
        "projected, k=2",
        "projected, k=2, random",
        "raw, k=9",
        "projected, k=9",
    ]
    assert (plan[10].alignment, plan[10].k, plan[10].control) == (0.5, 4, None)
    assert (plan[14].alignment, plan[14].k, plan[14].control) == ("raw", 2, "random")


@given(
    k=st.integers(0, 6),
    projected=st.booleans(),
    budgets=st.lists(st.integers(0, 6), max_size=5),
    alphas=st.lists(st.floats(0.01, 0.99), max_size=3),
)
def test_every_plan_can_be_read_by_the_report(k, projected, budgets, alphas):
    plan = plan_settings(
        k=k, patches=6, projected=projected, budgets=budgets, alphas=alphas if projected else []
    )
    names = [setting.name for setting in plan]
    assert len(set(names)) == len(names)
    data = {
        "settings": {setting.name: {"clips": 1} for setting in plan},
        "options": {
            setting.name: {"alignment": setting.alignment, "k": setting.k}
            | ({"control": setting.control} if setting.control else {})
            for setting in plan
        },
    }
    settings = read_settings(data)
    with_own = {control.name for _, control in controls(settings)}
    assert with_own == {setting.name for setting in plan if setting.control}
    assert len(raw_and_projected(settings)) == (len({k, *budgets}) if projected else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 10}, "k is 10, but an image has 9 patches"),
        ({"budgets": [-1]}, "k is -1"),
        ({"alphas": [1.0]}, "alpha 1 is not a mix: 0 is projected, 1 is raw"),
        ({"alphas": [0.5], "projected": False}, "give a projector"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_settings(**{"k": 4, "patches": 9, "projected": True, **options})


def clips(*sources):
    return [Clip(str(number), source, f"{number}.wav") for number, source in enumerate(sources)]


def test_another_sound_is_of_something_that_the_clip_does_not_hold():
    things = {
        "0": Things(("dog",), ("cat",)),
        "1": Things(("dog",), ("tree",)),  # sounds as 0 does
        "2": Things(("cat",), ()),  # is seen in 0
        "3": Things(("bell",), ()),
    }
    assert partners(clips("a", "b", "c", "d"), things) == {"0": "3", "1": "2", "2": "3", "3": "0"}


def test_where_that_is_not_known_it_is_of_another_film():
    assert partners(clips("a", "a", "b"), {}) == {"0": "2", "1": "2", "2": "0"}
    assert partners(clips("a", "a"), {}) == {"0": "1", "1": "0"}
    assert partners(clips("a"), {}) == {"0": "0"}
    same = {"0": Things(("dog",)), "1": Things(("dog",))}  # nothing is foreign
    assert partners(clips("a", "b"), same) == {"0": "1", "1": "0"}
