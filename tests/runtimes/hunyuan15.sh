#!/bin/sh
# Runs test_hunyuan15.py in a new environment: tests/runtimes/hunyuan15.sh [folder]
# It gets the source from GitHub, or takes that at FREELOC_HUNYUAN15.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
if [ -z "${FREELOC_HUNYUAN15:-}" ]; then
    git clone -q https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5 "$folder/HunyuanVideo-1.5"
    git -C "$folder/HunyuanVideo-1.5" checkout -q 60783e704160023913bee78f0b47036d393d4dfa
    export FREELOC_HUNYUAN15="$folder/HunyuanVideo-1.5"
fi
cd "$root"
exec pytest -m runtimes tests/runtimes/test_hunyuan15.py -rA
