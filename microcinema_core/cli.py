"""The command `microcinema`: animate, interpolate, info, init, train, cache, evaluate, fvd.

Bad input ends with exit code 2 and one sentence on stderr, Ctrl-C with 130. Modules that import torch are imported by
the commands that need them, so that the help and errors in options appear at once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from . import __version__
from .config import BASE, INTERPOLATION, configurations, demo_module
from .errors import MicroCinemaError
from .progress import progress_bar

if TYPE_CHECKING:
    from .pipeline import Pipeline

MODEL = "demo-base"
INTERPOLATION_MODEL = "demo-interpolation"
AUTOENCODER_KIND = "autoencoder"
_DTYPES = ("float32", "bfloat16", "float16")
INSERTED = 4  # the factor by which an interpolation pass multiplies the frames per second
T = TypeVar("T")


def main(argv: list[str] | None = None) -> int:
    """Run the command of these arguments, by default those of the process, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may not be valid in its encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = _parser()
        _check_values(parser, argv)
        arguments = parser.parse_args(argv)
        arguments.run(arguments)
    except MicroCinemaError as error:
        print("microcinema:", " ".join(str(error).split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nmicrocinema: interrupted", file=sys.stderr)  # on a new line below the progress bar
        return 130
    return 0


# --- the commands ---


def animate(arguments: argparse.Namespace) -> None:
    """`microcinema animate`: a picture and a sentence become a clip, which may be interpolated."""
    from . import files, header, images, pipeline, video, windows

    started = time.monotonic()
    _check_outputs([arguments.output, arguments.sheet], [arguments.photo])
    video.check_output(arguments.output)
    if arguments.sheet:
        files.check_output(arguments.sheet, (".png",))
    picture = images.load_picture(arguments.photo)
    passes = arguments.interpolate
    pipeline.check_motion(header.read_config(header.resolve(arguments.model)), arguments.motion, arguments.overscan)
    base = _load(arguments, arguments.model, "centre")
    between = _load(arguments, INTERPOLATION_MODEL, "ends") if passes else None
    config = base.config
    fps = _or(arguments.fps, config.fps)
    video.check_output(arguments.output, fps * INSERTED**passes)
    size = arguments.size or images.size_from(picture, config.autoencoder.factor, windows.minimum_side(config))
    width, height = size
    pipeline.check_size(width, height, config)
    _check_words(arguments.prompt, base)

    settings = {
        "frames": _or(arguments.frames, config.network.frames),
        "steps": _or(arguments.steps, config.steps),
        "cfg": _or(arguments.cfg, config.cfg),
        "gamma": _or(arguments.gamma, config.gamma),
        "churn": arguments.churn,
        "motion": arguments.motion,
        "overscan": arguments.overscan,
        "seed": arguments.seed,
        "width": width,
        "height": height,
    }
    strength = _or(arguments.lambda_, config.lambda_)
    with progress_bar("animate") as progress:
        progress(0, settings["steps"])
        frames = base.animate(picture, arguments.prompt, lambda_=strength, progress=progress, **settings)
    notes = {"prompt": arguments.prompt, "model": config.name, **settings, "lambda": strength, "fps": fps}
    notes |= {"interpolate": passes, "version": __version__}
    options = {"fps": fps * INSERTED**passes, "metadata": {"comment": notes}}
    if between:
        with progress_bar("interpolate") as progress:
            longer = between.interpolated(
                frames, len(frames), passes=passes, seed=arguments.seed, progress=progress, warn=_warn
            )
            frames = list(longer) if arguments.sheet else longer  # only a sheet needs all frames in memory
            count = video.write_video(arguments.output, frames, **options)
    else:
        count = video.write_video(arguments.output, frames, **options)
    if arguments.sheet:
        images.contact_sheet(frames, arguments.sheet)
    _report(arguments.output, count, size, options["fps"], started)


def interpolate(arguments: argparse.Namespace) -> None:
    """`microcinema interpolate`: insert frames between those of a video."""
    from . import video

    started = time.monotonic()
    _check_outputs([arguments.output], [arguments.video])
    video.check_output(arguments.output)
    opened = video.open_video(arguments.video, arguments.size)
    if opened.count < 2:
        raise MicroCinemaError(f"'{arguments.video}' has 1 frame: choose a video of two or more")
    fps = opened.fps * INSERTED**arguments.passes
    video.check_output(arguments.output, fps)
    sound = opened.sound
    if sound and arguments.output.suffix.lower() not in video.WITH_SOUND:
        sound, kinds = None, ", ".join(video.WITH_SOUND)
        opened.notes.append(f"'{arguments.output}' cannot hold the sound, which is left out: write {kinds} to keep it")
    width, height = opened.size
    if (width % 2 or height % 2) and arguments.output.suffix.lower() in video.EVEN:
        opened.notes.append(f"the odd side of {width}x{height} is made even: its last line is repeated")
    for note in opened.notes:
        print("microcinema: note:", note, file=sys.stderr)
    between = _load(arguments, arguments.model, "ends")
    steps = _or(arguments.steps, between.config.steps)
    notes = {"model": between.config.name, "passes": arguments.passes, "seed": arguments.seed}
    notes |= {"steps": steps, "fps": fps, "version": __version__}
    with progress_bar("interpolate") as progress:
        frames = between.interpolated(
            opened.frames, opened.count, passes=arguments.passes, steps=steps, seed=arguments.seed, progress=progress,
            warn=_warn,
        )  # fmt: skip
        count = video.write_video(arguments.output, frames, fps, {"comment": notes}, audio=sound)
    _report(arguments.output, count, opened.size, fps, started)


def info(arguments: argparse.Namespace) -> None:
    """`microcinema info`: print a model's parameters and settings."""
    if arguments.config:
        from .model.parameters import parameter_table

        config = configurations()[arguments.config]
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
    """`microcinema init`: write a full-size model that starts from Stable Diffusion 2.1 base."""
    from . import files
    from .convert.initialise import initialise

    files.check_output(arguments.output, (".safetensors",))
    if arguments.kind == AUTOENCODER_KIND:
        from .convert.autoencoder import convert_autoencoder

        config = convert_autoencoder(arguments.source, arguments.output)
        size = f"{config.latent_channels} channels, {config.factor} pixels a cell, scale {config.scale:g}"
        print(f"{arguments.output}: an autoencoder of {size}")
        return
    with progress_bar("init", "tensor") as progress:
        report = initialise(
            arguments.source,
            arguments.output,
            configurations()[arguments.kind],
            arguments.warm_start,
            progress=progress,
        )
    size = arguments.output.stat().st_size / 1e9
    print(f"{arguments.output}: {report.config.name}, {size:.2f} GB, tensors:")
    left = {reason: len(names) for reason, names in report.left.items()}
    for title, counts in (("taken", report.taken), ("new", report.new), ("left", left)):
        print(f"  {title:<6}{sum(counts.values()):>6}", end="")
        print("  " + "; ".join(f"{count} {what}" for what, count in counts.items()))
    if report.donor:
        print(f"  warm start from {report.donor.name} (licence: {report.donor.licence}; {report.donor.page})")


def train(arguments: argparse.Namespace) -> None:
    """`microcinema train`: train the model that a TOML file describes."""
    from .training.config import read_values

    overrides = dict(arguments.set)
    values = read_values(arguments.config, overrides)
    if "demo" in values or "task" in values:  # the latter in files of release 0.1
        demo_module("recipes").main(arguments.config, arguments.out, overrides)
        return
    from .training import recipe

    recipe.main(arguments.config, arguments.out, overrides)


def cache(arguments: argparse.Namespace) -> None:
    """`microcinema cache`: encode the clips of a training once, so that it needs no decoding and no encoding."""
    from .training import recipe

    folder = recipe.cache(arguments.config, arguments.out, dict(arguments.set))
    print(f"train with --set data.cache={folder}")


def evaluate(arguments: argparse.Namespace) -> None:
    """`microcinema evaluate`: measure a model on videos, or on drawn scenes and photographs."""
    videos_only = ("table", "count", "seed", "device", "dtype", "tokenizer")
    for name in ("scenes",) if arguments.clips else videos_only:
        if getattr(arguments, name) is not None:
            cure = "with --clips: leave one of the two out" if arguments.clips else "without --clips: name a folder too"
            raise MicroCinemaError(f"--{name} does nothing {cure}")
    if not arguments.clips:
        demo_module("evaluate").main(
            arguments.model, scenes=_or(arguments.scenes, 200), sheets=arguments.sheets, as_json=arguments.json
        )
        return
    from . import evaluation, files, header

    if arguments.sheets:
        files.make_folder(arguments.sheets)
    arguments.device, arguments.dtype = _or(arguments.device, "auto"), _or(arguments.dtype, "float32")
    pipeline = _load(arguments, arguments.model)
    with progress_bar("evaluate", "video", delay=5) as progress:
        videos = evaluation.open_videos(pipeline, arguments.clips, arguments.table, progress)
    with progress_bar("evaluate", "clip") as progress:
        found = evaluation.evaluate(
            pipeline, videos, count=_or(arguments.count, evaluation.CLIPS), seed=_or(arguments.seed, 0),
            sheets=arguments.sheets, progress=progress,
            trained_on=header.read_training(header.resolve(arguments.model)).get("data"),
        )  # fmt: skip
    print(json.dumps(found.to_json(), indent=2, allow_nan=False) if arguments.json else found.words())


def fvd(arguments: argparse.Namespace) -> None:
    """`microcinema fvd`: the Fréchet distance between a model's clips and the real ones of UCF-101 or MSR-VTT."""
    from . import header
    from .fvd.clips import Options
    from .fvd.measure import Measurement
    from .fvd.work import device_of_rank, rank_and_world

    rank, world = rank_and_world()
    arguments.device = device_of_rank(arguments.device)
    model = header.resolve(arguments.model)
    between = header.resolve(arguments.interpolation_model) if arguments.interpolate else None
    config = header.read_config(model)
    width, height = arguments.size or (config.width, config.height)
    options = Options(
        arguments.frames, width, height, _or(arguments.steps, config.steps), _or(arguments.cfg, config.cfg),
        _or(arguments.lambda_, config.lambda_), _or(arguments.gamma, config.gamma), arguments.seed,
        arguments.interpolate, arguments.real_fps,
    )  # fmt: skip
    pictures = None if arguments.pictures == "real" else Path(arguments.pictures)
    measurement = Measurement(
        arguments.set, arguments.data, arguments.prompts, pictures, arguments.samples, arguments.work, model, between,
        arguments.i3d, options, arguments.dtype,
    )  # fmt: skip
    base = _load(arguments, arguments.model, "centre")
    second = _load(arguments, arguments.interpolation_model, "ends") if between else None
    with progress_bar("fvd" if world == 1 else f"fvd {rank}/{world}", "clip") as progress:
        report = measurement.run(base, second, arguments.keep_clips, progress)
    if report is None:
        print(f"rank {rank} of {world} has made its clips: the last one, or this command again, prints the figure")
    else:
        print(json.dumps(report.to_json(), indent=2, allow_nan=False) if arguments.json else report.words())


# --- helpers of the commands ---


def _load(arguments: argparse.Namespace, model: str, condition: str | None = None) -> Pipeline:
    """Load the model of that name or file for the options of the command.

    Raises MicroCinemaError unless the model is conditioned as `condition` says: on its "centre" frame to animate, on
    both "ends" to interpolate, None on either.
    """
    import torch

    from . import header
    from .pipeline import Pipeline

    path, device = header.resolve(model), _device(arguments.device)
    config = header.read_config(path)
    if condition not in (None, config.network.condition):
        use = f"animates pictures: use {INTERPOLATION_MODEL}"
        if condition == "centre":
            use = f"puts frames between frames: use it with `microcinema interpolate`, or {MODEL} here"
        raise MicroCinemaError(f"the model '{config.name}' {use}")
    if arguments.dtype not in config.dtypes:
        raise MicroCinemaError(
            f"the model '{config.name}' does not compute in {arguments.dtype}: choose {' or '.join(config.dtypes)}"
        )
    pipeline = Pipeline.from_file(path, device, arguments.tokenizer, getattr(torch, arguments.dtype))
    if arguments.compile:  # "reduce-overhead" uses CUDA graphs
        pipeline.network.compile(mode="reduce-overhead" if pipeline.device.type == "cuda" else None)
    return pipeline


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", name):
            raise ValueError(name)
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, ImportError) as error:  # unknown, absent
        raise MicroCinemaError(f"the device '{name}' cannot be used here: choose auto or cpu") from error
    return name


def _check_outputs(outputs: list[Path | None], inputs: list[Path]) -> None:
    """Raise MicroCinemaError where an output is the same file as an input or another output."""
    paths = [path for path in outputs if path]
    for index, output in enumerate(paths):
        for other in [*inputs, *paths[:index]]:
            same = output.absolute() == other.absolute()
            with suppress(OSError, ValueError):  # a file is missing, or its name invalid: reported where it is opened
                same = same or output.samefile(other)
            if same:
                raise MicroCinemaError(f"'{output}' would overwrite '{other}': give the output another name")


def _check_words(prompt: str, pipeline: Pipeline) -> None:
    """Warn of words outside the model's vocabulary. Raises MicroCinemaError where the prompt has no other words."""
    unknown = pipeline.unknown_words(prompt)
    if not unknown:
        return
    names = ", ".join(f"'{word}'" for word in unknown)
    message = f"the model '{pipeline.config.name}' does not know {names}: it knows {', '.join(pipeline.vocabulary)}"
    if all(pipeline.unknown_words(word) for word in prompt.split()):
        raise MicroCinemaError(message)
    _warn(message)


def _warn(message: str) -> None:
    print("microcinema: warning:", message, file=sys.stderr)


def _report(path: Path, count: int, size: tuple[int, int], fps: float, started: float) -> None:
    width, height = size
    print(f"{path}: {count} frames of {width}x{height} at {fps:g} fps in {time.monotonic() - started:.1f} s")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


# --- the command line ---


def _whole(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not minimum <= value <= maximum:
            limits = f"of at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"'{text}' does not do: give a whole number {limits}")
        return value

    return parse


def _number(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:  # False for NaN
            raise argparse.ArgumentTypeError(f"'{text}' does not do: give a number from {minimum:g} to {maximum:g}")
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


def _text(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # Python's surrogates for bytes that are no UTF-8
        raise argparse.ArgumentTypeError(f"{ascii(text)} is no valid UTF-8: type it anew")
    return text


def _check_values(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Report an option with the value "--", which argparse would turn into an empty list."""
    for word in argv:
        if re.fullmatch(r"(--[\w-]+=|-\w=?)--", word):
            parser.error(f"'{word[:-2]}' has no value")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
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
        added.add_argument(
            "-o", "--output", type=Path, required=True, help="mp4, webm, mov, mkv, gif or webp file to write"
        )
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
    one.add_argument("--prompt", type=_text, required=True, help='what moves and how, such as "the camera zooms in"')
    common(one, MODEL, "the picture's shape, long side 384")
    one.add_argument("--frames", type=_whole(2, 1000), metavar="N", help="frames before interpolation (the model's)")
    one.add_argument("--fps", type=_number(0.1, 240), help="frames a second before interpolation (the model's)")
    one.add_argument("--interpolate", type=_whole(0, 2), default=0, metavar="0|1|2", help="passes, each 4x the fps")
    one.add_argument("--cfg", type=_number(0, 100), metavar="X", help="text guidance; 1 is none (the model's)")
    one.add_argument("--lambda", dest="lambda_", type=_number(0, 1), help="prior strength of training (the model's)")
    one.add_argument("--gamma", type=_number(-1, 1), help="added to it; more is a little calmer (the model's)")
    one.add_argument(
        "--motion", type=_number(0, 4), default=1.0, metavar="X",
        help="size of the motion: 0.5 is half the way (demo-base; other models: --gamma)",
    )  # fmt: skip
    one.add_argument(
        "--overscan", action="store_true", help="never show what lies outside the picture: a tighter view (demo-base)"
    )
    one.add_argument("--churn", type=_number(0, 1000), default=0.0, help="fresh noise over all steps (%(default)s)")
    one.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write all frames side by side")

    two = command(interpolate, "put three new frames between any two frames of a video")
    two.add_argument("video", type=Path, metavar="VIDEO")
    common(two, INTERPOLATION_MODEL, "the video's own")
    two.add_argument("--passes", type=_whole(1, 2), default=1, help="each multiplies the fps by 4 (%(default)s)")

    three = command(info, "print a model's size and settings")
    which = three.add_mutually_exclusive_group()
    which.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="bundled model or file (%(default)s)")
    which.add_argument("--config", choices=configurations(), help="a configuration instead, without weights")
    three.add_argument("--json", action="store_true", help="for machines")

    four = command(init, "make a full-size model, ready to train, from Stable Diffusion 2.1 base")
    place = {"type": Path, "metavar": "FILE|FOLDER"}
    four.add_argument("--from", dest="source", required=True, **place, help="one file, or diffusers' folder")
    four.add_argument("--warm-start", **place, help="DynamiCrafter, VideoCrafter2, ModelScope or I2VGen-XL")
    kinds = (BASE.name, INTERPOLATION.name, AUTOENCODER_KIND)
    four.add_argument("--kind", choices=kinds, default=BASE.name, help="the last from diffusers' vae/ (%(default)s)")
    four.add_argument("-o", "--output", type=Path, required=True, help="safetensors file to write")

    def configured(added: argparse.ArgumentParser, out: str, required: bool) -> None:
        added.add_argument("config", type=Path, metavar="CONFIG.toml")
        added.add_argument(
            "--set", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="instead of the file's"
        )
        added.add_argument("--out", type=Path, required=required, metavar="DIR", help=out)

    configured(command(train, "train a model"), "folder for checkpoints, log, samples and the model", False)
    configured(command(cache, "encode the clips of a training beforehand"), "folder for caches", True)

    _evaluate_options(command(evaluate, "measure a model on videos, or on scenes and photographs it has never seen"))
    _fvd_options(command(fvd, "measure the Fréchet video distance of a model on your copy of UCF-101 or MSR-VTT"))
    return parser


def _evaluate_options(added: argparse.ArgumentParser) -> None:
    added.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="bundled model or file (%(default)s)")
    added.add_argument("--json", action="store_true", help="for machines")
    added.add_argument("--sheets", type=Path, metavar="DIR", help="also write sheets of the clips there")
    added.add_argument("--scenes", type=_whole(1), metavar="N", help="drawn scenes, for the bundled models (200)")
    added.set_defaults(compile=False)
    videos = added.add_argument_group("on videos, any model")
    videos.add_argument("--clips", type=Path, metavar="FOLDER", help="videos with captions beside them in .txt files")
    videos.add_argument("--table", type=Path, metavar="CSV", help="captions in a table like WebVid's instead")
    videos.add_argument("--count", type=_whole(1), metavar="N", help="videos, a clip of each (100)")
    videos.add_argument("--seed", type=_whole(0, 2**62), help="of videos, places, noise (0)")
    videos.add_argument("--device", help="auto, cpu, cuda, mps (auto)")
    videos.add_argument("--dtype", choices=_DTYPES, help="of the networks (float32)")
    videos.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="CLIP's vocab.json and merges.txt (full size)")


def _fvd_options(added: argparse.ArgumentParser) -> None:
    added.epilog = "Many GPUs: torchrun --nproc-per-node 8 -m microcinema_core fvd … What the figure means: docs/fvd.md"
    added.add_argument("model", metavar="MODEL", help="bundled model or file")
    added.add_argument("--set", choices=("ucf101", "msrvtt"), required=True)
    folder = {"type": Path, "required": True, "metavar": "FOLDER"}
    added.add_argument("--data", **folder, help="UCF-101's class folders, or MSR-VTT's clips")
    added.add_argument(
        "--i3d", type=Path, required=True, metavar="FILE.pt", help="TorchScript; FVD is that of i3d_torchscript.pt"
    )
    added.add_argument(
        "--pictures",
        required=True,
        metavar="FOLDER|real",
        help="generated pictures 00000.png …, one for each prompt, or frames of the real clips: not zero-shot then",
    )
    added.add_argument("--work", **folder, help="for features; a killed run goes on")
    added.add_argument(
        "--prompts", type=Path, metavar="FILE", help="UCF-101: JSON of class and sentence; MSR-VTT: JSON or CSV"
    )
    added.add_argument("--samples", type=_whole(2), metavar="N", help="clips to generate (10000; MSR-VTT: 2990)")
    added.add_argument("--frames", type=_whole(2, 1000), default=16, metavar="N", help="compared (%(default)s)")
    added.add_argument("--real-fps", type=_number(0.1, 240), metavar="X", help="of real clips (consecutive frames)")
    added.add_argument("--interpolate", type=_whole(0, 2), default=0, metavar="0|1|2", help="passes, each 4x the fps")
    added.add_argument("--interpolation-model", default=INTERPOLATION_MODEL, metavar="NAME|FILE", help="(%(default)s)")
    added.add_argument("--steps", type=_whole(1, 1000), metavar="N", help="sampling steps (the model's)")
    added.add_argument("--cfg", type=_number(0, 100), metavar="X", help="text guidance; 1 is none (the model's)")
    added.add_argument("--lambda", dest="lambda_", type=_number(0, 1), help="prior strength of training (the model's)")
    added.add_argument("--gamma", type=_number(-1, 1), help="added to it; the paper's FVD has 0.02 (the model's)")
    added.add_argument("--seed", type=_whole(0, 2**62), default=0, help="of clips, windows, noise (%(default)s)")
    added.add_argument("--size", type=_size, metavar="WxH", help="of both sides' clips (the model's)")
    added.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    added.add_argument("--dtype", choices=_DTYPES, default="float32", help="of the networks (%(default)s)")
    added.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="CLIP's vocab.json and merges.txt (full size)")
    added.add_argument("--compile", action="store_true", help="compile the network first: minutes, for many steps")
    added.add_argument("--keep-clips", action="store_true", help="also keep the clips, losslessly, in WORK/clips")
    added.add_argument("--json", action="store_true", help="for machines")
