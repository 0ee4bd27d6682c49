#!/bin/bash
# A recipe on several hosts that are reached with ssh, with all GPUs of each.
#
#   bash ssh-hosts.sh recipes/ddp-lora.toml gpu1 gpu2 gpu3
#
# The hosts share a file system, on which this folder lies, and have `interlingua` in their PATH; keys for ssh are set up. Processes meet
# on the first host, at PORT. Ctrl-C saves, and the same command goes on from there.
set -euo pipefail

recipe=${1:?usage: ssh-hosts.sh RECIPE HOST...}
shift
hosts=("$@")
[ ${#hosts[@]} -gt 0 ] || { echo "usage: ssh-hosts.sh RECIPE HOST..." >&2; exit 2; }

port=${PORT:-29500}
folder=$(pwd)
launcher=.launcher.pid
secret=$(openssl rand -hex 16)

# One signal to one launcher is enough: all processes of the run stop after the same step.
stop() {
    ssh -o BatchMode=yes "${hosts[0]}" "$(printf 'cd %q && kill -USR1 "$(cat %q)"' "$folder" "$launcher")"
}
trap stop INT TERM USR1

children=()
for number in "${!hosts[@]}"; do
    host=${hosts[number]}
    # The secret comes through standard input, so that no list of processes shows it.
    command=$(printf 'read -r INTERLINGUA_SECRET; export INTERLINGUA_SECRET; cd %q || exit 1; ' "$folder")
    if [ "$number" -eq 0 ]; then
        command+=$(printf 'echo $$ >%q; ' "$launcher")
    fi
    command+=$(printf 'exec interlingua launch --nnodes %q --node-rank %q --rendezvous %q %q' \
        "${#hosts[@]}" "$number" "${hosts[0]}:$port" "$recipe")
    ssh -o BatchMode=yes -o ServerAliveInterval=15 "$host" "$command" <<<"$secret" 2> >(sed -u "s/^/[$host] /" >&2) &
    children+=($!)
done

# The worst exit code of all.
worst=0
for child in "${children[@]}"; do
    code=0
    wait "$child" || code=$?
    # A signal ends the waiting, and not what is waited for.
    while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    if [ "$code" -gt "$worst" ]; then
        worst=$code
    fi
done
exit "$worst"
