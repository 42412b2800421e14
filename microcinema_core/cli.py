"""The command `microcinema`: animate, interpolate, info, init, train, evaluate.

Bad input ends with exit code 2 and one sentence on stderr; Ctrl-C with 130. What needs torch is imported by the command
that needs it, so that help and mistyped options answer at once.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .config import BASE, CONFIGS, INTERPOLATION, ModelConfig
from .errors import MicroCinemaError

if TYPE_CHECKING:
    from .pipeline import Pipeline

MODEL = "demo-base"
INTERPOLATION_MODEL = "demo-interpolation"
_DTYPES = ("float32", "bfloat16", "float16")
INSERTED = 4  # one interpolation pass shows this many frames for each one before, except the last


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except MicroCinemaError as error:
        print("microcinema:", " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmicrocinema: interrupted", file=sys.stderr)  # on a line of its own, below the progress bar
        return 130
    return 0


# --- the commands ---


def animate(arguments: argparse.Namespace) -> None:
    from . import images, video

    started = time.monotonic()
    video.check_output(arguments.output)
    if arguments.sheet:
        images.check_output(arguments.sheet)
    picture = images.load_picture(arguments.photo)
    passes = arguments.interpolate
    pipeline = _load(arguments, arguments.model, "centre")
    interpolation = _load(arguments, INTERPOLATION_MODEL, "ends") if passes else None
    config = pipeline.config
    fps = _or(arguments.fps, config.fps)
    video.check_output(arguments.output, fps * INSERTED**passes)
    factor, least = config.autoencoder.factor, max(_least_side(m.config) for m in (pipeline, interpolation) if m)
    width, height = arguments.size or images.size_from(picture, factor, least)
    for model in filter(None, (pipeline, interpolation)):
        _check_size(width, height, model.config)
    _check_words(arguments.prompt, pipeline)

    settings = {
        "frames": _or(arguments.frames, config.network.frames),
        "steps": _or(arguments.steps, config.steps),
        "cfg": _or(arguments.cfg, config.cfg),
        "gamma": _or(arguments.gamma, config.gamma),
        "churn": arguments.churn,
        "seed": arguments.seed,
        "width": width,
        "height": height,
    }
    strength = _or(arguments.lambda_, config.lambda_)
    with _progress("animate") as progress:
        frames = pipeline.animate(picture, arguments.prompt, lambda_=strength, progress=progress, **settings)
    if interpolation:
        frames = _interpolated(interpolation, frames, passes, None, arguments.seed)

    notes = {"prompt": arguments.prompt, "model": config.name, **settings, "lambda": strength, "fps": fps}
    notes |= {"interpolate": passes, "version": __version__}
    video.write_video(arguments.output, frames, fps * INSERTED**passes, {"comment": notes})
    if arguments.sheet:
        images.sheet(frames, arguments.sheet)
    _report(arguments.output, frames, fps * INSERTED**passes, started)


def interpolate(arguments: argparse.Namespace) -> None:
    from . import video

    started = time.monotonic()
    video.check_output(arguments.output)
    frames, fps = video.read_video(arguments.video, arguments.size)
    if len(frames) < 2:
        raise MicroCinemaError(f"'{arguments.video}' has 1 frame: choose a video of two or more")
    fps *= INSERTED**arguments.passes
    video.check_output(arguments.output, fps)
    pipeline = _load(arguments, arguments.model, "ends")
    _check_size(frames.shape[3], frames.shape[2], pipeline.config)
    frames = _interpolated(pipeline, frames, arguments.passes, arguments.steps, arguments.seed)

    notes = {"model": pipeline.config.name, "passes": arguments.passes, "seed": arguments.seed}
    notes |= {"steps": _or(arguments.steps, pipeline.config.steps), "fps": fps, "version": __version__}
    video.write_video(arguments.output, frames, fps, {"comment": notes})
    _report(arguments.output, frames, fps, started)


def info(arguments: argparse.Namespace) -> None:
    if arguments.config:
        from .model import parameter_table

        config = CONFIGS[arguments.config]
        parameters = parameter_table(config)
    else:
        from . import header

        path = header.resolve(arguments.model)
        config, parameters = header.read_config(path), header.stored_parameters(path)
    if arguments.json:
        print(json.dumps({"name": config.name, "parameters": parameters, "config": config.to_json()}, indent=2))
        return
    print(f"{config.name}: {config.network.frames} frames of {config.width}x{config.height} at {config.fps:g} fps")
    for part, count in parameters.items():
        print(f"  {part:<24}{count:>15,}")
    print(f"  {config.parameterization}-prediction, {config.steps} steps, guidance {config.cfg:g}", end="")
    print(f", prior lambda {config.lambda_:g}, gamma {config.gamma:g}")


def init(arguments: argparse.Namespace) -> None:
    from . import images
    from .init import initialise

    images.check_output(arguments.output, (".safetensors",))
    with _progress("init", "tensor") as progress:
        report = initialise(
            arguments.source, arguments.output, CONFIGS[arguments.kind], arguments.warm_start, progress=progress
        )
    size = arguments.output.stat().st_size / 1e9
    print(f"{arguments.output}: {report.config.name}, {size:.2f} GB, tensors:")
    for title, counts in (("taken", report.taken), ("new", report.new), ("left", report.left)):
        print(f"  {title:<6}{sum(counts.values()):>6}", end="")
        print("  " + "; ".join(f"{count} {what}" for what, count in counts.items()))


def train(arguments: argparse.Namespace) -> None:
    if not arguments.config.is_file():
        raise MicroCinemaError(f"the configuration '{arguments.config}' does not exist: choose one from configs/")
    from .training import trainer

    trainer.main(arguments.config, arguments.out, dict(arguments.set))


def evaluate(arguments: argparse.Namespace) -> None:
    from .training import evaluate

    evaluate.main(arguments.model, scenes=arguments.scenes, sheets=arguments.sheets, as_json=arguments.json)


# --- what they share ---


def _load(arguments: argparse.Namespace, model: str, condition: str) -> Pipeline:
    """The model of that name or file; `condition` is "centre" for models that animate, "ends" for those in between."""
    import torch

    from . import header
    from .pipeline import Pipeline

    dtype = getattr(torch, arguments.dtype)
    pipeline = Pipeline.from_file(header.resolve(model), _device(arguments.device), arguments.tokenizer, dtype)
    if pipeline.config.network.condition != condition:
        use = f"animates pictures: use {INTERPOLATION_MODEL}"
        if condition == "centre":
            use = f"puts frames between frames: use it with `microcinema interpolate`, or {MODEL} here"
        raise MicroCinemaError(f"the model '{pipeline.config.name}' {use}")
    if arguments.compile:  # on CUDA with graphs
        pipeline.network.compile(mode="reduce-overhead" if pipeline.device.type == "cuda" else None)
    return pipeline


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, absent, not compiled in, "meta"
        raise MicroCinemaError(f"the device '{name}' cannot be used here: choose auto or cpu") from error
    return name


def _check_size(width: int, height: int, config: ModelConfig) -> None:
    factor, least = config.autoencoder.factor, _least_side(config)
    if width % factor or height % factor or min(width, height) < least:
        near = "x".join(str(max(least, round(side / factor) * factor)) for side in (width, height))
        message = f"the size {width}x{height} does not fit the model '{config.name}', whose sides are multiples of"
        raise MicroCinemaError(f"{message} {factor} from {least} on: use --size {near}")


def _least_side(config: ModelConfig) -> int:
    """One cell at the network's coarsest level, in pixels."""
    return config.autoencoder.factor * 2 ** (len(config.network.channel_multipliers) - 1)


