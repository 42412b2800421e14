"""What is generated and what it is compared with: prompts and real clips of UCF-101 and MSR-VTT.

Real clips are drawn without replacement until there are no more, so that classes are as frequent as in the folder; the
prompt of an item is that of its clip. The same folder and seed give the same items.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import files
from ..errors import MicroCinemaError

VIDEOS = (".avi", ".mp4", ".mkv", ".webm")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Item:
    """One clip to generate, and the real clip whose prompt it has."""

    number: int
    prompt: str
    clip: Path
    name: str  # of the clip, below the folder of the set

    @property
    def label(self) -> str:
        """The number as the names of files have it."""
        return f"{self.number:05}"


def draw(kind: str, folder: Path, prompts: Path | None, samples: int, seed: int) -> list[Item]:
    """The items 0 … samples − 1 of a set, "ucf101" or "msrvtt", in a folder.

    `prompts` is for UCF-101 a JSON object of class and sentence, without which the words of the class's name are the
    prompt; for MSR-VTT its JSON or CSV of captions, by default the only one in the folder. Raises MicroCinemaError
    where the folder is not that set.
    """
    if not folder.is_dir():
        raise MicroCinemaError(f"the folder '{folder}' does not exist: give the folder of the set's clips with --data")
    clips, prompt_of = SETS[kind](folder, prompts, seed)
    random.Random(seed).shuffle(clips)
    chosen = (clips[number % len(clips)] for number in range(samples))
    return [Item(n, prompt_of(clip), clip, clip.relative_to(folder).as_posix()) for n, clip in enumerate(chosen)]


def ucf101(folder: Path, prompts: Path | None, seed: int) -> tuple[list[Path], Callable[[Path], str]]:
    """The clips below a folder of class folders, sorted, and the prompt of each: its class's sentence."""
    clips = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in VIDEOS)
    if not clips:
        raise MicroCinemaError(f"'{folder}' has no class folders with .avi files: give the folder UCF-101 itself")
    classes = sorted({path.parent.name for path in clips})
    sentences = {name: class_words(name) for name in classes}
    if prompts:
        sentences = _json(prompts)
        lacking = [name for name in classes if not isinstance(sentences.get(name), str)]
        if lacking:
            raise MicroCinemaError(f"'{prompts}' has no sentence for the class {lacking[0]}: give one for every class")
    return clips, lambda clip: sentences[clip.parent.name]


def class_words(name: str) -> str:
    """The words of a class's name: "ApplyEyeMakeup" becomes "apply eye makeup"."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower() or name


def msrvtt(folder: Path, prompts: Path | None, seed: int) -> tuple[list[Path], Callable[[Path], str]]:
    """The clips of the test split, sorted, and the prompt of each: one of its captions, drawn by `seed`."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".json", ".csv")]
    if prompts is None and len(found) != 1:
        raise MicroCinemaError(
            f"'{folder}' has {len(found)} files of captions (.json, .csv): name MSR-VTT's with --prompts"
        )
    source = prompts or found[0]
    captions = _captions_csv(source) if source.suffix.lower() == ".csv" else _captions_json(source)
    paths = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEOS}
    lacking = sorted(captions.keys() - paths.keys())
    if lacking or not captions:
        what = f"the clip {lacking[0]} and {len(lacking) - 1} others" if lacking else "all clips"
        raise MicroCinemaError(f"'{folder}' lacks {what} of '{source}': fetch them, or take their captions out")
    chosen = {paths[name]: random.Random(f"{seed} {name}").choice(options) for name, options in captions.items()}
    return sorted(chosen), chosen.__getitem__


SETS = {"ucf101": ucf101, "msrvtt": msrvtt}


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise MicroCinemaError(f"'{path}' cannot be read as a JSON object ({error}): name another file") from error
    return value


def _captions_json(path: Path) -> dict[str, list[str]]:
    """The captions of MSR-VTT's JSON by clip: `videos` (video_id, split) and `sentences` (video_id, caption). Where a
    video is marked as "test", only those are."""
    data, captions = _json(path), {}
    try:
        test = {video["video_id"] for video in data["videos"] if video.get("split") == "test"}
        for sentence in data["sentences"]:
            if not test or sentence["video_id"] in test:
                captions.setdefault(sentence["video_id"], []).append(str(sentence["caption"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise MicroCinemaError(
            f"'{path}' has no videos and sentences as MSR-VTT's JSON has: name that file with --prompts"
        ) from error
    return captions


def _captions_csv(path: Path) -> dict[str, list[str]]:
    """The captions of a CSV with the columns video_id and sentence, by clip."""
    captions = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                captions.setdefault(row["video_id"], []).append(row["sentence"] or "")
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise MicroCinemaError(
            f"'{path}' cannot be read as a CSV with the columns video_id and sentence: name another with --prompts"
        ) from error
    return captions


def write_prompts(items: list[Item], path: Path) -> None:
    """Write the items as a CSV: number, prompt, clip."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["number", "prompt", "clip"])
    rows.writerows([item.label, item.prompt, item.name] for item in items)
    with files.whole_file(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def find_pictures(folder: Path, items: list[Item], prompts: Path) -> list[Path]:
    """The condition picture of every item, NUMBER.png (or jpg, webp) in a folder.

    Where some are missing, the items are written to `prompts`, unless it exists, and MicroCinemaError names it.
    """
    if not folder.is_dir():
        raise MicroCinemaError(f"the folder of pictures '{folder}' does not exist: make it, or give --pictures real")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES}
    missing = [item for item in items if item.label not in found]
    if missing:
        if not prompts.exists():
            files.make_folder(prompts.parent)
            write_prompts(items, prompts)
        raise MicroCinemaError(
            f"'{folder}' lacks {len(missing)} of {len(items)} pictures, the first {missing[0].label}.png for "
            f"'{missing[0].prompt}': make one for every line of '{prompts}', named by its number"
        )
    return [found[item.label] for item in items]
