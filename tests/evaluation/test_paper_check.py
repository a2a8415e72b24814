"""The page that recomputes the paper, and the presets that follow it."""

import importlib
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from llava_soundclip.encoders import available_encoders
from llava_soundclip.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "paper_check"
MODULES = ("check", "claim", "claims", "compared", "recompute", "tables")
CHOICES = "loss function, layer selection, pooling policy, backbone size, regularization strategy"
PAPER = ROOT.parent / "shared" / "paper" / "soundclip.md"


@pytest.fixture(scope="module")
def scripts():
    """Import scripts that are run by path: their folder is on the import path only meanwhile."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def tables(scripts):
    return scripts["tables"].read_tables()


def outcome(scripts, tables, words, says):
    """What becomes of the one claim with these words."""
    (claim,) = [each for each in scripts["claims"].CLAIMS if words in each.words and each.says == says]
    return claim.check(tables)


def test_the_page_is_what_the_command_makes(scripts, tables, tmp_path):
    page = tmp_path / "paper-check.md"
    text = scripts["check"].PAGE.read_text()
    page.write_text(text)
    scripts["check"].write_page(page, tables)
    assert page.read_text() == text


def test_a_changed_cell_of_any_table_changes_the_page(scripts, tables):
    before = scripts["check"].render(tables)
    for number, row, column in (
        ("1", 0, 1),
        ("2", 9, 2),
        ("4", 1, 1),
        ("5", 3, 0),
        ("6", 7, 5),
        ("7", 3, 0),
        ("8", 5, 1),
        ("9", 3, 0),
        ("10", 2, 1),
        ("11", 9, 0),
        ("12", 0, 4),
        ("13", 4, 0),
        ("14", 2, 4),
        ("16", 2, 0),
    ):
        cells = list(tables[number].rows.values())[row]
        stood, cells[column] = cells[column], cells[column] * Decimal("1.5") + 1
        assert scripts["check"].render(tables) != before, f"Table {number}"
        cells[column] = stood
    assert scripts["check"].render(tables) == before


def test_cells_stand_where_the_paper_has_them(tables):
    for number, row, column, figure in (
        ("1", "ImageBind", "A2V T1 projected", "45.2"),
        ("1", "Whisper", "V2A T10 projected", "61.0"),
        ("Figure 6", "Wav2CLIP projected", "CLIPScore", "0.742"),
        ("2", "AudioCLIP projected", "AudioSet V2A", "19.9"),
        ("3", "AudioCLIP", "V2A T3 projected", "18.2"),
        ("3", "Wav2CLIP", "V2A T3 raw", "4.6"),
        ("4", "WhisperCLIP", "A2V T3 projected", "38.1"),
        ("5", "CLAP projected", "V2A T10", "25.0"),
        ("6", "AudioCLIP raw", "V2A T1", "1.4"),
        ("7", "MSE Loss", "V2A", "38.5"),
        ("8", "Weighted-sum-all layers", "A2V", "13.6"),
        ("9", "Medium", "parameters, M", "769"),
        ("10", "2", "A2V", "37.1"),
        ("11", "ImageBind-150tk", "Visual raw", "2.52"),
        ("12", "WhisperCLIP projected", "BLEU", "0.078"),
        ("13", "CLAP-proj-15tk", "BERTScore ±", "0.007"),
        ("14", "Wav2CLIP", "150 projected", "1.67"),
        ("15", "Audio-visual search", "token budget", "15"),
        ("16", "All three types present", "count", "227677"),
    ):
        assert str(tables[number][row, column]) == figure


def test_tables_are_whole_and_damaged_cells_are_refused(tables):
    assert {str(number) for number in range(1, 17)} <= set(tables)
    for table in tables.values():
        assert all(len(cells) == len(table.columns) for cells in table.rows.values()), table.name
        for row, cells in table.rows.items():
            for column, cell in zip(table.columns, cells, strict=True):
                noted = any((note["row"], note.get("column")) == (row, column) for note in table.notes)
                assert cell is not None or noted, (table.name, row, column)
        assert all(note["row"] in table.rows for note in table.notes)
    with pytest.raises(ValueError, match="Table 11, CLAP-150tk, Fluency projected: the extraction damaged"):
        _ = tables["11"]["CLAP-150tk", "Fluency projected"]
    assert "CLAP-150tk" not in tables["11"].pairs("Fluency") and "CLAP-150tk" in tables["11"].pairs("Audio")


@pytest.mark.parametrize(
    ("says", "value", "agrees", "shown"),
    [
        ("44", "44.4", True, "44.40"),
        ("10", "10.508", False, "10.51"),
        ("0.13", "0.125", True, "0.1250"),  # a half goes up
        ("-14.0%", "-14", True, "-14.0"),
        ("-0.024", "-0.0245", False, "-0.02450"),
        ("580,147", "580147", True, "580,147"),
        ("580,145", "580147", False, "580,147"),
        ("+5.4", "5.4", True, "5.4"),
    ],
)
def test_what_agrees(scripts, says, value, agrees, shown):
    assert scripts["claim"].agrees(says, Decimal(value)) is agrees
    assert scripts["claim"].shown(says, Decimal(value)) == shown


def test_claims_by_hand(scripts, tables):
    """One of each kind, with figures worked out on paper."""
    total = 62073 + 2060 + 852 + 45045 + 155751 + 62287 + 227677 + 24402
    assert total == 580147 and outcome(scripts, tables, "580,147", "580,147").agrees is True
    assert outcome(scripts, tables, "580,145", "580,145").agrees is False
    visible = 62073 + 45045 + 155751 + 227677
    assert outcome(scripts, tables, "490,546", "490,546").value == f"{visible:,}" == "490,546"
    assert outcome(scripts, tables, "(r=0.89)", "0.89").value == "0.4577"
    assert outcome(scripts, tables, "0.05% per point", "0.05").value == "0.6448"  # 13/180 / 11.2
    assert outcome(scripts, tables, "raw (+15.7%)", "+15.7%").value.startswith("34.0")  # 9.29 / 6.93
    assert outcome(scripts, tables, "lower-quality", "Table 6").value == "Table 12"
    assert outcome(scripts, tables, "0.8ms latency", "0.8").agrees is None


def test_bertscore_is_held_against_every_surface_metric(scripts, tables):
    """By hand: the losses in percent of raw of Figure 6, with which BLEU falls more than BERTScore."""
    found = {
        claim.tables.rpartition(" ")[2]: claim.check(tables)
        for claim in scripts["claims"].CLAIMS
        if claim.words.endswith("than surface-level metrics like ROUGE-L")
    }
    assert found.keys() == {"ROUGE-L", "BLEU"}
    assert found["ROUGE-L"].agrees is True and found["BLEU"].agrees is False
    table = tables["Figure 6"]
    lost = {
        measure: [
            100 * (1 - table[f"{name} projected", measure] / table[f"{name} raw", measure])
            for name in ("CLAP", "ImageBind", "Whisper", "WhisperCLIP", "AudioCLIP", "Wav2CLIP")
        ]
        for measure in ("BLEU", "BERTScore")
    }
    assert [round(sum(each) / 6, 1) for each in lost.values()] == [Decimal("17.5"), Decimal("16.2")]
    assert found["BLEU"].note.startswith("BERTScore loses 16.2 % on average over encoders, BLEU 17.5 %.")
    assert found["BLEU"].value == "all but Whisper, WhisperCLIP, AudioCLIP"


def test_a_modeling_choice_without_a_table_is_named(scripts, tables):
    found = outcome(scripts, tables, "five key modeling choices", CHOICES)
    assert found.agrees is False and found.value == CHOICES.removesuffix(", regularization strategy")
    assert "regularization strategy: no table" in found.note


def test_a_mean_says_of_what(scripts, tables):
    """The rise of a mean and the mean of rises differ, so every note names its own."""
    budget = tables["14"]
    raw = {k: [budget[name, f"{k} raw"] for name in budget.rows] for k in (15, 150)}
    rises = [100 * (after / before - 1) for before, after in zip(*raw.values(), strict=True)]
    assert (
        f"The mean of their own rises is {sum(rises) / len(rises):.1f}:"
        in outcome(scripts, tables, "raw (+15.7%)", "+15.7%").note
    )
    changes = outcome(scripts, tables, "(BERTScore) decreases more severely (-23.9%)", "-23.9%")
    assert changes.note.startswith("The mean of the encoders' own changes: ") and changes.value == "-16.178"
    assert not any("The mean over encoders" in claim.check(tables).note for claim in scripts["claims"].CLAIMS)


def test_the_formulas_parameters_are_counted(scripts, tables):
    """W1, W2, W3, their biases and two LayerNorms."""
    by_hand = {width: 1024 * width + 2 * 1024**2 + 3 * 1024 + 4 * 1024 for width in (384, 512, 1280)}
    assert {width: scripts["recompute"].parameters(width) for width in by_hand} == by_hand
    found = outcome(scripts, tables, "1.9M parameters", "1.9")
    assert found.agrees is False and found.value == "2.498"


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text isn't here")
def test_the_words_are_the_papers(scripts):
    text = " ".join(PAPER.read_text().split())
    for claim in scripts["claims"].CLAIMS:
        for part in claim.words.split(" ... "):
            assert part in text, claim.words


def test_presets_are_table_15(tables):
    alignments = {"CLIP-aligned": "projected", "Raw": "raw"}
    table = tables["15"]
    theirs = {
        row.lower().replace("-", "_").replace(" ", "_"): (
            table[row, "encoder"].lower(),
            alignments[table[row, "alignment"]],
            table[row, "token budget"],
        )
        for row in table.rows
    }
    assert {name: (preset.encoder, preset.alignment, preset.k) for name, preset in PRESETS.items()} == theirs
    for row, preset in zip(table.rows, PRESETS.values(), strict=True):
        words = ", ".join(str(cell) for cell in table.rows[row])
        assert preset.source == f"Table 15: {row}, {words}"
        assert preset.encoder in available_encoders()
