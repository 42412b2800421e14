"""The campaign's cases for the command: its options, TOML files, checkpoint headers, pictures and videos."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from campaign import Case
from PIL import Image
from safetensors.torch import save_file

from microcinema_core import cli
from microcinema_core.checkpoint import save_model

SIZE = 32
QUICK = ["--size", f"{SIZE}x{SIZE}", "--steps", "1", "--seed", "1"]
TEXTS = [
    "", " ", "--", "-", "-1", "-0", "0", "1", "2", "nan", "NaN", "inf", "-inf", "1e999", "1e-999", "-1e308", "1e3",
    "0.5",
    "99999999999999999999", "9" * 5000, "1_0", "0x10", "\u0661\u0662", "\u00bd", " 5 ", "5 5", "5;ls", "1,5", "1/2",
    "None",
    "True", "[]", "{}", "()", "%s%n%d", "{0}", "$HOME", "~", "*", "\n", "a\nb", "\t", "\x00", "a\x00b", "\x1b[31m",
    "\udcff", "a\udc80b", "\U0001f4a5", "\u202e", "x" * 5000, "..", "../..", ".", "/", "/dev/null", "/dev/full",
    "/dev/stdout",
    "/nowhere/x", "=", "=1", "--help", "-h", "--version", "@photo.png", "photo.png", "clip.mp4", "con",
    "a" * 300 + ".mp4",
]  # fmt: skip
DEVICES = [
    "cuda", "cuda:0", "cuda:99", "cuda:-1", "cuda:x", "cpu:0", "cpu:1", "cpu:999", "CPU", "meta", "mps", "xpu", "hpu",
    "xla",
    "mkldnn", "opengl", "ideep", "vulkan", "privateuseone", "lazy", "fpga", "maia", "ort", "mtia", "ipu", "ve", "hip",
    "auto ", "", ":", "0", "cpu:00", "cpu:1e3", "GPU", "\udcff", "\x00",
]  # fmt: skip
SIZES = [
    "0x0", "32x0", "-32x32", "32x32x32", "32", "x", "33x32", "1x1", "4x4", "8x8", "99999x99999", "9996x8", "32X32",
    "32×32",
    "32 x 32", "32x32\n", "032x32", "3e1x32", "\u0663x\u0663", "8x4096",
]  # fmt: skip
PROMPTS = [
    "", " ", "\n", "\x00", "\udcff", "a red star \udc80 moves left", "\ud800", "left\x00right", "x" * 100_000,
    "left " * 20_000, "the camera pans left", "THE CAMERA PANS LEFT", "\u202eleft", "\U0001f4a5" * 500, "<start>",
    "<pad>",
    "<unknown>", "<end> left", "left\nright", "nonsense", "--", "-left", "{}", "%s", "\ufeffleft", "l\u00e9ft",
    "e\u0301" * 999,
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 10**9,
    -(10**9),
    10**30, "", "x", "\ud800", "nan", "1", [], [1], [0], [-1], [1, 1], [1] * 9, [1] * 1000, [1.5], ["1"], [None],
    [[1]], {},
    {"a": 1}, {"channels": -1}, [[[[[[]]]]]],
]  # fmt: skip
TOMLS = [
    "nan", "inf", "-inf", "-1", "0", "1", "2.5", "1e400", "-1e-5", "10000000000", "99999999999999999999999", "true",
    '""',
    '"x"', '"\\ud800"', "[]", "[0]", "[1, 2]", "[0.9, 1.0]", "[-1, 2]", "[nan, nan]", "[[1]]", '["a", "b"]', "{}",
    "{a = 1}",
    "2024-01-01", "10:00:00", "0x10", "1_000", "'", '"', "[", "]", "=", "#", "1 2", "\x00", "\udcff", "[" * 3000,
    '"' + "x" * 100_000 + '"', "1\nsteps = 2", "1\n[a]", "1979-05-27T07:32:00Z", '"""a\nb"""',
]  # fmt: skip


def all_cases(seed: int, models: Path) -> dict[str, list[Case]]:
    """Cases by kind. Writes the models that they share into `models`."""
    rng = random.Random(seed)
    base, ends = models / "tiny.safetensors", models / "ends.safetensors"
    if not base.exists():
        _write_models(base, ends)
    return {
        "command": list(_commands(rng, str(base), str(ends))),
        "TOML": list(_tomls(rng)),
        "headers": list(_headers(rng, base, ends)),
        "pictures": list(_pictures(rng, str(base))),
        "videos": list(_videos(rng, str(ends))),
    }


def _write_models(base: Path, ends: Path) -> None:
    from tiny import random_model, tiny_base, tiny_between

    for path, config in ((base, tiny_base()), (ends, tiny_between())):
        save_model(path, random_model(replace(config, steps=1)), torch.float32)


def picture(width: int = 40, height: int = 36, mode: str = "RGB", format: str = "PNG", **options) -> bytes:
    """A textured picture in any of Pillow's modes and formats."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 5 % 256, y * 7 % 256, (x + y) * 3 % 256], -1).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, format, **options)
    return out.getvalue()


