"""Executing the trainings of a comparison: in this process, or in local processes."""

import os
import platform
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, TypeVar

import torch

from tgeokd.utils.errors import DivergenceError, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One call, made once the jobs that it needs are done."""

    key: Any  # hashable
    # called in this process with the results so far, by key; returns what another process can import and unpickle
    prepare: Callable[[Mapping[Any, Any]], tuple[Callable[..., Any], tuple[Any, ...]]]
    needs: tuple[Any, ...] = ()  # keys of other jobs
    name: str = ""  # of the job in errors


class Executor(ABC):
    """Runs jobs. A subclass decides where, by the pool it opens."""

    @abstractmethod
    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool for at most ``most`` calls at once, and how many calls it runs at once."""

    def map(self, jobs: Iterable[Job], on_done: Callable[[Job, int], None] = lambda job, done: None) -> dict[Any, Any]:
        """Run all jobs and return their results by key; those that are ready start in the order given.

        ``on_done`` is called with a finished job and the number of finished jobs. An InputError or a DivergenceError of a job
        is raised with the job's name, and jobs that have not started are cancelled.
        """
        waiting = list(jobs)
        results: dict[Any, Any] = {}
        running: dict[Future[Any], Job] = {}
        pool, at_once = self.open(len(waiting))
        try:
            while waiting or running:
                ready = [job for job in waiting if results.keys() >= set(job.needs)]
                for job in ready[: at_once - len(running)]:
                    waiting.remove(job)
                    function, arguments = job.prepare(results)
                    running[pool.submit(function, *arguments)] = job
                if not running:
                    raise ValueError(f"jobs need results that no job has: {[job.key for job in waiting]}")
                for finished in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(finished)
                    try:
                        results[job.key] = finished.result()
                    except (InputError, DivergenceError) as error:
                        kind = InputError if isinstance(error, InputError) else DivergenceError
                        raise kind(f"{job.name}: {error}" if job.name else str(error)) from error
                    on_done(job, len(results))
        finally:
            pool.shutdown(wait=not (waiting or running), cancel_futures=True)
        return results


class InProcess(Executor):
    """Runs one job after another in this process."""

    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool whose calls are done when they are submitted."""
        return _Immediate(), 1


class _Immediate(futures.Executor):
    def submit(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class LocalProcesses(Executor):
    """Runs jobs in new processes that share the cores; ``jobs`` is their number, None for one per core."""

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs

    def open(self, most: int) -> tuple[futures.Executor, int]:
        """A pool of processes, which end when this process ends."""
        workers = max(1, min(self.jobs or _cores(), most))
        threads = max(1, _cores() // workers)
        context = get_context("spawn")
        return ProcessPoolExecutor(workers, context, _start_worker, (threads,)), workers


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


def call_all(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], executor: Executor) -> list[T]:
    """``function(*each)`` for each of the arguments, in their order; another process must be able to import the function."""
    jobs = [Job(i, lambda _, each=each: (function, each)) for i, each in enumerate(arguments)]  # type: ignore[misc]
    results = executor.map(jobs)
    return [results[job.key] for job in jobs]


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Hardware and versions that the numbers were made with."""
    packages = ("tgeokd", "torch", "numpy", "scikit-learn", "torchvision", "transformers", "polars", "lightgbm")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cores": _cores(), "processor": platform.machine(), "gpu": gpu, "versions": versions}
