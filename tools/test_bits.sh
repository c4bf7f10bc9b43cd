#!/usr/bin/env bash
# The tests that compare bits, with the kernels that other processors take and with more threads. `quick`: two
# settings of six, as in CI.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

with() {
    echo "With $*:"
    env "$@" "$python" -m pytest -n "${MRCA_TEST_PROCESSES:-2}" -m bits
}

with ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1
with ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2
[ "${1:-}" = quick ] && exit
with ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2
with ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1
with OMP_NUM_THREADS=2  # whatever this processor offers, AVX-512 among it
with PYTHONPATH="$PWD/tests/without_onednn" OMP_NUM_THREADS=1
