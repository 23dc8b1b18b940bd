#!/bin/sh
# Runs test_sglang.py in a new environment: tests/runtimes/sglang.sh [folder]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$(mktemp -d)}
python3 -m venv "$folder/venv"
. "$folder/venv/bin/activate"
pip install -q -e "$root[dev]" -c "$root/constraints.txt"
# What its Wan imports. The packages that need a GPU are stand-ins: see support/sglang_wan.py
pip install -q --no-deps sglang==0.5.23 addict==2.4.0 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 \
    attrs==26.1.0 compressed_tensors==0.20.0 dill==0.4.1 frozenlist==1.8.0 gguf==0.19.0 imageio==2.38.1 \
    ipython==9.18.1 loguru==0.7.3 msgspec==0.22.0 multidict==7.2.1 orjson==3.13.0 propcache==0.5.4 pybase64==1.5.1 \
    pyzmq==27.3.0 sentencepiece==0.2.3 starlette==1.10.0 traitlets==5.16.1 yarl==1.25.1
cp -r "$root/docs/examples/sglang-freeloc" "$folder/plugin"  # pip builds in the folder
pip install -q --no-deps "$folder/plugin"
cd "$root"
exec pytest -m runtimes tests/runtimes/test_sglang.py -rA
