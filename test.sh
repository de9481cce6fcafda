#!/bin/sh
# The paper's evaluation with one command:  sh test.sh
# All its tables, and the controls that it lacks:  sh test.sh --paper
# Either on the embedded default, without weights, data or network:  sh test.sh [--paper] --demo
#
# 1. An environment with the packages of requirements.txt, set up only if the current one lacks something.
# 2. CLIP's RN50 (256 MB): --clip_path FILE or $CLIP_PATH, else from the cache (~/.cache/clip), else downloaded.
# 3. NYU Depth V2: --data_path PATH or $NYU_PATH (a folder with official_splits/test, or the .mat), else nyu_depth_v2/
#    beside this script, else the .mat (2.97 GB) is downloaded there. --no_download downloads nothing, and says what to
#    bring; --verbose says from where, with hashes, and what each address answered.
# 4. eval.py, or with --paper python -m experiments, with all other arguments handed on. Results go to --output, else to
#    results/ beside this script (results_paper/, results_demo/, results_demo_paper/).
set -eu
root=$(cd "$(dirname "$(readlink -f "$0" 2>/dev/null || echo "$0")")" && pwd)
demo= paper= verbose= clip_path=${CLIP_PATH:-} data_path=${NYU_PATH:-} no_download=${NO_DOWNLOAD:-} output= given= other=
[ "$no_download" != 0 ] || no_download=

fail() { # fail MESSAGE: a wrong argument
    echo "test.sh: $1; see sh test.sh --help" >&2
    exit 2
}

left=$#
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    left=$((left - 1))
    case $argument in
        -h | --help) sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$root/test.sh"; exit 0 ;;
        --demo) demo=_demo ;;
        --paper) paper=_paper ;;
        --no_download) no_download=yes ;;
        --verbose) verbose=--verbose ;;
        --clip_path | --data_path | --output)
            [ "$left" -gt 0 ] || fail "$argument needs a value"
            piece=$argument=$1
            shift
            set -- "$piece" "$@" # looked at next, as one piece
            ;;
        --clip_path=*) clip_path=${argument#*=} given=$argument ;;
        --data_path=*) data_path=${argument#*=} given=$argument ;;
        --output=*) output=${argument#*=} ;;
        --dataset | --dataset=*) other=$argument; set -- "$@" "$argument" ;;
        *) set -- "$@" "$argument" ;; # for eval.py, kept in order
    esac
done
[ -z "$other" ] || [ -n "$data_path$demo" ] || fail "--dataset needs --data_path: only NYU's data are fetched"
output=${output:-$root/results$demo$paper}

. "$root/environment.sh"
choose_python "$root/requirements.txt"
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

if [ -n "$demo" ]; then
    [ -z "$given" ] || fail "--demo brings its own weights and data; drop --clip_path and --data_path"
    echo "Demo: 16 rendered rooms, and a toy CLIP that was taught distance on purpose. It shows that the pipeline works;"
    echo "it says nothing about the real CLIP or the paper's claim (demo/README.md)."
    clip_path=$root/demo/rooms_clip.pt data_path=$root/demo/sample
    set -- --figures "$@"
fi
if [ -n "$no_download" ]; then
    CLIP_OFFLINE=1
    export CLIP_OFFLINE
fi
missing=
if [ -z "$clip_path" ]; then
    clip_path=RN50
    "$PYTHON" -P - $verbose <<'PYTHON_CODE' || missing=" RN50.pt to ${CLIP_CACHE:-~/.cache/clip}"
import sys
from clip.checkpoint import CheckpointError, locate_checkpoint
try:
    locate_checkpoint("RN50")
except CheckpointError as error:
    tried = getattr(error.__cause__, "failures", []) if sys.argv[1:] else []
    sys.exit("\n  ".join([f"test.sh: {error.path.name}: {error.reason.partition('; ')[0]}", *tried]))
PYTHON_CODE
fi
if [ -z "$data_path" ]; then
    data_path=$root/nyu_depth_v2
    mat=$data_path/nyu_depth_v2_labeled.mat
    if [ ! -d "$data_path/official_splits/test" ] && [ ! -f "$mat" ]; then
        [ -z "$no_download" ] && "$PYTHON" -P -m datasets.prepare_nyu $verbose --download_only --output "$data_path" ||
            missing="$missing${missing:+ and} nyu_depth_v2_labeled.mat to $data_path"
    fi
fi
if [ -n "$missing" ]; then
    [ -z "$verbose" ] || sed -n '/^## By hand/,/^## [^B]/s/^    /  /p' "$root/docs/data.md" >&2
    echo "test.sh: bring$missing (docs/data.md), or see it work now: sh test.sh --demo" >&2
    exit 1
fi
set -- --clip_path "$clip_path" --data_path "$data_path" --output "$output" "$@"
if [ -n "$paper" ]; then
    "$PYTHON" -P -m experiments --controls --figures --html "$@"
else
    "$PYTHON" "$root/eval.py" --evaluate --dataset NYU --gpu_num 0 --encoder AST --other_method MonoCLIP "$@"
fi
[ -z "$demo" ] || echo "The pictures, their true and their predicted depth: $output/qualitative.png"
[ -z "$paper" ] || echo "A page to look into the answers and to try other words: $output/depth.html"
