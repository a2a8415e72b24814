"""Train the miniature's weights from scratch: every stage in turn. Each stage resumes from its checkpoint.

python recipes/miniature/all.py --stamps /usr/share/tuxpaint/stamps --gcompris /usr/share/gcompris-qt/rcc
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import parser
from settings import WEIGHTS

STAGES = (
    ("tower.py",),
    ("sound_projector.py",),
    ("mm_projector.py", "--recipe", "stock"),
    ("mm_projector.py", "--recipe", "prepared"),
    ("text_tower.py",),
)
FILES = (
    "tower.safetensors",
    "mm_projector-stock.safetensors",
    "mm_projector-prepared.safetensors",
    "clip.safetensors",
    "clip-tokenizer.json",
)


def main() -> None:
    """Run the stages one after another and copy their weights into a folder."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=WEIGHTS, help="folder for the weights")
    arguments = arguments.parse_args()
    options = [f"--{name}={getattr(arguments, name)}" for name in ("stamps", "gcompris", "work", "threads")]
    if arguments.steps:
        options.append(f"--steps={arguments.steps}")
    for script, *recipe in STAGES:
        began = time.monotonic()
        stage = [sys.executable, str(Path(__file__).with_name(script)), *recipe]
        subprocess.run(stage + options, check=True)
        print(f"== {' '.join([script, *recipe])}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(arguments.work / name, arguments.out / name)
    shutil.copytree(arguments.work / "projector", arguments.out / "projector", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
