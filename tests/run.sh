#!/bin/sh
# Runs the tests: sh tests/run.sh [pytest's arguments]. Sets up an environment first if the current one lacks something.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/environment.sh"
choose_python "$root/requirements-dev.txt"
cd "$root"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
exec "$PYTHON" -m pytest "$@"
