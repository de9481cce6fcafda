# Sets PYTHON to an interpreter that has everything in a requirements file; sourced by test.sh and tests/run.sh.
#
#     . "$root/environment.sh"; choose_python "$root/requirements.txt"
#
# The first of these that lacks nothing is taken, as it is: $PYTHON, python3 (an active environment, say), .venv in this
# folder. Else .venv is made or completed, which downloads packages. $VENV names another folder for it.

has_requirements() { # has_requirements INTERPRETER FILE; it also has to be Python 3.11 or newer
    "$1" - "$2" 2>/dev/null <<'PYTHON_CODE'
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement  # matplotlib brings it

def lacking(path):
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            yield from lacking(path.parent / line[3:])
        elif line:
            package = Requirement(line)
            yield not package.specifier.contains(version(package.name), prereleases=True)

sys.exit(sys.version_info < (3, 11) or any(lacking(Path(sys.argv[1]))))
PYTHON_CODE
}

choose_python() { # choose_python REQUIREMENTS_FILE
    venv=${VENV:-$root/.venv}
    for candidate in "${PYTHON:-python3}" python3 "$venv/bin/python"; do
        if has_requirements "$candidate" "$1"; then
            PYTHON=$candidate
            return
        fi
    done
    base=${PYTHON:-python3}
    if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$base is not Python 3.11 or newer; install one, or name it: PYTHON=python3.12 sh $0" >&2
        exit 1
    fi
    echo "Setting up $venv with $(basename "$1"), once: several GB, less with a CPU-only PyTorch (docs/data.md)" >&2
    "$base" -m venv "$venv" && "$venv/bin/python" -m pip install --disable-pip-version-check -r "$1" >&2 || {
        echo "The packages of $1 could not be installed in $venv; see pip's message above" >&2
        exit 1
    }
    PYTHON=$venv/bin/python
}
