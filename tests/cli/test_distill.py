"""``tgeokd distill``, what all commands refuse, and ``tgeokd report``, on digits with two epochs of everything."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
import yaml
from command import COMMAND, ENVIRONMENT, assert_one_line, assert_refused, lines, process, results
from quick import contents, set_options, short

from tgeokd.runs.config import load_config, override, preset, replace
from tgeokd.utils.errors import InputError

RUN_FILES = {"config.yaml", "metrics.jsonl", "student.safetensors", "checkpoints", "results.json", "report.html"}
TINY = set_options("student.epochs=1", "teacher.epochs=1")


def checkpoints(run):
    """Of a run, the oldest first."""
    return sorted((run / "checkpoints").glob("step-*.pt"))


# ---- distill


@pytest.fixture
def distilled(tgeokd_, tmp_path):
    out = tmp_path / "first"
    outcome = tgeokd_("distill", "digits", "--out", out, *set_options("data.noise=0.3"))
    assert outcome.code == 0, outcome.err
    return out, outcome


def test_distill_writes_the_promised_files(distilled):
    out, outcome = distilled
    assert {path.name for path in out.iterdir()} >= RUN_FILES
    assert checkpoints(out)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    metrics = results(out).run.metrics
    for shown in (f"{100 * metrics['accuracy']:.2f}", f"{metrics['nll']:.4f}", str(out / "report.html")):
        assert shown in outcome.out
    assert outcome.err == ""
    assert not list(out.glob(".*"))  # nothing temporary stays


def test_config_yaml_is_everything_needed_to_run_again(distilled, tgeokd_, tmp_path):
    first, _ = distilled
    assert load_config(first / "config.yaml") == short("data.noise=0.3")
    second = tmp_path / "second"
    assert tgeokd_("distill", "--config", first / "config.yaml", "--out", second).code == 0
    for name in ("student.safetensors", "teacher.safetensors", "config.yaml", "ratios.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    assert results(second).run.metrics == results(first).run.metrics
    assert lines(second) == lines(first)


def test_command_line_beats_config_file_beats_nothing(distilled, tgeokd_, tmp_path):
    first, _ = distilled
    third = tmp_path / "third"
    options = ("--config", first / "config.yaml", "--method", "kd", "--seed", 5, "--set", "options.alpha=0.25")
    assert tgeokd_("distill", "digits", *options, "--out", third).code == 0
    expected = override(short("data.noise=0.3", "seed=5", "method=kd"), ["options.alpha=0.25"])
    assert load_config(third / "config.yaml") == expected
    found = results(third).run
    assert (found.method, found.seed, found.options["alpha"]) == ("kd", 5, 0.25)
    assert set(json.loads((third / "ratios.json").read_text())["alpha"]) == {0.25}


def test_another_method_drops_the_options_of_the_config_s_method(tgeokd_, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(short("options.outer=union").to_dict()))
    assert tgeokd_("distill", "--config", config, "--method", "kd", "--out", tmp_path / "kd").code == 0
    assert "outer" not in results(tmp_path / "kd").run.options
    assert tgeokd_("distill", "--config", config, "--method", "tgeo", "--out", tmp_path / "tgeo").code == 0
    assert results(tmp_path / "tgeo").run.options["outer"] == "union"


def test_the_folder_of_a_run_is_named_after_it_by_default(tgeokd_, tmp_path):
    assert tgeokd_("distill", "digits", "--method", "ce", "--seed", 3, *set_options()).code == 0
    assert (tmp_path / "runs" / "digits-ce-3" / "results.json").exists()


# ---- what a user can get wrong: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("argv", "mentioned"),
    [
        (["digits", "--method", "tgoe"], ["'tgoe'", "'tgeo'"]),
        (["digit"], ["'digit'", "'digits'"]),
        (["digits", "--set", "student.epoch=3"], ["'student.epoch'", "'student.epochs'"]),
        (["digits", "--set", "options.outre=union"], ["'outer'"]),
        (["digits", "--set", "data.nose=0.3"], ["'noise'"]),
        (["digits", "--set", "student.model.hiden=[3]"], ["'hidden'"]),
        (["digits", "--set", "student.epochs=many"], ["student.epochs", "'many'"]),
        (["digits", "--set", "student.epochs"], ["--set", "'student.epochs'"]),
        (["digits", "--set", "temperature=0"], ["temperature", "not 0"]),
        (["digits", "--method", "kd", "--set", "options.alpha=2"], ["alpha", "not 2"]),
        (["digits", "--set", "student.model.dropout=2"], ["dropout", "not 2"]),
        (["digits", "--set", "student.optimizer.lr=0"], ["lr", "not 0"]),
        (["digits", "--set", "train_on=train+val"], ["train_on=train+val"]),
        (["digits", "--set", "checkpoint_every=0"], ["checkpoint_every", "not 0"]),
        (["digits", "--set", "student.patience=0"], ["patience", "not 0"]),
        (["digits", "--set", "student.clip_norm=-1"], ["clip_norm", "not -1"]),
        (["digits", "--set", "student.optimizer.momentum=-1"], ["momentum", "-1"]),
        (["digits", "--set", "student.model.inputs=3"], ["inputs"]),
        (["digits", "--set", "options.name=3"], ["'tgeo'", "'name'"]),
        (["digits", "--set", "options.lr=-1"], ["lr", "-1"]),
        (["digits", "--set", "accelerator=gpux"], ["gpux"]),
        (["digits", "--set", "precision=16-mixed"], ["'16-mixed'"]),
        (["digits", "--seed", "-1"], ["seed", "-1"]),
        ([], ["digits", "--config", "--resume"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_distill_refuses_wrong_input(tgeokd_, tmp_path, argv, mentioned):
    assert_refused(tgeokd_("distill", *argv, "--out", tmp_path / "out"), *mentioned)
    assert not (tmp_path / "out").exists()


def test_distill_refuses_a_config_that_is_not_text(tgeokd_, tmp_path):
    (tmp_path / "weights").write_bytes(b"\x80\xff\xfe")
    assert_refused(tgeokd_("distill", "--config", "weights", "--out", tmp_path / "out"), "weights")


def test_a_config_for_another_task_is_refused(tgeokd_, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(short().to_dict()))
    for command in ("distill", "compare"):
        outcome = tgeokd_(command, "cifar", "--config", "mine.yaml", "--out", tmp_path / "out")
        assert_refused(outcome, "'digits'", "'cifar'")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run_is_left_alone(distilled, tgeokd_):
    out, _ = distilled
    before = contents(out)
    for argv in (["distill", "digits"], ["compare", "digits", "--methods", "ce"]):
        assert_refused(tgeokd_(*argv, "--out", out, *set_options()), out)
    assert contents(out) == before


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_folder_that_cannot_be_written_is_refused(tgeokd_, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in ("/proc/nope", tmp_path / "file" / "below", tmp_path / "file"):
        assert_refused(tgeokd_(command, "digits", "--out", out, *set_options()), out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_run_cannot_be_resumed(tgeokd_, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        assert_refused(tgeokd_("distill", "--resume", folder), f"{folder}/config.yaml")
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "argv",
    [
        ["digits"],
        ["--seed", "0"],
        ["--method", "ce"],
        ["--out", "other"],
        ["--config", "mine.yaml"],
    ],
    ids=lambda argv: argv[0],
)
def test_resume_takes_no_other_settings(tgeokd_, tmp_path, argv):
    assert_refused(tgeokd_("distill", *argv, "--resume", tmp_path), "--resume")
    assert not list(tmp_path.iterdir())


def test_a_run_is_resumed_with_a_longer_schedule(tgeokd_, tmp_path):
    cosine = "student.optimizer.schedule=cosine"
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert tgeokd_("distill", "digits", "--out", run, *set_options(cosine)).code == 0
    before = yaml.safe_load((run / "config.yaml").read_text())
    outcome = tgeokd_("distill", "--resume", run, "--set", "student.epochs=5")
    assert outcome.code == 0, outcome.err
    assert tgeokd_("distill", "digits", "--out", whole, *set_options(cosine, "student.epochs=5")).code == 0
    rates = [[line["lr"] for line in lines(folder)] for folder in (run, whole)]
    assert rates[0][2:] == pytest.approx(rates[1][2:])
    assert yaml.safe_load((run / "config-until-epoch-2.yaml").read_text()) == before
    assert yaml.safe_load((run / "config.yaml").read_text())["student"]["epochs"] == 5
    assert tgeokd_("distill", "--resume", run).code == 0  # finished, with its new settings
    assert len(lines(run)) == 5


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("seed=1", ["seed", "student.epochs"]),
        ("data.noise=0.1", ["data.noise", "new run"]),
        ("method=ce", ["method", "new run"]),
        ("student.epoch=5", ["'student.epoch'", "'student.epochs'"]),
        ("student.optimizer.name=adam", ["SGD", "Adam", "student.safetensors"]),
    ],
)
def test_what_cannot_be_changed_in_a_begun_run_is_refused(distilled, tgeokd_, setting, named):
    out, _ = distilled
    before = contents(out)
    assert_one_line(tgeokd_("distill", "--resume", out, "--set", setting), 2, *named)
    assert contents(out) == before


def test_a_config_that_was_edited_by_hand_is_noticed(distilled, tgeokd_):
    out, _ = distilled
    path = out / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["student"]["batch_size"] = 16
    path.write_text(yaml.safe_dump(content))
    assert_one_line(tgeokd_("distill", "--resume", out), 2, "batch_size", 16, "--set")


def test_the_teacher_of_another_config_is_not_taken_over(tgeokd_, tmp_path):
    # a student that fails leaves its teacher behind; the next run in the folder has another split
    failed = tgeokd_("distill", "digits", "--out", tmp_path / "out", *set_options("student.optimizer.lr=1e30"))
    assert failed.code == 3
    again = ("digits", "--seed", 5, *set_options("data.noise=0.5"))
    outcome = tgeokd_("distill", *again, "--out", tmp_path / "out")
    if outcome.code == 2:
        return  # refusing is fine
    assert tgeokd_("distill", *again, "--out", tmp_path / "fresh").code == 0
    teacher = "teacher.safetensors"
    assert (tmp_path / "out" / teacher).read_bytes() == (tmp_path / "fresh" / teacher).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: b"x", lambda whole: whole[:1000]],
    ids=["empty", "text", "cut off"],
)
def test_a_damaged_checkpoint_is_refused(distilled, tgeokd_, damage):
    out, _ = distilled
    for path in checkpoints(out):
        path.write_bytes(damage(path.read_bytes()))
    before = contents(out)
    outcome = tgeokd_("distill", "--resume", out)
    assert_one_line(outcome, 2, checkpoints(out)[0])
    assert "arbitrary code" not in outcome.err  # torch's advice to load it anyway
    assert contents(out) == before


def test_a_run_without_its_checkpoint_cannot_be_resumed(distilled, tgeokd_):
    out, _ = distilled
    for path in checkpoints(out):
        path.unlink()
    assert_one_line(tgeokd_("distill", "--resume", out), 2, out, "checkpoint")


def test_a_student_that_diverges_ends_in_one_line(tgeokd_, tmp_path):
    outcome = tgeokd_("distill", "digits", "--out", tmp_path / "out", *set_options("student.optimizer.lr=1e30"))
    assert_one_line(outcome, 3, "NaN", "step")
    assert not (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "student.safetensors").exists()


# ---- presets and the data folder


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_task_that_reads_files_needs_the_user_s_folder(tgeokd_, tmp_path, monkeypatch, command):
    monkeypatch.delenv("TGEOKD_DATA", raising=False)
    out = ("--out", tmp_path / "out")
    assert_refused(tgeokd_(command, "adult", *out), "'adult'", "--data-dir")
    folder = tmp_path / "nowhere"
    assert_refused(tgeokd_(command, "adult", "--data-dir", folder, *out), folder)
    monkeypatch.setenv("TGEOKD_DATA", str(tmp_path / "from-env"))
    assert_refused(tgeokd_(command, "adult", *out), tmp_path / "from-env")
    assert_refused(tgeokd_(command, "adult", "--data-dir", folder, *out), folder)
    assert not (tmp_path / "out").exists()


def test_the_data_folder_is_in_the_config_as_an_absolute_path(tgeokd_, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    assert tgeokd_("distill", "digits", "--data-dir", "mine", "--out", "a", *TINY).code == 0
    assert load_config(tmp_path / "a" / "config.yaml").data_dir == str(tmp_path / "mine")
    monkeypatch.setenv("TGEOKD_DATA", "theirs")
    assert tgeokd_("distill", "digits", "--out", "b", *TINY).code == 0
    assert load_config(tmp_path / "b" / "config.yaml").data_dir == str(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("argv", "mentioned"),
    [
        (["digits", "--preset", "papr"], ["'papr'", "lite"]),
        (["adult", "--preset", "papr"], ["'papr'", "'paper'"]),
        (["digits", "--preset", "lite", "--config", "mine.yaml"], ["--config", "--preset"]),
    ],
)
def test_wrong_presets_are_refused(tgeokd_, tmp_path, argv, mentioned):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(short().to_dict()))
    for command in ("distill", "compare"):
        assert_refused(tgeokd_(command, *argv, "--out", tmp_path / "out"), *mentioned)
    assert not (tmp_path / "out").exists()


def test_a_preset_is_taken_by_its_name(tgeokd_, tmp_path, monkeypatch):
    ran = []

    def stop(config, *_, **__):
        ran.append(config)
        raise InputError("far enough")

    monkeypatch.setattr("tgeokd.runs.single.check", stop)
    argv = ("distill", "cifar100", "--preset", "paper", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert tgeokd_(*argv).code == 2
    assert ran == [replace(preset("cifar100", "paper"), data_dir=str(tmp_path))]


@pytest.mark.parametrize(
    ("setting", "mentioned"),
    [
        ("teacher.predictions=x.npz", "teacher.predictions"),
        ("teacher={predictions: nowhere.npz}", "nowhere.npz"),
        ("teacher.weights=nowhere.pth", "nowhere.pth"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(tgeokd_, tmp_path, setting, mentioned):
    for command in ("distill", "compare"):
        assert_refused(tgeokd_(command, "digits", "--set", setting, "--out", tmp_path / "out"), mentioned)
    assert not (tmp_path / "out").exists()


# ---- report


def test_report_draws_everything_again(distilled, tgeokd_):
    out, _ = distilled
    figures = sorted(path.name for path in (out / "figures").iterdir())
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    for path in (out / "figures").iterdir():
        path.unlink()
    outcome = tgeokd_("report", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert (out / "report.html").read_text() == page
    assert sorted(path.name for path in (out / "figures").iterdir()) == figures != []


def test_report_of_nothing_is_refused(tgeokd_, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        assert_refused(tgeokd_("report", folder), folder)
    (tmp_path / "results.json").write_text("{")
    assert_refused(tgeokd_("report", tmp_path), "results.json", "JSON")


# ---- killed runs and recipes


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_run_resumes_to_the_numbers_of_an_uninterrupted_one(tgeokd_, tmp_path):
    epochs = 60
    settings = set_options(f"student.epochs={epochs}", "checkpoint_every=3", "data.noise=0.3")
    killed = tmp_path / "killed"
    log = killed / "metrics.jsonl"
    with subprocess.Popen(
        [*COMMAND, "distill", "digits", "--out", killed, *settings],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as run:
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") >= 5):
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline, "no epoch was trained"
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert log.read_text().count("\n") < epochs
    assert not (killed / "results.json").exists()
    assert checkpoints(killed)

    # a finished or begun run is refused without --resume
    assert_refused(tgeokd_("distill", "digits", "--out", killed, *settings), killed)
    resumed = process("distill", "--resume", killed)
    assert resumed.code == 0, resumed.err
    assert "teacher" not in resumed.out.split()  # it was there already

    whole = tmp_path / "whole"
    assert tgeokd_("distill", "digits", "--out", whole, *settings).code == 0
    assert results(killed).run.metrics == results(whole).run.metrics
    assert results(killed).run.epochs == epochs
    for name in ("student.safetensors", "teacher.safetensors", "ratios.json", "config.yaml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(killed) == lines(whole)


def test_the_recipe_is_what_distill_runs_without_settings(tgeokd_, tmp_path, monkeypatch):
    ran = []

    def stop(config, *_, **__):
        ran.append(config)
        raise InputError("far enough")

    monkeypatch.setattr("tgeokd.runs.teacher.build_teacher", stop)
    assert tgeokd_("distill", "digits", "--seed", 2, "--out", tmp_path / "out").code == 2
    assert ran == [replace(preset("digits"), seed=2)]


def test_earlier_names_are_accepted_with_a_warning_and_stored_under_the_new_ones(tgeokd_, tmp_path):
    out = tmp_path / "run"
    ended = tgeokd_("distill", "digits", "--out", out, *set_options("options.every=2"))
    assert ended.code == 0
    assert "'every'" in ended.err
    assert "'update_interval'" in ended.err
    assert yaml.safe_load((out / "config.yaml").read_text())["options"] == {"update_interval": 2}
    ended = tgeokd_("compare", "digits", "--methods", "ls", "--seeds", "1", "--out", tmp_path / "rows", *set_options())
    assert ended.code == 0
    assert "'lskd'" in ended.err
    assert json.loads((tmp_path / "rows" / "results.json").read_text())["runs"][0]["method"] == "lskd"


def test_a_teacher_that_diverges_is_named(tgeokd_, tmp_path):
    settings = set_options("teacher.optimizer.lr=1e8", "teacher.clip_norm=null", "teacher.optimizer.name=sgd")
    ended = tgeokd_("distill", "digits", "--out", tmp_path / "run", *settings)
    assert ended.code == 3
    assert "teacher" in ended.err
