"""Mutation testing of one module: `make mutants MODULE=substitution`.

mutmut changes one thing of the module at a time and runs the tests that concern it; a change that no test notices
survives. Work is kept in build/mutants/MODULE, so an interrupted run resumes. Where nothing is left to test, the
survivors are tested again, as after adding a test. CONTRIBUTING.md, "Mutants", says which ones stay.

For pytest this file is a plugin: the fastest tests come first, and Hypothesis doesn't look for a simpler failure.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# For each module: the files that are mutated, as mutmut's patterns, and the tests that are run.
MODULES = {
    "substitution": (["llava_soundclip/substitution.py"], ["tests/test_substitution.py"]),
    "alignment": (["llava_soundclip/alignment/*.py"], ["tests/alignment"]),
    "losses": (["llava_soundclip/training/losses.py"], ["tests/training/test_losses.py"]),
    "retrieval": (
        ["llava_soundclip/evaluation/retrieval/measure.py", "llava_soundclip/evaluation/retrieval/ranks.py"],
        ["tests/evaluation/retrieval/test_measure.py"],
    ),
    "patching": (
        ["llava_soundclip/patching.py"],
        [
            "tests/test_patching.py",
            "tests/test_handle.py",
            "tests/test_caption.py",
            "tests/test_controls.py",
            "tests/hosts/test_llava_next.py",
        ],
    ),
    "hosts": (["llava_soundclip/hosts/*.py"], ["tests/hosts", "tests/test_patching.py"]),
}

# Collecting garbage takes half of the time of most mutants. Random examples are the same in every run.
PYTEST = ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "tests.mutants"]
PYTEST += ["--hypothesis-seed=0"]
# It looks at who called, which is mutmut.
WARNS = "test_without_a_projector_a_warning_says_that_raw_vectors_are_not_heard"
PYTEST += ["--deselect", f"tests/test_patching.py::TestMistakes::{WARNS}"]


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        sys.exit(f"no module {', '.join(unknown)}: take one of {', '.join(MODULES)}")
    for name in names or MODULES:
        folder = prepare(name)
        before = results(folder)
        mutmut(folder, "run", "--max-children", "1")
        after = results(folder)
        left = survivors(after)
        if left and after == before:
            mutmut(folder, "run", "--max-children", "1", *left)
            after = results(folder)
            left = survivors(after)
        diffs = [mutmut(folder, "show", mutant, capture=True) for mutant in left]
        (folder / "survivors.diff").write_text("\n".join(diffs), encoding="utf-8")
        counts = ", ".join(f"{count} {status}" for status, count in Counter(after.values()).most_common())
        print(f"{name}: {counts}; {folder / 'survivors.diff'} shows those left")


def prepare(name: str) -> Path:
    """The folder that mutmut works in: links to the tree, and a configuration of its own."""
    sources, tests = MODULES[name]
    moved = [pattern for pattern in sources + tests if not list(ROOT.glob(pattern))]
    if moved:
        sys.exit(f"{name}: {', '.join(moved)} isn't there; MODULES in tests/mutants.py is out of date")
    folder = ROOT / "build" / "mutants" / name
    (folder / "mutants").mkdir(parents=True, exist_ok=True)
    for link, target in (
        (folder / "llava_soundclip", ROOT / "llava_soundclip"),
        (folder / "tests", ROOT / "tests"),
        (folder / "mutants" / "weights", ROOT / "weights"),
        (folder / "mutants" / "examples", ROOT / "examples"),
    ):
        if not link.is_symlink():
            link.symlink_to(target)
    # mutmut's limits are wall time: a busy machine must not pass for a killed mutant.
    config = f"""
[tool.mutmut]
source_paths = ["llava_soundclip"]
only_mutate = {sources}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {PYTEST}
process_isolation = "forkserver"
use_git_change_detection = false
timeout_multiplier = 10.0
timeout_constant = 10.0
"""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(project + config, encoding="utf-8")
    return folder


def mutmut(folder: Path, *arguments: str, capture: bool = False) -> str:
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "mutants")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else None,
    )
    return done.stdout or ""


def results(folder: Path) -> dict[str, str]:
    """Status by mutant: "killed", "survived", "timeout", "no tests", "not checked" ..."""
    lines = mutmut(folder, "results", "--all", "true", capture=True).splitlines()
    return {mutant.strip(): status for mutant, _, status in (line.rpartition(": ") for line in lines)}


def survivors(statuses: dict[str, str]) -> list[str]:
    return [mutant for mutant, status in statuses.items() if status != "killed"]


def pytest_configure() -> None:
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    stats = Path("mutmut-stats.json")
    if stats.is_file():
        seconds = json.loads(stats.read_text(encoding="utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
