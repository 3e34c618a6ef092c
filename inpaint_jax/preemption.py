"""Signals by which a machine takes itself away, or a person ends a run."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from inpaint_jax import command_line


class Preemption:
    """Turns the first SIGTERM or Ctrl-C into a request that the loop sees; a second Ctrl-C interrupts at once.

    While nothing is to be saved, which it is in the beginning, a signal ends the process at once: reading data and
    compiling can take longer than a machine waits. Only where `command_line.leave_preempted` handled SIGTERM before,
    as in a command: anybody else's process goes on.

    Of several processes one gets the signal, and all of them see the request at the same step: JAX's own handler of
    SIGTERM, which `jax.distributed` installs, agrees on the step, so this one leaves SIGTERM to it.

    Attributes:
        leaving: what is done before the process ends where it stands, maybe by another thread than the main one.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.leaving: Callable[[], None] = lambda: None
        self._several = jax.process_count() > 1
        self._previous: dict[int, Any] = {}
        self._leaves, self._nothing_to_save, self._deciding = False, True, threading.Lock()

    def __enter__(self) -> "Preemption":
        # Python allows handlers in the main thread only; elsewhere (tests, notebooks) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGTERM)
            self._leaves = not self._several and before is command_line.leave_preempted
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        if self._leaves:
            # Python runs handlers between its own instructions, and compiling is a single one, of minutes. The number
            # of a signal is written into this pipe at once.
            reader, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            self._previous_pipe = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def _watch(self, reader: int) -> None:
        while number := os.read(reader, 1):
            with self._deciding:
                if self._nothing_to_save and number[0] in (signal.SIGTERM, signal.SIGINT):
                    self._leave(number[0])
        os.close(reader)

    def _leave(self, number: int) -> None:
        try:
            self.leaving()
        finally:
            command_line.leave_preempted(number)

    def nothing_to_save(self, nothing: bool) -> None:
        """Says whether all that the run has come to is on the disk; if so, and a signal came before, it ends here."""
        with self._deciding:
            self._nothing_to_save = nothing
            if nothing and self._leaves and self.requested:
                self._leave(signal.Signals[self.requested])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def after(self, step: int) -> str | None:
        """Returns the signal that ends the run after this step, None to go on; call it once after every step."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.requested = "SIGTERM"
        return self.requested

    def __exit__(self, *exception: object) -> None:
        if self._leaves:
            signal.set_wakeup_fd(self._previous_pipe)
            os.close(self._pipe)
        for number, handler in self._previous.items():
            # What is left is to end with the exit code of the first signal: another must not change it.
            ended = self._leaves and self.requested and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ended else handler)
