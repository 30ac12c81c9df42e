"""Signals that ask a training to end: held back until the end of the step, so that a checkpoint can be written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Self

# SIGUSR1 is what Slurm sends before the time is up (``--signal=USR1@120``). Windows has no such signal.
NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Signalled(BaseException):
    """Raised in a part of the training that changes nothing and need not be waited for."""


class HeldSignals:
    """Holds back the first signal that asks this process to end; a second one is handled at once.

    A signal that was held back is given by :meth:`deliver` to whoever had it before: Python's handler raises
    ``KeyboardInterrupt``, the default of ``SIGTERM`` ends the process, and training goes on where a user's handler returns.
    Only the main thread handles signals: in another one nothing is held back.

    Attributes:
        pending: the number of the signal that is held back, or None.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}
        self._at_once = False

    def __enter__(self) -> Self:
        if current_thread() is main_thread():
            for number in NUMBERS:
                before = signal.getsignal(number)
                if before is not None and before is not signal.SIG_IGN:  # None: set by another language
                    self._before[number] = before
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def deliver(self) -> None:
        """Give the signal that is held back to its own handler."""
        number, self.pending = self.pending, None
        if number is not None:
            self._give(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise :class:`Signalled` in this block, whatever it is doing, where a signal is held back."""
        self._at_once = True
        try:
            if self.pending is not None:
                raise Signalled
            yield
        finally:
            self._at_once = False

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None:
            self._give(number)
            return
        self.pending = number
        if self._at_once:
            raise Signalled

    def _give(self, number: int) -> None:
        before = self._before[number]
        signal.signal(number, before)
        try:
            signal.raise_signal(number)
        finally:
            signal.signal(number, self._hold)
