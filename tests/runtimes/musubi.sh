#!/bin/sh
# Runs test_musubi.py in a new environment: tests/runtimes/musubi.sh [folder]
# It gets the source from GitHub, or takes that at FREELOC_MUSUBI.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
if [ -z "${FREELOC_MUSUBI:-}" ]; then
    git clone -q https://github.com/kohya-ss/musubi-tuner "$folder/musubi-tuner"
    git -C "$folder/musubi-tuner" checkout -q 30c658c4f4b0bf05038b3346eff9670259b10fc7
    export FREELOC_MUSUBI="$folder/musubi-tuner"
fi
cd "$root"
exec pytest -m runtimes tests/runtimes/test_musubi.py -rA
