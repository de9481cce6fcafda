#!/bin/sh
# Runs the tests and checks the style: sh tests/run.sh [pytest's arguments]. Sets up an environment first if the current one lacks something.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/environment.sh"
choose_python "$root/requirements-dev.txt"
cd "$root"
if [ ! -w . ]; then # a read-only copy
    export MYPY_CACHE_DIR=/dev/null RUFF_NO_CACHE=true PYTEST_ADDOPTS="-p no:cacheprovider ${PYTEST_ADDOPTS:-}"
fi
# Two processes of one thread each: most tests are too small for more threads.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
