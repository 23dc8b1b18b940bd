#!/bin/sh
# Runs test_ltx_core.py in a new environment: tests/runtimes/ltx_core.sh [folder]
# It gets the source from GitHub, or takes that at FREELOC_LTX2.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
if [ -z "${FREELOC_LTX2:-}" ]; then
    git clone -q https://github.com/Lightricks/LTX-2 "$folder/LTX-2"
    git -C "$folder/LTX-2" checkout -q 400fd31054597515f47125691032c04b1c3ee24e
    export FREELOC_LTX2="$folder/LTX-2"
fi
cd "$root"
exec pytest -m runtimes tests/runtimes/test_ltx_core.py -rA