def _check_words(prompt: str, pipeline: Pipeline) -> None:
    """Warn of words the model has never seen; raise if it has seen none of them."""
    unknown = pipeline.unknown_words(prompt)
    if not unknown:
        return
    names = ", ".join(f"'{word}'" for word in unknown)
    message = f"the model '{pipeline.config.name}' does not know {names}: it knows {', '.join(pipeline.vocabulary)}"
    if all(pipeline.unknown_words(word) for word in prompt.split()):
        raise MicroCinemaError(message)
    print("microcinema: warning:", message, file=sys.stderr)


def _interpolated(pipeline: Pipeline, frames, passes: int, steps: int | None, seed: int):
    with _progress("interpolate") as progress:
        return pipeline.interpolate(
            frames, passes=passes, steps=_or(steps, pipeline.config.steps), seed=seed, progress=progress
        )


@contextmanager
def _progress(label: str, unit: str = "step") -> Iterator[Callable[[int, int], None]]:
    from tqdm import tqdm

    with tqdm(desc=label, file=sys.stderr, unit=unit) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def _report(path: Path, frames, fps: float, started: float) -> None:
    count, _, height, width = frames.shape
    print(f"{path}: {count} frames of {width}x{height} at {fps:g} fps in {time.monotonic() - started:.1f} s")


