"""Draw clips for the miniature, and write references that name the things in them.

python examples/miniature_clips.py clips/
llava-soundclip eval tradeoff clips/ --references clips/refs.jsonl --out runs/ --bertscore demo --clipscore demo
"""

import argparse
import json
from itertools import cycle, islice, permutations
from pathlib import Path

from llava_soundclip.demo.kinds import DRAWN_KINDS, make_clip, phrase


def main() -> None:
    """Write the clips and refs.jsonl. All clips show a silent thing; half of them also show the thing that sounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder for the clips and refs.jsonl")
    parser.add_argument("--count", type=int, default=48, help="number of clips")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (sound, silent) in enumerate(islice(cycle(permutations(DRAWN_KINDS, 2)), arguments.count)):
        is_seen = number // 12 % 2 == 0
        shown = [sound, silent] if is_seen else [silent]
        path = make_clip(folder / f"{number:03}.mp4", picture=shown, sound=sound, seed=number)
        heard, seen = phrase(sound), " and ".join(map(phrase, shown))
        rows.append(
            {
                "id": f"{folder.resolve().name}/{path.name}",
                "references": [f"I hear {heard}. I see {seen}.", f"I see {seen}. I hear {heard}."],
                "sounding": [sound],
                "silent": [silent],
                "unseen": [] if is_seen else [sound],
            }
        )
    (folder / "refs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} clips and refs.jsonl in {folder}")


if __name__ == "__main__":
    main()
