#!/usr/bin/env bash
# Starts a training command again and again until it has finished: for spot machines, and wherever runs are killed.
#
#     launch/run_until_done.sh python launch/main.py --config configs/unet_cosine.py
#
# The command is started again after exit code 75 (preempted, or another process was lost) and after a kill. It is not
# after 0 (finished), 1 (an error with a message), 2 (wrong usage) or any other code, which becomes this script's own.
# A SIGTERM or Ctrl-C goes to the command, and this script ends with its code: the machine is being taken away.
#
# QUICK_ENDS (default 5) starts in a row that each last less than QUICK_SECONDS (default 60) end it: something else is
# wrong then. Before each new start it waits WAIT_SECONDS (default 5).
set -u

if [ $# -eq 0 ]; then
    echo "usage: $0 COMMAND [ARGUMENT...], such as $0 python launch/main.py --config configs/unet_cosine.py" >&2
    exit 2
fi

child=
taken_away=

pass_on() {
    taken_away=1
    if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null; fi
}
trap 'pass_on TERM' TERM
# A terminal sends Ctrl-C to the command as well, where it would count twice; a SIGTERM asks for the same.
trap 'pass_on TERM' INT

quick=0
while true; do
    begun=$SECONDS
    # In the background, because bash runs its traps only when a foreground command has ended; and with its own
    # handling of Ctrl-C off, as bash sets it for commands in the background.
    "$@" &
    child=$!
    while true; do
        wait "$child"
        code=$?
        # A signal ends `wait` before the command ends.
        kill -0 "$child" 2>/dev/null || break
    done
    child=
    if [ -n "$taken_away" ]; then exit "$code"; fi
    if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then exit "$code"; fi
    if [ $((SECONDS - begun)) -lt "${QUICK_SECONDS:-60}" ]; then quick=$((quick + 1)); else quick=0; fi
    if [ "$quick" -ge "${QUICK_ENDS:-5}" ]; then
        echo "$0: ended $quick times in a row within ${QUICK_SECONDS:-60} s, the last time with code $code: giving up" >&2
        exit "$code"
    fi
    echo "$0: ended with code $code; starting again in ${WAIT_SECONDS:-5} s" >&2
    sleep "${WAIT_SECONDS:-5}" &
    wait $!
    if [ -n "$taken_away" ]; then exit 75; fi
done