# --- options ---


def _commands(rng: random.Random, base: str, ends: str) -> Iterator[Case]:
    photo, clip = {"photo.png": picture()}, {"clip.mp4": video()}
    good = {
        "animate": (
            ["photo.png", "--prompt", "left", "--model", base, "-o", "out.mp4", "--frames", "3", *QUICK],
            photo,
        ),
        "interpolate": (["clip.mp4", "--model", ends, "-o", "out.mp4", *QUICK], clip),
        "info": ([base], {}),
        "init": (["--from", "photo.png", "-o", "out.safetensors"], photo),
        "train": (["run.toml", "--out", "run"], {"run.toml": toml().encode()}),
        "evaluate": (["photo.png", "--scenes", "1"], photo),
    }
    for name, (argv, files) in good.items():
        refused = name in ("init", "train", "evaluate")  # a picture is no checkpoint; there is no autoencoder
        outputs = ("out.mp4",) if "out.mp4" in argv else ()
        yield Case("command", f"{name} as it should be", [name, *argv], files, outputs, good=not refused)
        for option, values in _options(name):
            for value in values:
                for parts in (
                    ([f"{option}={value}"], [option, value]) if option.startswith("--") else ([option, value],)
                ):
                    if rng.random() < 0.35:
                        yield _with(name, argv, files, parts, outputs)
        for text in TEXTS:  # in the place of each word
            place = rng.randrange(len(argv))
            changed = [text if i == place else word for i, word in enumerate(argv)]
            yield _either(name, f"{text!r:.40} at {place}", changed, files, outputs)
            yield _either(name, f"{text!r:.40} more", [*argv, text], files, outputs)
        for place in range(len(argv)):  # each word left out, and twice
            if (name, place) == ("evaluate", 0):
                continue  # the bundled model is measured then, for minutes
            yield _either(name, f"without {place}", argv[:place] + argv[place + 1 :], files, outputs)
            yield _either(name, f"{place} twice", argv[: place + 1] + argv[place:], files, outputs)
    for text in TEXTS:
        yield _either(text, "no command", [], {}, ())
    for device in DEVICES:
        for name in ("animate", "interpolate"):
            yield _with(name, *good[name], ["--device", device], ("out.mp4",))
    for prompt in PROMPTS:
        argv = list(good["animate"][0])
        argv[2] = prompt
        for sheet in ([], ["--sheet", "sheet.png"]):
            outputs = ("out.mp4", *sheet[1:])
            yield _either("animate", f"prompt {prompt!r:.40} {sheet}", [*argv, *sheet], photo, outputs)
    yield from _collisions(good, base, ends)


def _options(name: str) -> Iterator[tuple[str, list[str]]]:
    """Every option of a command, from the parser itself, with what to give it."""
    commands = next(action for action in cli._parser()._actions if hasattr(action, "choices") and action.choices)
    for action in commands.choices[name]._actions:
        if not action.option_strings or action.nargs == 0:
            continue
        values = {"--device": DEVICES, "--size": SIZES, "--prompt": PROMPTS}.get(action.option_strings[-1], TEXTS)
        yield action.option_strings[-1], values


def _with(name: str, argv: list[str], files: dict, parts: list[str], outputs: tuple) -> Case:
    """A good line with an option added, or another value for it."""
    option = parts[0].partition("=")[0]
    argv = list(argv)
    for short, long in (("-o", "--output"),):
        argv = [long if word == short else word for word in argv]
    if option in argv:
        at = argv.index(option)
        argv = argv[:at] + argv[at + 2 :]
    return _either(name, f"{' '.join(parts)!r:.70}", [*argv, *parts], files, outputs)


def _either(name: str, what: str, argv: list[str], files: dict, outputs: tuple) -> Case:
    """What may be refused or may succeed, under whatever name was given to an output."""
    named = {}  # each output by its option; the last one holds
    for before, word in zip(["", *argv], argv, strict=False):
        option, equals, value = word.partition("=")
        for key in ("--output", "--sheet"):
            if option == key and equals:
                named[key] = value
            elif before in (key, key.replace("--output", "-o")):
                named[key] = word
    likely = tuple(sorted(Path(word).name for word in named.values() if word and "/" not in word)) or outputs
    return Case("command", f"{name}: {what}", [name, *argv], files, tuple(set(likely) - set(files)), good=None)


