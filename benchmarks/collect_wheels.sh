#!/usr/bin/env bash
# Download the wheels of wheels.txt into a folder (.whl) to carry along: see benchmarks/README.md.
# They are for 64-bit Linux on x86 and Python 3.12; variables PYTHON_VERSION and WHEELS say otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
version="${PYTHON_VERSION:-3.12}"
folder="${WHEELS:-.whl}"
platforms=()
for glibc in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${glibc}_x86_64")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
  "${platforms[@]}" --dest "$folder" --requirement benchmarks/wheels.txt
du -sh "$folder"
