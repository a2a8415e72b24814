"""The package as a whole: public names, import arrows, and how little importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llava_soundclip

PACKAGE = Path(llava_soundclip.__file__).parent

# Module -> parts of the package that it may import. What isn't listed is thin and may import anything.
ARROWS = {
    "substitution": set(),
    "media": {"_extras"},
    "encoders": {"encoders", "media", "_extras"},
    "alignment": {"projector"},
    "projector": {"alignment", "projector_files"},
    "projector_files": set(),
    "hosts": {"hosts"},
    "sounds": {"encoders", "media"},
    "maps": {"captioning"},
    "evaluation": {"_extras", "alignment", "commands", "encoders", "features", "media", "projector"},
    "features": {"encoders", "media", "clips", "commands", "_extras"},
    "training": {
        *("_extras", "alignment", "commands", "encoders", "evaluation", "features"),
        *("projector", "projector_files"),
    },
}
HEAVY = ["torch", "transformers", "numpy", "av", "PIL", "huggingface_hub", "typer"]


def imports(file: Path) -> set[str]:
    """Absolute names that a file imports anywhere, also inside functions; not for type checking only."""
    names = set()
    tree = ast.parse(file.read_text())
    guarded = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_public_names_are_importable_and_each_has_a_docstring() -> None:
    for name in llava_soundclip.__all__:
        member = getattr(llava_soundclip, name)
        assert name == "__version__" or member.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llava_soundclip.nonsense


@pytest.mark.parametrize("part", ARROWS)
def test_imports_go_one_way(part: str) -> None:
    folder = PACKAGE / part
    files = sorted(folder.glob("**/*.py")) if folder.is_dir() else [PACKAGE / f"{part}.py"]
    assert files
    allowed = ARROWS[part] | {part}
    for file in files:
        parts = {name.split(".")[1] for name in imports(file) if name.startswith("llava_soundclip.")}
        assert parts <= allowed | {"__version__"}, f"{file.name} imports {parts - allowed}"


def test_substitution_imports_torch_only() -> None:
    roots = {name.partition(".")[0] for name in imports(PACKAGE / "substitution.py")}
    assert roots - set(sys.stdlib_module_names) == {"torch"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, llava_soundclip; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_has_what_the_demo_needs() -> None:
    root = PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    files = [file for file in (root / "weights" / "demo").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
