#!/usr/bin/env bash
# A matrix product in a new thread ignores torch.set_num_threads of the main thread, until the thread asks for the number.
#
# set_num_threads(1) sets OpenMP for the process and MKL for the calling thread only. PyTorch sets a new thread's MKL when
# that thread first runs a parallel loop of PyTorch or asks for the number; a matrix product does neither. So the first
# products of a thread are split over all cores, and may round differently than those of the main thread. To look at the
# cause removes it: get_num_threads() in the thread says 1, and the next product is that of one thread.
#
# Fails if the behaviour changes. Needs two cores or more, and no OMP_NUM_THREADS or MKL_NUM_THREADS, which hide it (the
# script removes them). Seen with torch==2.13.0, numpy==2.4.6, Python 3.11, on a CPU with two cores.
set -euo pipefail
unset OMP_NUM_THREADS MKL_NUM_THREADS
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/script.py" <<'PYTHON'
import threading

import torch


def in_thread(job):
    found = []
    thread = threading.Thread(target=lambda: found.append(job()))
    thread.start()
    thread.join()
    return found[0]


def product():
    return left @ right


def product_after_asking():
    torch.get_num_threads()
    return product()


def product_after_a_sum():
    torch.ones(100_000).sum()
    return product()


left = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
right = torch.randn(24, 24, generator=torch.Generator().manual_seed(1))
torch.set_num_threads(2)
of_two = product()
torch.set_num_threads(1)
of_one = product()
print("threads in the main thread:", torch.get_num_threads())
print("threads in a new thread:", in_thread(torch.get_num_threads))
for job in (product, product_after_asking, product_after_a_sum):
    found = in_thread(job)
    print(f"{job.__name__}: as of one thread {torch.equal(found, of_one)}, of two {torch.equal(found, of_two)}")
PYTHON
cat > "$folder/expected" <<'TEXT'
threads in the main thread: 1
threads in a new thread: 1
product: as of one thread False, of two True
product_after_asking: as of one thread True, of two False
product_after_a_sum: as of one thread True, of two False
TEXT
"$folder/venv/bin/python" -W ignore "$folder/script.py" | tee "$folder/found"
diff "$folder/expected" "$folder/found"
