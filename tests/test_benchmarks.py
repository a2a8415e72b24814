"""The GPU's benchmark on a CPU: that it runs, and the form of what it writes. No figure is judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_gpu_benchmark_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    line = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["command"] == "python benchmarks/gpu.py --tiny"
    assert report["card"].startswith("CPU")
    assert {"torch", "transformers", "python", "llava_soundclip"} <= report.keys()
    [tests] = report["tests"]
    assert tests["exit code"] == 0 and "skipped" in tests["pytest -m gpu"]

    alone = {(row["tokens"], row["k"]) for row in report["substitution"]}
    assert alone == {(tokens, k) for tokens in ("zero", "drop") for k in (15, 150)}
    assert all(row["alone, ms"] > 0 and row["in a row, ms"] > 0 for row in report["substitution"])

    first = {(row["batch"], row["tokens"], row["k"]): row for row in report["first token"]}
    settings = [("stock", None), *((tokens, k) for tokens in ("zero", "drop") for k in (15, 64, 150, 576))]
    assert list(first) == [(batch, *setting) for batch in (1, 8) for setting in settings]
    for (_, tokens, k), row in first.items():
        visual = {"stock": 576, "zero": 577, "drop": (k or 0) + 1}[tokens]
        assert row["cache, tokens"] == visual + 41  # the words, and the token that starts the prompt
        assert row["first token, ms"] > 0

    assert [row["window"] for row in report["encoder"]] == ["clip", "padded"]
    assert all(row["clips/s"] > 0 for row in report["encoder"])
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(alone) + len(first) + len(report["encoder"]) + 2 * 4
