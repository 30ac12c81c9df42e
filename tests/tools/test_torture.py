"""A small slice of ``make torture``, and that it notices what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tools.torture.children import run
from tools.torture.inject import at_call, disk_full
from tools.torture.report import Row

ROOT = Path(__file__).parents[2]


@pytest.mark.process
@pytest.mark.slow
def test_a_slice_of_the_torture_finds_nothing():
    parts = ["kills", "calls", "signals", "disk"]
    command = [sys.executable, "-m", "tools.torture", "--seconds", "6", "--only", *parts]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("| none |") == len(parts)


def test_faults_are_counted():
    row = Row("tried", Counter({"done": 3, "possible": 9, "other student": 1, "nothing": 0}))
    assert (row.done, row.faults) == (3, {"other student": 1})
    assert str(row) == "| tried | 3 of 9 | other student (1) |"
    assert str(Row("tried", Counter(done=2))) == "| tried | 2 | none |"


def test_the_call_that_is_chosen_fails_and_no_other(tmp_path):
    def write() -> None:
        (tmp_path / "a").write_text("a")
        (tmp_path / "b").write_text("b")
        (tmp_path / "a").replace(tmp_path / "c")

    with at_call(tmp_path, 0, disk_full) as calls:
        write()
    assert calls == ["open a", "open b", "replace a"]
    with at_call(tmp_path, 2, disk_full), pytest.raises(OSError, match="space"):
        write()
    write()


@pytest.mark.process
def test_children_end_with_their_code_and_print_to_their_log(tmp_path):
    log = tmp_path / "log.txt"
    assert run(lambda: None, log).code == 0
    assert run(lambda: sys.exit(3), log).code == 3
    failed = run(lambda: 1 / 0, log)
    assert (failed.code, failed.traceback) == (1, True)
    assert run(lambda: os.kill(os.getpid(), 9), log).code == -9
