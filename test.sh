#!/bin/sh
# The paper's evaluation with one command:  sh test.sh
# All its tables, and the controls that it lacks:  sh test.sh --paper
# Either on the embedded default, without weights, data or network:  sh test.sh --demo [--paper]
#
# Weights: --clip_path FILE or $CLIP_PATH, else CLIP's RN50 (256 MB) in ~/.cache/clip, fetched if it is not there.
# Data: --data_path PATH or $NYU_PATH (a folder with official_splits/test, or the .mat), else nyu_depth_v2/ beside this
# script, to which the .mat of NYU Depth V2 (2.97 GB) is fetched if neither is there.
# --no_download fetches no weights and no data, and says what to bring; --verbose lists addresses, sizes and hashes.
# Packages: those of requirements.txt, set up in .venv only if Python lacks one.
# Results: --output FOLDER, else results/ beside this script (results_paper/, results_demo/, results_demo_paper/).
# All other arguments go to eval.py, or with --paper to python -m experiments.
set -eu
root=$(cd "$(dirname "$(readlink -f "$0" 2>/dev/null || echo "$0")")" && pwd)
clip_path=${CLIP_PATH:-} data_path=${NYU_PATH:-} offline=${NO_DOWNLOAD:-${CLIP_OFFLINE:-0}}
demo= paper= verbose= named= dataset= folder= weights= data= file=${CLIP_PATH:-} last= absent=

fail() { # fail EXIT_CODE SENTENCE
    echo "test.sh: $2" >&2
    exit "$1"
}

for word do # takes this script's own words out of "$@"; the others stay, in order, and overrule the defaults below
    shift
    [ "$last" != --clip_path ] || file=$word
    last=$word
    case $word in
        -h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$root/test.sh"; exit 0 ;;
        --demo) demo=_demo; continue ;;
        --paper) paper=_paper; continue ;;
        --no_download) offline=1; continue ;;
        --verbose) verbose=--verbose; continue ;;
        --clip_path | --clip_path=*) named=$word clip_path=named file=${word#*=} ;;
        --data_path | --data_path=*) named=$word data_path=named ;;
        NYU | --dataset=NYU) dataset= ;; # of which the data are fetched
        --dataset | --dataset=*) dataset=$word ;;
        --output | --output=*) folder="the folder of --output" ;;
    esac
    set -- "$@" "$word"
done
if [ -n "$demo" ]; then
    [ -z "$named" ] || fail 2 "--demo brings its own weights and data; drop ${named%%=*}"
    clip_path=$root/demo/rooms_clip.pt data_path=$root/demo/sample
fi
[ -z "$dataset" ] || [ -n "$data_path" ] || fail 2 "--dataset needs --data_path: only NYU's data are fetched"

cache=${CLIP_CACHE:-~/.cache/clip} nyu=$root/nyu_depth_v2 mat=nyu_depth_v2_labeled.mat
[ -n "$clip_path" ] || [ -f "$cache/RN50.pt" ] || [ -f "$cache/RN50.safetensors" ] || weights="RN50.pt to $cache"
[ -n "$data_path" ] || [ -d "$nyu/official_splits/test" ] || [ -f "$nyu/$mat" ] || data="$mat to $nyu"
output=$root/results$demo$paper missing=$weights${weights:+${data:+ and }}$data
bring="bring $missing (docs/data.md), or see it work now: sh test.sh --demo"
[ -z "$verbose" ] || sed -n '/^## By hand/,/^## [^B]/s/^    //p' "$root/docs/data.md" >&2
[ "$offline" = 0 ] || export CLIP_OFFLINE=1
case $file in /* | *.*) [ -e "$file" ] || absent="; $file is not there" ;; esac # all else is a name of a CLIP
[ "$offline" = 0 ] || [ -z "$missing" ] || fail 1 "$bring$absent"

. "$root/environment.sh"
choose_python "$root/requirements.txt"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
[ -z "$missing" ] || echo "test.sh: fetches $missing" >&2
[ -z "$data" ] || "$PYTHON" -P -m datasets.prepare_nyu $verbose --download_only --output "$nyu" || fail 1 "$bring"
[ -z "$demo" ] || echo "Demo: rendered rooms, and a toy CLIP that was taught distance. It says nothing about the real CLIP."
set -- --clip_path "${clip_path:-RN50}" --data_path "${data_path:-$nyu}" --output "$output" ${demo:+--figures} "$@"
if [ -n "$paper" ]; then
    "$PYTHON" -P -m experiments --controls --figures --html "$@"
else
    "$PYTHON" "$root/eval.py" --evaluate --dataset NYU --gpu_num 0 --encoder AST --other_method MonoCLIP "$@"
fi
[ -z "$demo" ] || echo "The pictures, their true and their predicted depth: qualitative.png in ${folder:-$output}"
[ -z "$paper" ] || echo "A page to look into the answers and to try other words: depth.html in ${folder:-$output}"
