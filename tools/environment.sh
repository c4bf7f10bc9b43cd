# Sourced by quickstart.sh and test.sh: one virtual environment (.venv, or $MRCA_VENV) with what requirements.txt pins.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MRCA_VENV:-$root/.venv}
[[ $venv = /* ]] || venv=$PWD/$venv
wanted=$(cat "$root"/requirements.txt "$root"/*/requirements.txt "$root"/tests/requirements.txt | cksum)
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/.mrca-installed" 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up the environment in $venv (once; about 8 GB, a few minutes) ..."
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: python3 is older than 3.11: install a newer Python, or put it first in PATH" >&2
        exit 2
    }
    if [ ! -x "$venv/bin/python" ]; then
        above=$venv
        while [ ! -e "$above" ]; do above=$(dirname "$above"); done
        free=$(df -Pk "$above" | awk 'NR == 2 {print int($4 / 1e6)}')
        if [ "$free" -lt 8 ]; then
            echo "error: $above has $free GB of free disk, the environment takes 8: free some, or name a folder" \
                "elsewhere in MRCA_VENV" >&2
            exit 2
        fi
    fi
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$root/requirements.txt" -r "$root/tests/requirements.txt"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$root/tests/requirements-no-deps.txt"
    echo "$wanted" > "$venv/.mrca-installed"
fi
echo "Environment: $venv"
python=$venv/bin/python
cd "$root"
