"""The command ``tgeokd``. Nothing in this folder imports torch or another large library before a command runs."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from tgeokd import __version__
from tgeokd.cli.compare import compare
from tgeokd.cli.demo import demo
from tgeokd.cli.distill import distill
from tgeokd.cli.inspect import inspect
from tgeokd.cli.output import Interrupted, console, interruptible, received
from tgeokd.cli.predict import predict
from tgeokd.cli.report import report
from tgeokd.cli.reproduce import reproduce
from tgeokd.cli.teacher_cache import teacher_cache
from tgeokd.training.signals import NUMBERS
from tgeokd.utils.errors import DivergenceError, InputError, StorageError, one_line


class _Commands(TyperGroup):
    # before Typer turns an interrupt into its own exit code, without a word
    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with interruptible():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with interruptible():
            return super().invoke(ctx)


class _Command(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        ctx.params = {
            name: value.expanduser() if isinstance(value, Path) else value for name, value in ctx.params.items()
        }
        return super().invoke(ctx)


app = typer.Typer(
    name="tgeokd",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Distil a large model into a small one and learn, for every sample, how much to trust teacher and label.",
)
for command in (demo, inspect, distill, compare, teacher_cache, predict, report, reproduce):
    app.command(cls=_Command)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tgeokd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is chosen automatically.")] = False,
) -> None:
    from rich.logging import RichHandler

    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[RichHandler(console=console(), show_path=False)])
    logging.getLogger("tgeokd").setLevel(level)


def main() -> None:
    """Run the command. Exit codes: 0 done, 2 wrong input, 3 diverged, 130, 138 or 143 interrupted, 1 anything else."""
    try:
        with _signals(), warnings.catch_warnings():
            warnings.filterwarnings("default", ".* is now called ", DeprecationWarning)
            warnings.showwarning = lambda message, *_: print(f"tgeokd: warning: {message}", file=sys.stderr)
            with interruptible():  # while Typer builds the commands
                code = app(prog_name="tgeokd", standalone_mode=False)
            sys.exit(code)
    except (InputError, DivergenceError) as error:
        _end(f"error: {error}", 2 if isinstance(error, InputError) else 3)
    except Interrupted as error:
        _end(str(error), error.exit_code)
    except (StorageError, OSError, MemoryError, RecursionError) as error:
        _end(f"error: {one_line(error)}", 1)
    except Exception as error:
        # Typer's usage errors, which it would draw a box around; its versions differ in the classes they come from.
        if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
            raise
        if message := error.format_message():
            _end(f"error: {message}", error.exit_code)
        error.show()  # type: ignore[attr-defined]  # no arguments at all: the help
        sys.exit(error.exit_code)


def _end(message: str, code: int) -> NoReturn:
    print(f"tgeokd: {message}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _signals() -> Iterator[None]:
    """Handle SIGTERM and SIGUSR1 like Ctrl-C, and end worker processes with any of them."""
    received.clear()
    before = {number: signal.signal(number, _interrupt) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    from multiprocessing import active_children

    for child in active_children():
        if not child.daemon:  # the others, such as those of data loaders, are ended by their owners
            child.terminate()
    received.append(number)
    raise KeyboardInterrupt(number)
