#!/bin/sh
# Runs test_wan22.py in a new environment: tests/runtimes/wan22.sh [folder]
# It gets the source from GitHub, or takes that at FREELOC_WAN22.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
if [ -z "${FREELOC_WAN22:-}" ]; then
    git clone -q https://github.com/Wan-Video/Wan2.2 "$folder/Wan2.2"
    git -C "$folder/Wan2.2" checkout -q 42bf4cfaa384bc21833865abc2f9e6c0e67233dc
    export FREELOC_WAN22="$folder/Wan2.2"
fi
cd "$root"
exec pytest -m runtimes tests/runtimes/test_wan22.py -rA
