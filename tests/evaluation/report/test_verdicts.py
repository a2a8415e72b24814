"""The three sentences that a report begins with."""

import pytest

from llava_soundclip.evaluation.report import write_report
from llava_soundclip.evaluation.report.figures import captions_figures, retrieval_figures
from llava_soundclip.evaluation.report.settings import read_settings
from llava_soundclip.evaluation.report.verdicts import verdicts
from tests.evaluation.report.test_report import Page, a_retrieval, a_run, figure, small_captions, write

NAMES = {
    "raw": {"alignment": "raw", "k": 9},
    "projected": {"alignment": "projected", "k": 9},
    "raw, another": {"alignment": "raw", "k": 9, "control": "another"},
    "projected, another": {"alignment": "projected", "k": 9, "control": "another"},
    "raw, random": {"alignment": "raw", "k": 9, "control": "random"},
}


def captions(*differences, names=NAMES):
    """Captions with differences (metric, first, second, low, high)."""
    data = small_captions(settings=tuple(names), options=names)
    for metric, first, second, low, high in differences:
        part = data["metrics"].setdefault(metric, {"figures": {}, "differences": []})
        part["differences"].append({"first": first, "second": second, **figure((low + high) / 2, low, high)})
    return data


def answers(data, *retrievals):
    shown = captions_figures(a_run(data))
    found = verdicts([retrieval_figures(a_run(each)) for each in retrievals], [(shown, read_settings(data))])
    assert [each["question"] for each in found] == [
        "Is the sound heard?",
        "What does projecting cost?",
        "Does it matter which patches stay?",
    ]
    return [each["answer"] for each in found]


def test_a_sound_is_heard_where_its_own_clip_is_told_from_another():
    data = captions(
        ("unseen named", "raw", "raw, another", -0.1, 0.1),
        ("unseen named", "projected", "projected, another", 0.2, 0.4),
        ("BLEU", "projected", "projected, another", -0.4, -0.2),
    )
    assert answers(data)[0] == (
        "Raw no sign of it, unseen named 0 (-0.1 to 0.1), n = 8; projected yes, unseen named +0.3 (0.2 to 0.4), n = 8 "
        "(unseen named, own sound against another clip's sound)."
    )
    worse = captions(("BLEU", "raw", "raw, another", -0.4, -0.2))
    assert answers(worse)[0].startswith("Raw no sign of it, BLEU -0.3 (-0.4 to -0.2)")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "BLEU: raw is better by 0.2 (0.1 to 0.3)"),
        (-0.3, -0.1, "Nothing in BLEU: projected is better by 0.2 (0.1 to 0.3)"),
        (-0.1, 0.3, "No measurable cost in BLEU, raw minus projected 0.1 (-0.1 to 0.3)"),
    ],
)
def test_the_cost_of_projecting_stands_with_its_gain(low, high, said):
    data = captions(("BLEU", "raw", "projected", low, high))
    assert answers(data)[1] == f"{said}."
    gained = a_retrieval(alphas=())
    gained["gain"]["A2V"]["R@1"] = figure(0.4, 0.3, 0.5)
    assert answers(data, gained)[1] == f"{said}; retrieval (R@1, A2V) changes by 0.4 (0.3 to 0.5)."


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "Raw yes, patches similar to the sound are better, BLEU +0.2 (0.1 to 0.3)"),
        (-0.3, -0.1, "Raw random patches are better, BLEU -0.2 (-0.3 to -0.1)"),
        (-0.1, 0.3, "Raw no sign of it, BLEU +0.1 (-0.1 to 0.3)"),
    ],
)
def test_random_patches_that_are_better_are_said(low, high, said):
    assert answers(captions(("BLEU", "raw", "raw, random", low, high)))[2] == (
        f"{said}, n = 8 (similar against random patches)."
    )


def test_what_was_not_measured_is_said_and_a_page_begins_with_the_three(tmp_path):
    names = {name: NAMES[name] for name in ("raw", "projected")}
    folder = write(tmp_path / "runs", a=captions(names=names), b=a_retrieval(alphas=()))
    found = write_report(folder, tmp_path / "page.html")["verdicts"]
    assert len(found) == 3 and all(each["answer"].startswith("Not measured: this needs") for each in found)
    text = Page(tmp_path / "page.html").text
    places = [text.index(each["answer"]) for each in found]
    assert places == sorted(places) and places[-1] < text.index("Summary")


def test_one_point_is_a_sentence_and_a_blank_cell_has_its_reason(tmp_path):
    data = captions()
    for name in ("unseen named", "played named"):
        data["metrics"][name] = {"figures": {}, "differences": []}
    data["metrics"]["played named"]["figures"] = {"raw": figure(0.5, 0.4, 0.6)}
    write_report(write(tmp_path / "runs", a=data), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.tags.count("svg") == 1  # BLEU has five points
    assert "played named of raw, the only setting that has it: 0.5 (0.4 to 0.6)" in page.text
    assert (
        "played named is blank (–) for raw, another; raw, random; projected; projected, another: "
        "no clip's sound was played"
    ) in page.text
    assert 'no clip has anything in "unseen".' in page.text
