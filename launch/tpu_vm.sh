#!/usr/bin/env bash
# One training run on a spot TPU slice: asks for it, installs the project on all its machines, trains, and starts over
# with a new slice whenever the old one is taken away. Needs gcloud, logged in, and the project's root as folder.
#
#     RUN_NAME=unet ZONE=us-east5-b TYPE=v5litepod-16 launch/tpu_vm.sh --config configs/unet_cosine.py \
#         --workdir /mnt/runs/unet_cosine
#
# VERSION: the machines' software, default v2-alpha-tpuv5-lite. DISK: a Filestore share or bucket that every machine
# mounts at /mnt/runs by MOUNT, a command, such as "sudo mount 10.0.0.2:/runs /mnt/runs": without one a new slice starts
# from nothing. DRY_RUN=1 prints the commands and runs none of them.
set -euo pipefail

: "${RUN_NAME:?set it to a name for the slice}" "${ZONE:?set it to a zone with such TPUs}" "${TYPE:?set it, such as v5litepod-16}"
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
MOUNT=${MOUNT:-true}
[ $# -gt 0 ] || { echo "usage: RUN_NAME=... ZONE=... TYPE=... $0 --config CONFIG [OPTION...]" >&2; exit 2; }

call() {
    if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}
tpu() { call gcloud compute tpus tpu-vm "$1" "$RUN_NAME" --zone="$ZONE" "${@:2}"; }
queued() { call gcloud compute tpus queued-resources "$1" "$RUN_NAME" --zone="$ZONE" "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }

state() {
    if [ -n "${DRY_RUN:-}" ]; then echo ACTIVE; return; fi
    gcloud compute tpus queued-resources describe "$RUN_NAME" --zone="$ZONE" --format="value(state.state)" || echo NONE
}

slice() {
    queued create --node-id="$RUN_NAME" --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
    until [ "$(state)" = ACTIVE ]; do sleep 30; done
    tpu scp --worker=all --recurse . :inpaint
    everywhere "python3 -m venv venv && venv/bin/pip install -q 'jax[tpu]' && cd inpaint && ../venv/bin/pip install -q -r requirements.txt"
    everywhere "sudo mkdir -p /mnt/runs && sudo chmod a+w /mnt/runs && $MOUNT"
}

words=$(printf '%q ' "$@")
while true; do
    [ "$(state)" = ACTIVE ] && [ -z "${DRY_RUN:-}" ] || slice
    code=0
    # The machines of a slice find each other. One that is only stopped is started again where it is.
    everywhere "cd inpaint && PATH=\$HOME/venv/bin:\$PATH launch/run_until_done.sh python launch/main.py $words" || code=$?
    [ "$code" -ne 0 ] || break
    sleep 60 # until a slice that is being taken away says so
    # What ended on machines that are still there ended with an error of its own.
    [ "$(state)" != ACTIVE ] || break
    queued delete --force --quiet || true
done
queued delete --force --quiet
exit "$code"
