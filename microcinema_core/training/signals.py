"""Signals that end a training run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop_signal(handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` for every SIGINT and SIGTERM during the block, instead of ending the process."""
    previous = {number: signal.signal(number, lambda *_: handler()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
