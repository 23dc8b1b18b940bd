"""Distributes independent work over processes."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def parallel(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A ``map`` that runs in several processes of one thread each; with one worker, in this process. It keeps order.

    >>> with parallel(1) as run_all:
    ...     list(run_all(abs, [-1, 2]))
    [1, 2]
    """
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
