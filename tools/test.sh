#!/usr/bin/env bash
# One command: sets everything up, then runs linters, type checker and tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec "$python" -m pytest -n "${MRCA_TEST_PROCESSES:-2}" \
    --dist loadfile --no-loadscope-reorder "$@"