def _collisions(good, base: str, ends: str) -> Iterator[Case]:
    """Outputs in the place of inputs, and in places where no file can be."""
    tiny, between = Path(base).read_bytes(), Path(ends).read_bytes()
    lines = {
        "animate": ["photo.png", "--prompt", "left", "--model", "tiny.safetensors", "--frames", "3", *QUICK],
        "interpolate": ["clip.mp4", "--model", "tiny.safetensors", *QUICK],
    }
    for suffix in (".mp4", ".webm", ".gif", ".webp"):
        for name, line in lines.items():
            media = video(suffix) if name == "interpolate" else picture()
            own = ("clip" if name == "interpolate" else "photo") + suffix
            files = {own: media, "tiny.safetensors": between if name == "interpolate" else tiny}
            line = [own, *line[1:]]
            places = [own, f"./{own}", f"sub/../{own}", f"link{suffix}", own.upper()]
            for place in places:
                yield Case(
                    "command", f"{name}: the output is the input, {place}", [name, *line, "-o", place],
                    {**files, "sub/file": b""}, (place,) if place == own.upper() else (),
                    good=None if place == own.upper() else False, links={f"link{suffix}": own},
                )  # fmt: skip
    photo = {"photo.png": picture(), "tiny.safetensors": tiny}
    line = ["animate", *lines["animate"]]
    for sheet in (
        "photo.png",
        "./photo.png",
        "link.png",
        "out.mp4",
        "",
        ".",
        "sub",
        "no/sheet.png",
        "sheet",
        "sheet.jpg",
    ):
        yield Case(
            "command", f"animate: the sheet is {sheet!r}", [*line, "-o", "out.mp4", "--sheet", sheet],
            {**photo, "sub/file": b""}, good=False, links={"link.png": "photo.png"},
        )  # fmt: skip
    for place in ("tiny.safetensors", "no/out.mp4", "photo.png/out.mp4", "sub.mp4", "/dev/full", "/proc/out.mp4",
                  "x" * 4000 + ".mp4", ".mp4", "out", "out.", "out.mp4 ", "out.exe", "",
                  ".", "..", "/", "dangling/out.mp4"):  # fmt: skip
        yield Case(
            "command", f"animate: the output is {place!r:.60}", [*line, "-o", place], {**photo, "sub.mp4/file": b""},
            good=False, links={"dangling": "nowhere"},
        )  # fmt: skip
    for place, written in (
        ("x" * 251 + ".mp4",) * 2,
        ("out.mp4/", "out.mp4"),
    ):  # the longest name, and a slash too many
        yield Case(
            "command", f"animate: the output is {place!r:.60}", [*line, "-o", place], photo, (written,), good=True
        )
    yield Case("command", "init: the output is the source", ["init", "--from", "a.safetensors", "-o", "a.safetensors"],
               {"a.safetensors": tiny}, good=False)  # fmt: skip
    yield Case("command", "train: the folder is a file", ["train", "run.toml", "--out", "photo.png"],
               {**photo, "run.toml": toml().encode()}, good=False)  # fmt: skip
    yield Case(
        "command", "evaluate: the folder is a file", ["evaluate", "no", "--sheets", "photo.png"], photo, good=False
    )


# --- TOML ---

SETTINGS = {
    "task": '"diffusion"', "model": '"demo-base"', "steps": "3", "batch_size": "2", "learning_rate": "1e-3",
    "autoencoder": '"missing.safetensors"',
}  # fmt: skip


def toml(**changes: str) -> str:
    """Settings that are good but for the autoencoder, which is missing: nothing is ever trained."""
    return "".join(f"{key} = {value}\n" for key, value in {**SETTINGS, **changes}.items())


