"""The package as a whole: public names, import arrows, and how little importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llava_soundclip

PACKAGE = Path(llava_soundclip.__file__).parent

HEAVY = ["torch", "transformers", "numpy", "av", "PIL", "huggingface_hub", "typer"]


MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def imports(file: Path) -> set[str]:
    """Absolute names that a file imports anywhere: inside functions and for type checkers, as well."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(file: Path) -> set[str]:
    """The package's modules that a file imports."""
    found = set()
    for name in imports(file):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return found


def part(module: str) -> str:
    """The file or folder in the package that a module is, or is in."""
    return module.split(".")[1] if "." in module else "__init__"


ARROWS = {module: own_imports(file) - {module} for module, file in MODULES.items()}
PARTS: dict[str, set[str]] = {}
for _module, _used in ARROWS.items():
    PARTS.setdefault(part(_module), set()).update(map(part, _used))


def test_public_names_are_importable_and_each_has_a_docstring() -> None:
    for name in llava_soundclip.__all__:
        member = getattr(llava_soundclip, name)
        assert name == "__version__" or member.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llava_soundclip.nonsense


@pytest.mark.parametrize("arrows", [ARROWS, PARTS], ids=["modules", "parts"])
def test_imports_go_one_way(arrows: dict[str, set[str]]) -> None:
    """No circle, for modules and for the folders that they are in; imports for type checkers count."""
    left = {
        name: used - {name} for name, used in arrows.items() if name not in ("__init__", "llava_soundclip")
    }
    while left:
        leaves = {name for name, used in left.items() if not used & left.keys()}
        assert leaves, f"a circle, among {sorted(left)}"
        left = {name: used for name, used in left.items() if name not in leaves}


def test_nothing_imports_the_packages_face() -> None:
    assert [module for module, used in ARROWS.items() if "llava_soundclip" in used] == []


def test_only_the_command_line_imports_typer() -> None:
    using = {
        module
        for module, file in MODULES.items()
        if {n.partition(".")[0] for n in imports(file)} & {"typer", "click"}
    }
    assert using and {part(module) for module in using} == {"cli"}
    assert {name for name, used in PARTS.items() if "cli" in used} == {"__main__", "cli"}


@pytest.mark.parametrize(
    "name", ["media", "clips", "encoders", "alignment", "features", "training", "evaluation"]
)
def test_what_works_on_files_and_vectors_imports_no_host(name: str) -> None:
    assert name in PARTS and "hosts" not in PARTS[name]


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
    assert not {file for file in files if file.suffix not in (".safetensors", ".json", ".jsonl", ".md")}
