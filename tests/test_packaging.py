"""What `python -m build` makes: whether a wheel or an sdist alone is enough to caption a clip."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from llava_soundclip.demo.kinds import make_clip
from llava_soundclip.demo.parts import CACHE_VARIABLE, PIP_LINE, SMOLLM2, WHISPER, is_packaged

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ("clip", "mm_projector-prepared", "mm_projector-stock", "projector/model", "tower")

pytestmark = pytest.mark.slow


def run(*line: object, **options: object) -> str:
    """A command's output; what it said is in the error if it fails."""
    done = subprocess.run([*map(str, line)], check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_what_is_in_them(built: dict[str, Path]) -> None:
    assert built["wheel"].stat().st_size < 25e6
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    packages = {name.partition("/")[0] for name in names}
    assert packages == {"llava_soundclip", f"{'-'.join(built['wheel'].name.split('-')[:2])}.dist-info"}
    assert {f"llava_soundclip/weights/demo/{name}.safetensors" for name in WEIGHTS} <= names
    assert "llava_soundclip/py.typed" in names
    assert not [name for name in names if "/weights/" in name and name.endswith(".py")]
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "recipes/miniature/all.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/", "examples/"))]


@pytest.mark.skipif(not all(map(is_packaged, (SMOLLM2, WHISPER))), reason=f"needs {PIP_LINE}")
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_it_captions_where_nothing_else_of_ours_is(
    form: str, built: dict[str, Path], cache: Path, tmp_path: Path
) -> None:
    """In an environment of its own, which sees the dependencies of this one: torch again would take minutes."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    [packages] = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # A .pth file's folders are searched, but their own .pth files aren't read: the editable install stays unseen.
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(seen))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    there = {"cwd": tmp_path, "env": environment | {CACHE_VARIABLE: str(cache)}}

    imported = [python, "-c", "import llava_soundclip._version as module; print(module.__file__)"]
    before = subprocess.run(imported, check=False, capture_output=True, text=True, **there)
    assert "No module named 'llava_soundclip" in before.stderr
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built[form])
    assert run(*imported, **there).startswith(str(packages))

    clip = make_clip(tmp_path / "bell.mp4", picture=["bell", "whistle"], sound="bell")
    caption = run(tmp_path / "env" / "bin" / "llava-soundclip", "caption", clip.name, **there)
    assert caption.startswith("bell.mp4\t") and "bell" in caption.partition("\t")[2]
