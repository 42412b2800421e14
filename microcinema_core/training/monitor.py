"""What a run tells while it goes: a line on the console, JSON lines in a file, TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MicroCinemaError
from ..files import cannot_write, whole_file
from ..progress import duration
from .distributed import Processes
from .states import cut_log

LOG, EVENTS = "log.jsonl", "tensorboard"


class Monitor:
    """Collects the figures of steps, and writes their means. Used as a context, it closes its files at the end."""

    def __init__(self, folder: Path, steps: int, step: int, world: Processes):
        """Continue the log in a folder after `step`. Raises MicroCinemaError where it cannot be written."""
        self.folder, self.path, self.steps, self.world = folder, folder / LOG, steps, world
        self.sums: dict[str, list[float]] = {}  # of each figure: its sum, and over how many values
        self.taken, self.clips, self.waited = 0, 0, 0.0
        self.started = time.monotonic()
        self.events = _summary_writer(folder / EVENTS, step) if world.first else None
        if world.first and self.path.exists():
            with _writing(self.path), whole_file(self.path) as part:
                part.write_text("".join(cut_log(self.path, step)))

    def __enter__(self) -> Monitor:
        self._restart()
        return self

    def __exit__(self, *_: object) -> None:
        if self.events:
            self.events.close()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the time that a step waits for its data."""
        started = time.monotonic()
        yield
        self.waited += time.monotonic() - started

    def details(self, figures: dict[str, float]) -> None:
        """Add figures of a micro-batch."""
        for name, value in figures.items():
            total = self.sums.setdefault(name, [0.0, 0])
            total[0] += value
            total[1] += 1

    def count(self, figures: dict[str, float], clips: int) -> None:
        """Add the figures of a whole step of so many clips."""
        self.details(figures)
        self.taken, self.clips = self.taken + 1, self.clips + clips

    def log(self, step: int, rate: float) -> None:
        """Write the means since the last call, over all processes, which call it together."""
        parts = self.world.gather(self.sums)
        names = sorted({name for part in parts for name in part})
        means = {}
        for name in names:
            total, number = (sum(part[name][i] for part in parts if name in part) for i in (0, 1))
            means[name] = round(total / number, 6)
        seconds = max(time.monotonic() - self.started, 1e-9)
        each = seconds / max(self.taken, 1)
        row = {"step": step, **means, "learning_rate": rate, "seconds_per_step": round(each, 4)}
        row |= {"clips_per_second": round(self.clips / seconds, 3), "waiting": round(self.waited / seconds, 4)}
        self.figures(step, {key: value for key, value in row.items() if key != "step"})
        left = duration((self.steps - step) * each)
        self.note(
            f"step {step}/{self.steps}  loss {means['loss']:.4g}  gradient {means['grad_norm']:.3g}  rate {rate:.3g}  "
            f"{each:.3g} s a step  {row['clips_per_second']:.3g} clips/s  waiting {row['waiting']:.0%}  {left} left"
        )
        self._restart()

    def figures(self, step: int, figures: dict[str, float]) -> None:
        """Write figures to the log and to TensorBoard."""
        if not self.world.first:
            return
        with _writing(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
        if self.events:
            for name, value in figures.items():
                self.events.add_scalar(name, value, step)
            for path in sorted(self.folder.glob(f"samples-{step:06d}*")):
                _add_picture(self.events, path, step)

    def note(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.world.first:
            print(text, flush=True)

    def _restart(self) -> None:
        self.sums, self.taken, self.clips, self.waited = {}, 0, 0, 0.0
        self.started = time.monotonic()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _summary_writer(folder: Path, step: int):
    """TensorBoard's writer, which hides what a killed run had written after `step`; None without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    try:
        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
    except OSError as error:
        raise MicroCinemaError(f"'{folder}' cannot be written ({error.strerror}): choose another --out") from error


def _add_picture(events, path: Path, step: int) -> None:
    """Add a picture file to TensorBoard as it is; its page plays an animated GIF."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    if path.suffix not in (".png", ".gif"):
        return
    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
    name = path.stem.split("-", 2)[2:] or ["sheet"]
    events._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=f"samples/{name[0]}", image=image)]), step)
