"""The template smoother-and-larger on a clip with sound."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host import api_form
from upscaler import save_upscaler

from microcinema_core import video
from microcinema_core.checkpoint import save_model

RATE = 48_000  # of the sound


@pytest.fixture
def template(server, tiny_ends_model):
    """The template by class of node, with tiny models."""
    folder = server.base / "models"
    (folder / "microcinema").mkdir(parents=True, exist_ok=True)
    model = folder / "microcinema" / "tiny-between.safetensors"
    save_model(model, tiny_ends_model)
    upscaler = save_upscaler(folder / "upscale_models" / "tiny.safetensors")
    made = api_form("smoother-and-larger")
    inputs = {node["class_type"]: node["inputs"] for node in made.values()}
    inputs["LoadVideo"]["file"] = "film.mp4"
    inputs["MicroCinemaLoader"]["model_name"] = model.name
    inputs["UpscaleModelLoader"]["model_name"] = upscaler.name
    yield made, inputs
    model.unlink()
    upscaler.unlink()


def save_film(server, count: int, fps: int, size: tuple[int, int]) -> torch.Tensor:
    """A clip of soft noise with a tone of 480 Hz on its right from the second half on; returns the frames as read."""
    height, width = size
    path = server.base / "input" / "film.mp4"
    frames = torch.rand(count, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(frames, size, mode="bilinear")
    time = torch.arange(round(RATE * count / fps)) / RATE
    tone = 0.5 * torch.sin(2 * torch.pi * 480 * time) * (time >= count / fps / 2)
    video.write_video(path, frames, fps, audio=(torch.stack([0 * tone, tone]), RATE))
    return video.read_video(path)[0]


def heard(path) -> np.ndarray:
    """The samples of the right channel."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[1] for frame in container.decode(audio=0)])


def test_a_clip_has_four_times_the_frames_twice_the_size_and_its_sound(server, template):
    made, _ = template
    before = save_film(server, 9, 8, (64, 96))
    outputs = server.run(made)
    [path] = server.files([file for output in outputs.values() for file in output.get("images", [])])
    opened = video.open_video(path)
    assert (opened.count, opened.fps, opened.size) == (33, 32, (192, 128))
    frames = torch.stack(list(opened.frames))
    assert (frames[::4] - F.interpolate(before, scale_factor=2)).abs().mean() < 0.02  # the given ones, enlarged
    sound = heard(path)
    assert len(sound) == pytest.approx(33 / 32 * RATE, abs=2048)  # to where the pictures end
    middle = round(9 / 8 / 2 * RATE)
    assert np.abs(sound[2000 : middle - 2000]).max() < 0.02
    spectrum = np.abs(np.fft.rfft(sound[middle + 2000 : middle + 2000 + 16_000]))
    assert spectrum.argmax() * RATE / 16_000 == pytest.approx(480, abs=3)


def test_trim_video_cuts_pictures_and_sound_alike(server, template):
    made, inputs = template
    save_film(server, 16, 8, (32, 32))
    inputs["Video Slice"] |= {"start_time": 1.0, "duration": 0.5}
    outputs = server.run(made)
    [path] = server.files([file for output in outputs.values() for file in output.get("images", [])])
    opened = video.open_video(path)
    assert (opened.count, opened.fps) == (13, 32)
    sound = np.abs(heard(path))
    assert len(sound) == pytest.approx(13 / 32 * RATE, abs=2048)
    assert sound[3000:-3000].max() == pytest.approx(0.5, abs=0.05)  # of its second half
