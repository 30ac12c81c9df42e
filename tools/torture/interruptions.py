"""Trainings that are killed, signalled, or find the disk full; continued, they end bit for bit like an undisturbed one."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tools.torture import inject
from tools.torture.children import Ended, kill_after, run
from tools.torture.report import Row
from tools.torture.trainings import DISTILL, FIT, TRAININGS, Training, result

MOST = 60  # times that a training is continued


class Undisturbed:
    """The result of each training without interruptions, how long it takes, and its calls that change files."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, list[str]] = {}
        for training in TRAININGS:
            with folder() as place:
                self._make(training, place)

    def _make(self, training: Training, place: Path) -> None:
        def listed() -> None:
            with inject.at_call(place, 0, inject.die) as calls:
                try:
                    training.go(place)
                finally:
                    (place.parent / f"{place.name}.calls").write_text("\n".join(calls))

        ended = run(listed, place / "log.txt")
        if ended.code != 0:
            raise RuntimeError(
                f"the undisturbed training {training.name!r} ended with {ended.code}: {ended.err[-2000:]}"
            )
        listing = place.parent / f"{place.name}.calls"
        self.calls[training.name] = listing.read_text().splitlines()
        listing.unlink()
        self.results[training.name], self.seconds[training.name] = result(place), ended.seconds


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder."""
    place = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def kills(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """SIGKILL at random moments, of each training in turn, until the time is over."""
    rng, counts, until = random.Random(seed), Counter[str](), time.monotonic() + seconds
    turn = 0
    while time.monotonic() < until or turn < len(TRAININGS):
        training = TRAININGS[turn % len(TRAININGS)]
        turn += 1
        with folder() as place:

            def kill(_: int, training: Training = training) -> Callable[[int], None] | None:
                return kill_after(rng.uniform(0, undisturbed.seconds[training.name]))

            _to_the_end(training, place, undisturbed, counts, kill)
    return Row("SIGKILL at random moments, continued: final student, metrics and ratios bit-identical", counts)


def kills_at_calls(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """SIGKILL at each call that changes a file, once each; a random choice of them where the time is short."""
    return _at_calls("SIGKILL at every call that changes a file, once each", inject.die, seconds, seed, undisturbed)


def full_disk(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """ENOSPC at each call that changes a file: one line, exit code 1, and continued."""
    return _at_calls(
        "ENOSPC at every call that changes a file, once each", inject.disk_full, seconds, seed, undisturbed
    )


def small_disks(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """The command on file systems of random small sizes, which then grow; needs the right to mount them."""
    rng, counts, until = random.Random(seed), Counter[str](), time.monotonic() + seconds
    while time.monotonic() < until or not counts["done"]:
        with folder() as place:
            size = rng.randrange(8, 1200)
            if not _mount(place, f"size={size}k"):
                return Row("small file systems, which then grow (no right to mount them here)", counts)
            try:
                log = place.with_suffix(".log")
                ended = run(partial(DISTILL.go, place), log)
                if wrong := _not_one_line(ended):
                    counts[f"{wrong} ({size} KiB)"] += 1
                _mount(place, "remount,size=64m")
                _to_the_end(DISTILL, place, undisturbed, Counter(), lambda _: None, counts)
                counts["done"] += 1
                log.unlink()
            finally:
                subprocess.run(["umount", place], check=True)
    return Row("small file systems, full at some write, which then grow: one line, continued bit-identical", counts)


def _mount(place: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def signals(seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    """SIGINT and SIGTERM at random moments of the command: the exit code, how soon, and the end after it is continued."""
    rng, counts, until = random.Random(seed), Counter[str](), time.monotonic() + seconds
    turn = 0
    while time.monotonic() < until or turn < 2:
        number = (signal.SIGINT, signal.SIGTERM)[turn % 2]
        turn += 1
        with folder() as place:
            sent: list[float] = []

            def send(child: int, number: int = number, sent: list[float] = sent) -> None:
                kill_after(rng.uniform(0.05, undisturbed.seconds[DISTILL.name]), number)(child)
                sent.append(time.monotonic())

            ended = run(partial(DISTILL.go, place), place / "log.txt", send)
            if ended.code == 0:  # it was too late
                continue
            late = time.monotonic() - sent[0] > 5
            good = ended.code == 128 + number and not ended.traceback and "interrupted" in ended.err and not late
            counts["done"] += 1
            if not good:
                how = f"exit code {ended.code}{', late' if late else ''}: {ended.last_line}"
                counts[f"{signal.Signals(number).name}: {how}"] += 1
            _to_the_end(DISTILL, place, undisturbed, Counter(), lambda _: None, counts)
    return Row("SIGTERM / SIGINT: within 5 s, exit code 143 / 130, continued bit-identical", counts)


def _at_calls(what: str, action: Callable[[str], None], seconds: float, seed: int, undisturbed: Undisturbed) -> Row:
    rng, counts, until = random.Random(seed), Counter[str](), time.monotonic() + seconds
    # those of a comparison are of the same kinds as those of its runs
    places = [(t, number) for t in (FIT, DISTILL) for number in range(1, len(undisturbed.calls[t.name]) + 1)]
    counts["possible"] = len(places)
    rng.shuffle(places)
    for training, number in places:
        if time.monotonic() > until:
            break
        with folder() as place:

            def disturbed(training: Training = training, number: int = number, place: Path = place) -> None:
                with inject.at_call(place, number, action):
                    training.go(place)

            ended = run(disturbed, place / "log.txt")
            name = f"{training.name}, {undisturbed.calls[training.name][number - 1]}"
            if action is inject.disk_full and (wrong := _not_one_line(ended)):
                counts[f"{wrong} ({name})"] += 1
            before = Counter(counts)
            _to_the_end(training, place, undisturbed, Counter(), lambda _: None, counts)
            counts["done"] += 1
            if counts.total() - before.total() > 1:
                counts[f"at {name}"] += 1
    return Row(what, counts)


def _not_one_line(ended: Ended) -> str:
    """What is wrong with the end of a command that could not write; nothing where a part that is not needed failed."""
    if ended.code == 0:
        return ""
    errors = [line for line in ended.err.splitlines() if line.startswith("tgeokd: error:")]
    if ended.traceback and "StorageError" not in ended.err.splitlines()[-1]:  # of the Python interface: the exception
        return f"traceback: {ended.last_line}"
    if not ended.traceback and (ended.code != 1 or len(errors) != 1):
        return f"exit code {ended.code}, {len(errors)} lines"
    return ""


def _to_the_end(
    training: Training,
    place: Path,
    undisturbed: Undisturbed,
    counts: Counter[str],
    disturb: Callable[[int], Callable[[int], None] | None],
    faults: Counter[str] | None = None,
) -> None:
    """Continue a training, disturbed or not, until it has ended, and compare its result."""
    faults = counts if faults is None else faults
    for turn in range(MOST):
        watch = disturb(turn) if turn < MOST - 1 else None
        ended = run(partial(training.go, place), place / "log.txt", watch)
        if ended.code == 0:
            break
        counts["done"] += 1
        if ended.code != -signal.SIGKILL:
            faults[f"{training.name} ended with {ended.code}: {ended.last_line}"] += 1
            return
    found, expected = result(place), undisturbed.results[training.name]
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        faults[f"{training.name}: other {', '.join(wrong)[:160]}"] += 1
