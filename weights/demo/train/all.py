"""Make the miniature's weights from nothing: every stage in turn, each going on from its checkpoint.

python weights/demo/train/all.py --stamps /usr/share/tuxpaint/stamps --gcompris /usr/share/gcompris-qt/rcc
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import WEIGHTS, parser

STAGES = {"tower": 30.0, "mm_projector": 30.0, "sound_projector": None}  # minutes of training


def main() -> None:
    """Run the stages one after another and copy what they wrote beside the card."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    arguments = arguments.parse_args()
    for stage, minutes in STAGES.items():
        minutes = arguments.minutes or minutes
        began = time.monotonic()
        command = [sys.executable, str(Path(__file__).with_name(f"{stage}.py"))]
        for name in ("stamps", "gcompris", "work", "threads"):
            command += [f"--{name}", str(getattr(arguments, name))]
        subprocess.run(command + (["--minutes", str(minutes)] if minutes else []), check=True)
        print(f"{stage}: {(time.monotonic() - began) / 60:.1f} min", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("tower.safetensors", "mm_projector.safetensors"):
        shutil.copyfile(arguments.work / name, arguments.out / name)
    shutil.copytree(arguments.work / "projector", arguments.out / "projector", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
