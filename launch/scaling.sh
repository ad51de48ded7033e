#!/usr/bin/env bash
# How training scales here: over ranks, ZeRO stages and models (`bash launch/scaling.sh --help`).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=$(command -v python3)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m launch scaling "$@"
