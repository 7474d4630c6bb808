#!/usr/bin/env bash
# The figures that need a GPU, a JSON file for each row, those that are still open first:
#
#     bash scripts/benchmark_gpu.sh                           # all rows, nine minutes at most
#     bash scripts/benchmark_gpu.sh gpt2 cut                  # these alone
#     bash scripts/benchmark_gpu.sh --seconds 240 --out /tmp/figures gpt2 small
#     bash scripts/benchmark_gpu.sh --try                     # every row on the CPU with tiny models, to see that it runs
#
# rows:
#   compiled_images  ResNet-50 bf16, compiled, and compiled steps in a CUDA graph; compiling takes minutes
#   training         a dense run on JPEGs beside timm's loop, and beside the same steps on images in the GPU's memory
#   decoding         the same with data.decode=gpu (not with --try)
#   compiled         BERT-base bf16, compiled, with its graph breaks
#   small            ResNet-20 at 32 x 32, batch 64: plain, captured in a CUDA graph, compiled
#   gpt2             PDP's step over the dense one, GPT-2 8 x 1024 bf16: single weights, 2:4, channels; with a profile
#                    of both, and replayed from CUDA graphs, which leaves the host's part out
#   cut              cut and mask by themselves, from 10 to 300 million weights and in 10 to 1000 layers
#   methods          every method's step over the dense one, ResNet-50 bf16
#   texts            every method's step over the dense one, BERT-base bf16
#   sparse           2:4 and blocks in linear layers and BERT-base beside dense and slim ones (not with --try)
#
# options:
#   --out DIR      where gpu_<row>.json and gpu_<row>.log go (results/benchmarks)
#   --seconds N    of all rows together (540); a row that has not ended by its own limit or by then is stopped, and its
#                  file holds what was measured until then
#   --python FILE  the interpreter (python3)
#   --try          on the CPU, tiny models
#   --help         this text
#
# Exit codes: 0 all rows done, 2 refused before any work, 3 some row stopped or failed (its log says why).
set -uo pipefail
cd "$(dirname "$0")/.."

rows=() out=results/benchmarks python=python3 seconds=540 trying=false
known=(compiled_images training decoding compiled small gpt2 cut methods texts sparse)
refuse() { echo "benchmark_gpu.sh: $1; --help says all" >&2; exit 2; }
while [ $# -gt 0 ]; do
    case "$1" in
        --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/benchmark_gpu.sh; exit 0 ;;
        --out | --seconds | --python)
            [ $# -gt 1 ] || refuse "$1 needs a value"
            case "$1" in --out) out=$2 ;; --seconds) seconds=$2 ;; --python) python=$2 ;; esac
            shift ;;
        --try) trying=true ;;
        -*) refuse "$1 is no option" ;;
        *) [[ " ${known[*]} " == *" $1 "* ]] || refuse "$1 is no row: choose among ${known[*]}"
           rows+=("$1") ;;
    esac
    shift
