"""Hyper-parameters by trials on half of the held-out set: what a trial sees, what is chosen, and what is then run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quick import InlinePool, contents, set_options, short

from tgeokd.data import InputSpec, TaskData
from tgeokd.data.arrays import ArrayDataset
from tgeokd.runs import compare as module
from tgeokd.runs import single as run_module
from tgeokd.runs.build import build_student, load_data
from tgeokd.runs.compare import compare
from tgeokd.runs.config import load_config
from tgeokd.runs.plan import TUNING_SEED, parse_method
from tgeokd.runs.results import RunResults
from tgeokd.runs.search import Trial, trials
from tgeokd.runs.single import halves, run, trial
from tgeokd.runs.teacher import build_teacher
from tgeokd.utils.errors import DivergenceError, InputError

SCRIPT = Path(sys.executable).with_name("tgeokd")


# ---- halves


def held_out_of(target):
    index = torch.arange(len(target))
    part = ArrayDataset(index.float()[:, None], torch.tensor(target, dtype=torch.int64), index)
    return TaskData(part, part, part, num_classes=9, inputs=InputSpec("array", (1,)))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=80), st.integers(0, 100))
def test_halves_are_disjoint_whole_and_share_every_class(target, seed):
    counts = {c: target.count(c) for c in set(target)}
    data = held_out_of(target)
    if max(counts.values()) == 1:
        with pytest.raises(InputError, match=rf"\b{len(target)}\b"):
            halves(data, seed)
        return
    seen, judged = halves(data, seed)
    assert sorted([*seen.ids.tolist(), *judged.ids.tolist()]) == list(range(len(target)))
    for part in (seen, judged):
        assert part.target.tolist() == [target[i] for i in part.ids.tolist()]
    for c, count in counts.items():
        assert int((seen.target == c).sum()) == math.ceil(count / 2)  # a class of one sample is in the first half
        assert int((judged.target == c).sum()) == count // 2
    again = halves(data, seed)
    assert torch.equal(again[0].ids, seen.ids)


def test_which_sample_is_in_which_half_is_drawn_by_the_seed():
    data = held_out_of([0, 1] * 20)
    found = {tuple(halves(data, seed)[0].ids.tolist()) for seed in range(5)}
    assert len(found) == 5


# ---- one trial


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    build_teacher(short(), load_data(short()), path)
    return path


@pytest.fixture
def spied(monkeypatch):
    """What was trained; until then the test set and the half that judges hold nothing but NaN."""
    trained = []
    real_train, real_load, real_halves = run_module._train, run_module.load_data, run_module.halves

    def poisoned(part):
        return ArrayDataset(part.inputs, part.target, part.ids, lambda x: x if trained else x * torch.nan)

    def load(config):
        data = real_load(config)
        return dataclasses.replace(
            data, test=ArrayDataset(data.test.inputs * torch.nan, data.test.target, data.test.ids)
        )

    def split(data, seed):
        seen, judged = real_halves(data, seed)
        return seen, poisoned(judged)

    def train(*args, **options):
        result = real_train(*args, **options)
        trained.append(result[0])
        return result

    monkeypatch.setattr(run_module, "load_data", load)
    monkeypatch.setattr(run_module, "halves", split)
    monkeypatch.setattr(run_module, "_train", train)
    return trained


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        (["method=ce"], 600),
        (["method=tgeo", "options.outer=holdout"], 600),
        (["method=rw"], 600),
        (["method=tgeo"], 700),  # 100 of the 200 held-out samples
        (["method=ce", "train_on=train+val"], 700),
    ],
)
def test_a_trial_never_sees_what_judges_it_nor_the_test_set(teacher, spied, settings, samples):
    config = short(*settings)
    score = trial(config, teacher, teacher.with_suffix(f".{uuid4().hex}"))
    (distiller,) = spied
    assert distiller.step == 2 * math.ceil(samples / 64)
    _, judged = halves(load_data(config), config.seed)
    with torch.no_grad():
        right = distiller.student.eval()(judged.inputs).argmax(dim=1) == judged.target
    assert score.value == pytest.approx(right.double().mean().item())
    assert len(judged) == pytest.approx(100, abs=5)
    assert score.seconds > 0


@pytest.mark.parametrize("settings", [["method=tgeo"], ["method=ce", "train_on=train+val"], ["method=rw"]])
def test_nan_in_the_half_that_is_seen_would_be_noticed(teacher, monkeypatch, settings):
    real = run_module.halves

    def broken(data, seed):
        seen, judged = real(data, seed)
        return ArrayDataset(seen.inputs * torch.nan, seen.target, seen.ids), judged

    monkeypatch.setattr(run_module, "halves", broken)
    with pytest.raises((InputError, DivergenceError)):
        trial(short(*settings), teacher, teacher.with_suffix(f".{uuid4().hex}"))


# ---- a tuned comparison

ROWS = [parse_method(text) for text in ("ce", "kd:alpha=0.5", "kd", "tgeo", "tgeo:outer=union", "ce@train+val")]
SEEDS = (0, 1)
TUNE = 3


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tuned comparison: folder, results, the configs of its trials, and what it said."""
    out = tmp_path_factory.mktemp("tuned") / "tuned"
    tried, said = [], []

    def counted(config, teacher, out):
        tried.append((config, teacher))
        return trial(config, teacher, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
        patch.setattr(module, "trial", counted)
        results = compare(short(), ROWS, SEEDS, out, tune=TUNE, on_event=lambda *event: said.append(event))
    return out, results, tried, said


def test_every_row_has_the_same_number_of_trials(tuned):
    _, results, tried, said = tuned
    assert [record.spec for record in results.tuning] == ROWS
    assert all(len(record.trials) == TUNE for record in results.tuning)
    assert len(tried) == TUNE * len(ROWS)
    assert all(row.tuning_runs == TUNE for row in results.summary)
    for row, record in zip(results.summary, results.tuning, strict=True):
        assert row.tuning_seconds == pytest.approx(sum(each["seconds"] for each in record.trials))
    total = 1 + TUNE * len(ROWS) + len(SEEDS) * (1 + len(ROWS))
    assert [done for _, done, _ in said] == list(range(total + 1))


def test_trials_have_a_split_and_a_teacher_that_no_reported_run_has(tuned):
    out, _, tried, _ = tuned
    assert {config.seed for config, _ in tried} == {TUNING_SEED}
    assert TUNING_SEED not in SEEDS
    (teacher,) = {path for _, path in tried}
    assert teacher.exists()
    reported = [out / "default" / "teacher" / f"seed-{seed}.safetensors" for seed in SEEDS]
    assert teacher.read_bytes() not in [path.read_bytes() for path in reported]


def test_the_best_trial_on_held_out_samples_is_chosen_the_first_of_equals(tuned):
    for record in tuned[1].tuning:
        values = [each["value"] for each in record.trials]
        best = values.index(max(values))
        assert record.chosen == {key: record.trials[best][key] for key in ("options", "settings")}
        assert record.trials[0]["settings"] == {}  # the recipe's own
    firsts = [record.chosen["settings"] == {} for record in tuned[1].tuning]
    assert not all(firsts)  # so short a training is better with another rate


def test_the_trials_are_those_of_the_search(tuned):
    for row, record in zip(ROWS, tuned[1].tuning, strict=True):
        wanted = [dataclasses.asdict(each) for each in trials(row.method, dict(row.options), TUNE, TUNING_SEED)]
        assert [{key: each[key] for key in ("options", "settings")} for each in record.trials] == wanted


def test_what_was_chosen_is_what_every_seed_is_run_with(tuned):
    out, results, _, _ = tuned
    for row, record in zip(ROWS, results.tuning, strict=True):
        choice = Trial(**record.chosen)
        for seed in SEEDS:
            found = load_config(out / "default" / module.slug(row.label) / f"seed-{seed}" / "config.yaml")
            assert found == choice.apply(row.apply(short(f"seed={seed}")))
            assert found.student.optimizer.lr == pytest.approx(0.1 * choice.settings.get("lr_factor", 1))
            assert found.temperature == choice.settings.get("temperature", 2.0)
            assert found.options == record.chosen["options"]


def test_a_seed_gives_every_row_the_same_split_teacher_and_initial_student(tuned):
    out = tuned[0]
    for seed in SEEDS:
        configs = [load_config(out / "default" / module.slug(e.label) / f"seed-{seed}" / "config.yaml") for e in ROWS]
        assert len({json.dumps([c.task, c.data, c.seed, c.teacher.model_dump()]) for c in configs}) == 1
        students = [build_student(config, load_data(config)) for config in configs]
        for student in students[1:]:
            assert all(torch.equal(a, b) for a, b in zip(student.parameters(), students[0].parameters(), strict=True))
    teachers = sorted(path.name for path in (out / "default" / "teacher").glob("*.safetensors"))
    assert teachers == sorted(f"seed-{seed}.safetensors" for seed in (*SEEDS, TUNING_SEED))  # one a seed, not one a row


def test_a_tuned_run_can_be_repeated_from_its_own_config(tuned):
    folder = tuned[0] / "default" / "tgeo" / "seed-1"
    config = load_config(folder / "config.yaml")
    again = run(config, tuned[0] / "default" / "teacher" / "seed-1.safetensors")
    assert again.metrics == RunResults.read(folder / "results.json").run.metrics


def test_resuming_runs_no_finished_trial_again(tuned, tmp_path, monkeypatch):
    copied = tmp_path / "copy"
    shutil.copytree(tuned[0], copied)
    lost = copied / "default" / "kd" / "trial-1.json"
    lost.unlink()
    before = contents(copied, "trial-*.json")
    assert len(before) == TUNE * len(ROWS) - 1
    tried = []

    def counted(config, teacher, out):
        tried.append(config)
        return trial(config, teacher, out)

    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    monkeypatch.setattr(module, "trial", counted)
    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("a finished run was run again"))
    results = compare(short(), ROWS, SEEDS, copied, tune=TUNE, resume=True)
    alpha = results.tuning[2].trials[1]["options"]["alpha"]
    assert [(config.method, config.options) for config in tried] == [("kd", {"alpha": alpha})]
    after = contents(copied, "trial-*.json")
    assert {name: after[name] for name in before} == before
    assert untimed(results) == untimed(tuned[1])


