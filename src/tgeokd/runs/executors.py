"""Worker processes for independent trainings."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from threading import Thread

import torch

__all__ = ["cores", "worker_pool"]


def worker_pool(jobs: int | None, most: int) -> ProcessPoolExecutor:
    """Processes that share the cores, each started afresh.

    Args:
        jobs: how many; None for one a core.
        most: how many can have something to do.
    """
    workers = max(1, min(jobs or cores(), most))
    threads = max(1, cores() // workers)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(threads: int) -> None:
    """Take the threads, leave Ctrl-C to the parent process, and end with it: a resumed comparison needs its folder alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