done
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || refuse "--seconds=$seconds: give a whole number of at least 1"
command -v "$python" > /dev/null || refuse "--python=$python is no program"
mkdir -p "$out" || refuse "--out=$out cannot be made"
[ ${#rows[@]} -gt 0 ] || rows=("${known[@]}")
# They have no CPU to try.
if $trying; then mapfile -t rows < <(printf '%s\n' "${rows[@]}" | grep -v -e '^sparse$' -e '^decoding$'); fi
[ ${#rows[@]} -gt 0 ] || refuse "--try has no rows sparse and decoding: they need a GPU"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 KINETO_LOG_LEVEL=6

# Whatever is missing is found out now, not in the last row.
"$python" - "$trying" << 'CHECK' || exit 2
import importlib, sys
missing = []
for name in "torch torchvision timm accelerate hydra omegaconf transformers tokenizers torch_pruning safetensors rich yaml".split():
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit("benchmark_gpu.sh: these cannot be imported: " + ", ".join(missing))
import torch
if sys.argv[1] == "true":
    print(f"torch {torch.__version__}, CPU")
elif not torch.cuda.is_available():
    sys.exit("benchmark_gpu.sh: no CUDA device is at hand; --try runs every row on the CPU with tiny models")
else:
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
CHECK

# Each row: its limit in seconds, then its command.
overhead=(scripts/benchmark_overhead.py)
gpt2=(150 "${overhead[@]}" --preset gpu --model gpt2 --pairs 5 --profile --no-memory --ways plain captured)
small=(110 "${overhead[@]}" --model resnet20 --size 32 --batch 64 --pairs 9 --steps 30 --no-memory
    --ways plain captured compiled --device cuda --target 1.02)
cut=(50 scripts/benchmark_cut.py --device cuda --rounds 7)
methods=(100 "${overhead[@]}" --model resnet50 --batch 128 --precision bf16 --channels-last --pairs 3 --steps 5 --warmup 3
    --no-memory --method all --device cuda)
compiled=(120 "${overhead[@]}" --model bert_base --batch 64 --precision bf16 --pairs 5 --steps 10
    --no-memory --ways compiled --device cuda --target 1.02)
compiled_images=(260 "${overhead[@]}" --model resnet50 --batch 64 --precision bf16 --channels-last --pairs 5 --steps 10
    --no-memory --ways compiled both --device cuda --target 1.02)
texts=(90 "${overhead[@]}" --model bert_base --batch 32 --precision bf16 --pairs 3 --steps 5 --warmup 3 --no-memory
    --method all --device cuda)
sparse=(60 scripts/benchmark_sparse_gpu.py --bert 64)
training=(150 scripts/benchmark_training.py --preset h200 --images 8192 --rounds 2 --epochs 4)
decoding=("${training[@]}" --decode gpu)
if $trying; then
    tiny=(--no-memory --device cpu --threads 1 --pairs 1 --batch 2)
    gpt2=(200 "${overhead[@]}" --model gpt2_tiny --length 16 --pattern random nm channel --profile "${tiny[@]}")
    small=(200 "${overhead[@]}" --model resnet20 --size 16 --ways plain compiled --target 1.02 "${tiny[@]}")
    cut=(200 scripts/benchmark_cut.py --device cpu --rounds 1 --threads 1 --millions 1 2 --layers 1 4 --total 1)
    methods=(200 "${overhead[@]}" --model resnet20 --size 16 --method all "${tiny[@]}")
    compiled=(200 "${overhead[@]}" --model bert_tiny --length 16 --ways compiled --target 1.02 "${tiny[@]}")
    compiled_images=(400 "${overhead[@]}" --model resnet20 --size 16 --channels-last --ways compiled --target 1.02
        "${tiny[@]}")
    texts=(200 "${overhead[@]}" --model bert_tiny --length 16 --method all "${tiny[@]}")
    training=(200 scripts/benchmark_training.py --model resnet20 --images 24 --sides 60 48 --size 32 --batch 4 --rounds 1
        --threads 1)
fi

began=$SECONDS failed=0 told=()
for row in "${rows[@]}"; do
    declare -n words=$row
    left=$((seconds - (SECONDS - began)))
    limit=$((words[0] < left ? words[0] : left))
    started=$SECONDS
    if [ "$limit" -lt 5 ]; then
        told+=("$row: not begun, --seconds=$seconds is used up") failed=1
        continue
    fi
    echo "--- $row (at most $limit s)"
    timeout --kill-after=5 "$limit" "$python" "${words[@]:1}" --out "$out/gpu_$row.json" 2>&1 | tee "$out/gpu_$row.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) told+=("$row: done in $((SECONDS - started)) s") ;;
        124 | 137) told+=("$row: stopped at its limit of $limit s") failed=3 ;;
        *) told+=("$row: failed with exit code $code") failed=3 ;;
    esac
done
printf '%s\n' "${told[@]}"
[ "$failed" -eq 0 ] || exit 3
