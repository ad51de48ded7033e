#!/usr/bin/env bash
# Make the environment and run every test that needs neither a GPU nor the network.
# Arguments go to pytest: `bash launch/test.sh tests/model -x`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/launch/setup.sh"
cd "$root"
exec "${VENV:-$root/.venv}/bin/python" -m pytest -m "not nightly" "$@"
