"""The figure, its interval, and what may be said of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import Tensor

from ..config import BASE, ModelConfig
from ..metrics.frechet import LEVEL, RESAMPLES, bootstrap_interval, frechet_distance
from .clips import Options
from .network import FeatureNetwork

PAPER = {"ucf101": 342.86, "msrvtt": 377.40}  # zero-shot FVD, abstract
SAMPLES = {"ucf101": 10_000, "msrvtt": 2_990}  # usual with these sets; the supplement names none
FRAMES = 16
SIZE = 320  # pixels, of the paper's clips


@dataclass(frozen=True)
class Report:
    """A Fréchet distance and all that it depends on."""

    name: str  # "FVD", or what else the figure is called
    distance: float
    interval: tuple[float, float]
    level: float  # of the interval
    resamples: int
    generated: int  # clips
    real: int
    features: int
    paper: float | None  # the paper's figure, where this one is made as the supplement says
    notes: list[str]
    settings: dict

    def to_json(self) -> dict:
        """The report as a JSON object."""
        return asdict(self)

    def words(self) -> str:
        """The report in a few lines."""
        low, high = self.interval
        lines = [
            f"{self.name}: {self.distance:.2f} ({self.level:.0%} interval {low:.2f} to {high:.2f}, "
            f"{self.resamples} bootstrap resamples)",
            f"{self.generated} generated clips against {self.real} real ones, {self.features} features",
        ]
        if self.paper is not None:
            lines.append(f"the paper: {self.paper:.2f}, with what the supplement tells alike; it does not tell all")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines + [f"  {key}: {value}" for key, value in self.settings.items()])


def report(
    real: Tensor, generated: Tensor, network: FeatureNetwork, settings: dict, as_the_paper: bool, notes: list[str]
) -> Report:
    """The report on features (n, d) of real and generated clips, with further notes on what they allow to say."""
    notes = list(notes)
    if settings["pictures"] == "real":
        notes.append("the pictures are frames of the real clips: this is not the paper's zero-shot setting")
    if not network.is_i3d:
        notes.append(f"{network.path.name} is no I3D that this program knows: compare only with figures of this file")
    fewer, count = min(len(real), len(generated)), generated.shape[1]
    if fewer <= count:
        notes.append(f"{fewer} clips are too few for the covariance of {count} features: take more")
    notes.append("the figure falls as the number of clips grows: compare it with figures of the same numbers only")
    paper = PAPER[settings["set"]] if network.is_i3d and as_the_paper else None
    return Report(
        network.title, frechet_distance(real, generated), bootstrap_interval(real, generated), LEVEL, RESAMPLES,
        len(generated), len(real), count, paper, notes, settings,
    )  # fmt: skip


def as_the_paper(
    kind: str, samples: int, pictures: bool, sentences: bool, options: Options, model: ModelConfig
) -> bool:
    """Whether a measurement is made as the supplement says (A.1, Table 1 and 3), and as is usual where it is silent."""
    return (
        model.name == BASE.name
        and pictures
        and (sentences or kind != "ucf101")
        and samples == SAMPLES[kind]
        and options.frames == FRAMES
        and (options.width, options.height) == (SIZE, SIZE)
        and (options.steps, options.cfg) == (BASE.steps, BASE.cfg)
        and (options.lambda_, options.gamma) == (BASE.lambda_, 0.02)
    )