def _tomls(rng: random.Random) -> Iterator[Case]:
    from microcinema_core.demo.recipes import DemoTable
    from microcinema_core.training.config import TrainConfig

    def case(name: str, content: bytes, *more: str, says: str = "") -> Case:
        return Case("TOML", name, ["train", "run.toml", *more], {"run.toml": content}, good=False, says=says)

    never = {"nan", "inf", "-inf", "[[1]]", "{a = 1}", "2024-01-01", '["a", "b"]', "[-1, 2]", "-1"}
    texts = ("task", "model", "autoencoder", "device")
    for name in (*DemoTable.__dataclass_fields__, *TrainConfig.__dataclass_fields__):
        for value in TOMLS:
            says = name if value in never and name not in texts else ""
            raw = toml(**{name: value}).encode("utf-8", "surrogateescape")
            if rng.random() < 0.5 or says:
                yield case(f"{name} = {value!r:.40}", raw, says=says)
            elif "\x00" not in value:
                yield case(f"--set {name}={value!r:.40}", toml().encode(), "--set", f"{name}={value}", says=says)
        yield case(f"without {name}", toml(**{name: "#"}).replace(f"{name} = #\n", "").encode())
    for name, value in (("crop", "50"), ("crop", "104"), ("crop", "1"), ("model", '"base"'), ("processes", "3")):
        yield case(f"autoencoder, {name} = {value}", toml(task='"autoencoder"', **{name: value}).encode())
    whole = toml().encode()
    for _ in range(120):  # any byte for another, a piece cut out, a piece twice
        content, at, to = bytearray(whole), rng.randrange(len(whole)), rng.randrange(len(whole))
        how = rng.randrange(3)
        if how == 0:
            content[at] = rng.randrange(256)
        else:
            content[min(at, to) : max(at, to)] = b"" if how == 1 else whole[min(at, to) : max(at, to)] * 2
        yield case(f"mutated, {how} {at} {to}", bytes(content))
    for name, content in {
        "empty": b"", "a BOM": b"\xef\xbb\xbf" + whole, "UTF-16": whole.decode().encode("utf-16"), "NUL": b"\x00" * 100,
        "binary": bytes(range(256)) * 10, "JSON": b'{"task": "diffusion"}', "CRLF": whole.replace(b"\n", b"\r\n"),
        "a megabyte": b"a = 1\n" * 200_000, "deep": b"a = " + b"[" * 100_000, "deep keys": b"a." * 5000 + b"b = 1",
        "twice": whole * 2, "tables": b"[task]\nx = 1\n[[model]]\n", "a picture": picture(), "long": b"x" * 10**6,
    }.items():  # fmt: skip
        yield case(name, content)
    for more in (["--set", "steps"], ["--set", "=3"], ["--set", "a.b=1"], ["--set", "steps=1\nfoo=2"], ["--set", "="],
                 ["--set", "colour=1"], ["--set", "[steps]=1"], ["--set", "\udcff=1"], ["--set",
                 "steps=\udcff"]):  # fmt: skip
        yield case(f"{more}"[:60], whole, *more)
    yield Case("TOML", "a folder", ["train", "run.toml"], {"run.toml/x": b""}, good=False)
    yield Case("TOML", "none", ["train", "run.toml"], good=False)
    yield Case("TOML", "a dangling link", ["train", "run.toml"], links={"run.toml": "no"}, good=False)


# --- checkpoints ---


def _headers(rng: random.Random, base: Path, ends: Path) -> Iterator[Case]:
    whole = base.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    photo = {"photo.png": picture()}

    def rebuilt(changed: dict) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    def with_config(changed) -> bytes:
        metadata = {**header["__metadata__"], "config": changed if isinstance(changed, str) else json.dumps(changed)}
        return rebuilt({**header, "__metadata__": metadata})

    def case(name: str, content: bytes, good: bool | None = None) -> Iterator[Case]:
        files = {**photo, "model.safetensors": content}
        animate = ["animate", "photo.png", "--prompt", "left", "--model", "model.safetensors", "-o", "out.mp4"]
        animate += ["--frames", "3", *QUICK]
        if rng.random() < 0.6:
            yield Case("headers", f"info: {name}", ["info", "model.safetensors"], files, good=good)
        else:
            yield Case("headers", f"animate: {name}", animate, files, ("out.mp4",), good=good)

    for part in (None, "network", "autoencoder", "text"):
        for key in config if part is None else config[part]:
            for value in VALUES:
                changed = copy.deepcopy(config)
                (changed if part is None else changed[part])[key] = value
                if rng.random() < 0.75:
                    yield from case(f"{part or ''}.{key} = {value!r:.40}", with_config(changed))
    for name, value in _tokenizers(json.loads(config["text"]["tokenizer"])):
        yield from case(f"tokenizer {name}", with_config({**config, "text": {**config["text"], "tokenizer": value}}))
    for name, text in {
        "deep": "[" * 200_000, "deep objects": '{"a":' * 50_000, "not closed": '{"name": ', "a number": "7",
        "null": "null",
        "a text": '"x"', "empty": "", "NaN": "NaN", "a long number": '{"name": ' + "9" * 100_000 + "}", "nothing": "{}",
        "a megabyte": json.dumps({"name": "x" * 10**6}), "many fields": json.dumps({str(i): i for i in range(50_000)}),
    }.items():  # fmt: skip
        yield from case(f"config {name}", with_config(text), good=False)
    for name, metadata in {
        "none": None, "empty": {}, "format": {"format": "pt"}, "version": {"format": "microcinema",
        "format_version": "9"},
        "no config": {"format": "microcinema", "format_version": "1"}, "a number": {"format": 7},
        "a long version": {"format": "microcinema", "format_version": "9" * 10_000},
    }.items():  # fmt: skip
        changed = {key: value for key, value in header.items() if key != "__metadata__"}
        yield from case(
            f"metadata {name}", rebuilt(changed | ({"__metadata__": metadata} if metadata else {})), good=False
        )
    keys = sorted(header.keys() - {"__metadata__"})
    for _ in range(150):  # one tensor described otherwise, left out, renamed
        key, how = rng.choice(keys), rng.randrange(6)
        changed = copy.deepcopy(header)
        if how == 0:
            changed[key]["shape"] = rng.choice([[], [0], [2**40], [-1], [1, 1], [2**63], "x", None])
        elif how == 1:
            changed[key]["data_offsets"] = rng.choice([[0, 0], [-1, 4], [2**60, 2**61], [5], [9, 1], None, "x"])
        elif how == 2:
            changed[key]["dtype"] = rng.choice(["F16", "F64", "I8", "BOOL", "U8", "X9", "", None, 5])
        elif how == 3:
            del changed[key]
        elif how == 4:
            changed[rng.choice(["a", "", "x" * 9999, key + "x", "\ud800", "a\nb"])] = changed.pop(key)
        else:
            changed[key] = rng.choice([None, 5, [], {}, "x"])
        yield from case(f"tensor {how} {key}", rebuilt(changed))
    for _ in range(120):  # bytes of the header
        content, how = bytearray(whole), rng.randrange(3)
        at = rng.randrange(8 + length)
        if how == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            content[:8] = struct.pack("<Q", rng.choice([0, 1, 2**63, 2**64 - 1, length - 1, length + 1, 10**9, 2**30]))
        else:
            content = content[: rng.randrange(len(whole))]
        yield from case(f"bytes {how} {at}", bytes(content))
    for value in (float("nan"), float("inf"), 1e30):  # weights that compute nothing
        yield from _damaged_weights(base, ends, value)
    for name, content in {
        "empty": b"", "zeros": bytes(1000), "a picture": picture(), "pickle": b"\x80\x04\x95", "zip": b"PK\x03\x04" * 9,
        "text": b"hello\n" * 99,
    }.items():  # fmt: skip
        yield from case(name, content, good=False)


