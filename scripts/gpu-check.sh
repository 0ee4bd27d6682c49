#!/usr/bin/env bash
# Checks Interlingua on a machine with an NVIDIA GPU: what the machine has, each kernel against its reference, tiny models against the
# numbers of Transformers, a training, NCCL on one rank and trainings on two where there are two GPUs, a long training with an eye on
# memory, and speed and memory beside PyTorch and PEFT.
#
#   scripts/gpu-check.sh [options] BINARY
#
# Needs this repository's files and the built binary; no Rust, no network. The benchmark needs Python 3, and torch, transformers and
# peft for its other side (bitsandbytes for NF4). A part that fails is reported, and the rest goes on. Ends with a table; the same as
# JSON, the logs and all that was written are in the output folder. Exit code 0 when nothing has failed.
set -uo pipefail

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    cat <<'END'

  --device DEVICE   cuda, cuda:N, tch:cuda, tch or cpu (default: cuda)
  --parts LIST      of doctor,kernels,verify,train,ranks,soak,bench (default: all)
  --bench LIST      of SHAPE/METHOD: qwen3-1.7b/lora, qwen3-1.7b/nf4, llama-3.1-8b/lora, llama-3.1-8b/nf4, tiny/lora, tiny/nf4
                    (default: the first four; the tiny ones with --device cpu or tch)
  --models FOLDER   tiny models with their numbers (default: tests/fixtures/models)
  --text FILE       text for the benchmark, repeatable (default: the examples of the repository)
  --python PROGRAM  Python for the benchmark (default: python3)
  --soak N          steps of the long training (default: 2000)
  --atol X          what verify lets a number be off (default: 2e-2 on a GPU, whose matrix products round f32 to TF32; else 1e-4)
  --out FOLDER      where everything goes (default: gpu-check)
END
}

fail() {
    printf 'gpu-check.sh: %s\n' "$1" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/.." && pwd)
device=cuda parts=doctor,kernels,verify,train,ranks,soak,bench bench='' models=$root/tests/fixtures/models
python=python3 soak=2000 atol='' out=gpu-check binary='' text=()
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --device | --parts | --bench | --models | --text | --python | --soak | --atol | --out)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --device) device=$2 ;;
        --parts) parts=$2 ;;
        --bench) bench=$2 ;;
        --models) models=$2 ;;
        --text) text+=("$(realpath -- "$2")") ;;
        --python) python=$2 ;;
        --soak) soak=$2 ;;
        --atol) atol=$2 ;;
        --out) out=$2 ;;
        esac
        shift 2
        ;;
    -*) fail "$1 is no option; --help lists them" ;;
    *)
        [ -z "$binary" ] || fail "one binary, please: $binary or $1"
        binary=$1
        shift
        ;;
    esac
done
[ -n "$binary" ] || fail 'which binary? For one: scripts/gpu-check.sh target/release/interlingua (--help says more)'
[ -x "$binary" ] || fail "$binary is no program"
for part in ${parts//,/ }; do
    case $part in
    doctor | kernels | verify | train | ranks | soak | bench) ;;
    *) fail "$part is no part; there are doctor, kernels, verify, train, ranks, soak and bench" ;;
    esac
done
binary=$(realpath -- "$binary")
models=$(realpath -- "$models")
on_gpu=true
case $device in cpu | tch) on_gpu=false ;; esac
if [ -z "$atol" ]; then atol=1e-4; $on_gpu && atol=2e-2; fi
if [ -z "$bench" ]; then
    bench=tiny/lora,tiny/nf4
    $on_gpu && bench=qwen3-1.7b/lora,qwen3-1.7b/nf4,llama-3.1-8b/lora,llama-3.1-8b/nf4
