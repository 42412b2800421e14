"""What the Appearance Noise Prior does, measured: the supplement's figures 3 to 6 as tables, and what it does not show.

`python benchmarks/figures.py MODELS [--scenes 64] [--device cpu] [--page docs/evidence.md]` measures the models in the
folders MODELS/<size>-<kind>-<λ>-<seed>/, as runs/evidence.sh trains them, on drawn scenes that they were not trained
on; kind is eps, v, zero (v on a schedule that ends in pure noise, train_zero_snr.py) or ends (an interpolation model).
All settings get the same scenes and the same noise; each row is compared with the first one of its table, clip by clip,
with the 95 % bootstrap interval of the mean difference. What follows the line MARK of the page is replaced by the
tables, and pictures are written beside it. Models of full size are measured alike if they are named like this.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from microcinema_core.checkpoint import resolve
from microcinema_core.demo.evaluate import EVALUATION_SEEDS, drawn_clips
from microcinema_core.demo.report import write_sheets
from microcinema_core.demo.scenes import Clip, draw_clip
from microcinema_core.diffusion import Denoiser, NoiseSchedule
from microcinema_core.errors import MicroCinemaError
from microcinema_core.header import read_config, read_training
from microcinema_core.metrics.clip_report import clip_report
from microcinema_core.metrics.intervals import RESAMPLES, mean_interval
from microcinema_core.metrics.quality import colour_drift, psnr
from microcinema_core.noise import correlated_noise, frame_init
from microcinema_core.pipeline import Pipeline
from microcinema_core.prior import prior_mean, shift
from microcinema_core.samplers import Denoise, initial, sample_euler

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence.md"
MARK = "<!-- the tables below are written by benchmarks/figures.py -->"
LARGER = 1.6  # of the training's resolution: Figure 4
FEW = 5  # steps: Figure 5
GAMMAS = (-0.02, 0.0, 0.02, 0.04, 0.06)  # Figure 6
CHURN = 20.0
SIMPLE = ("left", "right", "up", "down", "still")  # motions of a camera: every place moves alike
BATCH = 16
SHOWN = (1, 4, 7)  # the scenes of the picture
UNITS = {"given frame": "dB", "all frames": "dB", "drift": "of 1", "motion": "px a frame", "warped": "dB"}
UNITS |= {"between": "dB"}  # the frames between two ends


@dataclass(frozen=True)
class Setting:
    """How a clip is sampled: `strength` is λ+γ, for all frames or for each one."""

    strength: float | tuple[float, ...] = 0.0
    steps: int = 50
    noise: str = "independent"  # a kind of microcinema_core.noise, or "frame_init"
    still: bool = False  # the repeated latent is added to the noise, as the host does at full denoise
    churn: float = 0.0
    ancestral: bool = False
    share: bool = True  # the noise that is added on the way carries its share of μ
    zero_snr: bool = False  # on a schedule that ends in pure noise


@dataclass
class Scenes:
    """Drawn clips with what the models are given of them."""

    clips: list[Clip]
    seeds: list[int] = field(default_factory=list)

    @classmethod
    def draw(cls, count: int, frames: int, size: int) -> Scenes:
        """The first `count` scenes of the evaluation."""
        seeds = list(range(EVALUATION_SEEDS.start, EVALUATION_SEEDS.start + count))
        return cls([draw_clip(seed, frames=frames, size=size) for seed in seeds], seeds)


class ZeroTerminalSnr(NoiseSchedule):
    """The schedule rescaled so that its last timestep is pure noise (Lin et al. 2024, algorithm 1): the other cure of
    sampling from less signal than the training's last timestep had. 1e-4 of the signal stays, so that σ is finite."""

    def __init__(self) -> None:
        super().__init__()
        signal = self.alphas_cumprod.sqrt()
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        self.alphas_cumprod = signal.clamp(min=1e-4).square()
        self.sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()


