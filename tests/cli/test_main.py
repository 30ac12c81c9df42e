"""Help, version, completion, exit codes and interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from command import COMMAND, ENVIRONMENT, assert_one_line, assert_refused, process
from quick import Outcome, set_options
from typer.testing import CliRunner

import tgeokd
from tgeokd.cli.main import app
from tgeokd.data import TASKS
from tgeokd.methods import METHODS
from tgeokd.paper import ANALYSES
from tgeokd.utils.errors import DivergenceError


def help_of(*command: str, columns: int = 300) -> str:
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(columns), "TERM": "dumb"})
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            [],
            ["demo", "distill", "compare", "teacher-cache", "predict", "report", "reproduce", "--version", "--verbose"],
        ),
        (["demo"], ["--out", "--seeds", "--jobs", "--resume", "runs/demo"]),
        (
            ["distill"],
            ["--config", "--method", "--seed", "--out", "--resume", "--set", "KEY=VALUE", "runs/TASK-METHOD"],
        ),
        (
            ["compare"],
            ["--methods", "--seeds", "--out", "--config", "--set", "--jobs", "--resume", "--tune", "@train+val"],
        ),
        (["teacher-cache"], ["--out", "--views", "--dtype", "--top-k"]),
        (["predict"], ["DIR", "--out"]),
        (["report"], ["DIR", "report.html"]),
        (["reproduce"], ["--seeds", "--jobs", "--out"]),
    ],
    ids=lambda value: " ".join(value[:1]) if isinstance(value, list) else "",
)
def test_help_names_every_option(command, words):
    output = help_of(*command)
    assert [word for word in words if word not in output] == []


def test_help_lists_what_can_be_chosen():
    assert set(METHODS) | set(TASKS) <= set(help_of("distill").replace(",", " ").replace(".", " ").split())
    assert set(ANALYSES) <= set(help_of("reproduce").replace(",", " ").replace(".", " ").split())


def test_help_of_compare_shows_how_rows_are_written_in_80_columns():
    output = help_of("compare", columns=80)
    assert "ce@train+val" in output
    assert "…" not in output


def test_no_command_shows_the_help(tgeokd_):
    outcome = tgeokd_()
    assert outcome.code == 2
    assert "distill" in outcome.out + outcome.err


def test_the_version(tgeokd_):
    assert tgeokd_("--version") == Outcome(0, f"tgeokd {tgeokd.__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_for_a_shell(shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is then named, not looked for
    result = CliRunner().invoke(app, ["--show-completion", shell], prog_name="tgeokd")
    assert result.exit_code == 0
    assert "_TGEOKD_COMPLETE" in result.output


@pytest.mark.parametrize(
    ("words", "offered"),
    [("tgeokd distill --method ", METHODS), ("tgeokd compare ", TASKS), ("tgeokd reproduce ", ANALYSES)],
)
def test_completion_offers_the_names_of_the_registries(words, offered):
    env = {"_TGEOKD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    output = CliRunner().invoke(app, [], env=env, prog_name="tgeokd").output
    assert sorted(output.split()) == sorted(offered)


@pytest.mark.parametrize(
    ("argv", "mentioned"),
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
def test_a_wrong_command_line_is_refused_in_one_line(tgeokd_, argv, mentioned):
    assert_refused(tgeokd_(*argv), mentioned)


# ---- divergence and interrupts


def failing(error):
    def run(*_, **__):
        raise error

    return run


def test_training_that_diverges_ends_with_its_own_exit_code(tgeokd_, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.single.run", failing(DivergenceError("the loss is NaN in step 7")))
    outcome = tgeokd_("distill", "digits", "--out", "out", *set_options("teacher.epochs=1"))
    assert_one_line(outcome, 3, "step 7")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_says_how_to_continue(tgeokd_, tmp_path, monkeypatch, number):
    monkeypatch.setattr("tgeokd.runs.single.run", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    outcome = tgeokd_("distill", "digits", "--out", "out", *set_options("teacher.epochs=1"))
    assert_one_line(outcome, 128 + number, "tgeokd distill --resume out")
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert tgeokd_("distill", "--resume", "out").code == 0


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_one_all_the_same(tgeokd_, monkeypatch):
    def draw(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None

    monkeypatch.setattr("tgeokd.runs.single.run", draw)
    outcome = tgeokd_("distill", "digits", "--out", "out", *set_options("teacher.epochs=1"))
    assert_one_line(outcome, 143, "tgeokd distill --resume out")
    monkeypatch.setattr("tgeokd.runs.single.run", failing(ValueError("of its own")))
    with pytest.raises(ValueError, match="of its own"):  # the next command was not interrupted
        tgeokd_("distill", "--resume", "out")


@pytest.mark.parametrize("place", ["typer.main.get_group", "tgeokd.cli.main._Commands.parse_args"])
def test_an_interrupt_while_the_command_line_is_read_is_one_line(tgeokd_, monkeypatch, place):
    monkeypatch.setattr(place, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert_one_line(tgeokd_("distill", "digits"), 143)


def test_an_interrupt_before_anything_is_written_is_one_line(tgeokd_, tmp_path, monkeypatch):
    monkeypatch.setattr("tgeokd.runs.single.check", failing(KeyboardInterrupt))
    outcome = tgeokd_("distill", "digits", "--out", "out")
    assert_one_line(outcome, 130)
    assert "resume" not in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_comparison_ends_with_its_processes(tmp_path, number):
    out = tmp_path / "out"
    argv = ["compare", "digits", "--methods", "ce,kd", "--seeds", "1", "--jobs", "1", "--out", str(out)]
    with subprocess.Popen(
        [*COMMAND, *argv, *set_options("student.epochs=100000", "teacher.epochs=1")],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        deadline = time.monotonic() + 120
        while not list(out.rglob("metrics.jsonl")):
            assert run.poll() is None, run.stderr.read()
            assert time.monotonic() < deadline, "no epoch was trained"
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # a terminal sends it to all processes
        else:
            run.send_signal(number)
        _, err = run.communicate(timeout=300)  # all its trainings would take longer
    assert_one_line(Outcome(run.returncode, "", err), 128 + number, "--resume")
    assert not (out / ".lock").exists()


@pytest.mark.process
def test_exit_codes_of_the_installed_command(tmp_path):
    assert_refused(process("distill", "digits", "--method", "tgoe", "--out", tmp_path / "out"), "tgoe", "tgeo")
    assert not (tmp_path / "out").exists()


@pytest.mark.process
def test_the_commands_import_no_large_library_before_they_run():
    code = (
        "import sys, tgeokd.cli.main\n"
        "print(sorted({'torch', 'numpy', 'sklearn', 'matplotlib', 'polars', 'pydantic', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
