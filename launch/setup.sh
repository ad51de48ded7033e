#!/usr/bin/env bash
# Make the Python environment: .venv, or $VENV, from pyproject.toml and constraints.txt.
# Does nothing, fast, when neither has changed. PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}

wanted=$(
    cat "$root/pyproject.toml" "$root/constraints.txt" | sha256sum | cut -d ' ' -f 1
    echo "$root"
)
[ "$(cat "$venv/.ingot" 2>/dev/null || true)" = "$wanted" ] && "$venv/bin/python" -c '' && exit 0

command -v "$python" >/dev/null || {
    echo "error: $python not found; install Python 3.11 or newer, or set PYTHON" >&2
    exit 2
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old; install Python 3.11 or newer, or set PYTHON" >&2
    exit 2
}
echo "setting up $venv (some minutes the first time; about 2 GB, more with torch for GPUs) …"
"$python" -m venv "$venv" || {
    echo "error: cannot make $venv; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints.txt" --editable "$root[dev]" || {
    echo "error: pip could not install the requirements; its message is above" >&2
    exit 1
}
printf '%s\n' "$wanted" >"$venv/.ingot" # last: an interrupted set-up is done again
echo "environment ready"
