"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from realdata import data_dir

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def boosted_teacher() -> list[str]:
    pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    return ["--data-dir", str(data_dir()), "--part", "20percent", "--epochs", "1"]


ARGUMENTS = {"boosted_teacher": boosted_teacher}
MARKS = {"boosted_teacher": [pytest.mark.realdata]}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=MARKS.get(path.stem, []), id=path.stem) for path in EXAMPLES]
)
def test_an_example_runs_as_it_stands(path, tmp_path):
    run = subprocess.run(
        [sys.executable, str(path), *ARGUMENTS.get(path.stem, list)()],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert "Warning" not in run.stderr
