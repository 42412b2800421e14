"""Videos in the host: from a file through its nodes and ours to a file again, and the formats for those who edit."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from host import api_form

from microcinema_core import video

EDITED = {
    "mp4 (h265, 10 bit)": ("hevc", "yuv420p10le", "aac"),
    "mov (ProRes 422 HQ)": ("prores", "yuv422p10le", "pcm_s16le"),
    "mkv (FFV1, lossless)": ("ffv1", "bgr0", "flac"),
}


def combine(**inputs) -> dict:
    """Video Combine of two plain pictures; without crf, as workflows of 0.1 have it."""
    return {
        "pictures": {"class_type": "EmptyImage", "inputs": {"width": 97, "height": 64, "batch_size": 4, "color": 255}},
        "silence": {"class_type": "EmptyAudio", "inputs": {"duration": 3.0, "sample_rate": 44100, "channels": 2}},
        "video": {"class_type": "MicroCinemaVideoCombine", "inputs": {
            "images": ["pictures", 0], "fps": 8.0, "format": "mp4 (h264)", "quality": 80, "loop_count": 0,
            "ping_pong": False, "filename_prefix": "video/made", "save": True, **inputs}},
    }  # fmt: skip


@pytest.fixture
def film(server):
    """5 frames of noise, 8 a second, with a tone in the second half of its first half-second."""
    frames = torch.rand(5, 3, 8, 12, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 2)
    time = torch.arange(30_000) / 48_000
    tone = 0.5 * torch.sin(2 * torch.pi * 480 * time) * ((time >= 0.25) & (time < 0.5))
    path = server.base / "input" / "film.mp4"
    video.write_video(path, frames.repeat_interleave(8, 3), 8, audio=(tone.expand(2, -1), 48_000))
    return path


def test_a_video_is_interpolated_with_its_sound(server, film):
    loader = next(node for node in api_form("animate-a-picture").values() if "terpolation" in str(node["inputs"]))
    made = {
        "file": {"class_type": "LoadVideo", "inputs": {"file": film.name}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["file", 0]}},
        "ends": loader,
        "between": {"class_type": "MicroCinemaInterpolate", "inputs": {
            "model": ["ends", 0], "vae": ["ends", 2], "images": ["parts", 0], "passes": 1, "steps": 0, "seed": 0,
            "loop": False, "fps": ["parts", 2]}},
        "video": combine()["video"],
    }  # fmt: skip
    made["video"]["inputs"] |= {"images": ["between", 0], "fps": ["between", 1], "audio": ["parts", 1]}
    [path] = server.files(server.run(made)["video"]["images"])
    opened = video.open_video(path)
    assert (opened.count, opened.fps, opened.size) == (17, 32, (96, 64))
    frames, before = torch.stack(list(opened.frames)), video.read_video(film)[0]
    assert (frames[::4] - before).abs().mean() < 0.05  # noise, encoded once more
    sound = np.abs(np.concatenate(list(opened.sound.pieces), 1)[1])
    assert len(sound) == pytest.approx(17 / 32 * 48_000, abs=2048)
    assert sound[2000:11_000].max() < 0.02 and sound[13_000:23_000].max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("format", EDITED)
def test_formats_for_those_who_edit(server, format):
    made = combine(format=format, audio=["silence", 0])
    shown = server.run(made)["video"]
    assert "images" not in shown  # no player for what a browser does not play
    [path] = server.files(shown["files"])
    assert list(path.parent.glob(f"*{path.stem}*")) == [path]  # nothing beside it
    assert video.read_metadata(path)["prompt"] == made
    with av.open(str(path)) as container:
        pictures, sound = container.streams.video[0].codec_context, container.streams.audio[0]
        assert (pictures.name, pictures.pix_fmt, sound.codec_context.name) == EDITED[format]
        assert (pictures.width, pictures.height) == (97 + (pictures.pix_fmt != "bgr0"), 64)
        assert sum(1 for _ in container.decode(video=0)) == 4
    opened = video.open_video(path)
    assert opened.fps == 8 and sum(piece.shape[1] for piece in opened.sound.pieces) == pytest.approx(22_050, abs=2048)


@pytest.mark.parametrize("format", ["mp4 (h264)", "webm (vp9)", "mp4 (h265, 10 bit)"])
def test_crf_is_instead_of_quality(server, format):
    pictures = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    sizes = []
    for options in ({"quality": 80}, {"quality": 80, "crf": -1}, {"quality": 0, "crf": 10}, {"quality": 80, "crf": 45}):
        made = combine(format=format, **options) | {"pictures": pictures}
        shown = server.run(made)["video"]
        sizes.append(server.files(shown.get("images") or shown["files"])[0].stat().st_size)
    usual, same, good, poor = sizes
    assert usual == pytest.approx(same, abs=200) and poor < usual < good  # the graph inside differs


def test_a_crf_that_the_encoder_does_not_have_is_a_sentence(server):
    folder = server.base / "output" / "refused"
    assert "CRF from 0 to 51, not 60" in server.error(combine(crf=60, filename_prefix="refused/a"))
    assert list(folder.iterdir()) == []
    server.run(combine(crf=60, format="webm (vp9)", filename_prefix="refused/a"))
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("format", ["gif", "webp (animated)", "png sequence"])
def test_sound_that_a_format_cannot_hold_is_left_out_with_a_note(server, format):
    server.run(combine(format=format, audio=["silence", 0]))
    assert f"{format} holds no sound; it is left out." in server.log


def test_the_node_is_told_apart_and_its_crf_is_advanced(server):
    shown = server.get("/object_info/MicroCinemaVideoCombine")["MicroCinemaVideoCombine"]
    assert shown["display_name"] == "Video Combine (MicroCinema)" and shown["category"] == "MicroCinema"
    kind, options = shown["input"]["optional"]["crf"]
    assert kind == "INT" and options["advanced"] and options["default"] == -1
