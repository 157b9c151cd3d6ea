#!/bin/bash
# Tests, times and trains on the device of this machine within ten minutes. `cargo xtask gpu` puts this file beside the programs.
#
#   ./run.sh DEVICE [RESULTS]     DEVICE is cuda, vulkan, wgpu, …; RESULTS is a folder for logs, table and caches
#
# TINY=1 takes sizes for a software driver. A part that fails or takes too long is left out, and the next one runs.
set -u
device=${1:?name a device, as in ./run.sh cuda}
programs=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${2:-results}"
results=$(cd "${2:-results}" && pwd)
export BURN_DEVICE=$device
export LD_LIBRARY_PATH=${CUDA_PATH:-/usr/local/cuda}/lib64:${LD_LIBRARY_PATH:-}

# The kernels of an earlier run lie in RESULTS/cache, if that folder was brought along.
mkdir -p "$results/cache" "$results/work"
cd "$results/work" || exit 1
printf '[environment]\npath = { directory = "%s" }\n' "$results/cache" > cubecl.toml
table=$results/table.md
printf '| part | seconds | result |\n|---|---|---|\n' > "$table"

# part NAME LIMIT COMMAND…: runs a command for at most LIMIT seconds and adds a line to the table.
part() {
    local name=$1 limit=$2 started ended status result
    shift 2
    echo "== $name, at most $limit s: $*"
    started=$(date +%s%N)
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$results/$name.log"
    status=${PIPESTATUS[0]}
    ended=$(date +%s%N)
    case $status in
        0) result=$(summary "$results/$name.log") ;;
        124 | 137) result="over its limit of $limit s" ;;
        *) result="failed with status $status: $(grep -i -m 1 -E 'error|panicked|FAILED' "$results/$name.log")" ;;
    esac
    printf '| %s | %d | %s |\n' "$name" $(((ended - started) / 1000000000)) "$result" | tee -a "$table"
}

# The figure of a part: speed of a step, the tests that passed, the result of a training.
summary() {
    local speed first
    first=$(grep -o '"seconds":\[[0-9.]*' "$1" | tail -n 1 | cut -d '[' -f 2)
    speed=$(grep -o '"tokens_per_second_best":[0-9.]*' "$1" | tail -n 1 | cut -d : -f 2)
    if [ -n "$speed" ]; then
        printf '%.0f tokens/s, the first step or text in %.1f s' "$speed" "$first"
    else
        grep -E '^(test result|held-out|device )' "$1" | tail -n 1 | sed 's/; [0-9]* ignored.*//'
    fi
}


if [ -n "${TINY:-}" ]; then
    small=(--layers 1 --width 64 --batch 1 --time 16 --steps 1 --warmup 1)
    large=("${small[@]}")
    write=("${small[@]}" --generate 4)
    tests=(ops::tests::custom::forward)
    recipe=(--set model.n_layer=1 --set model.n_embd=32 --set model.head_size=16 --set batch_size=4 --set steps=2
        --set steps_per_epoch=1 --set validation_batches=1 --set max_digits=5 --set learning_rate.warmup_steps=1)
else
    small=(--layers 6 --width 512 --batch 8 --time 512)
    large=(--layers 12 --width 768 --vocab 65536 --batch 8 --time 1024)
    write=(--layers 12 --width 768 --vocab 65536 --generate 100)
    tests=(ops::tests::custom model::tests::step_and model::tests::padding)
    recipe=()
fi

part devices 40 "$programs/metastate" devices
part first-start 130 "$programs/training_step" --device "$device" "${small[@]}"
part second-start 50 "$programs/training_step" --device "$device" "${small[@]}"
part tests 90 "$programs/tests" --test-threads 4 "${tests[@]}"
part large-step 90 "$programs/training_step" --device "$device" "${large[@]}"
part large-step-bf16 50 "$programs/training_step" --device "$device" --precision bf16 "${large[@]}"
part generation 40 "$programs/training_step" --device "$device" "${write[@]}"
[ -n "${TINY:-}" ] || part operator 30 "$programs/operator" --bench --max-time 2 forward
rm -rf run
part training 70 "$programs/metastate" train --no-tui --device "$device" --out run "${recipe[@]}"

echo
cat "$table"
echo "kernels and tuning results are in $results/cache; bring the folder back for the next run of these programs"
