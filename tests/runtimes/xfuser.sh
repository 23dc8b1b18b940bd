#!/bin/sh
# Runs test_xfuser.py in a new environment: tests/runtimes/xfuser.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
pip install -q --no-deps xfuser==0.7.0 yunchang==0.6.4  # their other requirements are not needed here, see absent.py
cd "$root"
exec pytest -m runtimes tests/runtimes/test_xfuser.py -rA
