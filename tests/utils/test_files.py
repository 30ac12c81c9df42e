"""Run folders: what they refuse, their lock, and that no file is ever half written."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from tgeokd.utils import run_folder
from tgeokd.utils.errors import InputError, StorageError
from tgeokd.utils.files import replace_file, slug, write_json
from tgeokd.utils.run_folder import RunFolder


def checkpoint(run):
    """A file that looks like a checkpoint."""
    path = run / run_folder.CHECKPOINTS / "step-000000001.pt"
    path.parent.mkdir(parents=True)
    path.touch()
    path.with_name(f"{path.name}.sha256").touch()


def names(path):
    """Files of a folder, its lock and the checksums apart."""
    return sorted(p.name for p in path.iterdir() if p.name != run_folder.LOCK and p.suffix != ".sha256")


# ---- opening


def test_a_new_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.path.is_dir()
    assert names(folder.path) == []


def test_a_folder_with_other_things_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(str(tmp_path))
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("mark", ["metrics.jsonl", "results.json", "student.safetensors"])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path, mark):
    (tmp_path / mark).write_text("precious")
    with pytest.raises(InputError, match=mark.replace(".", r"\.")):
        RunFolder(tmp_path)
    assert names(tmp_path) == [mark]
    assert (tmp_path / mark).read_text() == "precious"


def test_a_folder_whose_first_checkpoint_was_not_written_to_its_end_can_be_used(tmp_path):
    checkpoint(tmp_path)
    with pytest.raises(InputError, match="checkpoints"):
        RunFolder(tmp_path)
    (tmp_path / run_folder.CHECKPOINTS / "step-000000001.pt.sha256").unlink()
    RunFolder(tmp_path)


@pytest.mark.parametrize("present", [[], ["metrics.jsonl"], ["checkpoints"]])
def test_resuming_without_a_checkpoint_is_refused(tmp_path, present):
    for name in present:
        (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).touch()
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="checkpoint"):
            RunFolder(folder, resume=True)
    assert not (tmp_path / "absent").exists()


def test_a_folder_with_a_checkpoint_can_be_resumed(tmp_path):
    checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    assert RunFolder(tmp_path, resume=True).has_checkpoint


def test_what_writes_no_checkpoints_can_be_resumed_without(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    RunFolder(tmp_path, resume=True, checkpoint_needed=False)
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("kd (alpha=0.5)", "kd-alpha=0.5"), ("CE (train+val)", "CE-train+val"), ("tgeo", "tgeo"), (" a/b  c ", "a-b-c")],
)
def test_folder_names_of_settings(text, name):
    assert slug(text) == name


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below", file / "far" / "below", "/proc/nope", "/dev/null/x"):
        with pytest.raises(InputError, match=str(path)):
            RunFolder(path)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match=str(tmp_path)):
            RunFolder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


# ---- the lock

HOLD = "import sys; from tgeokd.utils.run_folder import RunFolder; folder = RunFolder(sys.argv[1]); print(); input()"
FORK = """
import os, sys, time
from tgeokd.utils.run_folder import RunFolder
folder = RunFolder(sys.argv[1])
if os.fork() == 0:
    time.sleep(60)
print(os.getpid()); input()
"""


def holder(code, path):
    """A process that has opened a run folder and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    return process


@pytest.mark.process
def test_a_folder_in_use_is_refused_with_its_holder_and_free_when_the_holder_is_killed(tmp_path):
    with holder(HOLD, tmp_path) as other:
        with pytest.raises(InputError, match=rf"process {other.pid} on \S+"):
            RunFolder(tmp_path)
        with pytest.raises(InputError, match=rf"process {other.pid} on \S+"):  # the first refusal changed nothing
            RunFolder(tmp_path, resume=True, checkpoint_needed=False)
        other.kill()
        other.wait()
        RunFolder(tmp_path)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_of_a_killed_holder_does_not_hold_the_folder(tmp_path):
    with holder(FORK, tmp_path) as other:
        other.kill()
        other.wait()
        RunFolder(tmp_path)


def test_the_lock_is_shared_within_a_process_and_released_with_its_last_folder(tmp_path):
    lock = tmp_path / run_folder.LOCK
    with RunFolder(tmp_path) as first:
        second = RunFolder(tmp_path / ".." / tmp_path.name)
        assert str(os.getpid()) in lock.read_text()
    assert lock.exists()
    second.close()
    assert not lock.exists()
    third = RunFolder(tmp_path)
    assert lock.exists()
    del third
    gc.collect()
    assert not lock.exists()
    assert first.path == tmp_path


def test_a_lock_file_that_nobody_holds_does_not_block(tmp_path):
    (tmp_path / run_folder.LOCK).write_text("process 1 on elsewhere\n")
    started = time.monotonic()
    folder = RunFolder(tmp_path)
    assert time.monotonic() - started < run_folder.LOCK_SECONDS
    assert str(os.getpid()) in (folder.path / run_folder.LOCK).read_text()


def test_resuming_removes_the_temporary_files_of_killed_processes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    left = [tmp_path / ".results.json.4711.tmp", tmp_path / "checkpoints" / ".step-1.pt.4711.tmp"]
    kept = [tmp_path / ".mine.tmp", tmp_path / "notes.1.tmp"]
    for path in (*left, *kept):
        path.write_text("half of")
    RunFolder(tmp_path, resume=True, checkpoint_needed=False)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


# ---- writing


def test_files_round_trip(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("results.json", {"a": [1, 2.5, None]})
    folder.write_yaml("config.yaml", {"b": {"x": 1}, "a": [1, 2]})
    folder.write_lines("metrics.jsonl", [{"epoch": 0}, {"epoch": 1}])
    folder.append_line("metrics.jsonl", {"epoch": 2})
    write_json(tmp_path / "same.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "same.json").read_bytes() == (tmp_path / "results.json").read_bytes()
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": [1, 2.5, None]}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"b": {"x": 1}, "a": [1, 2]}
    assert (tmp_path / "config.yaml").read_text().startswith("b:")  # in the order given
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 0}, {"epoch": 1}, {"epoch": 2}]
    assert names(tmp_path) == ["config.yaml", "metrics.jsonl", "results.json", "same.json"]


# ---- a writer that fails


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("results.json", {"old": 1})
    with pytest.raises(TypeError):
        folder.write_json("results.json", {"new": object()})
    assert json.loads((tmp_path / "results.json").read_text()) == {"old": 1}
    assert names(tmp_path) == ["results.json"]


def test_a_writer_that_breaks_off_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old and whole")

    def broken(target):
        assert target != path
        target.write_text("new but ha")
        raise OSError("disk full")

    with pytest.raises(StorageError, match="disk full"):
        replace_file(path, broken)
    assert path.read_text() == "old and whole"
    assert names(tmp_path) == ["file"]


def test_while_a_file_is_written_the_old_one_can_be_read(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(target):
        target.write_text("new")
        seen.append(path.read_text())

    replace_file(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]
