"""Several processes as one run, on JAX's distributed runtime: joining, what process 0 tells the others, and leaving.

Process 0 alone writes the run folder. The others do what it does on their devices, and are told what it reads.
"""

import base64
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from inpaint_jax import command_line

log = logging.getLogger("inpaint_jax")

# A process that has died without closing its connections is missed after so many seconds.
HEARTBEAT_SECONDS = 20
_FAILED = "inpaint_jax/failed"
_PIECE = 1 << 20  # characters of a message
# Of XLA's errors, those that another start would come to again.
_OWN_ERRORS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
# Of schedulers that start several processes: how many there are. JAX finds the rest by itself.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def started_by_scheduler() -> bool:
    """Returns whether SLURM, Open MPI or a TPU slice of Kubernetes has started this process as one of several."""
    if any(int(os.environ.get(name) or 1) > 1 for name in _COUNTS):
        return True
    return "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several; call before anything asks for devices.

    Args:
        coordinator: host:port of process 0, which listens there and nowhere else. All None: what the scheduler says.
        processes: how many there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: not all three are given, or they do not fit.
    """
    given = {"--coordinator_address": coordinator, "--num_processes": processes, "--process_id": process}
    missing = [flag for flag, value in given.items() if value is None]
    if missing and len(missing) < 3:
        raise ValueError(f"{', '.join(missing)}: needed too, where one of {', '.join(given)} is given")
    if missing:
        _initialize()
        return
    if not 0 <= process < processes:
        raise ValueError(f"--process_id={process}: with --num_processes={processes}, give 0 to {processes - 1}")
    if not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator_address={coordinator}: give host:port, such as 10.0.0.1:1234")
    if processes > 1:
        bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
        _initialize(coordinator, processes, process, coordinator_bind_address=bound)


def _initialize(*place: str | int, **options: str) -> None:
    try:
        jax.distributed.initialize(*place, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        # The others may come later, as on spot machines.
        first = str(error).splitlines()[0]
        log.error("the other processes were not met (%s): run the same command again", first)
        os._exit(command_line.PREEMPTED)


def say(name: str, text: str) -> None:
    """Tells the other processes something; each name is used once."""
    multihost.get_jax_distributed_client().key_value_set(f"inpaint_jax/{name}", text)


def say_long(name: str, text: str) -> None:
    """Tells the other processes a text of any length, in pieces; see `hear_long`."""
    packed = base64.b64encode(zlib.compress(text.encode())).decode()
    pieces = [packed[start : start + _PIECE] for start in range(0, len(packed), _PIECE)]
    for number, piece in enumerate(pieces):
        say(f"{name} {number}", piece)
    say(name, str(len(pieces)))


def hear_long(name: str) -> str:
    """Waits for what another process says with `say_long`; errors as of `hear`."""
    pieces = [hear(f"{name} {number}") for number in range(int(hear(name)))]
    return zlib.decompress(base64.b64decode("".join(pieces))).decode()


def hear(name: str) -> str:
    """Waits for what another process says, as long as none has ended with an error.

    Raises:
        ValueError: one has; the message says why.
    """
    client = multihost.get_jax_distributed_client()
    while True:
        try:
            return client.blocking_key_value_get(f"inpaint_jax/{name}", 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if why := _failure():
            raise ValueError(why)


def _end_with_others(ended: threading.Event) -> None:
    """Ends this process when another has said why it ended: in a collective operation it could wait for ever."""
    while not ended.wait(1):
        if why := _failure():
            _leave_now(why, command_line.ERROR)


def _failure() -> str:
    """Returns why another process has ended, "" if none has said so."""
    try:
        return multihost.get_jax_distributed_client().key_value_try_get(_FAILED)
    except jax.errors.JaxRuntimeError:
        return ""


def share_arrays(tree: Any) -> Any:
    """Returns the arrays of process 0, on the host, on every process; elsewhere the tree gives shapes and types."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    # As bytes, in which a sum with zeros changes nothing: -0.0 would become 0.0.
    shared = multihost_utils.broadcast_one_to_all([leaf.reshape(-1).view(np.uint8) for leaf in leaves])
    pairs = zip(shared, leaves, strict=True)
    return jax.tree.unflatten(structure, [np.asarray(x).view(leaf.dtype).reshape(leaf.shape) for x, leaf in pairs])


def leave() -> None:
    """Waits for all processes and leaves them; each goes on alone."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Lets an error end this process at once, and tells the others, where there are several.

    Left to itself, a process waits for the others at its exit, and they wait for it in a collective operation.
    """
    ended = threading.Event()
    if jax.process_count() > 1:
        threading.Thread(target=_end_with_others, args=(ended,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        ended.set()
        if not multihost.is_jax_distributed_client_initialized():
            raise
        _end(error)
    finally:
        ended.set()


def _end(error: BaseException) -> NoReturn:
    code, words = command_line.ERROR, command_line.message(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        code = command_line.INTERRUPTED
    if isinstance(error, jax.errors.JaxRuntimeError) and not any(kind in str(error) for kind in _OWN_ERRORS):
        # A collective operation fails where another process has gone. It may have said why.
        why = _failure()
        code = command_line.ERROR if why else command_line.PREEMPTED
        words = why or (
            f"a step failed ({words.splitlines()[0]}), most likely because another process has ended: start all of "
            "them again, which goes on from the last saved state"
        )
    elif not _failure():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            say("failed", f"process {jax.process_index()} has ended: {words}")
            if jax.process_index() == 0:
                # With process 0 its words go too: the others look for them every second.
                time.sleep(3)
    log.debug("traceback of the error", exc_info=error)
    if not isinstance(error, (*command_line.USERS_ERRORS, jax.errors.JaxRuntimeError, KeyboardInterrupt)):
        traceback.print_exception(error)
    _leave_now(words, code)


def _leave_now(words: str, code: int) -> NoReturn:
    print(f"error: {words}", file=sys.stderr)
    for stream in (*log.handlers, sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
