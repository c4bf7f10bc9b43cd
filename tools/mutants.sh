#!/usr/bin/env bash
# Changes a module in one place after another, and shows the changes that its tests let pass:
#   bash tools/mutants.sh generator/allocation.py tests/generator/test_allocation.py [TEST ...]
# By mutmut, in a copy of the working tree. Unlike cosmic-ray it runs every change in a fork of one process, which has
# torch imported already: seconds for each of some hundred changes are saved.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash tools/mutants.sh MODULE.py TEST [TEST ...]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
"$python" -c 'import mutmut' 2>/dev/null || "$python" -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard --deduplicate | tar c --null -T - | tar x -C "$copy"
cd "$copy"
module=$1
package=${module%%/*}
shift
cat > setup.cfg <<END
[mutmut]
source_paths=$package
only_mutate=$module
also_copy=
$(printf '    %s\n' * | grep -vx "    $package")
pytest_add_cli_args_test_selection=
$(printf '    %s\n' "$@")
END
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m mutmut run --max-children "${MRCA_TEST_PROCESSES:-2}" | tr '\r' '\n' | grep 🎉 | tail -n 1
"$python" -m mutmut results | tee survivors
awk -F: '/survived|no tests/ {print $1}' survivors | while read -r mutant; do "$python" -m mutmut show "$mutant"; done
