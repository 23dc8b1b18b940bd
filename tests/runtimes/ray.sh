#!/bin/sh
# Runs test_ray.py in a new environment: tests/runtimes/ray.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
pip install -q ray==2.60.0
cd "$root"
exec pytest -m runtimes tests/runtimes/test_ray.py -rA