def _or(value, default):
    return default if value is None else value


# --- what may be typed ---


def _whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            limits = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"'{text}' does not do: give a whole number {limits}")
        return value

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # NaN is never
            raise argparse.ArgumentTypeError(f"'{text}' does not do: give a number from {least:g} to {most:g}")
        return value

    return parse


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3})[xX×]([1-9]\d{0,3})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' does not do: give width x height in pixels, such as 96x96")
    return int(match[1]), int(match[2])


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' does not do: give key=value")
    return key, value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise MicroCinemaError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="microcinema", description="A picture and a sentence become a moving clip.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    def common(added: argparse.ArgumentParser, model: str, size: str) -> None:
        added.add_argument("-o", "--output", type=Path, required=True, help="mp4, webm, gif or webp file to write")
        added.add_argument("--model", default=model, metavar="NAME|FILE", help="bundled model or file (%(default)s)")
        added.add_argument(
            "--tokenizer", type=Path, metavar="FOLDER", help="CLIP's vocab.json and merges.txt (full size)"
        )
        added.add_argument("--steps", type=_whole(1, 1000), metavar="N", help="sampling steps (the model's)")
        added.add_argument("--seed", type=_whole(0, 2**63 - 1), default=0, help="same seed, same file (%(default)s)")
        added.add_argument("--size", type=_size, metavar="WxH", help=f"cut and resize to it first ({size})")
        added.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
        added.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the networks (%(default)s)")
        added.add_argument("--compile", action="store_true", help="compile the network first: minutes, for many steps")

    one = command(animate, "turn a picture and a sentence into a clip")
    one.add_argument("photo", type=Path, metavar="PHOTO", help="any picture Pillow opens")
    one.add_argument("--prompt", required=True, help='what moves and how, such as "the camera zooms in"')
    common(one, MODEL, "the picture's shape, long side 384")
    one.add_argument("--frames", type=_whole(2, 1000), metavar="N", help="frames before interpolation (the model's)")
    one.add_argument("--fps", type=_number(0.1, 240), help="frames a second before interpolation (the model's)")
    one.add_argument("--interpolate", type=_whole(0, 2), default=0, metavar="0|1|2", help="passes, each 4x the fps")
    one.add_argument("--cfg", type=_number(0, 100), metavar="X", help="text guidance; 1 is none (the model's)")
    one.add_argument("--lambda", dest="lambda_", type=_number(0, 1), help="prior strength of training (the model's)")
    one.add_argument("--gamma", type=_number(-1, 1), help="added to it; more is calmer (the model's)")
    one.add_argument("--churn", type=_number(0, 1000), default=0.0, help="fresh noise over all steps (%(default)s)")
    one.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write all frames side by side")

    two = command(interpolate, "put three new frames between any two frames of a video")
    two.add_argument("video", type=Path, metavar="VIDEO")
    common(two, INTERPOLATION_MODEL, "the video's own")
    two.add_argument("--passes", type=_whole(1, 2), default=1, help="each multiplies the fps by 4 (%(default)s)")

    three = command(info, "print a model's size and settings")
    which = three.add_mutually_exclusive_group()
    which.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="bundled model or file (%(default)s)")
    which.add_argument("--config", choices=CONFIGS, help="a configuration instead, without weights")
    three.add_argument("--json", action="store_true", help="for machines")

    four = command(init, "make a full-size model, ready to train, from Stable Diffusion 2.1 base")
    place = {"type": Path, "metavar": "FILE|FOLDER"}
    four.add_argument("--from", dest="source", required=True, **place, help="one file, or diffusers' folder")
    four.add_argument("--warm-start", **place, help="temporal layers of ModelScope's text-to-video model")
    four.add_argument("--kind", choices=(BASE.name, INTERPOLATION.name), default=BASE.name, help="(%(default)s)")
    four.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")

    five = command(train, "train a model")
    five.add_argument("config", type=Path, metavar="CONFIG.toml")
    five.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="instead of the file's"
    )
    five.add_argument("--out", type=Path, metavar="DIR", help="folder for checkpoints, log and sheets")

    six = command(evaluate, "measure a model on scenes and photographs it has never seen")
    six.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="bundled model or file (%(default)s)")
    six.add_argument("--json", action="store_true", help="for machines")
    six.add_argument("--scenes", type=_whole(1), default=200, metavar="N", help="drawn scenes (%(default)s)")
    six.add_argument("--sheets", type=Path, metavar="DIR", help="also write sheets of the clips there")
    return parser
