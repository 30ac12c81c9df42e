"""What the commands print, and how they end when they are interrupted."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Interrupted(Exception):  # noqa: N818  # not an error
    """The command was interrupted by a signal; ``advice`` tells the user how to continue."""

    def __init__(self, signal_number: int, advice: str) -> None:
        super().__init__(f"interrupted; {advice}" if advice else "interrupted")
        self.exit_code = 128 + signal_number


received: list[int] = []  # signals that have interrupted this command


@contextmanager
def interruptible(advice: str = "") -> Iterator[None]:
    """Turn an interrupt into :class:`Interrupted`, with advice on how to continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(error.args[0] if error.args else signal.SIGINT, advice) from error
    except Exception as error:
        # A library may turn the interrupt into an error of its own: matplotlib's renderer does.
        if not received or isinstance(error, Interrupted):
            raise
        raise Interrupted(received[-1], advice) from error


@cache
def console() -> Console:
    """The console for standard output."""
    from rich.console import Console

    return Console()


def say(text: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    console().print(text, markup=False, highlight=False, soft_wrap=True)


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """The metrics of the test set on one line."""
    from tgeokd.report.tables import formatted, title

    of_test = {name: value for name, value in metrics.items() if not name.startswith("val_") and "/" not in name}
    return "test " + ", ".join(f"{title(name)} {formatted(name, value)}" for name, value in of_test.items())
