#!/bin/sh
# Runs test_vllm_omni.py in a new environment: tests/runtimes/vllm_omni.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
pip install -q --no-deps vllm-omni==0.30.0 aenum==3.1.16  # what it needs of vLLM is in support/vllm_stand_in.py
cp -r "$root/docs/examples/vllm-omni-freeloc" "$folder/plugin"  # pip builds in the folder
pip install -q --no-deps "$folder/plugin"
cd "$root"
exec pytest -m runtimes tests/runtimes/test_vllm_omni.py -rA