def _damaged_weights(base: Path, ends: Path, value: float) -> Iterator[Case]:
    from safetensors import safe_open

    for path, line in (
        (base, ["animate", "photo.png", "--prompt", "left", "--frames", "3"]), (ends, ["interpolate", "clip.mp4"]),
    ):  # fmt: skip
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for prefix in ("model.diffusion_model.out", "first_stage_model.decoder.conv_out", "model.diffusion_model.time"):
            changed = {k: torch.full_like(v, value) if k.startswith(prefix) else v for k, v in tensors.items()}
            out = path.with_name("damaged.safetensors")
            save_file(changed, out, metadata)
            files = {"photo.png": picture(), "clip.mp4": video(), "model.safetensors": out.read_bytes()}
            out.unlink()
            line = [*line[:4], *line[4:]]
            yield Case(
                "headers", f"{line[0]}: {prefix} is {value}", [*line, "--model", "model.safetensors", "-o", "out.mp4",
                *QUICK],
                files, ("out.mp4",), good=None if value == 1e30 else False,
            )  # fmt: skip


def _tokenizers(tokenizer: dict) -> Iterator[tuple[str, str]]:
    yield from {
        "empty": "", "no JSON": "{", "a list": "[]", "a number": "5", "an empty object": "{}", "deep": "[" * 100_000,
        "a megabyte": json.dumps({"version": "x" * 10**6}), "NaN": '{"version": NaN}',
    }.items()  # fmt: skip
    for key in tokenizer:
        for value in (
            None,
            {},
            [],
            5,
            "x",
            {"type": "BPE"},
            {"type": "Sequence", "pretokenizers": []},
            {"type": "Lowercase"},
        ):
            yield f"{key} = {value!r}", json.dumps({**tokenizer, key: value})
    vocabulary = tokenizer["model"]["vocab"]
    for name, changed in {
        "empty": {}, "large ids": {word: i + 10**6 for word, i in vocabulary.items()}, "one": {"<unknown>": 0},
        "the same ids": dict.fromkeys(vocabulary, 0), "huge ids": dict.fromkeys(vocabulary, 2 ** 32 - 1),
        "without unknown": {word: i for word, i in vocabulary.items() if word != "<unknown>"},
        "negative": dict.fromkeys(vocabulary, -1), "texts": dict.fromkeys(vocabulary, "x"),
    }.items():  # fmt: skip
        yield f"vocabulary {name}", json.dumps({**tokenizer, "model": {**tokenizer["model"], "vocab": changed}})
    for template in (
        [],
        [{"Sequence": {"id": "A", "type_id": 0}}],
        [{"SpecialToken": {"id": "<nobody>", "type_id": 0}}],
    ):
        post = {**tokenizer["post_processor"], "single": template}
        yield f"template {template}", json.dumps({**tokenizer, "post_processor": post})
    yield (
        "truncation",
        json.dumps({**tokenizer, "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 9}}),
    )
    padding = {"strategy": {"Fixed": 10**5}, "pad_id": 9, "pad_type_id": 0, "pad_token": "x", "direction": "Right"}
    yield "padding", json.dumps({**tokenizer, "padding": padding})


# --- pictures ---


def _pictures(rng: random.Random, base: str) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes | None, good: bool | None = None, **more) -> Case:
        argv = ["animate", file, "--prompt", "left", "--model", base, "-o", "out.mp4", "--frames", "3", *QUICK]
        return Case("pictures", name, argv, {} if content is None else {file: content}, ("out.mp4",), good=good, **more)

    made = {}
    for format, modes in {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "GIF": ("L", "P"),
        "WEBP": ("RGB", "RGBA"), "BMP": ("1", "L", "P", "RGB"), "TIFF": ("1", "L", "RGB", "RGBA", "CMYK", "F", "I",
        "LAB"),
        "PPM": ("1", "L", "RGB"), "TGA": ("L", "RGB", "RGBA"), "ICO": ("RGBA",), "PCX": ("L", "RGB"), "SGI": ("L",
        "RGB"),
        "JPEG2000": ("L", "RGB"), "DDS": ("RGBA",), "IM": ("RGB",), "MSP": ("1",), "XBM": ("1",), "SPIDER": ("F",),
        "AVIF": ("RGB",),
    }.items():  # fmt: skip
        for mode in modes:
            try:
                content = picture(mode="L" if mode == "I;16" else mode, format=format)
                if mode == "I;16":
                    out = io.BytesIO()
                    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(out, "PNG")
                    content = out.getvalue()
            except (OSError, KeyError, ValueError):  # this Pillow does not write it
                continue
            made[format, mode] = content
            name = f"photo.{format.lower()}"
            yield case(f"{format} {mode}", name, content, good=True)
            for how in range(7):
                damaged = bytearray(content)
                if how < 3:
                    damaged = damaged[: rng.randrange(len(content))]
                elif how < 5:
                    for _ in range(rng.choice([1, 5, 50])):
                        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
                elif how == 5:
                    damaged[rng.randrange(min(40, len(damaged)))] ^= 255
                else:
                    damaged += bytes(rng.randrange(256) for _ in range(100))
                yield case(f"{format} {mode} damaged {how}", name, bytes(damaged))
    for size in ((1, 1), (1, 2000), (2000, 1), (3, 5), (40_000, 2), (2, 40_000), (3000, 3000)):
        yield case(f"{size}", "photo.png", picture(*size), good=True)
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (0, 0),
        (10**6, 10**6),
        (1, 2**31 - 1),
        (60_000, 60_000),
    ):  # as it says
        content = bytearray(picture())
        content[16:24] = struct.pack(">II", width, height)
        yield case(f"says {width}x{height}", "photo.png", bytes(content), good=False)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        yield case(f"says {width}x{height}, with the right sum", "photo.png", bytes(content), good=False)
    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield case(f"orientation {orientation}", "photo.jpg", picture(format="JPEG", exif=exif), good=True)
    for name, exif in (
        ("no EXIF", b"Exif\x00\x00x"),
        ("cut", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff"),
        ("zeros", bytes(60)),
    ):
        yield case(f"EXIF {name}", "photo.jpg", picture(format="JPEG", exif=exif))
    for name, content in {
        "empty": b"", "one byte": b"\x89", "text": b"hello", "HTML": b"<html>404</html>", "SVG": b"<svg xmlns='x'/>",
        "zeros": bytes(5000), "random": rng.randbytes(5000), "PDF": b"%PDF-1.7\n", "a zip": b"PK\x03\x04" + bytes(60),
        "HEIC": b"\x00\x00\x00\x18ftypheic" + bytes(60), "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "a video": video(), "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60), "PSD": b"8BPS\x00\x01" + bytes(60),
        "a git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }.items():  # fmt: skip
        yield case(name, "photo.png", content, good=False)
    for name in (
        "é.png",
        "a b.png",
        "-photo.png",
        "💥.png",
        "x\udcff.png",
        "a\nb.png",
        "%s.png",
        "photo",
        "photo.mp4",
        "'.png",
    ):
        good = None if name.startswith("-") or "\udcff" in name else True
        yield case(f"named {name!r}", name, picture(), good=good)
    yield case("missing", "photo.png", None, good=False)
    yield replace(case("a folder", "photo.png", None, good=False), files={"photo.png/x": b""}, outputs=())
    yield case("a link to itself", "photo.png", None, good=False, links={"photo.png": "photo.png"})
    yield case("a dangling link", "photo.png", None, good=False, links={"photo.png": "no.png"})
    yield case("a named pipe that nobody fills", "photo.png", None, good=False, pipes=("photo.png",))
    for name in (
        "/dev/null",
        "/dev/zero",
        "/dev/random",
        "/proc/self/mem",
        "/proc/self/environ",
        "",
        "\x00",
        "x" * 5000,
        ".",
    ):
        yield case(f"{name!r:.30}", name, None, good=False)


# --- videos ---


def video(
    suffix: str = ".mp4", frames: int = 3, size: tuple[int, int] = (40, 36), codec: str | None = None, rate=8,
    sound=False,
    pictures: bool = True, tags: dict | None = None,
) -> bytes:  # fmt: skip
    """A small clip in any container, with sound if wanted, or with nothing but sound."""
    if suffix in (".gif", ".webp"):
        return animation(suffix, frames, size)
    out = io.BytesIO()
    format = {".mkv": "matroska", ".ts": "mpegts"}.get(suffix, suffix[1:])
    codec = codec or {".webm": "libvpx-vp9", ".avi": "mjpeg", ".mpeg": "mpeg1video"}.get(suffix, "libx264")
    with av.open(out, "w", format=format) as container:
        container.metadata.update(tags or {})
        if pictures:
            stream = container.add_stream(codec, rate=Fraction(rate))
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if sound:
            heard = container.add_stream("libopus" if suffix == ".webm" else "aac", rate=48_000)
        for index in range(frames if pictures else 0):
            y, x = np.mgrid[: size[1], : size[0]]
            pixels = np.stack([x * 5 + 9 * index, y * 7, x + y], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if pictures:
            container.mux(stream.encode())
        if sound:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
            samples.sample_rate = 48_000
            kind = "flt" if suffix == ".webm" else "fltp"
            for frame in av.AudioResampler(
                kind, heard.layout.name, 48_000, 960 if suffix == ".webm" else 1024
            ).resample(samples):
                container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return out.getvalue()


def animation(suffix: str, frames: int = 3, size: tuple[int, int] = (40, 36), **options) -> bytes:
    y, x = np.mgrid[: size[1], : size[0]]
    pictures = [Image.fromarray(np.stack([x * 5 + 9 * i, y * 7, x + y], -1).astype(np.uint8)) for i in range(frames)]
    out = io.BytesIO()
    options = {"duration": 100, "loop": 0, **options}
    pictures[0].save(out, suffix[1:].upper(), save_all=True, append_images=pictures[1:], **options)
    return out.getvalue()


def _videos(rng: random.Random, ends: str) -> Iterator[Case]:
    def case(name: str, file: str, content: bytes | None, good: bool | None = None, size=True, more=(), **rest) -> Case:
        argv = ["interpolate", file, "--model", ends, "-o", "out.mp4", "--steps", "1", *more]
        argv += ["--size", f"{SIZE}x{SIZE}"] if size else []
        return Case("videos", name, argv, {} if content is None else {file: content}, ("out.mp4",), good=good, **rest)

    made = {suffix: video(suffix) for suffix in (".mp4", ".webm", ".mkv", ".mov", ".avi", ".ts", ".gif", ".webp",
    ".mpeg")
            if suffix != ".mpeg"} | {".mpeg": video(".mpeg", rate=25)}  # fmt: skip
    for suffix, content in made.items():
        yield case(f"{suffix} as it should be", "clip" + suffix, content, good=True)
        for how in range(30):
            damaged = bytearray(content)
            if how < 12:
                damaged = damaged[: rng.randrange(len(content))]
            elif how < 24:
                for _ in range(rng.choice([1, 4, 30, 200])):
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            elif how < 27:
                at, to = sorted(rng.sample(range(len(damaged)), 2))
                damaged[at:to] = b"" if how % 2 else bytes(to - at)
            else:
                damaged[rng.randrange(min(64, len(damaged)))] ^= 255
            yield case(f"{suffix} damaged {how}", "clip" + suffix, bytes(damaged))
        for other in (".mp4", ".gif", ".webp", ".png", ".txt", ""):  # another format's name
            if other != suffix:
                yield case(f"{suffix} named clip{other}", "clip" + other, content)
    for suffix in (".mp4", ".webm", ".mkv", ".gif", ".webp"):
        for frames in (1, 2, 9):
            yield case(f"{suffix} of {frames}", "clip" + suffix, video(suffix, frames), good=frames > 1)
        for size in ((16, 16), (64, 16), (34, 34), (36, 50), (200, 8)):
            yield case(f"{suffix} of {size}, kept", "clip" + suffix, video(suffix, 2, size), size=False)
            yield case(f"{suffix} of {size}, cut", "clip" + suffix, video(suffix, 2, size), good=True)
    for rate in (Fraction(1, 1000), Fraction(1, 10), 1, 1000, Fraction(24000, 1001), 60_000):
        yield case(f"{rate} fps", "clip.mkv", video(".mkv", rate=rate))
        yield case(f"{rate} fps", "clip.mp4", video(".mp4", rate=rate))
    for suffix in (".mp4", ".mkv", ".webm"):
        yield case(f"{suffix} with sound", "clip" + suffix, video(suffix, sound=True), good=True)
        yield case(f"{suffix} of sound alone", "clip" + suffix, video(suffix, sound=True, pictures=False), good=False)
    for output in ("out.webm", "out.gif", "out.webp"):
        for suffix in (".mp4", ".gif"):
            made_case = case(f"{suffix} to {output}", "clip" + suffix, video(suffix, sound=suffix == ".mp4"), good=True)
            argv = [output if word == "out.mp4" else word for word in made_case.argv]
            yield replace(made_case, argv=argv, outputs=(output,))
    yield from (case(*found) for found in _changing())
    for delay in (0, 1, 10, 65535, [0, 0, 0], [0, 100, 0], [10, 10_000, 10]):
        for suffix in (".gif", ".webp"):
            yield case(f"{suffix}, delays {delay}", "clip" + suffix, _animation_or_not(suffix, delay))
    for note in (
        {"fps": 0, "tags": {}}, {"fps": -1, "tags": {}}, {"fps": float("nan"), "tags": {}}, {"fps": float("inf"),
        "tags": {}},
        {"fps": 1e308, "tags": {}}, {"fps": 1e-308, "tags": {}}, {"fps": "8", "tags": {}}, {"fps": None, "tags": None},
        {"fps": [8], "tags": {}}, {"fps": 8, "tags": []}, {"fps": 8, "tags": "x"}, {"fps": True, "tags": {}},
        {"fps": 10**400, "tags": {}}, {"fps": 8}, [1], {"fps": 8, "tags": {"comment": 5}}, {"fps": 100, "tags": {}},
        {"fps": 100_000, "tags": {}},
    ):  # fmt: skip
        text = json.dumps(note)
        yield case(f"gif comment {text[:40]}", "clip.gif", animation(".gif", comment=text.encode()))
        exif = Image.Exif()
        exif[0x010E] = text
        yield case(f"webp EXIF {text[:40]}", "clip.webp", animation(".webp", exif=exif))
    for text in ("[" * 3000, "{", '{"a": ' * 3000, "\xff\xfe", "x" * 70_000, '{"fps": ' + "9" * 5000 + ', "tags": {}}'):
        yield case(f"gif comment {text[:20]!r}", "clip.gif", animation(".gif", comment=text.encode("latin-1")))
        yield case(
            f"mp4 comment {text[:20]!r}", "clip.mp4", video(tags={"comment": text.replace("\xff", "y")}), good=True
        )
    for name, content in {
        "empty": b"", "text": b"hello", "zeros": bytes(5000), "random": rng.randbytes(5000), "a picture": picture(),
        "JPEG": picture(format="JPEG"), "a playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
        "a list of files": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nhi\n",
        "only ftyp": made[".mp4"][:32], "HTML": b"<html></html>", "raw": bytes(range(256)) * 40,
    }.items():  # fmt: skip
        for suffix in (".mp4", ".gif", ".webm", ".webp"):
            yield case(f"{name} as {suffix}", "clip" + suffix, content)
    for name in (
        "é.mp4",
        "a b.mp4",
        "x\udcff.mp4",
        "clip",
        "a:b.mp4",
        "http:x.mp4",
        "%03d.mp4",
        "file.mp4",
        "clip.MP4",
    ):
        yield case(f"named {name!r}", name, made[".mp4"], good=None if "\udcff" in name or ":" in name else True)
    for name in ("http://127.0.0.1:9/x.mp4", "rtmp://127.0.0.1/x", "tcp://127.0.0.1:9", "pipe:0", "concat:a|b",
    "file:clip.mp4",
                 "lavfi:testsrc", "/dev/video0", "-", "", "/dev/null", "/dev/zero", ".", "\x00", "x" * 5000,
                 "desktop"):  # fmt: skip
        yield case(f"source {name!r:.30}", name, None, good=False)
    yield case("missing", "clip.mp4", None, good=False)
    yield case("a named pipe that nobody fills", "clip.mp4", None, good=False, pipes=("clip.mp4",))
    yield case("a link to itself", "clip.mp4", None, good=False, links={"clip.mp4": "clip.mp4"})
    yield replace(case("a folder", "clip.mp4", None, good=False), files={"clip.mp4/x": b""}, outputs=())


def _animation_or_not(suffix: str, delay) -> bytes:
    try:
        return animation(suffix, duration=delay)
    except (ValueError, OSError, struct.error):  # more than the format can say
        return animation(suffix, duration=0)


def _changing() -> Iterator[tuple[str, str, bytes]]:
    """Videos whose size changes in the middle."""
    for first, second in (((40, 36), (64, 48)), ((64, 48), (40, 36)), ((40, 36), (36, 40))):
        yield f"{first} then {second}", "clip.ts", video(".ts", 3, first) + video(".ts", 3, second)
        yield (
            f"mpeg {first} then {second}",
            "clip.mpeg",
            video(".mpeg", 3, first, rate=25) + video(".mpeg", 3, second, rate=25),
        )
        yield f"two {first}, {second} mp4 files in one", "clip.mp4", video(".mp4", 3, first) + video(".mp4", 3, second)
