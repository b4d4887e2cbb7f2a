"""A forked copy of this process, for what must not happen to the tests' own: limits, signals, locks."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

_FORK = multiprocessing.get_context("fork")


def in_child(function: Callable[[], Any]) -> Any:
    """Return what the function returns, or the exception that it raises, in a forked process."""
    receiver, sender = _FORK.Pipe(duplex=False)

    def call() -> None:
        try:
            sender.send(function())
        except BaseException as error:
            sender.send(error.with_traceback(None))

    process = _FORK.Process(target=call)
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def with_full_disk(function: Callable[[], Any], num_bytes: int = 4096) -> Any:
    """Return what `in_child` does where no file can grow beyond a few bytes: the system refuses as on a full disk."""

    def limited() -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
        return function()

    return in_child(limited)
