#!/usr/bin/env bash
# One command: sets everything up, then runs three MRCA rounds on LVIS-Digits with the embedded models.
# Options are those of tools/quickstart.py, e.g. --seed 1 --out runs/second.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" tools/quickstart.py "$@"
