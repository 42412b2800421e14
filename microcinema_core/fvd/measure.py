"""`microcinema fvd`: generates clips, takes the features of them and of real ones, and compares the two.

The order is that of cost: what can be refused without a network is refused first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .. import header
from ..errors import MicroCinemaError
from ..pipeline import Pipeline
from .clips import Generator, Options, check_options, real_window
from .network import FeatureNetwork, file_sha256
from .report import SAMPLES, Report, as_the_paper, report
from .sets import Item, draw, find_pictures, write_prompts
from .work import PROMPTS, Work


class Measurement:
    """One figure: its items, its settings and its folder. Nothing is written and no network loaded before `run`."""

    def __init__(
        self, kind: str, data: Path, prompts: Path | None, pictures: Path | None, samples: int | None, work: Path,
        model: Path, between: Path | None, i3d: Path, options: Options, dtype: str,
    ):  # fmt: skip
        """`pictures` None are those of the real clips; `model` and `between` are files.

        Raises MicroCinemaError for a set, a picture or a setting that does not do.
        """
        config = header.read_config(model)
        check_options(options, config, header.read_config(between) if between else None)
        samples = SAMPLES[kind] if samples is None else samples
        if samples < 2:
            raise MicroCinemaError("a distance needs two clips or more: give a larger --samples")
        self.items, self.options, self.i3d = draw(kind, data, prompts, samples, options.seed), options, i3d
        self.real = self.items[: len({item.clip for item in self.items})]  # the first ones: clips are drawn in rounds
        self.pictures = find_pictures(pictures, self.items, work / PROMPTS) if pictures else None
        settings = {
            "set": kind, "samples": samples, "items": _digest(f"{item.name}\n{item.prompt}" for item in self.items),
            "prompts": "class names" if kind == "ucf101" and not prompts else "sentences",
            "pictures": _pictures_digest(self.pictures) if self.pictures else "real",
            "features": file_sha256(i3d), "model": f"{config.name} {file_sha256(model)}",
            "interpolation model": file_sha256(between) if between else None,
            **{key.rstrip("_"): value for key, value in asdict(options).items()}, "dtype": dtype,
        }  # fmt: skip
        self.as_the_paper = as_the_paper(kind, samples, bool(pictures), bool(prompts), options, config)
        self.work = Work(work, settings)

    def run(
        self, pipeline: Pipeline, between: Pipeline | None, keep: bool, progress: Callable[[int, int], None]
    ) -> Report | None:
        """Make this rank's shards; return the report where all are there, None where other ranks are still at it.

        With `keep` the clips stay in the folder's "clips". Raises MicroCinemaError for files that do not do.
        """
        network = FeatureNetwork(self.i3d, pipeline.device, self.options.frames)
        self.work.begin()
        write_prompts(self.items, self.work.folder / PROMPTS)
        clips = self.work.folder / "clips" if keep else None
        generator = Generator(self.options, pipeline, between, self.pictures, clips)
        sides = {"real": (self.real, self._real), "generated": (self.items, generator)}
        done, total = 0, len(self.real) + len(self.items)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for kind, (items, clip) in sides.items():
            self.work.fill(kind, items, clip, network, advance)
        if any(self.work.missing(kind, items) for kind, (items, _) in sides.items()):
            return None
        real, generated = (self.work.features(kind, items) for kind, (items, _) in sides.items())
        return report(real, generated, network, self.work.settings, self.as_the_paper, self._notes(pipeline))

    def _real(self, item: Item):
        return real_window(item, self.options)

    def _notes(self, pipeline: Pipeline) -> list[str]:
        prompts = {item.prompt for item in self.items}
        strange = sum(bool(pipeline.unknown_words(prompt)) for prompt in prompts)
        if not strange:
            return []
        return [f"{strange} of {len(prompts)} prompts have words that the model does not know, which are left out"]


def _digest(lines) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _pictures_digest(pictures: list[Path]) -> str:
    return _digest(f"{path.name} {path.stat().st_size}" for path in pictures)
