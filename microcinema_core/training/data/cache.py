"""`microcinema cache`: the latents and texts of all clips on disk, so that training needs no decoding and no encoding.

A cache is a folder with `cache.json` (what it was made from), `videos.jsonl` (one line for each video) and shards of
CLIPS_PER_SHARD clips in safetensors. Stored are the mean and the log-variance of the autoencoder's posterior, so that
training draws a new latent in every step. The folder's name is a hash of the data, the weights and the settings.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...errors import MicroCinemaError
from ...files import make_folder, whole_file
from ...model.text import TextEncoder
from ...progress import duration
from ..objective import moments
from .clips import Unusable
from .samples import Clip, Clips

CLIPS_PER_SHARD = 64
MANIFEST, VIDEOS = "cache.json", "videos.jsonl"


class CachedClips:
    """The clips of a cache, as samples.Clips."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Raises MicroCinemaError where the folder is no complete cache, or `settings`, those of the run, are not those
        that it was made with."""
        self.folder = folder
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            with (folder / VIDEOS).open(encoding="utf-8") as file:
                videos = [(row["id"], row["bucket"]) for row in map(json.loads, file)]
            self._ids = [id for id, _ in videos]
            self.identity, self.variants = manifest["identity"], manifest["variants"]
            self.has_states, made_with = manifest["states"], manifest["settings"]
        except (OSError, ValueError, KeyError) as error:
            raise MicroCinemaError(f"'{folder}' is no cache ({error}): make it with `microcinema cache`") from error
        for name, value in settings.items():
            if made_with.get(name) != value:
                raise MicroCinemaError(
                    f"the cache '{folder}' was made with {name} {made_with.get(name)}, not {value}: make another one"
                )
        if missing := [path for path in shards_of(folder, len(self._ids) * self.variants) if not path.exists()]:
            raise MicroCinemaError(f"the cache '{folder}' lacks {missing[0].name}: run `microcinema cache` again")
        self.sizes = [(width, height) for width, height in made_with["sizes"]]
        self.buckets = np.array([bucket for _, bucket in videos], np.int64)

    def name(self, index: int) -> str:
        """The video's id."""
        return self._ids[index]

    def captions(self) -> Iterator[str]:
        """The captions of all clips."""
        for path in shards_of(self.folder, len(self._ids) * self.variants):
            yield from _header(path)["captions"].values()

    def read(self, index: int, visit: int) -> Clip:
        """Read a clip. Raises Unusable for one that could not be cut when the cache was made."""
        key = index * self.variants + visit % self.variants
        path = shard_path(self.folder, key // CLIPS_PER_SHARD)
        header = _header(path)
        if reason := header["skipped"].get(str(key)):
            raise Unusable(reason)
        try:
            with safe_open(path, "pt") as file:
                mean, log_variance = file.get_tensor(f"mean.{key}"), file.get_tensor(f"log_variance.{key}")
                states = file.get_tensor(f"states.{index}") if self.has_states else None
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
        return Clip(header["captions"][str(key)], mean=mean, log_variance=log_variance, states=states)


def make_cache(
    clips: Clips, autoencoder: nn.Module, text: TextEncoder | None, settings: dict[str, Any], out: Path, *,
    variants: int, dtype: torch.dtype, report: Callable[[str], None], progress: Callable[[int, int], None],
) -> Path:  # fmt: skip
    """Encode `variants` clips of every video into a folder below `out`, and return that folder.

    Shards that exist are kept, and several processes share the work, each taking a shard that no other works on.
    `report` is told how much time and room it will take, before the work. Raises MicroCinemaError where a file cannot
    be written.
    """
    from filelock import FileLock, Timeout

    weights = _digest([autoencoder, text]) if text else _digest([autoencoder])
    made_from = {
        "identity": clips.identity, "settings": settings, "variants": variants, "weights": weights,
        "states": text is not None, "dtype": str(dtype),
    }  # fmt: skip
    folder = out / hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    make_folder(folder)
    _write_manifest(folder, made_from, clips)
    count = len(clips.buckets) * variants
    paths = shards_of(folder, count)
    waiting = [index for index, path in enumerate(paths) if not path.exists()]
    if waiting:
        report(_estimate(clips, autoencoder, text, variants, dtype, min(count, len(waiting) * CLIPS_PER_SHARD)))
    while waiting := [index for index in waiting if not paths[index].exists()]:
        worked = False
        for index in waiting:
            try:
                with FileLock(paths[index].with_suffix(".lock"), timeout=0):
                    if not paths[index].exists():
                        keys = range(index * CLIPS_PER_SHARD, min(count, (index + 1) * CLIPS_PER_SHARD))
                        _write_shard(paths[index], keys, clips, autoencoder, text, variants, dtype)
                        worked = True
            except Timeout:  # another process writes it
                continue
            progress(sum(path.exists() for path in paths), len(paths))
        if not worked:
            time.sleep(1)  # until the others have finished, or died
    for path in paths:
        path.with_suffix(".lock").unlink(missing_ok=True)
    return folder


def skipped_in(folder: Path) -> dict[str, str]:
    """The reasons for which clips of a cache could not be made, by the id of the video."""
    ids = [json.loads(line)["id"] for line in (folder / VIDEOS).read_text("utf-8").splitlines()]
    variants, found = json.loads((folder / MANIFEST).read_text())["variants"], {}
    for path in sorted(folder.glob("*.safetensors")):
        skipped = _header(path)["skipped"]
        found |= {ids[int(key) // variants]: reason for key, reason in skipped.items()}
    return found


@torch.no_grad()
def states_of(text: TextEncoder, captions: list[str]) -> Tensor:
    """The text encoder's states (n, L, width) of captions, in float16, one caption at a time."""
    return torch.cat([text.encode([caption]).half().cpu() for caption in captions])


def shard_path(folder: Path, index: int) -> Path:
    """The path of a shard."""
    return folder / f"{index:06d}.safetensors"


def shards_of(folder: Path, clips: int) -> list[Path]:
    """The paths of the shards of so many clips."""
    return [shard_path(folder, index) for index in range(-(-clips // CLIPS_PER_SHARD))]


@torch.no_grad()
def _encoded(clip: Clip, autoencoder: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert clip.pixels is not None
    device = next(autoencoder.parameters()).device
    mean, log_variance = moments(clip.pixels[None].to(device), autoencoder)  # pyright: ignore[reportArgumentType]
    return mean[0].to("cpu", dtype).contiguous(), log_variance[0].to("cpu", dtype).contiguous()


def _write_shard(path, keys, clips, autoencoder, text, variants, dtype) -> None:
    tensors, skipped, captions = {}, {}, {}
    for key in keys:
        index = key // variants
        try:
            clip = clips.read(index, key % variants)
        except Unusable as error:
            skipped[str(key)] = str(error)
            continue
        captions[str(key)] = clip.caption
        tensors[f"mean.{key}"], tensors[f"log_variance.{key}"] = _encoded(clip, autoencoder, dtype)
        if text and f"states.{index}" not in tensors:
            tensors[f"states.{index}"] = states_of(text, [clip.caption])[0].contiguous()
    with whole_file(path) as part:
        save_file(tensors, part, {"skipped": json.dumps(skipped), "captions": json.dumps(captions)})


def _header(path: Path) -> dict[str, dict[str, str]]:
    """The captions of a shard's clips, and the reasons of those that are not in it, by their numbers."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        return {name: json.loads(metadata[name]) for name in ("skipped", "captions")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> MicroCinemaError:
    return MicroCinemaError(f"'{path}' is damaged ({error}): delete it, and run `microcinema cache` again")


def _write_manifest(folder: Path, made_from: dict[str, Any], clips: Clips) -> None:
    if (folder / MANIFEST).exists():
        return
    with whole_file(folder / VIDEOS) as part, part.open("w", encoding="utf-8") as file:
        for index, bucket in enumerate(clips.buckets.tolist()):
            row = {"id": clips.name(index), "bucket": bucket}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with whole_file(folder / MANIFEST) as part:
        part.write_text(json.dumps(made_from, indent=2))


def _estimate(clips: Clips, autoencoder: nn.Module, text: TextEncoder | None, variants: int, dtype: torch.dtype,
              count: int) -> str:  # fmt: skip
    """How long `count` clips will take on this machine, and how large they will be, from the first that can be read."""
    started, size = time.monotonic(), 0
    for index in range(len(clips.buckets)):
        try:
            clip = clips.read(index, 0)
        except Unusable:
            continue
        size = 2 * _encoded(clip, autoencoder, dtype)[0].nbytes
        if text:
            size += states_of(text, [clip.caption]).nbytes / variants
        break
    seconds = (time.monotonic() - started) * count
    return f"{count:,} clips: about {count * size / 1e6:,.1f} MB, {duration(seconds)} in one process"


def _digest(modules: list[Any]) -> str:
    """A hash of the weights of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
