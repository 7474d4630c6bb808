#!/bin/sh
# What recipe.sharding=fsdp costs and saves where GPUs are: step time, memory, and how much of the gathering is overlapped.
#
#     scripts/benchmark_sharding.sh [GPUS] [MODEL]        # 2 gpt2_medium
#
# The same short run of MODEL on Python's docstrings, dense and pruned: on one GPU, by DDP on GPUS of them, sharded, and sharded
# with blocks computed again. Prints for each the median step, the time between two steps for cuts, the largest memory of the
# main process's device and the metric, which must agree. With PROFILE=1 each sharded run is made under Nsight Systems where nsys is installed; the
# share of NCCL kernels that run beside others is the overlap. Exit codes: those of the first run that fails.
#
# NOT TESTED: no GPU was at hand when it was written, and it has been run nowhere; its syntax alone was checked. DEVICE=cpu tries it.
set -eu
cd "$(dirname "$0")/.."
gpus=${1:-2}
model=${2:-gpt2_medium}
device=${DEVICE:-cuda}
precision=${PRECISION:-bf16}
output=${OUTPUT:-$(mktemp -d)}
if [ "$device" = cuda ] && ! python -c 'import sys, torch; sys.exit(torch.cuda.device_count() < int(sys.argv[1]))' "$gpus"; then
    echo "benchmark_sharding: $gpus GPUs are wanted, fewer are here: give another number, or DEVICE=cpu to try the commands" >&2
    exit 2
fi

run() { # name, processes, overrides
    name=$1 processes=$2
    shift 2
    launcher=""
    if [ "$processes" -gt 1 ]; then launcher="-m torch.distributed.run --standalone --nproc_per_node=$processes"; fi
    profiler=""
    case "${PROFILE:-0}$name" in 1*fsdp*) if command -v nsys >/dev/null; then
        profiler="nsys profile --trace=cuda,nvtx --force-overwrite=true --output=$output/$name"; fi ;; esac
    # shellcheck disable=SC2086  # both are several words
    $profiler python $launcher train.py "model=$model" data=docstrings data.context="${CONTEXT:-512}" data.limit="${LIMIT:-640}" \
        recipe.epochs=1 recipe.batch_size="${BATCH:-16}" "recipe.precision=$precision" "device=$device" \
        "output_dir=$output/$name" schedule.warmup=0.1 schedule.ramp=0.4 "$@"
}

for pruning in "method=dense" "sparsity=0.9" "prune=nm"; do
    label=$(echo "$pruning" | tr '=.' '__')
    run "$label-one" 1 "$pruning"
    run "$label-ddp" "$gpus" "$pruning"
    run "$label-fsdp" "$gpus" "$pruning" recipe.sharding=fsdp
    run "$label-fsdp-again" "$gpus" "$pruning" recipe.sharding=fsdp recipe.gradient_checkpointing=true
done

python - "$output" <<'PYTHON'
import json, pathlib, sys
rows = [(path.parts[-4], json.loads(path.read_text())) for path in sorted(pathlib.Path(sys.argv[1]).glob("*/*/seed0/record.json"))]
print(f"{'run':32} {'step ms':>9} {'cuts ms':>9} {'memory MB':>10} {'perplexity':>11} {'sparsity':>9}  device")
for name, one in rows:
    print(f"{name:32} {one['step_ms_median']:9.1f} {one['mask_ms_median']:9.1f} {one['peak_memory_mb']:10.0f} "
          f"{one['metric']:11.3f} {one['sparsity']:9.4f}  {one['world_size']} x {one['device']}")
PYTHON
echo "kept in $output"
