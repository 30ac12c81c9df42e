"""From a config to its parts."""

from __future__ import annotations

import pytest
import torch
from quick import short

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.methods import build_method
from tgeokd.runs import build
from tgeokd.runs.build import build_student, build_teacher_network, load_data, teacher_seed
from tgeokd.runs.config import RunConfig, preset
from tgeokd.utils.errors import InputError
from tgeokd.utils.validation import replace


def nothing(**notes):
    part = ArrayDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    return TaskData(part, part, part, num_classes=2, inputs=InputSpec("array", (2,)), notes=notes)


def own(*, data_dir=None, seed=0):
    return nothing(folder=data_dir, seed=seed)


def yours(*, data_dir, seed=0, rows: int = 3):
    return nothing(folder=data_dir, seed=seed, rows=rows)


def none(*, seed=0):
    return nothing(seed=seed)


@pytest.fixture
def config(monkeypatch):
    """A config of a task by its name, for tasks that need a folder, may have one, and have none."""
    monkeypatch.setattr(build, "TASKS", {"own": own, "yours": yours, "none": none})
    build._load_data.cache_clear()

    def of(task, **changes) -> RunConfig:
        return replace(short("data={}"), task=task, **changes)

    yield of
    build._load_data.cache_clear()


def test_a_task_that_reads_files_needs_a_folder(config):
    with pytest.raises(InputError, match=r"'yours'.*--data-dir.*TGEOKD_DATA"):
        load_data(config("yours"))


def test_real_tasks_without_a_folder_are_refused_alike():
    for task in ("adult", "nsl_kdd", "cifar100"):
        with pytest.raises(InputError, match=f"'{task}'.*--data-dir"):
            load_data(preset(task))


@pytest.mark.parametrize("task", ["yours", "own"])
def test_a_folder_that_is_not_there_is_refused(config, tmp_path, task):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match=str(path)):
            load_data(config(task, data_dir=str(path)))


def test_the_folder_and_the_seed_reach_the_task(config, tmp_path):
    data = load_data(config("yours", data_dir=str(tmp_path), seed=7, data={"rows": 5}))
    assert data.notes == {"folder": tmp_path, "seed": 7, "rows": 5}
    assert load_data(config("own")).notes == {"folder": None, "seed": 0}
    assert load_data(config("none", data_dir="/not/looked/at")).notes == {"seed": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 3}, "'yours'.*'row'.*'rows'"),
        ({"rows": "3"}, "rows.*'yours'.*int.*'3'"),
        ({"data_dir": "/"}, "data_dir"),
        ({"seed": 3}, "seed"),
    ],
)
def test_options_of_a_task_are_checked(config, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load_data(config("yours", data_dir=str(tmp_path), data=options))


def test_data_is_loaded_once_for_the_runs_of_a_seed_and_again_for_another(config, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    first = config("yours", data_dir=str(tmp_path))
    data = load_data(first)
    assert load_data(replace(first, method="kd", temperature=9.0)) is data
    for changed in ({"seed": 1}, {"data": {"rows": 4}}, {"data_dir": str(other)}):
        assert load_data(replace(first, **changed)).notes != data.notes


# ---- networks


def test_networks_follow_from_the_seed_alone_and_leave_teacher_and_student_different():
    config = short("teacher.model={name: mlp, hidden: [16]}", "seed=5")
    data = load_data(config)
    torch.manual_seed(1)
    first = build_student(config, data)
    torch.manual_seed(2)
    second = build_student(replace(config, method="kd", temperature=1.0), data)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    teacher = build_teacher_network(config, data)
    assert all(a.shape == b.shape for a, b in zip(first.parameters(), teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), teacher.parameters(), strict=True))
    assert teacher_seed(config) != config.seed


@pytest.mark.parametrize("fixed", ["inputs", "num_classes"])
def test_what_follows_from_the_data_cannot_be_set(fixed):
    config = short(f"student.model.{fixed}=3")
    with pytest.raises(InputError, match=rf"model\.{fixed}"):
        build_student(config, load_data(config))


@pytest.mark.parametrize(
    ("settings", "native", "warned"),
    [
        (["precision=bf16-mixed", "accelerator=cpu"], False, True),
        (["precision=bf16-true", "accelerator=cpu"], False, True),
        (["precision=bf16-mixed", "accelerator=cpu"], True, False),
        (["precision=32-true", "accelerator=cpu"], False, False),
    ],
)
def test_emulated_bfloat16_is_logged_once(monkeypatch, caplog, settings, native, warned):
    monkeypatch.setattr(build, "_native_bfloat16", lambda: native)
    build._warn_if_emulated.cache_clear()
    config = short("method=ce", *settings)
    data = load_data(config)
    for _ in range(2):
        model = build_student(config, data)
        build.build_distiller(model, None, build_method("ce"), config, config.student, data, progress=False)
    build._warn_if_emulated.cache_clear()
    messages = [record for record in caplog.records if record.name == build.__name__]
    assert len(messages) == warned
    assert all("bf16" in record.getMessage() for record in messages)
