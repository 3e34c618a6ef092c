"""Signals by which a machine takes itself away, or a person ends a run."""

import signal
import threading
from types import FrameType
from typing import Any


class Preemption:
    """Turns the first SIGTERM or Ctrl-C into a request that the loop sees; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python allows handlers in the main thread only; elsewhere (tests, notebooks) signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
