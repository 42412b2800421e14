"""Progress bars and times for the console."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    label: str, unit: str = "step", *, shown: bool = True, delay: float = 0
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, total) that shows a progress bar, from its first call on or `delay` seconds later: an
    error before it is the only line of output."""
    bar = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None and shown:
            from tqdm import tqdm

            bar = tqdm(desc=label, total=total, file=sys.stderr, unit=unit, delay=delay)
        if bar is not None:
            bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()


def duration(seconds: float) -> str:
    """A time in words: "42 s", "3 min", "5 h 12 min", "3 d 4 h"."""
    hours, minutes = divmod(int(seconds) // 60, 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
