#!/usr/bin/env bash
# Runs gpu.py on a machine that has a GPU, torch, transformers and pytest, but no internet.
#
#   benchmarks/gpu.sh wheels [PACKAGE...]   here: downloads the missing packages into build/wheels
#   benchmarks/gpu.sh run FOLDER [OPTION]   there, in a copy of this folder: writes FOLDER/gpu.json and gpu.md
#
# An image with torch and transformers usually lacks only soxr; name further packages if it lacks more.
# The wheels are for Linux on x86-64 and the Python below.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=build/wheels

case "${1:-}" in
wheels)
  rm -rf "$wheels"
  python3 -m pip download --quiet --no-deps --only-binary=:all: --constraint constraints.txt --dest "$wheels" \
    --python-version "${PYTHON_VERSION:-3.12}" --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 soxr "${@:2}"
  ls "$wheels"
  ;;
run)
  site=$(mktemp -d)
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
  mkdir -p "$2"
  export PYTHONPATH="$site:$PWD" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
  python3 benchmarks/gpu.py --json "$2/gpu.json" "${@:3}" | tee "$2/gpu.md"
  ;;
*)
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
