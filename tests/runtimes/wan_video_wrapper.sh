#!/bin/sh
# Runs test_wan_video_wrapper.py in a new environment: tests/runtimes/wan_video_wrapper.sh [folder]
# It gets the source from GitHub, or takes that at FREELOC_WANVIDEOWRAPPER.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
if [ -z "${FREELOC_WANVIDEOWRAPPER:-}" ]; then
    git clone -q https://github.com/kijai/ComfyUI-WanVideoWrapper "$folder/ComfyUI-WanVideoWrapper"
    git -C "$folder/ComfyUI-WanVideoWrapper" checkout -q 721cd65e7b5224c70a3d20446d9d561f1732216b
    export FREELOC_WANVIDEOWRAPPER="$folder/ComfyUI-WanVideoWrapper"
fi
cd "$root"
exec pytest -m runtimes tests/runtimes/test_wan_video_wrapper.py -rA
