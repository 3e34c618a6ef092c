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
everywhere() { call gcloud compute tpus tpu-vm ssh "$RUN_NAME" --zone="$ZONE" --worker=all --command="$1"; }
queued() { call gcloud compute tpus queued-resources "$1" "$RUN_NAME" --zone="$ZONE" "${@:2}"; }

state() {
    if [ -n "${DRY_RUN:-}" ]; then echo ACTIVE; return; fi
    gcloud compute tpus queued-resources describe "$RUN_NAME" --zone="$ZONE" --format="value(state.state)" || echo NONE
}

slice() {
    queued delete --force --quiet || true # one that was suspended keeps the name
    queued create --node-id="$RUN_NAME" --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
    until [ "$(state)" = ACTIVE ]; do
        case "$(state)" in FAILED | SUSPENDED) return 1 ;; esac
        sleep 30
    done
    # What is committed, without runs and data. The machines' own Python is too old.
    call git archive --format=tar --output=/tmp/inpaint.tar HEAD
    call gcloud compute tpus tpu-vm scp --zone="$ZONE" --worker=all /tmp/inpaint.tar "$RUN_NAME:inpaint.tar"
    everywhere "mkdir -p inpaint && tar -xf inpaint.tar -C inpaint && curl -LsSf https://astral.sh/uv/install.sh | sh"
    everywhere "\$HOME/.local/bin/uv venv --clear --python 3.11 venv && cd inpaint && VIRTUAL_ENV=\$HOME/venv \$HOME/.local/bin/uv pip install -r requirements.txt 'jax[tpu]'"
    everywhere "sudo mkdir -p /mnt/runs && sudo chmod a+w /mnt/runs && $MOUNT"
}

words=$(printf '%q ' "$@")
while true; do
    if [ "$(state)" != ACTIVE ] || [ -n "${DRY_RUN:-}" ]; then
        slice || { sleep 60; continue; }
    fi
    code=0
    everywhere "cd inpaint && PATH=\$HOME/venv/bin:\$PATH launch/run_until_done.sh python launch/main.py --several_processes $words" || code=$?
    # 0 finished, 1 an error, 2 wrong usage; anything else is a lost connection or a lost slice.
    case $code in 0 | 1 | 2) ;; *) sleep 60; continue ;; esac
    # A slice that is taken away may end as an error does.
    if [ "$code" -eq 0 ]; then break; fi
    sleep 60
    if [ "$(state)" = ACTIVE ]; then break; fi
done
queued delete --force --quiet
exit "$code"
