"""`llava-soundclip report`: what is on the page, that it is right, and that it needs and lets in nothing else."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from llava_soundclip.cli.report import report as report_command
from llava_soundclip.evaluation.captions import evaluate_captions
from llava_soundclip.evaluation.information.limits import LIMITS
from llava_soundclip.evaluation.intervals import bootstrap, difference
from llava_soundclip.evaluation.report import write_report
from llava_soundclip.evaluation.report.figures import captions_figures, information_figures, retrieval_figures
from llava_soundclip.evaluation.report.read import Run, read_runs
from llava_soundclip.evaluation.report.series import caption_sweeps, retrieval_sweep, tradeoffs
from llava_soundclip.evaluation.report.settings import controls, raw_and_projected, read_settings
from llava_soundclip.evaluation.report.summary import (
    captions_summary,
    information_summary,
    retrieval_summary,
    verdict,
)
from llava_soundclip.evaluation.retrieval import retrieval

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, attributes, text and table rows."""

    def __init__(self, file):
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.tags, self.attributes, self.rows, self.open = [], [], [], []
        self.words = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.words += " "

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(self.words.split())

    def row(self, *first):
        """The cells after some, such as those of a row's heading."""
        found = [row[len(first) :] for row in self.rows if tuple(row[: len(first)]) == first]
        assert len(found) == 1, (first, found)
        return found[0]


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def a_retrieval(n=130, alphas=(0.5,), seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    c, raw, noise = (torch.randn(n, 16, generator=generator) for _ in range(3))
    vectors = {"raw": raw, "projected": c + noise}
    vectors |= {f"alpha {alpha:g}": alpha * raw + (1 - alpha) * vectors["projected"] for alpha in alphas}
    found = {name: retrieval(each, c) for name, each in vectors.items()}
    return {
        "what": "retrieval",
        "protocol": "100 at a time, drawn 5 times",
        "clips": n,
        "rows": "validation",
        "right": "pair",
        "figures": {
            name: {side: each.figures() for side, each in sides.items()} for name, sides in found.items()
        },
        "gain": {
            side: {name: each.as_dict() for name, each in sides.minus(found["raw"][side]).items()}
            for side, sides in found["projected"].items()
        },
        "chance": found["raw"]["A2V"].chance(),
        "histogram": {
            name: {side: each.histogram() for side, each in sides.items()} for name, sides in found.items()
        },
        "provenance": {"seed": seed, "encoder": {"encoder": "clap", "checkpoint": "tiny-1234"}},
        "command": "llava-soundclip eval retrieval features",
        **more,
    }


def options(alignment, k, control=None):
    return {"encoder": "clap", "alignment": alignment, "k": k, "tokens": "zero", "control": control}


SETTINGS = {
    "raw-15": options("raw", 15),
    "raw-150": options("raw", 150),
    "projected-150": options("projected", 150),
    "half-150": options(0.5, 150),
    "raw-15-random": options("raw", 15, "random"),
    "raw-150-random": options("raw", 150, "random"),
    "raw-150-noise": options("raw", 150, "noise"),
}
WORDS = ["a", "dog", "barks", "near", "the", "road", "while", "cars", "pass", "and", "rain", "falls"]


def a_part(seed):
    """Made-up scores of 8 clips in all settings, in the form of a metric."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(8, generator=generator).numpy() for name in SETTINGS}
    pairs = [(first, second) for first in scores for second in scores if first < second]
    return {
        "figures": {name: bootstrap(each).as_dict() for name, each in scores.items()},
        "differences": [
            {"first": first, "second": second, **difference(scores[first], scores[second]).as_dict()}
            for first, second in pairs
        ],
    }


def an_information(labels=("kind",), projected=True, **more):
    """Made-up figures in the form of `evaluate_information`."""
    generator = torch.Generator().manual_seed(7)
    sides = ["raw", *(["projected"] if projected else [])]

    def drawn(**more):
        return {**bootstrap(torch.rand(9, generator=generator).numpy()).as_dict(), **more}

    def halved():
        return drawn(half=torch.rand(1, generator=generator).item())

    def a_bound():
        return drawn(at_most=4.321, tau=0.0777)

    found = {
        "what": "information",
        "clips": 77,
        "rows": "validation",
        "drawn": 66,
        "sources": 55,
        "geometry_clips": 44,
        "seed": 3,
        "apart": "source",
        "unmatched": 22,
        "shared": {
            side: {"cosine": a_bound(), "linear": a_bound(), "cka": halved(), "p": 0.0275} for side in sides
        },
        "unique": {
            label: {
                "measure": "balanced accuracy",
                "chance": 0.125,
                "clips": 33,
                "left_out": {"clips": 11, "classes": 6},
                **{side: drawn() for side in (*sides, "picture", *(["lost"] if projected else []))},
            }
            for label in labels
        },
        "unmeasured": ["the label 'place' is no use"],
        "dimension": {
            side: {"two_nn": halved(), "participation_ratio": halved()} for side in (*sides, "picture")
        },
        "provenance": {"library": "1.2.3"},
    }
    if projected:
        found["shared"]["gain"] = {"cosine": drawn(), "linear": drawn()}
    return {**found, **more}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with everything in it. Its captions are scored by the real function."""
    root = tmp_path_factory.mktemp("root")
    said = root / "captions"
    said.mkdir()
    generator = torch.Generator().manual_seed(0)

    def pick(count):
        return [WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator)]

    rows, references = [], []
    for clip in range(8):
        reference = pick(8)
        references.append({"id": f"clip {clip}", "references": [" ".join(reference)]})
        Image.new("RGB", (800, 400), (clip * 30, 90, 90)).save(said / f"{clip}.jpg")
        Image.new("RGB", (1400, 800), (90, clip * 30, 90)).save(said / f"{clip}.png")
        for setting, about in SETTINGS.items():
            text = " ".join(reference[: 3 + clip % 4] + pick(4))
            row = {"id": f"clip {clip}", "caption": text, "setting": setting, "image": f"{clip}.jpg"}
            rows.append({**row, **about, "map": f"{clip}.png"})
    for name, lines in (("captions", rows), ("references", references)):
        (said / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    captions = evaluate_captions(said / "captions.jsonl", said / "references.jsonl", ("bleu",))
    captions["options"], captions["folder"] = SETTINGS, "../captions"
    captions["command"] = "llava-soundclip eval captions captions.jsonl"
    captions["metrics"]["absent named"] = {"made_by": {"implementation": "words"}, **a_part(1)}
    captions["judge"] = {
        "dimensions": {"usefulness": a_part(2)},
        "counts": {name: {"scored": 8} for name in SETTINGS} | {"raw-15": {"scored": 7, "refused": 1}},
        "consistency": {
            "usefulness": {
                "equal": bootstrap([1, 0, 1]).as_dict(),
                "difference": bootstrap([0, 1.5, 0]).as_dict(),
                "kappa": 0.617,
            }
        },
        "usage": {"requests": 59, "prompt_tokens": 123456, "completion_tokens": 789, "cost": None},
        "judge": {"model": "gpt-4o", "temperature": 0},
    }
    folder = write(root / "runs", a=a_retrieval(), b=captions, c=an_information(), recipe={"batch_size": 8})
    return folder


@pytest.fixture(scope="module")
def made(runs):
    out = runs.parent / "report.html"
    found = write_report(runs, out, examples=3, seed=1)
    return found, Page(out)


def printed(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def an_interval(figure):
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


def leaves(data, path=()):
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from leaves(value, (*path, key))
    else:
        yield path, data


def test_every_figure_of_the_json_is_on_the_page(made):
    found, page = made
    numbers = set(re.findall(r"-?\d[\d,.]*(?:e[+-]\d+)?", page.text.replace("(", " ").replace(")", " ")))
    numbers |= {number.rstrip(",.") for number in numbers}
    checked = 0
    for path, value in leaves(found):
        if isinstance(value, int | float) and not isinstance(value, bool) and path[-1] not in ("level", "n"):
            assert printed(value) in numbers, path
            checked += 1
        elif isinstance(value, str) and path[-1] not in ("what", "right", "over", "better"):
            assert " ".join(value.split()) in page.text, path
    assert checked > 500
    assert json.loads(json.dumps(found)) == found


def test_intervals_stand_where_they_belong(made, runs):
    _, page = made
    ours, theirs = (json.loads((runs / name).read_text()) for name in ("a.json", "b.json"))
    names = ("mean_rank", "R@1", "R@3", "R@10")
    for alignment in ("raw", "projected", "alpha 0.5"):
        for side in ("A2V", "V2A"):
            figures = ours["figures"][alignment][side]
            assert page.row(f"{alignment} {side}") == [an_interval(figures[name]) for name in names]
    assert page.row("chance") == [f"{ours['chance'][name]:.3g}" for name in names]
    gain = ours["gain"]["V2A"]
    assert page.row("projected – raw, V2A") == [an_interval(gain[name]) for name in names]
    parts = {**theirs["metrics"], **theirs["judge"]["dimensions"]}
    for setting, heading in (("raw-150", "raw-150"), ("raw-150-noise", "raw-150-noise control: noise")):
        cells = [
            an_interval(parts[name]["figures"][setting]) for name in ("BLEU", "absent named", "usefulness")
        ]
        assert [heading, *cells[:2]] in page.rows and [heading, *cells[2:]] in page.rows
    assert page.row("raw-15", "7", "1") == []  # the judge refused one


def test_information_stands_in_tables_with_what_it_cannot_show(made, runs):
    _, page = made
    written = json.loads((runs / "c.json").read_text())
    shared, kind, dimension = written["shared"], written["unique"]["kind"], written["dimension"]
    for critic in ("cosine", "linear"):
        figures = [shared[side][critic] for side in ("raw", "projected", "gain")]
        assert page.row(f"{critic} bound in nats, at most 4.32") == list(map(an_interval, figures))

    def halved(figure):
        return f"{an_interval(figure)} half: {figure['half']:.3g}"

    assert page.row("CKA") == [*(halved(shared[side]["cka"]) for side in ("raw", "projected")), "–"]
    assert page.row("p of independence") == ["0.0275", "0.0275", "–"]
    read = [an_interval(kind[side]) for side in ("raw", "projected", "picture")]
    assert page.row("kind balanced accuracy, 33 clips") == [*read, "0.125", an_interval(kind["lost"])]
    for heading, name in (
        ("of neighbours TwoNN", "two_nn"),
        ("of variance participation ratio", "participation_ratio"),
    ):
        assert page.row(heading) == [
            halved(dimension[side][name]) for side in ("raw", "projected", "picture")
        ]
    assert "kind: left out 11 clips of 6 classes that occur in one source only" in page.text
    assert "Not probed: the label 'place' is no use" in page.text
    for sentence in LIMITS.values():
        assert sentence in page.text


def test_information_of_raw_alone(tmp_path):
    folder = write(tmp_path / "runs", a=an_information(projected=False, unmatched=0, unmeasured=[]))
    found = write_report(folder, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [part["question"] for part in found["summary"]] == [
        "Do sound and picture share information?",
        "Does the sound tell what the picture doesn't?",
    ]
    assert len(page.row("kind balanced accuracy, 33 clips")) == 3 and len(page.row("CKA")) == 1
    assert "projected –" not in page.text and "Not probed" not in page.text
    folder = write(tmp_path / "without labels", a=an_information(labels=()))
    assert len(write_report(folder, tmp_path / "page.html")["summary"]) == 1
    assert "A probe reads" not in Page(tmp_path / "page.html").text


def test_differences_are_of_raw_and_projected_and_of_controls_first_minus_second(made, runs):
    found, page = made
    shown = found["captions"][0]["metrics"]["absent named"]["differences"]
    assert [(row["first"], row["second"]) for row in shown] == [
        ("raw-150", "projected-150"),
        ("raw-15", "raw-15-random"),
        ("raw-150", "raw-150-random"),
        ("raw-150", "raw-150-noise"),
    ]
    written = json.loads((runs / "b.json").read_text())["metrics"]["absent named"]
    (other_way,) = (
        row for row in written["differences"] if (row["first"], row["second"]) == ("projected-150", "raw-150")
    )
    assert shown[0]["value"] == -other_way["value"]
    assert (shown[0]["low"], shown[0]["high"]) == (-other_way["high"], -other_way["low"])
    figures = written["figures"]
    assert shown[0]["value"] == pytest.approx(figures["raw-150"]["value"] - figures["projected-150"]["value"])
    assert page.row("absent named", "raw-150", "projected-150") == [
        an_interval(shown[0]),
        "8",
        verdict(shown[0]),
    ]


def test_nothing_comes_from_elsewhere(made):
    _, page = made
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert "://" not in value, (tag, name, value)
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/jpeg;base64,"))
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert "default-src 'none'" in page.source


def test_ids_are_single_and_what_points_to_them_finds_them(made):
    _, page = made
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")]
    used += re.findall(r"url\(#([^)]*)\)", page.source)
    assert used and set(used) <= set(ids)


def test_examples_are_drawn_by_the_seed_with_small_pictures(made, tmp_path):
    found, page = made
    examples = found["captions"][0]["examples"]
    assert len(examples) == 3 and not any(example["missing"] for example in examples)
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == 6 and sum(map(len, pictures)) < 60_000
    first = examples[0]
    assert first["beside"] == ["raw-150", "projected-150"]
    assert ["caption", first["captions"]["raw-150"], first["captions"]["projected-150"]] in page.rows
    score = first["scores"]["BLEU"]
    assert ["BLEU", f"{score['raw-150']:.3g}", f"{score['projected-150']:.3g}"] in page.rows
    clips = {str(clip): {"captions": {"raw": "x"}} for clip in range(40)}
    folder = write(tmp_path / "runs", a=small_captions(clips=clips))
    drawn = [
        [
            each["clip"]
            for each in write_report(folder, tmp_path / "page.html", seed=seed)["captions"][0]["examples"]
        ]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 6


def test_the_same_files_make_the_same_bytes(tmp_path):
    folder = write(tmp_path / "runs", a=a_retrieval(alphas=()), b=small_captions())
    for name in ("one", "two"):
        write_report(folder, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def figure(value, low, high, n=8):
    return {"value": value, "low": low, "high": high, "n": n, "level": 0.95}


def small_captions(settings=("raw", "projected"), **more):
    """One metric by hand, higher in the settings that come first."""
    return {
        "what": "captions",
        "settings": {name: {"clips": 8} for name in settings},
        "metrics": {
            "BLEU": {
                "figures": {
                    name: figure(0.5 - place / 20, 0.3 - place / 20, 0.7 - place / 20)
                    for place, name in enumerate(settings)
                },
                "differences": [],
            }
        },
        **more,
    }


def a_run(data, name="run.json"):
    return Run(Path(name), "0" * 64, data)


EVIL = """"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }} $\\frac{ & %s"""


def test_what_users_wrote_stays_text(tmp_path):
    data = small_captions(
        settings=("raw", "projected", EVIL),
        options={EVIL: {"encoder": EVIL, "control": EVIL}},
        clips={
            EVIL: {
                "references": [EVIL],
                "captions": {"raw": EVIL, EVIL: EVIL},
                "scores": {"BLEU": {"raw": 0.5, EVIL: 0.25}},
                "image": EVIL,
            }
        },
        provenance={EVIL: EVIL},
        command=EVIL,
    )
    data["metrics"][EVIL] = {"figures": {EVIL: figure(1, 1, 1)}, "differences": [], "made_by": {EVIL: EVIL}}
    folder = write(
        tmp_path / "runs",
        a=a_retrieval(alphas=(), rows=EVIL, protocol=EVIL),
        b=data,
        c=an_information(labels=(EVIL,), rows=EVIL, apart=EVIL, unmeasured=[EVIL], provenance={EVIL: [EVIL]}),
    )
    (folder / "<b>.json").write_text("{}")
    write_report(folder, tmp_path / "page.html", title=EVIL)
    page = Page(tmp_path / "page.html")
    assert not {"script", "b>"} & set(page.tags) and "<script" not in page.source
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for tag, name, value in page.attributes if name == "src")
    assert page.words.count(" ".join(EVIL.split())) > 10 and "{{ 7 * 7 }}" in page.text
    assert "<b>.json" in page.text


def test_letters_that_no_font_or_file_has(tmp_path):
    data = small_captions(settings=("raw", "犬が吠えている"), command="\ud800 half")
    write_report(write(tmp_path / "runs", a=data), tmp_path / "page.html")
    assert "犬が吠えている" in Page(tmp_path / "page.html").text


def test_pictures_that_cannot_be_shown_are_named_and_nothing_else_is_read(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "secret.txt").write_text("the secret")
    Image.new("RGB", (9, 9)).save(tmp_path / "film.png")
    wanted = {
        "gone": "gone.jpg",
        "text": "../secret.txt",
        "whole": str(tmp_path / "film.png"),
        "number": 7,
        "folder": ".",
        "there": "../film.png",
    }
    clips = {
        name: {"references": [], "captions": {"raw": "x"}, "image": path} for name, path in wanted.items()
    }
    folder = write(tmp_path / "runs", a=small_captions(clips=clips))
    found = write_report(folder, tmp_path / "page.html", examples=99)
    missing = {each["clip"]: each["missing"] for each in found["captions"][0]["examples"]}
    assert missing.pop("there") == []
    assert missing.pop("text") == ["no frame: ../secret.txt can't be decoded"]
    assert missing.pop("gone") == ["no frame: gone.jpg is no file in the captions' folder"]
    assert all("is no file" in sentence for (sentence,) in missing.values())
    page = Page(tmp_path / "page.html")
    assert page.tags.count("img") == 1 and "the secret" not in page.source
    assert all(sentence in page.text for sentences in missing.values() for sentence in sentences)


def test_little_is_enough_and_two_runs_stand_under_their_names(tmp_path):
    raw = a_retrieval(alphas=())
    for name in ("histogram", "provenance", "command"):
        del raw[name]
    raw["figures"], raw["gain"] = {"raw": raw["figures"]["raw"]}, {}
    folder = write(tmp_path / "runs", one=raw, two={**raw, "rows": "all"})
    found = write_report(folder, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [each["file"] for each in found["retrieval"]] == ["one.json", "two.json"]
    assert {"summary", "retrieval", "provenance"} == {
        value for tag, name, value in page.attributes if (tag, name) == ("section", "id")
    }
    assert found["summary"][0]["question"] == "Is retrieval better than chance?"
    assert "not given" in page.text


def test_captions_alone_by_a_judge_alone_and_the_reports_own_json(tmp_path):
    told = small_captions(settings=("first", "second"), judge={}, clips={}, options={"first": {}})
    judged = {**small_captions(), "metrics": {}, "judge": {"dimensions": small_captions()["metrics"]}}
    folder = write(tmp_path / "runs", one=told, two=judged, report={"what": "report"})
    found = write_report(folder, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not found["captions"][0]["options_known"] and "controls can't be told" in page.text
    assert found["others"] == [] and found["captions"][1]["judge"]["dimensions"]["BLEU"]["figures"]
    assert 'id="judge"' in page.source and 'id="tradeoff"' not in page.source


def test_a_retrieval_of_another_encoder_makes_no_trade_off(tmp_path):
    data = small_captions(options={"raw": {"encoder": "whisper"}, "projected": {"encoder": "whisper"}})
    assert (
        tradeoffs([a_run(a_retrieval(alphas=()))], captions_figures(a_run(data)), read_settings(data)) == []
    )


def test_settings_are_told_from_their_options():
    data = {"settings": dict.fromkeys(SETTINGS), "options": SETTINGS}
    settings = read_settings(data)
    assert [setting.name for setting in settings] == [
        *("raw-15", "raw-15-random", "raw-150", "raw-150-random", "raw-150-noise"),
        *("projected-150", "half-150"),
    ]
    assert {setting.name: setting.alpha for setting in settings}["half-150"] == 0.5
    pairs = raw_and_projected(settings)
    assert [(raw.name, projected.name) for raw, projected in pairs] == [("raw-150", "projected-150")]
    assert ("raw-15", "raw-15-random") in [(own.name, control.name) for own, control in controls(settings)]
    bare = read_settings({"settings": {"raw": {}, "projected": {}, "other": {}}})
    assert [setting.alpha for setting in bare] == [1, 0, None]
    odd = {"a": {"alignment": "0.25", "k": True}, "b": {"alignment": float("nan"), "k": [1], "encoder": {}}}
    assert [(s.alpha, s.k) for s in read_settings({"settings": odd, "options": odd})] == [
        (0.25, 1),
        (None, None),
    ]


def test_sweeps_group_what_is_alike_in_all_else():
    names = {
        **SETTINGS,
        "drop-15": {**options("raw", 15), "tokens": "drop"},
        "drop-150": {**options("raw", 150), "tokens": "drop"},
        "lone": {**options("raw", 15), "encoder": "whisper"},
    }
    data = small_captions(settings=tuple(names), options=names)
    alpha, zero, drop = caption_sweeps(captions_figures(a_run(data)), read_settings(data))
    assert (alpha["over"], zero["over"], drop["over"]) == ("alpha", "k", "k")
    assert alpha["fixed"] == {"encoder": "clap", "tokens": "zero", "k": "150"}
    assert {
        control: [(step["at"], step["setting"]) for step in steps]
        for control, steps in alpha["quality"]["BLEU"].items()
    } == {
        "own sound": [(0, "projected-150"), (0.5, "half-150"), (1, "raw-150")],
        "noise": [(1, "raw-150-noise")],
        "random": [(1, "raw-150-random")],
    }
    assert zero["fixed"] == {"encoder": "clap", "tokens": "zero", "alignment": "raw"}
    lines = zero["quality"]["BLEU"]
    assert [(step["at"], step["setting"]) for step in lines["own sound"]] == [
        (15, "raw-15"),
        (150, "raw-150"),
    ]
    assert [step["at"] for step in lines["random"]] == [15, 150]
    assert drop["fixed"]["tokens"] == "drop" and list(drop["quality"]["BLEU"]) == ["own sound"]
    step = lines["own sound"][0]
    assert step["value"] == data["metrics"]["BLEU"]["figures"]["raw-15"]["value"]


def test_retrieval_is_swept_over_alpha():
    shown = retrieval_figures(a_run(a_retrieval(alphas=(0.25, 0.75))))
    steps = retrieval_sweep(shown)["quality"]["R@1"]["A2V"]
    assert [step["at"] for step in steps] == [0, 0.25, 0.75, 1]
    assert [step["setting"] for step in steps] == ["projected", "alpha 0.25", "alpha 0.75", "raw"]
    assert steps[1]["value"] == shown["figures"]["alpha 0.25"]["A2V"]["R@1"]["value"]
    assert retrieval_sweep(retrieval_figures(a_run(a_retrieval(alphas=())))) is None


def test_the_front_is_what_no_other_beats():
    places = {"raw": (0.1, 0.5), "alpha 0.5": (0.3, 0.3), "projected": (0.6, 0.4)}
    data = a_retrieval(alphas=(0.5,))
    for alignment, (found, _) in places.items():
        data["figures"][alignment]["A2V"]["R@1"] = figure(found, found, found)
    names = {
        "raw": {"alignment": "raw"},
        "alpha 0.5": {"alignment": 0.5},
        "projected": {"alignment": "projected"},
        "noise": {"alignment": "raw", "control": "noise"},
    }
    said = small_captions(settings=tuple(names), options=names)
    for name in ("BLEU", "absent named", "silent named"):
        said["metrics"][name] = {
            "figures": {
                setting: figure(quality, quality, quality) for setting, (_, quality) in places.items()
            }
            | {"noise": figure(9, 9, 9)},
            "differences": [],
        }
    runs = [a_run(data, "a.json"), a_run(data, "again.json")]
    both = tradeoffs(runs, captions_figures(a_run(said)), read_settings(said))
    assert [each["retrieval"] for each in both] == [["a.json"], ["again.json"]]
    parts = both[0]["quality"]
    assert list(parts) == ["BLEU", "absent named"]
    assert parts["BLEU"]["front"] == ["projected", "raw"]
    assert parts["absent named"]["front"] == ["projected", "alpha 0.5"]  # where lower is better
    assert {point["setting"] for point in parts["BLEU"]["points"]} == set(places)


@pytest.mark.parametrize(
    ("low", "high", "n", "told"),
    [
        (0.1, 0.3, 8, "above"),
        (-0.3, -0.1, 8, "below"),
        (-0.1, 0.3, 8, "can't be told"),
        (0, 0.3, 8, "can't be told"),
        (-0.3, 0, 8, "can't be told"),
        (0.2, 0.2, 1, "can't be told"),
        (0.2, 0.2, 2, "above"),
    ],
)
def test_words_say_what_intervals_support(low, high, n, told):
    value = (low + high) / 2
    gain = figure(value, low, high, n)
    assert verdict(gain) == told
    names = {
        "raw": {"alignment": 1},
        "projected": {"alignment": 0},
        "n": {"alignment": 1, "control": "noise"},
    }
    data = small_captions(settings=tuple(names), options=names)
    rows = [{"first": "raw", "second": "projected", **gain}, {"first": "raw", "second": "n", **gain}]
    data["metrics"]["BLEU"]["differences"] = rows
    cost, sound = captions_summary(captions_figures(a_run(data)), read_settings(data))
    assert (cost["question"], sound["question"]) == ("Does projecting cost quality?", "Does the sound help?")
    ends = sorted((abs(low), abs(high)))
    by = f"BLEU by {abs(value):.3g} ({ends[0]:.3g} to {ends[1]:.3g})."
    assert cost["answers"] == [
        f"Raw is {told} projected in {by}"
        if told in ("above", "below")
        else f"Raw {told} from projected in BLEU."
    ]
    assert sound["answers"] == [
        answer.replace("projected", "its noise control") for answer in cost["answers"]
    ]


def test_retrieval_in_words():
    data = a_retrieval(alphas=())
    for side in ("A2V", "V2A"):
        data["figures"]["raw"][side]["R@1"] = figure(0.012, 0.005, 0.02)
        data["figures"]["projected"][side]["R@1"] = figure(0.4, 0.3, 0.5)
        data["gain"][side]["R@1"] = figure(0.388, 0.29, 0.49)
        data["gain"][side]["mean_rank"] = figure(-30, -40, 1)
    found = retrieval_summary(retrieval_figures(a_run(data)))
    assert found["question"] == "Does projecting gain retrieval?"
    assert found["answers"][0] == (
        "Sounds find pictures, R@1: projected is above raw by 0.388 (0.29 to 0.49); raw 0.012 (0.005 to 0.02) can't be "
        "told from chance, projected 0.4 (0.3 to 0.5) is above chance, which is 0.01."
    )
    assert found["answers"][1].startswith(
        "Sounds find pictures, mean rank (lower is better): projected can't be told from raw, "
        "-30 (-40 to 1); "
    )


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.1, 0.3, "above"), (-0.3, -0.1, "below"), (-0.1, 0.3, None), (0, 0.3, None)],
)
def test_information_in_words(low, high, told):
    value, data = (low + high) / 2, an_information()
    apart = figure(value, low, high)
    data["shared"]["raw"]["cosine"] |= figure(-0.01, -0.02, -0.005)
    data["shared"]["projected"]["cosine"] |= figure(1.5, 1.2, 1.8)
    data["shared"]["gain"]["cosine"] = data["unique"]["kind"]["lost"] = apart
    sides = {
        "raw": figure(0.3, 0.2, 0.4),
        "projected": figure(0.2, 0.1, 0.3),
        "picture": figure(0.05, 0, 0.1),
    }
    data["unique"]["kind"] |= sides
    reach, lost = information_summary(information_figures(a_run(data)))
    assert reach["question"] == "Does projecting bring shared information into a cosine's reach?"
    assert lost["question"] == "Does projecting lose what only the sound tells?"
    assert reach["measured"] == lost["measured"] == "77 clips (validation) of 55 sources"
    ends = sorted((abs(low), abs(high)))
    by = f"by {abs(value):.3g} ({ends[0]:.3g} to {ends[1]:.3g})"
    assert reach["answers"][0] == (
        "Within a cosine's reach, in nats (at most 4.32): "
        + (
            f"projected is {told} raw {by}"
            if told
            else f"projected can't be told from raw, {an_interval(apart)}"
        )
        + "; raw -0.01 (-0.02 to -0.005) shows nothing, projected 1.5 (1.2 to 1.8) shows that something is shared."
    )
    assert lost["answers"] == [
        "kind, balanced accuracy (chance 0.125): "
        + (
            f"raw is {told} projected {by}"
            if told
            else f"raw can't be told from projected, {an_interval(apart)}"
        )
        + "; raw 0.3 (0.2 to 0.4) is above chance, projected 0.2 (0.1 to 0.3) can't be told from chance, "
        "picture 0.05 (0 to 0.1) is below chance."
    ]


def test_ranks_are_put_into_bins_of_equal_width():
    data = a_retrieval(alphas=(), histogram={"raw": {"A2V": [1] * 45}, "projected": {"A2V": [45]}})
    found = retrieval_figures(a_run(data))["histogram"]
    assert [(each["from"], each["to"], each["queries"]) for each in found["raw"]["A2V"]] == [
        *((first, first + 2, 3) for first in range(1, 45, 3))
    ]
    assert [each["queries"] for each in found["projected"]["A2V"]] == [45] + [0] * 14


app = typer.Typer()
app.command()(report_command)


def test_the_command_writes_page_and_json(tmp_path):
    folder = write(tmp_path / "runs", a=a_retrieval(alphas=()))
    arguments = [folder, "--out", tmp_path / "page.html", "--json", folder / "report.json", "--title", "Mine"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert re.search(r"page\.html: \d+ KiB", result.stdout)
    assert "<title>Mine</title>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert found["what"] == "report" and found["command"].startswith("llava-soundclip")
    assert [run.name for run in read_runs(folder)[0]] == ["a.json"]


def broken(name, path, value):
    """A good run with one thing in it replaced."""
    data = {
        "retrieval": lambda: a_retrieval(n=12, alphas=()),
        "captions": small_captions,
        "information": an_information,
    }[name]()
    *way, last = path
    part = data
    for key in way:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nowhere is no folder"),
        ("", "holds no figures: write some there with `llava-soundclip eval retrieval"),
        ('{"what": ', "bad.json is no JSON"),
        (b"\xff\xfe\x00", "bad.json is no JSON"),
        ("[1]", "holds no figures"),
        (("retrieval", ["figures"], None), 'bad.json: there is no "figures"'),
        (
            ("retrieval", ["figures", "raw", "A2V", "R@3"], None),
            "figures of raw, A2V: R@3 has no value with an",
        ),
        (
            ("retrieval", ["figures", "raw", "A2V", "R@3", "low"], float("nan")),
            "R@3: low is nan, not a number",
        ),
        (("retrieval", ["chance", "R@1"], "high"), "chance: R@1 is 'high', not a number"),
        (("retrieval", ["histogram", "raw", "A2V"], 3), "histogram of raw, A2V is no list"),
        (("retrieval", ["gain"], {"A2V": 1}), "gain, A2V: mean_rank has no value"),
        (("retrieval", ["figures"], {"raw": 1}), "figures of raw has no sides"),
        (("captions", ["settings"], {}), "bad.json: it has no settings"),
        (("captions", ["metrics", "BLEU", "figures", "raw"], 0.3), "BLEU of raw has no value"),
        (
            ("captions", ["metrics", "BLEU", "differences"], [{"first": "raw"}]),
            "BLEU doesn't name two settings",
        ),
        (("captions", ["metrics", "BLEU", "differences"], 1), '"differences" is no list'),
        (("captions", ["clips"], {"x": 1}), "clip x is no object"),
        (("captions", ["clips"], {"x": {"captions": {"raw": 1}}}), "clip x has captions or references that"),
        (("captions", ["clips"], {"x": {"scores": {"BLEU": {"raw": "a"}}}}), "clip x: BLEU is 'a'"),
        (
            ("captions", ["judge"], {"consistency": {"fluency": {}}}),
            "the judge's fluency: equal has no value",
        ),
        (("information", ["shared"], None), 'there is no "shared"'),
        (("information", ["shared", "raw"], None), 'there is no "raw"'),
        (("information", ["shared", "raw", "linear", "low"], "low"), "the linear bound of raw: low is 'low'"),
        (
            ("information", ["shared", "raw", "linear", "at_most"], None),
            "linear bound of raw is at most is None",
        ),
        (("information", ["shared", "projected", "p"], float("nan")), "p of projected is nan, not a number"),
        (("information", ["shared", "raw", "cka", "half"], None), "the CKA of raw: half is None"),
        (("information", ["shared", "gain"], None), 'there is no "gain"'),
        (("information", ["shared", "gain", "cosine"], 1), "the gain of the cosine bound has no value"),
        (("information", ["unique", "kind"], 1), 'there is no "kind", or it is no object'),
        (("information", ["unique", "kind", "lost"], None), "the label 'kind': lost has no value"),
        (("information", ["unique", "kind", "chance"], "half"), "the label 'kind': chance is 'half'"),
        (("information", ["unique", "kind", "measure"], 1), "the label 'kind' has no measure"),
        (("information", ["unique", "kind", "left_out"], {"clips": 1}), "classes left out is None"),
        (("information", ["unmeasured"], [1]), '"unmeasured" has something else than sentences'),
        (("information", ["dimension", "picture", "two_nn"], {}), "the two_nn of picture has no value"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    folder = tmp_path / "nowhere"
    if content is not None:
        folder.mkdir()
    if content:
        text = broken(*content) if isinstance(content, tuple) else content
        (folder / "bad.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = CliRunner().invoke(app, [str(folder), "--out", str(tmp_path / "page.html")])
    assert result.exit_code == 2
    error = " ".join(result.stderr.split())
    assert error.startswith("Error: ") and message in error
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_and_a_negative_number_of_examples(tmp_path):
    folder = write(tmp_path / "runs", a=small_captions())
    result = CliRunner().invoke(app, [str(folder), "--out", str(folder / "a.json" / "page.html")])
    assert result.exit_code == 2 and "--out" in result.stderr
    with pytest.raises(ValueError, match="examples must be 0 or more, not -1"):
        write_report(folder, tmp_path / "page.html", examples=-1)


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_phone_shows_it_without_scrolling_sideways(made, tmp_path):
    _, page = made
    # In a frame: a browser's window can't be this narrow, and the page itself forbids scripts.
    outer = f"""<title></title><iframe srcdoc="{html.escape(page.source)}" style="width: 390px; border: 0"></iframe>
    <script>
    const frame = document.querySelector("iframe");
    frame.onload = () => {{
      const page = frame.contentDocument, images = [...page.images];
      page.querySelectorAll("details").forEach(each => each.open = true);
      document.title = [page.documentElement.clientWidth, page.documentElement.scrollWidth, images.length,
        images.filter(each => each.naturalWidth).length].join(" ");
    }};
    </script>"""
    (tmp_path / "page.html").write_text(outer, encoding="utf-8")
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"),
            f"file://{tmp_path / 'page.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    title = re.search(r"<title>([\d ]+)</title>", shown)
    assert title is not None
    width, needed, images, loaded = map(int, title[1].split())
    assert needed <= width <= 390 and width > 360 and images == loaded == 6


def test_the_summary_says_what_was_counted(tmp_path):
    metrics = {"BLEU": a_part(3)}
    for over in ("clips", "sources"):
        run = small_captions(tuple(SETTINGS), options=SETTINGS, metrics=metrics, intervals_over=over)
        found = write_report(write(tmp_path / over, b=run), tmp_path / "page.html")
        measured = [part["measured"] for part in found["summary"]]
        assert measured and all(text.endswith(f", 8 {over}") for text in measured)
