from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from quick import Outcome, contents, set_options, short
from typer.testing import CliRunner

import tgeokd
from tgeokd.cli import main as cli
from tgeokd.data import TASKS
from tgeokd.methods import METHODS
from tgeokd.runs.config import load_config, override, preset
from tgeokd.runs.demo import DEMO_ROWS
from tgeokd.utils.validation import replace

SCRIPT = Path(sys.executable).with_name("tgeokd")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
RUN_FILES = {"config.yaml", "metrics.jsonl", "student.safetensors", "last.ckpt", "results.json", "report.html"}


def process(*argv, **options):
    """The installed command as a process of its own."""
    return subprocess.run(
        [SCRIPT, *map(str, argv)], env=ONE_THREAD, capture_output=True, text=True, timeout=300, **options
    )


def assert_refused(outcome: Outcome, message: str):
    assert outcome.code == 2, outcome
    assert re.search(message, outcome.err), outcome.err
    assert outcome.err.startswith("tgeokd: error: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.out.strip() == ""


def results(folder: Path):
    return json.loads((folder / "results.json").read_text())


# ---- help, version, completion


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["demo", "distill", "compare", "report", "--version", "--verbose", "--help"]),
        (["demo"], ["--out", "--seeds", "--jobs", "runs/demo"]),
        (
            ["distill"],
            [
                "--config",
                "--method",
                "--seed",
                "--out",
                "--resume",
                "--set",
                "KEY=VALUE",
                "config.yaml",
                "digits",
                "tgeo",
            ],
        ),
        (
            ["compare"],
            ["--methods", "--seeds", "--out", "--config", "--set", "--jobs", "--resume", "ce@train+val", "digits"],
        ),
        (["report"], ["DIR", "report.html"]),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "",
)
def test_help_names_every_option(command, words):
    result = CliRunner().invoke(cli.app, [*command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
    assert result.exit_code == 0
    assert [word for word in words if word not in result.output] == []


def test_help_of_compare_shows_how_rows_are_written_in_80_columns():
    result = CliRunner().invoke(cli.app, ["compare", "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert "ce@train+val" in result.output
    assert "…" not in result.output


@pytest.mark.parametrize("default", ["default: tgeo", "default: 0", "default: runs/TASK-METHOD-SEED"])
def test_help_of_distill_names_its_defaults(default):
    result = CliRunner().invoke(cli.app, ["distill", "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
    assert default in result.output


def test_no_command_shows_the_help(tgeokd_):
    outcome = tgeokd_()
    assert "Usage: tgeokd" in outcome.out + outcome.err
    assert "distill" in outcome.out + outcome.err


def test_the_version(tgeokd_):
    assert tgeokd_("--version") == Outcome(0, f"tgeokd {tgeokd.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_a_shell(shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is then named, not looked for
    result = CliRunner().invoke(cli.app, ["--show-completion", shell], prog_name="tgeokd")
    assert result.exit_code == 0
    assert "_TGEOKD_COMPLETE" in result.output


def test_completion_offers_tasks_and_methods():
    def offered(words):
        env = {
            "_TGEOKD_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return CliRunner().invoke(cli.app, [], env=env, prog_name="tgeokd").output.split()

    assert offered("tgeokd distill --method ") == list(METHODS)
    assert offered("tgeokd compare ") == list(TASKS)


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
    assert (out / "last.ckpt" / "state.pt").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    metrics = results(out)["metrics"]
    assert f"test accuracy, % {100 * metrics['accuracy']:.2f}, NLL {metrics['nll']:.4f}" in outcome.out
    assert f"report: {out / 'report.html'}" in outcome.out.replace("\n", "")
    assert outcome.err == ""
    assert not list(out.glob(".*"))  # nothing temporary stays


def test_config_yaml_is_everything_needed_to_run_again(distilled, tgeokd_, tmp_path):
    first, _ = distilled
    assert load_config(first / "config.yaml") == short("data.noise=0.3")
    second = tmp_path / "second"
    assert tgeokd_("distill", "--config", first / "config.yaml", "--out", second).code == 0
    for name in ("student.safetensors", "teacher.safetensors", "config.yaml", "ratios.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes(), name
    assert results(second)["metrics"] == results(first)["metrics"]

    def timeless(folder):
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in record.items() if key != "seconds"} for record in records]

    assert timeless(second) == timeless(first)


def test_command_line_beats_config_file_beats_nothing(distilled, tgeokd_, tmp_path):
    first, _ = distilled
    third = tmp_path / "third"
    options = ("--config", first / "config.yaml", "--method", "kd", "--seed", 5, "--set", "options.alpha=0.25")
    assert tgeokd_("distill", "digits", *options, "--out", third).code == 0
    expected = override(short("data.noise=0.3", "seed=5", "method=kd"), ["options.alpha=0.25"])
    assert load_config(third / "config.yaml") == expected
    assert (results(third)["method"], results(third)["seed"], results(third)["options"]) == ("kd", 5, {"alpha": 0.25})
    assert set(json.loads((third / "ratios.json").read_text())["alpha"]) == {0.25}


def test_another_method_drops_the_options_of_the_config_s_method(tgeokd_, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(short("options.outer=union").to_dict()))
    assert tgeokd_("distill", "--config", config, "--method", "kd", "--out", tmp_path / "kd").code == 0
    assert results(tmp_path / "kd")["options"] == {}
    assert tgeokd_("distill", "--config", config, "--method", "tgeo", "--out", tmp_path / "tgeo").code == 0
    assert results(tmp_path / "tgeo")["options"] == {"outer": "union"}


def test_the_folder_of_a_run_is_named_after_it_by_default(tgeokd_, tmp_path):
    assert tgeokd_("distill", "digits", "--method", "ce", "--seed", 3, *set_options()).code == 0
    assert (tmp_path / "runs" / "digits-ce-3" / "results.json").exists()


# ---- what a user can get wrong: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits", "--method", "tgoe"], "unknown method 'tgoe'; did you mean 'tgeo'"),
        (["digit"], "unknown task 'digit'; did you mean 'digits'"),
        (["digits", "--set", "student.epoch=3"], r"unknown setting 'student\.epoch'; did you mean 'student\.epochs'"),
        (["digits", "--set", "options.outre=union"], "did you mean 'outer'"),
        (["digits", "--set", "data.nose=0.3"], "did you mean 'noise'"),
        (["digits", "--set", "student.model.hiden=[3]"], "did you mean 'hidden'"),
        (["digits", "--set", "student.epochs=many"], r"student\.epochs must be of type int, not 'many'"),
        (["digits", "--set", "student.epochs"], "--set takes key=value, not 'student.epochs'"),
        (["digits", "--set", "temperature=0"], "temperature must be > 0, not 0"),
        (["digits", "--method", "kd", "--set", "options.alpha=2"], r"alpha must lie in \[0, 1\], not 2"),
        (["digits", "--set", "student.model.dropout=2"], r"dropout must lie in \[0, 1\), not 2"),
        (["digits", "--set", "student.optimizer.lr=0"], "lr must be > 0, not 0"),
        (["digits", "--set", "train_on=train+val"], "train_on=train\\+val leaves none"),
        (["digits", "--set", "checkpoint_every=0"], "checkpoint_every must be >= 1, not 0"),
        (["digits", "--set", "student.patience=0"], "patience must be >= 1"),
        (["digits", "--set", "student.clip_norm=-1"], "clip_norm must be > 0, not -1"),
        (["digits", "--set", "student.optimizer.momentum=-1"], "momentum"),
        (["digits", "--set", "student.model.inputs=3"], "inputs follows from the data"),
        (["digits", "--set", "options.name=3"], "unknown option of method 'tgeo' 'name'"),
        (["digits", "--set", "options.lr=-1"], "lr"),
        (["digits", "--set", "accelerator=gpux"], "gpux"),
        (["digits", "--set", "precision=16-mixed"], "precision '16-mixed'"),
        (["digits", "--seed", "-1"], "seed must lie in"),
        ([], r"name a task \(digits, .*\), or give --config or --resume"),
        (["--config", "nowhere.yaml"], "cannot read the config nowhere.yaml: No such file or directory"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_distill_refuses_wrong_input(tgeokd_, tmp_path, argv, message):
    assert_refused(tgeokd_("distill", *argv, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_distill_refuses_a_config_that_is_not_text(tgeokd_, tmp_path):
    (tmp_path / "weights").write_bytes(b"\x80\xff\xfe")
    assert_refused(tgeokd_("distill", "--config", "weights", "--out", tmp_path / "out"), "weights")


def test_a_config_for_another_task_is_refused(tgeokd_, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(short().to_dict()))
    for command in ("distill", "compare"):
        outcome = tgeokd_(command, "cifar", "--config", "mine.yaml", "--out", tmp_path / "out")
        assert_refused(outcome, "the config is for task 'digits', not 'cifar'")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_run_is_left_alone(distilled, tgeokd_):
    out, _ = distilled
    before = contents(out)
    for argv in (["distill", "digits"], ["compare", "digits", "--methods", "ce"]):
        assert_refused(tgeokd_(*argv, "--out", out, *set_options()), "already holds a run .*; choose another folder")
    assert contents(out) == before


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_folder_that_cannot_be_written_is_refused(tgeokd_, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    for out in ("/proc/nope", tmp_path / "file" / "below", tmp_path / "file"):
        assert_refused(tgeokd_(command, "digits", "--out", out, *set_options()), f"cannot write to the folder {out}: ")
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
        ["--set", "seed=1"],
        ["--out", "other"],
        ["--config", "mine.yaml"],
    ],
    ids=lambda argv: argv[0],
)
def test_resume_takes_no_other_settings(tgeokd_, tmp_path, argv):
    assert_refused(tgeokd_("distill", *argv, "--resume", tmp_path), "--resume continues a run with its own settings")
    assert not list(tmp_path.iterdir())


def test_the_teacher_of_another_config_is_not_taken_over(tgeokd_, tmp_path):
    # a student that fails leaves its teacher behind; the next run in the folder has another split
    failed = tgeokd_("distill", "digits", "--out", tmp_path / "out", *set_options("student.optimizer.lr=1e30"))
    assert failed.code == 2
    again = ("digits", "--seed", 5, *set_options("data.noise=0.5"))
    outcome = tgeokd_("distill", *again, "--out", tmp_path / "out")
    if outcome.code == 2:
        return  # refusing is fine
    assert tgeokd_("distill", *again, "--out", tmp_path / "fresh").code == 0
    teacher = "teacher.safetensors"
    assert (tmp_path / "out" / teacher).read_bytes() == (tmp_path / "fresh" / teacher).read_bytes()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["distill", "digits", "--seed", "abc"], "--seed"),
        (["distill", "digits", "--bogus"], "--bogus"),
        (["distill", "digits", "--out"], "--out"),
        (["compare", "digits", "--seeds", "0"], "--seeds"),
        (["compare"], "task"),
        (["bogus"], "bogus"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_refused_in_one_line(tgeokd_, argv, message):
    assert_refused(tgeokd_(*argv), message)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            lambda whole: b"",
        ),
        lambda whole: b"x",
        lambda whole: whole[:1000],
    ],
    ids=["empty", "text", "cut off"],
)
def test_a_damaged_checkpoint_is_refused(distilled, tgeokd_, damage):
    out, _ = distilled
    checkpoint = out / "last.ckpt" / "state.pt"
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    before = contents(out)
    outcome = tgeokd_("distill", "--resume", out)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert re.search(r"cannot read the checkpoint .*state\.pt", outcome.err)
    assert contents(out) == before


def test_a_damaged_checkpoint_brings_no_dangerous_advice(distilled, tgeokd_):
    out, _ = distilled
    (out / "last.ckpt" / "state.pt").write_bytes(b"x")
    assert "arbitrary code" not in tgeokd_("distill", "--resume", out).err


def test_a_run_without_its_checkpoint_cannot_be_resumed(distilled, tgeokd_):
    out, _ = distilled
    (out / "last.ckpt" / "state.pt").unlink()
    outcome = tgeokd_("distill", "--resume", out)
    assert outcome.code == 2
    assert "holds no checkpoint to resume from" in outcome.err


def test_a_student_that_diverges_ends_in_one_line(tgeokd_, tmp_path):
    outcome = tgeokd_("distill", "digits", "--out", tmp_path / "out", *set_options("student.optimizer.lr=1e30"))
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "the student's logits are NaN or infinite in step" in outcome.err
    assert not (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "student.safetensors").exists()


# ---- compare and demo


def test_compare_prints_the_table_of_its_results(tgeokd_, tmp_path):
    out = tmp_path / "out"
    rows = "ce,kd:alpha=0.5, tgeo:outer=union ,ce@train+val"
    outcome = tgeokd_(
        "compare", "digits", "--methods", rows, "--seeds", 2, "--out", out, *set_options("data.noise=0.3")
    )
    assert outcome.code == 0, outcome.err
    found = results(out)
    assert [row["method"] for row in found["summary"]] == [
        "ce",
        "kd (alpha=0.5)",
        "tgeo (outer=union)",
        "ce (train+val)",
    ]
    assert {r["seed"] for r in found["runs"]} == {0, 1}
    for row in found["summary"]:
        shown = f"{100 * row['accuracy_mean']:.2f} ± {100 * row['accuracy_std']:.2f}"
        assert any(row["method"] in line and shown in line for line in outcome.out.splitlines()), row["method"]
    teachers = [record["metrics"]["accuracy"] for record in found["teachers"]]
    assert f"teacher accuracy, % {100 * sum(teachers) / 2:.2f}" in " ".join(outcome.out.split())
    assert (out / "report.html").exists()
    assert "data.noise" not in outcome.out


def test_compare_resumes(tgeokd_, tmp_path):
    argv = ("compare", "digits", "--methods", "ce,kd", "--seeds", 1, "--out", tmp_path / "out", *set_options())
    assert tgeokd_(*argv).code == 0
    before = results(tmp_path / "out")
    assert_refused(tgeokd_(*argv), "already holds a comparison; choose another folder, or resume it")
    assert tgeokd_(*argv, "--resume").code == 0
    before |= {"wall_seconds": results(tmp_path / "out")["wall_seconds"]}
    assert results(tmp_path / "out") == before
    assert_refused(tgeokd_(*argv, "--resume", "--seeds", 2), "has other settings than this one")
    assert results(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits", "--methods", "ce,tgoe"], "unknown method 'tgoe'; did you mean 'tgeo'"),
        (["digits", "--methods", "ce,ce"], "two rows of the comparison are the same"),
        (["digits", "--methods", " , "], "at least one method"),
        (["digits", "--methods", "kd:alpha=2"], r"alpha must lie in \[0, 1\], not 2"),
        (["digits", "--methods", "kd:alpha"], "written method:key=value"),
        (["digits", "--methods", "ce@all"], "must end in @train or @train\\+val"),
        (["digits", "--methods", "ce", "--set", "seeds=3"], "unknown setting 'seeds'; did you mean 'seed'"),
        (["digit", "--methods", "ce"], "unknown task 'digit'; did you mean 'digits'"),
    ],
    ids=lambda value: " ".join(value[1:3]) if isinstance(value, list) else "",
)
def test_compare_refuses_wrong_input(tgeokd_, tmp_path, argv, message):
    assert_refused(tgeokd_("compare", *argv, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_compare_takes_lists_as_options(tgeokd_, tmp_path):
    outcome = tgeokd_(
        *("compare", "digits", "--methods", "ce,tgeo:hidden=[8,4]", "--seeds", 1),
        *("--out", tmp_path / "out", *set_options()),
    )
    assert outcome.code == 0
    assert [row["method"] for row in results(tmp_path / "out")["summary"]] == ["ce", "tgeo (hidden=[8, 4])"]


def test_demo_tells_the_whole_story(tgeokd_, tmp_path, monkeypatch):
    rows = [entry for entry in DEMO_ROWS if entry.method in ("ce", "tgeo")]  # all rows: tests/experiments/test_demo.py
    monkeypatch.setattr(cli, "DEMO_ROWS", rows)
    monkeypatch.setattr(cli, "preset", lambda task, name="lite": short())
    outcome = tgeokd_("demo", "--seeds", 1, "--out", "here")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "here")
    assert {record["setting"] for record in found["runs"]} == {"clean", "noise 30 %"}
    assert len(found["runs"]) == 2 * len(rows)
    for text in (
        "digits, clean",
        "digits, noise 30 %",
        "tgeo (outer=holdout)",
        "ce (train+val)",
        "report: here/report.html",
    ):
        assert text in outcome.out
    page = (tmp_path / "here" / "report.html").read_text()
    for entry in rows:
        assert f"<td>{entry.label}</td>" in page


# ---- presets and the data folder


@pytest.mark.parametrize("command", ["distill", "compare"])
def test_a_task_that_reads_files_needs_the_user_s_folder(tgeokd_, tmp_path, monkeypatch, command):
    monkeypatch.delenv("TGEOKD_DATA", raising=False)
    out = ("--out", tmp_path / "out")
    assert_refused(tgeokd_(command, "adult", *out), "task 'adult' reads data of yours: give their folder as --data-dir")
    folder = tmp_path / "nowhere"
    assert_refused(tgeokd_(command, "adult", "--data-dir", folder, *out), f"the data folder {folder} does not exist")
    monkeypatch.setenv("TGEOKD_DATA", str(tmp_path / "from-env"))
    assert_refused(tgeokd_(command, "adult", *out), f"the data folder {tmp_path / 'from-env'} does not exist")
    assert_refused(tgeokd_(command, "adult", "--data-dir", folder, *out), f"the data folder {folder} does not exist")
    assert not (tmp_path / "out").exists()


def test_the_data_folder_is_in_the_config_as_an_absolute_path(tgeokd_, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "theirs").mkdir()
    settings = set_options("student.epochs=1", "teacher.epochs=1")
    assert tgeokd_("distill", "digits", "--data-dir", "mine", "--out", "a", *settings).code == 0
    assert load_config(tmp_path / "a" / "config.yaml").data_dir == str(tmp_path / "mine")
    monkeypatch.setenv("TGEOKD_DATA", "theirs")
    assert tgeokd_("distill", "digits", "--out", "b", *settings).code == 0
    assert load_config(tmp_path / "b" / "config.yaml").data_dir == str(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits", "--preset", "papr"], "unknown preset of digits 'papr'; known: lite"),
        (["adult", "--preset", "papr"], r"unknown preset of adult 'papr'; did you mean 'paper'\? known: lite, paper"),
        (["digits", "--preset", "lite", "--config", "mine.yaml"], "give --config or --preset, not both"),
    ],
)
def test_wrong_presets_are_refused(tgeokd_, tmp_path, argv, message):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(short().to_dict()))
    for command in ("distill", "compare"):
        assert_refused(tgeokd_(command, *argv, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_a_preset_is_taken_by_its_name(tgeokd_, tmp_path, monkeypatch):
    ran = []

    def stop(config, *_, **__):
        ran.append(config)
        raise cli.InputError("far enough")

    monkeypatch.setattr(cli, "check", stop)
    argv = ("distill", "cifar100", "--preset", "paper", "--data-dir", tmp_path, "--out", tmp_path / "out")
    assert tgeokd_(*argv).code == 2
    assert ran == [replace(preset("cifar100", "paper"), data_dir=str(tmp_path))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teacher.predictions=x.npz"], r"teacher\.predictions stand in for a model"),
        (["teacher={predictions: nowhere.npz}"], r"nowhere\.npz"),
        (["teacher.weights=nowhere.pth"], r"no file of weights at nowhere\.pth"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(tgeokd_, tmp_path, settings, message):
    options = [part for setting in settings for part in ("--set", setting)]
    for command in ("distill", "compare"):
        assert_refused(tgeokd_(command, "digits", *options, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_compare_tunes(tgeokd_, tmp_path):
    out = tmp_path / "out"
    argv = ("compare", "digits", "--methods", "kd,tgeo", "--seeds", 2, "--tune", 2, "--out", out)
    outcome = tgeokd_(*argv, *set_options("student.epochs=1", "teacher.epochs=1"))
    assert outcome.code == 0, outcome.err
    found = results(out)
    assert [(row["method"], len(row["trials"])) for row in found["tuning"]] == [("kd", 2), ("tgeo", 2)]
    assert "paired differences" in outcome.out
    assert "tgeo - kd" in outcome.out
    page = (out / "report.html").read_text()
    assert "runs to tune" in page
    for tune, message in ((-1, "--tune"), (99, r"a search of 'kd' has 1 to \d+ trials, not 99")):
        refused = tgeokd_("compare", "digits", "--methods", "kd", "--tune", tune, "--out", tmp_path / "other")
        assert_refused(refused, message)
    assert not (tmp_path / "other").exists()


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
        assert_refused(tgeokd_("report", folder), "holds no finished run or comparison")
    (tmp_path / "results.json").write_text("{")
    assert_refused(tgeokd_("report", tmp_path), "is not JSON")


# ---- the installed command


def test_exit_codes_of_the_installed_command(tmp_path):
    wrong = process("distill", "digits", "--method", "tgoe", "--out", tmp_path / "out")
    assert_refused(Outcome(wrong.returncode, wrong.stdout, wrong.stderr), "unknown method 'tgoe'; did you mean 'tgeo'")
    assert not (tmp_path / "out").exists()


def test_a_killed_run_resumes_to_the_numbers_of_an_uninterrupted_one(tgeokd_, tmp_path):
    epochs = 60
    settings = set_options(f"student.epochs={epochs}", "checkpoint_every=3", "data.noise=0.3")
    killed = tmp_path / "killed"
    lines = killed / "metrics.jsonl"
    with subprocess.Popen(
        [SCRIPT, "distill", "digits", "--out", killed, *settings],
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as run:
        deadline = time.monotonic() + 120
        while not (lines.exists() and lines.read_text().count("\n") >= 5):
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline, "no epoch was trained"
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert lines.read_text().count("\n") < epochs
    assert not (killed / "results.json").exists()
    assert (killed / "last.ckpt" / "state.pt").exists()

    # a finished or begun run is refused without --resume
    assert_refused(tgeokd_("distill", "digits", "--out", killed, *settings), "already holds a run")
    resumed = process("distill", "--resume", killed)
    assert resumed.returncode == 0, resumed.stderr
    assert "teacher" not in resumed.stdout.split()  # it was there already

    whole = tmp_path / "whole"
    assert tgeokd_("distill", "digits", "--out", whole, *settings).code == 0
    assert results(killed)["metrics"] == results(whole)["metrics"]
    assert results(killed)["epochs"] == epochs
    for name in ("student.safetensors", "teacher.safetensors", "ratios.json", "config.yaml"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (killed, whole)
    ]
    for a, b in zip(*records, strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


def test_the_recipe_is_what_distill_runs_without_settings(tgeokd_, tmp_path, monkeypatch):
    ran = []

    def stop(config, *_, **__):
        ran.append(config)
        raise cli.InputError("far enough")

    monkeypatch.setattr(cli, "build_teacher", stop)
    assert tgeokd_("distill", "digits", "--seed", 2, "--out", tmp_path / "out").code == 2
    assert ran == [replace(preset("digits"), seed=2)]