fi
[ ${#text[@]} -gt 0 ] || text=("$root"/recipes/quickstart/train.jsonl "$root"/recipes/examples/*.jsonl)
mkdir -p "$out" || fail "$out cannot be made"
out=$(cd "$out" && pwd)
results=$out/results.tsv
: >"$results"
export INTERLINGUA_CACHE=$out/cache HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# record PART NAME ok|failed|skipped DETAIL
record() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(tr '\t\n' '  ' <<<"$4")" >>"$results"
    printf '%-8s %-8s %-26s %s\n' "$3" "$1" "$2" "$4"
}

# attempt LOG COMMAND…: runs it with both outputs in a file of the output folder; its exit code.
attempt() {
    local log=$out/$1
    shift
    "$@" >"$log" 2>&1
}

# The last line of a log that is no blank one.
last_line() {
    grep -v '^[[:space:]]*$' "$out/$1" | tail -n 1
}

# column FILE KEY: a number of each training row of a metrics.jsonl, a line each.
column() {
    grep '"kind":"train"' "$1" | grep -o "\"$2\":[-0-9.eE+]*" | cut -d: -f2
}

# median SKIPPED: of the numbers on standard input without the first ones.
median() {
    tail -n +"$(($1 + 1))" | sort -g | awk '{ v[NR] = $1 } END { if (NR) print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2) }'
}

gib() {
    awk -v bytes="${1:-0}" 'BEGIN { printf "%.2f GiB", bytes / 1073741824 }'
}

doctor() {
    if attempt doctor.json "$binary" doctor --json && attempt doctor.txt "$binary" doctor; then
        record doctor machine ok "$(head -n 1 "$out/doctor.txt")"
        grep -E '^ +(ok|--) +(driver|GPU [0-9]+) ' "$out/doctor.txt" | while read -r mark line; do
            state=failed
            $on_gpu || state=skipped
            [ "$mark" = ok ] && state=ok
            record doctor "$(cut -c 1-18 <<<"$line" | sed 's/ *$//')" "$state" "$(cut -c 19- <<<"$line")"
        done
    else
        record doctor machine failed "$(last_line doctor.txt)"
    fi
}

kernels() {
    if attempt kernels.txt "$binary" doctor --kernels --device "$device"; then
        record kernels 'against references' ok "$(last_line kernels.txt)"
    else
        record kernels 'against references' failed "$(last_line kernels.txt)"
    fi
}

verify() {
    local golden name
    for golden in "$models"/*.golden.safetensors; do
        name=$(basename "$golden" .golden.safetensors)
        if [ ! -e "$golden" ]; then
            record verify models failed "there are no models in $models"
        elif attempt "verify-$name.txt" "$binary" verify "$models/${name%.padded}" "$golden" --device "$device" --atol "$atol"; then
            record verify "$name" ok "$(grep -E '^passed +logits ' "$out/verify-$name.txt" | tr -s ' ')"
        else
            record verify "$name" failed "$(last_line "verify-$name.txt")"
        fi
    done
}

# How the quickstart's model is trained.
start=(train)

# A training of the quickstart's model: quickstart NAME STEPS DEVICE SETTING…
quickstart() {
    local name=$1 steps=$2 on=$3
    shift 3
    # Only the training counts: its evaluations by generation would take longer.
    sed '/^\[\[eval\.tasks\]\]/,$d; s/^epochs = .*/steps = '"$steps"'/' "$root/recipes/quickstart.toml" >"$out/$name.toml"
    attempt "$name.txt" "$binary" "${start[@]}" "$out/$name.toml" --fresh --set "output=$out/$name" --set "model.device=$on" \
        --set "model.path=$root/recipes/quickstart/base" --set "data.sources.0.path=$root/recipes/quickstart/train.jsonl" \
        --set "data.sources.1.path=$root/recipes/quickstart/swapped.jsonl" --set train.checkpoint_every=0 --set schedule.kind=constant "$@"
}

# The largest relative difference between the losses of two trainings: apart NAME NAME.
apart() {
    paste <(column "$out/$1/metrics.jsonl" loss) <(column "$out/$2/metrics.jsonl" loss) |
        awk '{ d = ($1 - $2) / $2; d = d < 0 ? -d : d; if (d > most) most = d } END { print NR ? most + 0 : "nothing" }'
}

# Whether a difference is at most another: within X MOST. No number is not.
within() {
    awk -v off="$1" -v most="$2" 'BEGIN { exit !(off ~ /^[0-9.]/ && off + 0 <= most) }'
}

training() {
    local first last off
    if ! quickstart train 200 "$device"; then
        record train '200 steps' failed "$(last_line train.txt)"
        return
    fi
    first=$(column "$out/train/metrics.jsonl" loss | head -n 10 | median 0)
    last=$(column "$out/train/metrics.jsonl" loss | tail -n 10 | median 0)
    if awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a / 2) }'; then
        record train '200 steps' ok "loss $first -> $last, $(column "$out/train/metrics.jsonl" tokens_per_second | median 3 | cut -d. -f1) tokens/s"
    else
        record train '200 steps' failed "loss $first -> $last: it has not halved"
    fi
    # The same twenty steps there and on the CPU.
    if ! quickstart train-here 20 "$device" || ! quickstart train-cpu 20 cpu; then
        record train 'beside the CPU' failed "$(last_line train-here.txt) $(last_line train-cpu.txt 2>/dev/null)"
        return
    fi
    off=$(apart train-here train-cpu)
    if within "$off" 0.02; then
        record train 'beside the CPU' ok "losses of 20 steps off by at most $off (relative)"
    else
        record train 'beside the CPU' failed "losses of 20 steps off by up to $off (relative), at most 0.02 is allowed"
    fi
}

