"""Jobs with dependencies, in this process and in local processes."""

from __future__ import annotations

import os
from functools import partial

import pytest

from tgeokd.runs.executors import InProcess, Job, LocalProcesses, call_all
from tgeokd.utils.errors import InputError


def add(*numbers):
    return sum(numbers)


def refuse(text):
    raise InputError(text)


def process():
    return os.getpid()


def job(key, *needs, start=0):
    return Job(key, lambda results: (add, (start, *(results[need] for need in needs))), needs, f"job {key}")


@pytest.mark.parametrize(
    "executor", [InProcess(), pytest.param(LocalProcesses(2), marks=[pytest.mark.process, pytest.mark.slow])]
)
def test_jobs_run_once_what_they_need_is_there(executor):
    done = []
    jobs = [job("c", "a", "b"), job("a", start=1), job("d", "c", "a"), job("b", start=2)]
    found = executor.map(jobs, lambda finished, count: done.append((finished.key, count)))
    assert found == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert [count for _, count in done] == [1, 2, 3, 4]
    assert [key for key, _ in done][2:] == ["c", "d"]


def test_jobs_that_are_ready_start_in_the_order_given():
    done = []
    InProcess().map([job(key) for key in "cab"], lambda finished, _: done.append(finished.key))
    assert done == list("cab")


@pytest.mark.process
@pytest.mark.slow
def test_local_processes_are_other_processes():
    (other,) = call_all(process, [()], LocalProcesses(1))
    assert other != os.getpid()
    assert call_all(process, [()], InProcess()) == [os.getpid()]


def test_results_of_calls_are_in_the_order_of_the_arguments():
    assert call_all(divmod, [(9, 4), (7, 7), (1, 3)], InProcess()) == [(2, 1), (1, 0), (0, 1)]


def test_the_error_of_a_job_has_its_name_and_ends_the_others():
    ran = []
    jobs = [Job("a", lambda _: (refuse, ("x is wrong",)), name="kd, seed 3"), Job("b", lambda _: (ran.append, (1,)))]
    with pytest.raises(InputError, match=r"kd, seed 3.*x is wrong"):
        InProcess().map(jobs)
    assert ran == []
    with pytest.raises(InputError, match=r"^x is wrong$"):
        call_all(refuse, [("x is wrong",)], InProcess())


def test_needs_that_no_job_meets_are_an_error():
    with pytest.raises(ValueError, match="'b'"):
        InProcess().map([job("a"), job("b", "nothing")])


def test_no_jobs_have_no_results():
    assert InProcess().map([]) == {}
    assert call_all(partial(add, 1), [], InProcess()) == []