Figures = dict[str, list[float]]  # of each clip, by the names of UNITS


# --- sampling ---


@torch.no_grad()
def sample(pipeline: Pipeline, scenes: Scenes, setting: Setting) -> Tensor:
    """The latents (n, t, C, h, w) of clips for all scenes."""
    made = []
    for start in range(0, len(scenes.clips), BATCH):
        clips, seeds = scenes.clips[start : start + BATCH], scenes.seeds[start : start + BATCH]
        is_base = pipeline.config.network.condition == "centre"
        pictures = torch.stack([given_of(pipeline, clip.frames) for clip in clips])
        latents = pipeline.encode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        captions = [clip.caption if is_base else "" for clip in clips]  # the paper's second model never sees text
        context = pipeline.text.encode(captions) if pipeline.text else None
        made.append(sample_latents(pipeline, latents, context, seeds, setting))
    return torch.cat(made)


def given_of(pipeline: Pipeline, frames: Tensor) -> Tensor:
    """Those of the frames (t, …) that a model is given: the centre (1, …) or both ends (2, …)."""
    return frames[[len(frames) // 2] if pipeline.config.network.condition == "centre" else [0, -1]]


def sample_latents(
    pipeline: Pipeline, latents: Tensor, context: Tensor | None, seeds: Sequence[int], setting: Setting
) -> Tensor:
    """Clips (b, t, C, h, w) for latents (b, k, C, h, w) of the frames that are given."""
    config = pipeline.config
    schedule = ZeroTerminalSnr() if setting.zero_snr else NoiseSchedule()
    frames, sigmas = config.network.frames, schedule.sigmas_for(setting.steps)
    strength = torch.tensor(setting.strength) if isinstance(setting.strength, tuple) else setting.strength
    mean = prior_mean(latents, frames, strength)
    kind = "independent" if setting.noise == "frame_init" else setting.noise
    noise = torch.stack([correlated_noise(tuple(latents.shape[2:]), frames, seed, kind) for seed in seeds])
    noise = noise.to(latents)
    still = latents[:, :1].expand_as(noise)
    if setting.noise == "frame_init":
        alpha_bar = float(schedule.alphas_cumprod[-1])
        noise = torch.stack([frame_init(clip, own, alpha_bar) for clip, own in zip(still, noise, strict=True)])
    x = initial(shift(noise, mean), sigmas[0]) + (still if setting.still else 0)
    encoded = pipeline.network.encode_condition(latents.to(pipeline.dtype), lambda_=config.lambda_)
    denoise = Denoiser(pipeline.network, config, encoded, context)
    denoise.schedule = schedule
    generator = torch.Generator().manual_seed(seeds[0])
    added = mean if setting.share else 0.0
    if setting.ancestral:
        return sample_ancestral(denoise, x, sigmas, added, generator)
    return sample_euler(denoise, x, sigmas, mean=added, s_churn=setting.churn, generator=generator)


def sample_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, mean: Tensor | float, generator: torch.Generator
) -> Tensor:
    """Euler steps down to σ_down, from where fresh noise leads up to σ_next again, with its share (σ_next−σ_down)·μ."""
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        up = (following**2 * (sigma**2 - following**2) / sigma**2).sqrt()
        down = (following**2 - up**2).sqrt()
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        fresh = torch.randn(x.shape, generator=generator).to(x)
        x = x + up * fresh + (following - down) * mean
    return x


# --- measuring ---


def measured(pipeline: Pipeline, latents: Iterable[Tensor], clips: Sequence[Clip]) -> Figures:
    """The figures of clips in latents: the PSNR of what was given and of all frames with the truth, how far the mean
    colour is from it, the mean length of the flow, and how well neighbouring frames agree once they are warped."""
    figures: Figures = {name: [] for name in ("given frame", "all frames", "drift", "motion", "warped")}
    for sampled, clip in zip(latents, clips, strict=True):
        made = pipeline.decode(sampled)
        report = clip_report(made)
        figures["given frame"].append(psnr(given_of(pipeline, made), given_of(pipeline, clip.frames)))
        figures["all frames"].append(psnr(made, clip.frames))
        figures["drift"].append(colour_drift(made, clip.frames))
        figures["motion"].append(report.motion)
        figures["warped"].append(report.consistency)
    return figures


class Models:
    """The models of a folder, and what was sampled and measured of them, each once."""

    def __init__(self, folder: Path, scenes: int, device: str):
        self.files = {path.name: path for path in sorted(folder.iterdir()) if len(path.name.split("-")) == 4}
        self.count, self.device = scenes, device
        self.figures: dict[tuple[str, Setting, float], Figures] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.drawn: dict[tuple[int, int], Scenes] = {}

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """The names of those models of a kind that have been trained with λ = 0.03 and without, smaller ones first.
        Raises MicroCinemaError for a pair that differs in more than λ."""
        found = []
        for with_it in self.files:
            size, its_kind, strength, seed = with_it.split("-")
            without = f"{size}-{kind}-0-{seed}"
            if (its_kind, strength) != (kind, "0.03") or not (self.has(with_it) and self.has(without)):
                continue
            if _apart_from_lambda(self.weights(with_it)) != _apart_from_lambda(self.weights(without)):
                raise MicroCinemaError(f"{with_it} and {without} differ in more than λ: train them alike, to the end")
            found.append((with_it, without))
        widths = {pair: read_config(self.weights(pair[0])).network.model_channels for pair in found}
        return sorted(found, key=lambda pair: (widths[pair], pair[0].split("-")[3]))

    def has(self, name: str) -> bool:
        """Whether a model has been trained."""
        return name in self.files and bool(list(self.files[name].glob("*.safetensors")))

    def weights(self, name: str) -> Path:
        """The file of a model."""
        [file] = self.files[name].glob("*.safetensors")
        return file

    def pipeline(self, name: str) -> Pipeline:
        """The model of a name."""
        if name not in self.pipelines:
            self.pipelines[name] = Pipeline.from_file(self.weights(name), self.device)
        return self.pipelines[name]

    def scenes(self, name: str, scale: float = 1.0) -> Scenes:
        """The scenes at the size of a model, or at `scale` times it."""
        config = self.pipeline(name).config
        factor = config.autoencoder.factor
        key = config.network.frames, round(config.width * scale / factor) * factor
        if key not in self.drawn:
            self.drawn[key] = Scenes.draw(self.count, *key)
        return self.drawn[key]

    def sampled(self, name: str, setting: Setting, scale: float = 1.0) -> Tensor:
        """The latents (n, t, C, h, w) of a model's clips with a setting, of all scenes: those in its folder, if they
        are of these weights."""
        key = hashlib.sha256(f"{setting} {scale} {self.count} {self.device}".encode()).hexdigest()[:16]
        file = self.files[name] / "samples" / f"{key}.pt"
        if not file.exists() or file.stat().st_mtime < self.weights(name).stat().st_mtime:
            print(name, setting, scale, flush=True)
            file.parent.mkdir(exist_ok=True)
            made = sample(self.pipeline(name), self.scenes(name, scale), setting)
            torch.save(made, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        return torch.load(file)

    def measure(self, name: str, setting: Setting, scale: float = 1.0) -> Figures:
        """The figures of a model with a setting, of all scenes."""
        key = (name, setting, scale)
        if key not in self.figures:
            made = self.sampled(name, setting, scale)
            self.figures[key] = measured(self.pipeline(name), made, self.scenes(name, scale).clips)
        return self.figures[key]

    def ceiling(self, name: str, scale: float = 1.0) -> Figures:
        """The figures of the true clips after the autoencoder."""
        pipeline, clips = self.pipeline(name), self.scenes(name, scale).clips
        return measured(pipeline, (pipeline.encode(clip.frames) for clip in clips), clips)


def _apart_from_lambda(weights: Path) -> dict[str, Any]:
    """The settings of a training and its number of steps, without λ; None for each that a model file does not tell."""
    training = read_training(weights)
    training.get("settings", {}).get("model", {}).get("override", {}).pop("lambda_", None)
    return {key: training.get(key) for key in ("step", "data", "settings")}


def unbiased_gamma(models: Models, name: str) -> tuple[list[float], Tensor]:
    """The γ at which the samples' mean is unbiased by measurement, of each bootstrap sample of the scenes, sorted;
    and the share ρ_n of z^c in each frame of the truth, (frames,).

    The bias is that of the share <z_n, z^c>/<z^c, z^c> of z^c in the frames less the truth's. It should be gone at
    γ = ρ/σ_max.
    """
    pipeline, scenes = models.pipeline(name), models.scenes(name)
    truth = torch.stack([pipeline.encode(clip.frames) for clip in scenes.clips])
    given = truth[:, truth.shape[1] // 2][:, None]
    made = [models.sampled(name, Setting(pipeline.config.lambda_ + gamma)) for gamma in GAMMAS]
    products = torch.stack([(latents * given).sum((2, 3, 4)) for latents in (truth, *made)], 1).double()
    squares = given.square().sum((1, 2, 3, 4)).double()
    generator = torch.Generator().manual_seed(0)
    gammas = []
    for chosen in torch.randint(len(squares), (RESAMPLES, len(squares)), generator=generator):
        shares = products[chosen].sum(0).mean(-1) / squares[chosen].sum()
        slope, at_zero = _line(GAMMAS, (shares[1:] - shares[0]).tolist())
        gammas.append(-at_zero / slope)
    return sorted(gammas), (products[:, 0].sum(0) / squares.sum()).float()


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope and the value at 0 of the least-squares line through points."""
    middle_x, middle_y = fmean(x), fmean(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    return slope, middle_y - slope * middle_x


# --- tables ---


def table(rows: Sequence[tuple[str, Figures]], chosen: Callable[[int], bool] = lambda _: True) -> list[str]:
    """Rows of figures as Markdown: the mean of the first one's, of the others the mean difference and its interval."""
    lines = _head([f"{name}, {UNITS[name]}" for name in rows[0][1]])
    for number, (title, figures) in enumerate(rows):
        cells = []
        for name in rows[0][1]:
            values, first = (
                [value for index, value in enumerate(part[name]) if chosen(index)] for part in (figures, rows[0][1])
            )
            differences = [a - b for a, b in zip(values, first, strict=True)]
            cells.append(f"{fmean(values):.3g}" if number == 0 else difference(differences))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _head(columns: Iterable[str]) -> list[str]:
    """The first lines of a table with these columns after that of the rows' names."""
    cells = ["", *columns]
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def difference(values: Sequence[float]) -> str:
    """A mean difference with its interval; bold where the interval is on one side of 0."""
    low, high = mean_interval(values) or (fmean(values),) * 2
    text = f"{fmean(values):+.2g} [{low:+.2g}, {high:+.2g}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def figure_3(models: Models, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """With and without the prior in training and in sampling, for the first pair of each size and kind; then what
    each of the two does in all pairs."""
    lines = ["## Figure 3: with and without the prior"]
    for with_it, without in pairs:
        if with_it.endswith("-0"):
            lines += ["", *all_four(models, with_it, without)]
    comparisons = {
        "The start alone: strength 0.05 against 0, both trained without": lambda a, b: ((b, 0.05), (b, 0.0)),
        "Training alone: λ = 0.03 against 0, both with strength 0.05": lambda a, b: ((a, 0.05), (b, 0.05)),
        "Both: λ = 0.03 with strength 0.05 against neither": lambda a, b: ((a, 0.05), (b, 0.0)),
    }
    for title, compared in comparisons.items():
        lines += ["", f"{title}, all pairs:", "", *each_pair(models, pairs, compared)]
    return lines


def all_four(models: Models, with_it: str, without: str) -> list[str]:
    """A table of a pair, with and without the prior in training and in sampling."""
    rows = [(f"trained without, strength {s:g}", models.measure(without, Setting(s))) for s in (0.0, 0.05)]
    rows += [(f"trained with λ = 0.03, strength {s:g}", models.measure(with_it, Setting(s))) for s in (0.0, 0.03, 0.05)]
    rows.append(("the true clips, coded", models.ceiling(without)))
    return [f"{with_it} and {without}:", "", *table(rows)]


def each_pair(
    models: Models, pairs: Sequence[tuple[str, str]],
    compared: Callable[[str, str], tuple[tuple[str, float], tuple[str, float]]],
) -> list[str]:  # fmt: skip
    """A table of the differences that a comparison finds, with a row for each pair and, where a size and kind has
    several, one for the mean over them and the deviation between them."""
    groups: dict[str, list[list[float]]] = {}
    lines = []
    for pair in pairs:
        new, old = (models.measure(name, Setting(strength)) for name, strength in compared(*pair))
        lines = lines or _head(f"{name}, {UNITS[name]}" for name in new)
        values = [[a - b for a, b in zip(new[name], old[name], strict=True)] for name in new]
        size, kind, _, seed = pair[0].split("-")
        lines.append(f"| {size} {kind}, seed {seed} | " + " | ".join(map(difference, values)) + " |")
        groups.setdefault(f"{size} {kind}", []).append([fmean(column) for column in values])
    for title, rows in groups.items():
        if len(rows) > 1:
            cells = [f"{fmean(column):+.2g}, ± {stdev(column):.1g}" for column in zip(*rows, strict=True)]
            lines.append(f"| {title}, {len(rows)} seeds | " + " | ".join(cells) + " |")
    return lines


def figure_4(models: Models, with_it: str, without: str) -> list[str]:
    """At 1.6 times the training's resolution."""
    rows = [("without the prior", models.measure(without, Setting(), LARGER))]
    rows += [(f"λ = 0.03, strength {s:g}", models.measure(with_it, Setting(s), LARGER)) for s in (0.03, 0.05)]
    rows.append(("the true clips, coded", models.ceiling(without, LARGER)))
    size = models.scenes(without, LARGER).clips[0].frames.shape[-1]
    return [f"## Figure 4: {size}×{size} pixels, trained at {models.pipeline(without).config.width}", "", *table(rows)]


def figure_5(models: Models, with_it: str, without: str) -> list[str]:
    """With 5 and with 50 steps, for simple and for complex motion."""
    clips = models.scenes(without).clips
    simple = [clip.kind == "camera" and clip.motion in SIMPLE for clip in clips]
    rows = [
        (f"{'without the prior' if name == without else 'λ = 0.03, strength 0.05'}, {steps} steps",
         models.measure(name, Setting(0.0 if name == without else 0.05, steps=steps)))
        for steps in (50, FEW) for name in (without, with_it)
    ]  # fmt: skip
    lines = [f"## Figure 5: {FEW} steps"]
    for title, wanted in (("simple motion (pans, tilts, still cameras)", True), ("all other motion", False)):
        count = simple.count(wanted)
        if not count:
            continue
        lines += ["", f"{title}, {count} scenes:", "", *table(rows, lambda index, w=wanted: simple[index] == w)]
    return lines


def figure_6(models: Models, names: Iterable[tuple[str, float]]) -> list[str]:
    """γ against the motion, of models with a churn."""
    lines = [
        "## Figure 6: γ and motion",
        "",
        *_head([*(f"γ {gamma:g}" for gamma in GAMMAS), "slope, px a frame per 0.01"]),
    ]
    for name, churn in names:
        lambda_ = models.pipeline(name).config.lambda_
        settings = [Setting(lambda_ + gamma, churn=churn) for gamma in GAMMAS]
        motion = [models.measure(name, setting)["motion"] for setting in settings]
        slopes = [0.01 * _line(GAMMAS, values)[0] for values in zip(*motion, strict=True)]
        means = [fmean(values) for values in motion]
        cells = [f"{value:.3f}" for value in means]
        order = "falls throughout" if means == sorted(means, reverse=True) else "not monotone"
        sampler = f"churn {churn:g}" if churn else "Euler"
        lines.append(f"| {name}, {sampler} ({order}) | {' | '.join(cells)} | {difference(slopes)} |")
    return lines


def beyond(models: Models, with_it: str, without: str) -> list[str]:
    """What the paper does not show."""
    gammas, rho = unbiased_gamma(models, with_it)
    low, middle, high = (gammas[round(share * (RESAMPLES - 1))] for share in (0.025, 0.5, 0.975))
    sigma_max = float(NoiseSchedule().sigmas[-1])
    strengths = tuple((0.03 + rho / sigma_max).tolist())
    base = Setting(0.05)
    rows = [
        ("Euler, strength 0.05", base),
        (f"λ + ρ_n/σ_max of each frame (mean {fmean(strengths):.3f})", replace(base, strength=strengths)),
        ("strength 0.07", replace(base, strength=0.07)),
        (f"churn {CHURN:g}, with its share of μ", replace(base, churn=CHURN)),
        (f"churn {CHURN:g}, without", replace(base, churn=CHURN, share=False)),
        ("ancestral, with its share of μ", replace(base, ancestral=True)),
        ("ancestral, without", replace(base, ancestral=True, share=False)),
    ]
    plain = Setting()
    others = [
        ("independent noise", plain),
        ("strength 0.07 (Panacea's)", replace(plain, strength=0.07)),
        ("the repeated latent added (the host's own way, 0.068)", replace(plain, still=True)),
        ("PYoCo, mixed, α = 1", replace(plain, noise="mixed")),
        ("PYoCo, progressive, α = 1", replace(plain, noise="progressive")),
        ("FrameInit, cut-off 0.25", replace(plain, noise="frame_init")),
    ]
    return [
        "## What the paper does not show", "",
        f"The γ at which {with_it} is without bias: {middle:.3f} [{low:.3f}, {high:.3f}], where ρ/σ_max is "
        f"{rho.mean() / sigma_max:.3f}.", "",
        f"{with_it}:", "", *table([(title, models.measure(with_it, setting)) for title, setting in rows]), "",
        f"{without}, started in other ways:", "",
        *table([(title, models.measure(without, setting)) for title, setting in others]), "",
        f"With and without the prior once more, with churn {CHURN:g}:", "",
        *table([
            ("trained without, strength 0", models.measure(without, Setting(churn=CHURN))),
            ("trained with λ = 0.03, strength 0", models.measure(with_it, Setting(churn=CHURN))),
            ("trained with λ = 0.03, strength 0.05", models.measure(with_it, replace(base, churn=CHURN))),
        ]),
    ]  # fmt: skip


def terminal_noise(models: Models, with_it: str, without: str) -> list[str]:
    """The prior and a schedule that ends in pure noise: two cures of the same fault."""
    rows = [
        ("trained without, strength 0", models.measure(without, Setting())),
        ("the same, sampled on a schedule that ends in pure noise", models.measure(without, Setting(zero_snr=True))),
        ("the same, strength 0.07", models.measure(without, Setting(0.07))),
        ("trained with λ = 0.03, strength 0.05", models.measure(with_it, Setting(0.05))),
    ]
    trained_so = without.replace("-v-", "-zero-")
    if models.has(trained_so):
        rows.append(("trained and sampled on that schedule", models.measure(trained_so, Setting(zero_snr=True))))
    return [f"## Terminal noise ({without})", "", *table(rows)]


def interpolation(models: Models) -> list[str]:
    """Interpolation models with the prior and without: pairs of the paper's network, and the bundled one."""
    lines = ["## Interpolation models"]
    for with_it, without in models.pairs("ends"):
        lines += ["", *all_four(models, with_it, without)]
    pipeline, count = Pipeline.from_file(resolve("demo-interpolation"), models.device), models.count
    config = pipeline.config
    clips = [clip for _, clip in islice(drawn_clips(EVALUATION_SEEDS.start, pipeline), count)]
    rows = []
    for strength in (config.lambda_ + config.gamma, 0.0, 2 * (config.lambda_ + config.gamma)):
        for steps in (config.steps, 10):
            pipeline.config = replace(config, gamma=strength - config.lambda_)
            made = [pipeline.interpolate(clip[[0, -1]], steps=steps, seed=seed) for seed, clip in enumerate(clips)]
            scores = [psnr(frames[1:-1], clip[1:-1]) for frames, clip in zip(made, clips, strict=True)]
            rows.append((f"strength {strength:g}, {steps} step{'s' * (steps > 1)}", {"between": scores}))
    return [*lines, "", f"the bundled model ({config.name}):", "", *table(rows)]


def picture(models: Models, with_it: str, without: str, path: Path, scale: float = 1.0) -> None:
    """Write the clips of the scenes SHOWN, the truth's and with and without the prior, as a JPEG; at the training's
    size also those of figures 5 and 6 and with churn."""
    pipeline, clips = models.pipeline(with_it), models.scenes(with_it, scale).clips
    shown = [scene for scene in SHOWN if scene < models.count]
    settings = [(without, Setting()), (with_it, Setting(0.05))]
    if scale == 1:
        settings += [(name, replace(setting, churn=CHURN)) for name, setting in settings[:2]]
        settings += [(name, replace(setting, steps=FEW)) for name, setting in settings[:2]]
        settings += [(with_it, Setting(pipeline.config.lambda_ + gamma)) for gamma in (GAMMAS[0], GAMMAS[-1])]
    rows = [("the truth", [clips[scene].frames for scene in shown])]
    for name, setting in settings:
        made = [pipeline.decode(models.sampled(name, setting, scale)[scene]) for scene in shown]
        title = f"{name}, strength {setting.strength:.2g}, {setting.steps} steps, churn {setting.churn:g}"
        rows.append((title, made))
    with TemporaryDirectory() as folder:
        write_sheets(rows, Path(folder), "rows", len(rows))
        Image.open(Path(folder) / "rows-1.png").convert("RGB").save(path, quality=88, optimize=True)


def main() -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = Models(arguments.models, arguments.scenes, arguments.device)
    pairs = [*models.pairs("eps"), *models.pairs("v")]
    sections = [figure_3(models, pairs)]
    for with_it, without in pairs:
        if with_it.endswith("eps-0.03-0"):
            sections += [figure(models, with_it, without) for figure in (figure_4, figure_5, beyond)]
        elif with_it.endswith("v-0.03-0"):
            sections.append(terminal_noise(models, with_it, without))
    churned = [(with_it, CHURN) for with_it, _ in pairs if with_it.endswith("-0")]
    sections += [
        figure_6(models, [(with_it, 0.0) for with_it, _ in pairs] + churned),
        interpolation(models),
    ]
    text = arguments.page.read_text() if arguments.page.exists() else ""
    head = text.partition(MARK)[0]
    body = "\n\n".join("\n".join(lines) for lines in sections)
    arguments.page.write_text(
        f"{head}{MARK}\n\n{arguments.scenes} scenes, paired differences to the first row.\n\n{body}\n"
    )
    stem = arguments.page.with_suffix("")
    picture(models, *pairs[0], stem.with_suffix(".jpg"))
    picture(models, *pairs[0], stem.with_name(f"{stem.name}-larger.jpg"), LARGER)


if __name__ == "__main__":
    main()
