"""Executing the trainings of a comparison: in this process, or in local processes."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

import torch

from tgeokd.utils.errors import DivergenceError, InputError

__all__ = ["Executor", "InProcess", "Job", "LocalProcesses", "call_all", "cores"]

T = TypeVar("T")
Call = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Job:
    """One call, made once the jobs that it needs are done.

    Attributes:
        key: hashable.
        prepare: called in this process with the results so far, by key; returns a function and its arguments, which another
            process must be able to import and to unpickle.
        needs: keys of other jobs.
        name: of the job in errors.
    """

    key: Any
    prepare: Callable[[Mapping[Any, Any]], Call]
    needs: tuple[Any, ...] = ()
    name: str = ""


class Executor(ABC):
    """Runs jobs. A subclass decides where, by the pool it opens."""

    @abstractmethod
    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool for at most ``most`` calls at once, and how many calls it runs at once."""

    def map(self, jobs: Iterable[Job], on_done: Callable[[Job, int], None] = lambda job, done: None) -> dict[Any, Any]:
        """Run all jobs; those that are ready start in the order given.

        Args:
            jobs: whose needs are among them.
            on_done: called with a finished job and the number of finished jobs.

        Returns:
            Results by key.

        Raises:
            InputError: from a job, with its name, and so a DivergenceError. Jobs that have not started are cancelled then.
        """
        blocked = list(jobs)
        results: dict[Any, Any] = {}
        ready, running = deque[Job](), dict[Future[Any], Job]()
        pool, at_once = self.open(len(blocked))
        try:
            while blocked or ready or running:
                ready += [job for job in blocked if results.keys() >= set(job.needs)]
                blocked = [job for job in blocked if not results.keys() >= set(job.needs)]
                while ready and len(running) < at_once:
                    job = ready.popleft()
                    function, arguments = job.prepare(results)
                    running[pool.submit(function, *arguments)] = job
                if not running:
                    raise ValueError(f"jobs need results that no job has: {[job.key for job in blocked]}")
                for finished in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(finished)
                    try:
                        results[job.key] = finished.result()
                    except (InputError, DivergenceError) as error:
                        raise type(error)(f"{job.name}: {error}" if job.name else str(error)) from error
                    on_done(job, len(results))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return results


class InProcess(Executor):
    """Runs one job after another in this process."""

    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool whose calls are done when they are submitted."""
        return _Immediate(), 1


class LocalProcesses(Executor):
    """Runs jobs in processes that share the cores, each started afresh.

    Args:
        jobs: number of processes; None for one per core.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs

    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool of processes, which end when this process ends."""
        workers = max(1, min(self.jobs or cores(), most))
        threads = max(1, cores() // workers)
        context = get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,))
        return pool, workers


def call_all(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], executor: Executor) -> list[T]:
    """``function(*each)`` for each of the arguments; the results in the order of the arguments.

    Args:
        function: of a module, so that another process can import it.
        arguments: one tuple per call.
        executor: where to run.
    """
    calls = list(arguments)
    jobs = [Job(i, lambda _, i=i: (function, calls[i])) for i in range(len(calls))]  # type: ignore[misc]
    results = executor.map(jobs)
    return [results[i] for i in range(len(calls))]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Immediate(futures.Executor):
    def submit(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def _start_worker(threads: int) -> None:
    """Set the threads, leave Ctrl-C to the parent process, and end with it: a resumed comparison needs its folder alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
