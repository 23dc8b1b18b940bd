#!/bin/sh
# Runs test_diffsynth.py in a new environment: tests/runtimes/diffsynth.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
pip install -q --no-deps diffsynth==2.1.12  # its other requirements are not needed here, see absent.py
cd "$root"
exec pytest -m runtimes tests/runtimes/test_diffsynth.py -rA
