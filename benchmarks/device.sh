#!/usr/bin/env bash
# All that needs a GPU, in one call of under 8 minutes, without network: see benchmarks/README.md.
#   benchmarks/device.sh                         on a machine with an NVIDIA GPU
#   benchmarks/device.sh --device cpu --quick    tiny sizes: shows that every part runs
# Variables: OUT, folder of the results (runs/device); WHEELS, folder of wheels to install where the machine lacks
# them (.whl); PYTHON, the interpreter (python3).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

device=cuda
options=("$@")
while [ $# -gt 0 ]; do
  if [ "$1" = --device ]; then device="${2:-}"; fi
  shift
done
out="${OUT:-runs/device}"
python="${PYTHON:-python3}"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
mkdir -p "$out"
# Left by an earlier run, these would pass for this one's.
rm -f "$out"/{check,attention,model}.{json,csv} "$out"/{results.md,device.log}
failed=()

# part NAME SECONDS COMMAND...: run a part, with a limit of its own; whatever becomes of it, the others run.
part() {
  local name="$1" seconds="$2" start=$SECONDS
  shift 2
  echo "== $name (at most $seconds s)"
  timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1
  local status=$?
  if [ $status -ne 0 ]; then failed+=("$name (exit status $status)"); fi
  echo "== $name took $((SECONDS - start)) s, exit status $status"
}

gpu_tests() {
  # -P: metadata that an installation left in the checkout is not to be found before that in $site.
  # Warnings are no errors here: the machine's torch may be any. Without diffusers, the tests of whole models cannot run.
  local tests=(tests/gpu)
  if ! "$python" -c "from diffusers import WanTransformer3DModel"; then
    echo "diffusers cannot be imported: the tests of whole models are left out"
    tests=(--confcutdir=tests/gpu tests/gpu/test_attention_on_cuda.py tests/gpu/test_triton_on_cuda.py)
  fi
  part tests 170 "$python" -P -m pytest -m gpu -W default -q -ra -p no:cacheprovider "${tests[@]}"
}

main() {
  part prepare 20 "$python" benchmarks/prepare.py "$site" --wheels "${WHEELS:-.whl}"
  export PYTHONPATH="$site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
  part check 75 "$python" benchmarks/check.py --out "$out" "${options[@]}"
  gpu_tests
  part attention 110 "$python" benchmarks/attention.py --out "$out" "${options[@]}"
  part model 100 "$python" benchmarks/model.py --out "$out" "${options[@]}"
  "$python" benchmarks/tables.py --out "$out"
  if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    return 1
  fi
  echo "all parts of the run on $device ended well, after $SECONDS s"
}

main 2>&1 | tee "$out/device.log"
