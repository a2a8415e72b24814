"""Import time beyond torch's own, in fresh processes, interleaved.

    python benchmarks/import_time.py

`llava_soundclip` is the package alone. `patch` is everything that the first line of a user's code imports, including
torch. The goal is at most 0.3 s more than torch.
"""

import argparse
import statistics
import subprocess
import sys
import time

CODE = {
    "python alone": "pass",
    "import llava_soundclip": "import llava_soundclip",
    "import torch": "import torch",
    "from llava_soundclip import patch": "from llava_soundclip import patch",
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in CODE}
    for _ in range(rounds + 1):  # the first round warms the disk cache and isn't counted
        for name, code in CODE.items():
            times[name].append(seconds(code))
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:36} {value:6.2f} s")
    print(
        f"patch over torch                     {median['from llava_soundclip import patch'] - median['import torch']:+6.2f} s"
    )
    print(
        f"llava_soundclip over python          {median['import llava_soundclip'] - median['python alone']:+6.2f} s"
    )


if __name__ == "__main__":
    main()
