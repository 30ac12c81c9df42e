"""Children of this process that are killed, signalled, or fail at a given write."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT = 120.0  # seconds after which a child counts as hanging


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative for a signal), what it printed to stderr, and after how many seconds."""

    code: int
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """What it printed last, in short."""
        return (self.err.strip().splitlines() or ["nothing"])[-1][:160]

    @property
    def traceback(self) -> bool:
        """Whether an exception left the function."""
        return "Traceback (most recent call last)" in self.err


def run(function: Callable[[], object], log: Path, watch: Callable[[int], None] | None = None) -> Ended:
    """Call a function in a forked child; ``watch`` is given its process number while it runs.

    The child inherits everything that this process has imported, so that it starts in milliseconds. An exception that leaves
    the function is printed as a traceback, as the interpreter does it, and ends the child with 1.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(function, log)
    try:
        if watch is not None:
            watch(child)
        status = _wait(child, started + LIMIT)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic() - started)


def kill_after(seconds: float, number: int = signal.SIGKILL) -> Callable[[int], None]:
    """Watches a child and sends it a signal after a time, if it still runs."""

    def watch(child: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.001)
        os.kill(child, number)

    return watch


def _wait(child: int, until: float) -> int:
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _become(function: Callable[[], object], log: Path) -> None:
    """Be the child: print to a file, call, and end without the parent's clean-up."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        function()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
