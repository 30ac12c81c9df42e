"""What the tests of the command line share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from quick import Outcome

from tgeokd.runs.results import read

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
COMMAND = [sys.executable, "-m", "tgeokd"]


def process(*argv: object) -> Outcome:
    """The command as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, argv)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def assert_one_line(outcome: Outcome, code: int, *mentioned: object) -> None:
    """The command ended with this exit code and one line that mentions all of these."""
    assert outcome.code == code, outcome
    assert outcome.err.startswith("tgeokd: "), outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert [word for word in map(str, mentioned) if word not in outcome.err] == [], outcome.err


def assert_refused(outcome: Outcome, *mentioned: object) -> None:
    """The command refused its input, with one line that mentions all of these, and printed nothing else."""
    assert_one_line(outcome, 2, *mentioned)
    assert outcome.out.strip() == ""


def results(folder: Path) -> Any:
    """The results of a run or a comparison."""
    return read(folder / "results.json")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run, without their times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
