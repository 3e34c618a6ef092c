"""Signals by which a machine takes itself away, or a person ends a run."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Turns the first SIGTERM or Ctrl-C into a request that the loop sees; a second Ctrl-C interrupts at once.

    Of several processes one gets the signal, and all of them see the request at the same step: JAX's own handler of
    SIGTERM, which `jax.distributed` installs, agrees on the step, so this one leaves SIGTERM to it.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._several = jax.process_count() > 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows handlers in the main thread only; elsewhere (tests, notebooks) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

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
        for number, handler in self._previous.items():
            signal.signal(number, handler)
