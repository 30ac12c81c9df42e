"""What the analyses share: what they return, and running one job a seed in processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tgeokd.runs.config import RunConfig, replace
from tgeokd.runs.executors import LocalProcesses, call_all
from tgeokd.utils.errors import InputError
from tgeokd.utils.files import RunFolder

__all__ = ["Analysis", "Findings", "in_processes", "kept", "over_seeds"]

T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What an analysis came to.

    Attributes:
        data: plain JSON: everything the figure and the lines are made from.
        lines: three sentences with the numbers, made from ``data``.
        draw: writes the figure as a PNG.
    """

    data: dict[str, Any]
    lines: list[str]
    draw: Callable[[Path], object]


Analysis = Callable[[RunConfig, Sequence[int], Path, int | None], Findings]
"""``(config, seeds, out, jobs)`` to its findings; it checks the config before it writes anything below ``out``."""


def in_processes(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], jobs: int | None) -> list[T]:
    """``function(*each)`` for each of the arguments, in worker processes; the results in the order of the arguments.

    Args:
        function: of a module, so that a process that starts afresh finds it.
        arguments: one tuple a call.
        jobs: processes; None for one a core, never more than there are calls.
    """
    return call_all(function, arguments, LocalProcesses(jobs))


def over_seeds(
    measure: Callable[[RunConfig, Path], dict[str, Any]],
    config: RunConfig,
    seeds: Sequence[int],
    out: Path,
    jobs: int | None,
) -> list[dict[str, Any]]:
    """What a job finds under each seed; it is given the config with the seed, and the file that keeps its result."""
    calls = [(replace(config, seed=seed), out / "runs" / f"seed-{seed}.json") for seed in seeds]
    return in_processes(measure, calls, jobs)


def kept(path: Path, config: RunConfig, compute: Callable[[RunConfig], dict[str, Any]]) -> dict[str, Any]:
    """What is computed of a config, or what an earlier call computed of the same config and wrote to a file.

    Raises:
        InputError: where the file holds what was computed of another config.
    """
    if path.exists():
        content = json.loads(path.read_text())
        if content["config"] != json.loads(json.dumps(config.to_dict())):
            raise InputError(f"{path} was made with other settings; choose another folder")
        found: dict[str, Any] = content["found"]
        return found
    found = compute(config)
    folder = RunFolder(path.parent, resume=True, checkpoint_needed=False)
    folder.write_json(path.name, {"config": config.to_dict(), "found": found})
    return found
