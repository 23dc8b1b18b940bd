#!/bin/sh
# Runs test_fastvideo.py in a new environment: tests/runtimes/fastvideo.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
pip install -q --no-deps fastvideo==0.2.1 cloudpickle==3.1.2  # its other requirements are not needed here, see absent.py
cd "$root"
exec pytest -m runtimes tests/runtimes/test_fastvideo.py -rA
