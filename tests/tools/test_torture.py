"""A small slice of ``make torture``, and that it notices what is wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tgeokd.utils.errors import InputError
from tools.torture.children import run
from tools.torture.damage import HARMLESS, KINDS, Kind, try_kind
from tools.torture.inject import at_call, disk_full
from tools.torture.malicious import CONTAINERS, PAYLOADS, attacks
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


@pytest.mark.process
@pytest.mark.slow
def test_a_slice_of_the_damage_is_noticed():
    for name in ("CIFAR archive, checksum=any", "teacher cache, logits", "predictions, npz", "csv.gz"):
        counts = try_kind(KINDS[name], seed=1, seconds=2)
        assert counts["done"] > 10
        assert set(counts) <= {"done", *HARMLESS}, (name, counts)
        assert counts[HARMLESS[2]] == 0


def test_damage_that_goes_unnoticed_is_counted():
    blind = Kind(KINDS["csv"].make, KINDS["csv"].read)
    counts = try_kind(blind, seed=0, seconds=1)
    assert counts["silently something else"] > 0


def test_there_are_enough_malicious_files():
    names = [name for name, _, _ in attacks()]
    assert len(names) == len(set(names)) >= 120


@pytest.mark.parametrize("name", ["os.system", "exec"])
def test_a_payload_would_be_executed_by_a_reader_that_trusts_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORTURE_CANARY", str(tmp_path / "canary"))
    pickle.loads(PAYLOADS[name])
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_reader_executes_it(tmp_path, monkeypatch, container):
    monkeypatch.setenv("TORTURE_CANARY", str(tmp_path / "canary"))
    make, read = CONTAINERS[container]
    path = make(PAYLOADS["exec"], tmp_path)
    with pytest.raises(InputError):
        read(path)
    assert not (tmp_path / "canary").exists()


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
