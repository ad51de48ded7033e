#!/usr/bin/env bash
# Run the storms that take too long for every change (about an hour on two cores): thousands of
# kills while saving, training runs killed at each change that their saves make on the disk and at
# each step, every pair of rank counts and ZeRO stages, and 300 steps under 50 random faults that
# must end bit-equal to the undisturbed run. Nothing outside pytest's temporary folder is touched;
# processes are ended by their pid. Arguments go to pytest: `bash launch/storm.sh -k chaos`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh"
cd "$root"
echo "the storms begin; each test prints its seed and what it did when it fails"
exec "${VENV:-$root/.venv}/bin/python" -m pytest -m nightly -v --durations=0 \
    tests/faults tests/security "$@"