# The same checks on two ranks, each with a GPU of its own, started as torchrun would.
pair() {
    local rank first second
    for rank in 0 1; do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511 INTERLINGUA_SECRET=gpu-check-$$ \
            attempt "collectives-$rank.txt" "$binary" doctor --collectives --device cuda &
        if [ "$rank" = 0 ]; then first=$!; else second=$!; fi
    done
    if wait "$first" && wait "$second"; then
        record ranks 'collectives of two' ok "$(last_line collectives-0.txt)"
    else
        wait
        record ranks 'collectives of two' failed "$(last_line collectives-0.txt) $(last_line collectives-1.txt)"
    fi
}

# What ranks say to each other on one rank, and trainings on one and on two ranks beside one process.
ranks() {
    local gpus count strategy name off start=(train)
    if attempt collectives.txt "$binary" doctor --collectives --device "$device"; then
        record ranks 'collectives of one' ok "$(last_line collectives.txt)"
    else
        record ranks 'collectives of one' failed "$(last_line collectives.txt)"
    fi
    if [ "$device" = cuda ] && [ "$("$binary" doctor | grep -cE '^ +ok +GPU [0-9]')" -gt 1 ]; then
        pair
    fi
    if [ "$device" != cuda ]; then
        record ranks launch skipped 'ranks share GPUs among themselves with --device cuda only'
        return
    fi
    if ! quickstart ranks-none 20 "$device"; then
        record ranks 'one process' failed "$(last_line ranks-none.txt)"
        return
    fi
    gpus=$("$binary" doctor | grep -cE '^ +ok +GPU [0-9]')
    for count in 1 2; do
        if [ "$count" -gt "$gpus" ]; then
            record ranks "launch --nproc $count" skipped "GPUs that can be used: $gpus"
            continue
        fi
        for strategy in ddp zero1 zero3; do
            name=ranks-$count-$strategy
            start=(launch --nproc "$count")
            # The same rows in each step: those of a rank times the ranks.
            if ! quickstart "$name" 20 "$device" --set "train.batch_size=$((8 / count))" --set "distributed.strategy=$strategy"; then
                record ranks "$strategy on $count" failed "$(last_line "$name.txt")"
                continue
            fi
            off=$(apart "$name" ranks-none)
            if within "$off" 0.02; then
                record ranks "$strategy on $count" ok "losses of 20 steps off by at most $off (relative) from one process"
            else
                record ranks "$strategy on $count" failed "losses of 20 steps off by $off (relative) from one process, at most 0.02 is allowed"
            fi
        done
    done
}

soaking() {
    local steps early late
    if ! quickstart soak "$soak" "$device" --set train.batch_size=2 --set data.max_length=64 --set data.truncate=right; then
        record soak "$soak steps" failed "$(last_line soak.txt)"
        return
    fi
    steps=$(column "$out/soak/metrics.jsonl" memory_bytes | wc -l)
    early=$(column "$out/soak/metrics.jsonl" memory_bytes | head -n $((steps / 4)) | sort -n | tail -n 1)
    late=$(column "$out/soak/metrics.jsonl" memory_bytes | sort -n | tail -n 1)
    # Peaks never fall; a quarter of the run is enough to have seen the longest rows.
    if awk -v a="$early" -v b="$late" 'BEGIN { exit !(b <= a * 1.02) }'; then
        record soak "$steps steps" ok "peak $early bytes after a quarter, $late at the end"
    else
        record soak "$steps steps" failed "peak $early bytes after a quarter, $late at the end: it grows"
    fi
}