def untimed(results):
    """A comparison's results without what depends on the clock or the machine."""
    timed = ("seconds", "peak_memory_mb", "memory", "tuning_seconds", "wall_seconds", "key")

    def without(value):
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if not key.startswith(timed)}
        return [without(item) for item in value] if isinstance(value, list) else value

    return without(results.to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": -1}, "tune.*-1"),
        ({"tune": 10}, "'ce'.*9.*10"),
        ({"tune": 2, "seeds": (0, TUNING_SEED)}, "1000"),
    ],
)
def test_impossible_searches_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        compare(short(), ROWS, options.get("seeds", SEEDS), tmp_path / "out", tune=options["tune"])
    assert not (tmp_path / "out").exists()


def test_another_number_of_trials_is_another_comparison(tuned):
    before = contents(tuned[0])
    with pytest.raises(InputError, match=r"comparison\.yaml"):
        compare(short(), ROWS, SEEDS, tuned[0], tune=TUNE + 1, resume=True)
    assert contents(tuned[0]) == before


def test_without_trials_their_seed_is_one_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    results = compare(short("student.epochs=1", "teacher.epochs=1"), ROWS[:1], [TUNING_SEED], tmp_path / "out")
    assert [run.seed for run in results.runs] == [TUNING_SEED]
    assert results.tuning == []


# ---- killed in the middle


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_comparison_killed_in_the_middle_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.executors.ProcessPoolExecutor", InlinePool)
    rows = [parse_method(text) for text in ("ce", "kd", "tgeo")]
    settings = ("student.epochs=8", "checkpoint_every=2")
    killed = tmp_path / "killed"
    command = ["compare", "digits", "--methods", "ce,kd,tgeo", "--seeds", "2", "--tune", "2", "--jobs", "1"]
    with subprocess.Popen(
        [SCRIPT, *command, "--out", killed, *set_options(*settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 100
        while not list(killed.glob("*/kd/seed-0/checkpoints/step-*.pt")):  # its trials are done, and a run has begun
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no run was begun"
            time.sleep(0.005)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "workers outlive the comparison and may go on writing into its folder"
    assert not (killed / "results.json").exists()
    before = contents(killed, "trial-*.json")
    assert before

    resumed = compare(
        short(*settings), rows, range(2), killed, tune=2, resume=True, variants=[module.DataVariant("default")]
    )
    whole = compare(short(*settings), rows, range(2), tmp_path / "whole", tune=2)
    assert untimed(resumed) == untimed(whole)
    assert {name: contents(killed, "trial-*.json")[name] for name in before} == before
