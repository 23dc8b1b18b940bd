#!/usr/bin/env bash
# Everything that is measured on the CPU, for the tables of docs/performance.md: see benchmarks/README.md. Hours on an idle
# machine; each part writes its results as it goes on.
#   OLD=/path/to/older/checkout LVSA=/path/to/LongVideoSparseAttention benchmarks/cpu.sh
#   OLD=... LVSA=... benchmarks/cpu.sh --quick     tiny sizes: shows that every part runs
# Variables: OUT, folder of the results (runs/cpu); PYTHON, the interpreter (python3); PARTS, the parts to run (all:
# attention long models overhead lvsa); OLD and LVSA may be left out, then nothing is compared with them.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-runs/cpu}"
python="${PYTHON:-python3}"
parts="${PARTS:-attention long models overhead lvsa}"
old=()
if [ -n "${OLD:-}" ]; then old=(--old "$OLD"); fi
export OMP_NUM_THREADS=1
mkdir -p "$out"

# run SCRIPT OPTIONS...: a script, with the profiler's own messages left out
run() {
  local script="$1"
  shift
  echo "== $script $*"
  "$python" "benchmarks/$script" "$@" 2> >(grep -v '^USDT' >&2)
}

for part in $parts; do
  case $part in
    attention)
      run attention.py --device cpu --out "$out" "${old[@]}" --frames 21 41 81 --tokens 60 240 --dtypes float32 bfloat16 "$@"
      ;;
    long)
      run attention.py --device cpu --out "$out" --name long --frames 21 41 161 321 --tokens 60 240 1560 --heads 1 \
        --dtypes float32 "$@"
      ;;
    models)
      if [ -n "${OLD:-}" ]; then
        run cpu_forward.py "$OLD" . --out "$out" --models tiny-wan wan-60 --methods profile tsa vrpr --repeats 5 "$@"
      else
        echo "models: left out, OLD is not set"
      fi
      ;;
    overhead) run overhead.py --out "$out" --models tiny-wan wan-60 "$@" ;;
    lvsa)
      if [ -n "${LVSA:-}" ]; then
        run beside_lvsa.py --lvsa "$LVSA" --out "$out" "$@"
      else
        echo "lvsa: left out, LVSA is not set"
      fi
      ;;
    *)
      echo "no such part: $part" >&2
      exit 1
      ;;
  esac
done
for name in attention long; do
  if [ -f "$out/$name.json" ]; then "$python" benchmarks/figure.py --out "$out" --name "$name"; fi
done
"$python" benchmarks/tables.py --out "$out" --parts attention long forward overhead lvsa