benchmark() {
    local one shape method folder ours memory peer_device peer peer_memory ratio
    if ! command -v "$python" >/dev/null; then
        record bench "$bench" skipped "there is no $python"
        return
    fi
    # What PyTorch calls the device.
    peer_device=${device#tch:}
    case $peer_device in cuda) peer_device=cuda:0 ;; tch) peer_device=cpu ;; esac
    for one in ${bench//,/ }; do
        shape=${one%/*} method=${one#*/} folder=$out/bench-${one/\//-}
        if ! attempt "bench-$shape-$method-make.txt" "$python" "$root/scripts/gpu_bench_peer.py" make --shape "$shape" --method "$method" \
            --device "$device" --out "$folder" --text "${text[@]}"; then
            record bench "$one" failed "$(last_line "bench-$shape-$method-make.txt")"
            continue
        fi
        ours=''
        if attempt "bench-$shape-$method-ours.txt" "$binary" train "$folder/recipe.toml" --fresh; then
            ours=$(column "$folder/run/metrics.jsonl" tokens_per_second | median 3 | xargs printf '%.1f')
            memory=$(column "$folder/run/metrics.jsonl" memory_bytes | sort -n | tail -n 1)
            record bench "$one ours" ok "$ours tokens/s, $(gib "$memory")"
        else
            record bench "$one ours" failed "$(last_line "bench-$shape-$method-ours.txt")"
        fi
        # An adapter for random weights is of no use afterwards.
        rm -rf "$folder/run/adapter" "$folder"/run/checkpoint-* "$folder"/run.old-*
        if attempt "bench-$shape-$method-peer.txt" "$python" "$root/scripts/gpu_bench_peer.py" train --folder "$folder" --device "$peer_device"; then
            peer=$(last_line "bench-$shape-$method-peer.txt" | grep -o '"tokens_per_second": [0-9.]*' | cut -d' ' -f2)
            peer_memory=$(last_line "bench-$shape-$method-peer.txt" | grep -o '"peak_bytes": [0-9]*' | cut -d' ' -f2)
            record bench "$one PEFT" ok "$peer tokens/s, $(gib "$peer_memory")"
            if [ -n "$ours" ]; then
                ratio=$(awk -v a="$ours" -v b="$peer" 'BEGIN { printf "%.2f", a / b }')
                record bench "$one ratio" ok "$ratio times as fast as PEFT"
            fi
        elif grep -q 'ModuleNotFoundError' "$out/bench-$shape-$method-peer.txt"; then
            record bench "$one PEFT" skipped "$(last_line "bench-$shape-$method-peer.txt")"
        else
            record bench "$one PEFT" failed "$(last_line "bench-$shape-$method-peer.txt")"
        fi
    done
}

for part in ${parts//,/ }; do
    case $part in
    doctor) doctor ;;
    kernels) kernels ;;
    verify) verify ;;
    train) training ;;
    ranks) ranks ;;
    soak) soaking ;;
    bench) benchmark ;;
    esac
done

# The same as JSON. What is recorded holds no control characters but tabs and ends of lines, which are gone.
awk -F '\t' -v device="$device" 'function quoted(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
    BEGIN { printf "{\"device\": %s, \"results\": [", quoted(device) }
    { printf "%s\n  {\"part\": %s, \"name\": %s, \"state\": %s, \"detail\": %s}", (NR > 1 ? "," : ""), quoted($1), quoted($2), quoted($3), quoted($4) }
    END { print "\n]}" }' "$results" >"$out/results.json"
printf '\n%s\n' "Results on $device ($out/results.json):"
awk -F '\t' '{ printf "  %-8s %-8s %-26s %s\n", $3, $1, $2, $4 }' "$results"
if cut -f 3 "$results" | grep -qx failed; then
    exit 1
fi
