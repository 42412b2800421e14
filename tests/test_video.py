"""A clip written and read again is the same clip; the files are what players expect; equal clips are equal bytes."""

import struct
from fractions import Fraction

import av
import pytest
import torch

from microcinema_core import images, video
from microcinema_core.errors import MicroCinemaError

SUFFIXES = [".mp4", ".webm", ".gif", ".webp"]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]


def moving_bars(frames: int = 9, width: int = 96, height: int = 64) -> torch.Tensor:
    """Six bars of plain colours, 16 pixels wide, that move 16 pixels to the left each frame."""
    bars = torch.tensor(COLOURS).float().div(255).repeat_interleave(16, 0).T[:, None].expand(3, height, 96)
    return torch.stack([bars.roll(-16 * index, dims=2)[:, :, :width] for index in range(frames)])


def bar_middles(frames: torch.Tensor) -> torch.Tensor:
    return frames[:, :, 24:40, 4:96].unfold(3, 8, 16).mean((2, 4))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    frames = moving_bars()
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, frames, 8, {"comment": {"seed": 3, "prompt": "größer"}, "title": "a clip"})
    read, fps = video.read_video(path)
    assert read.shape == frames.shape and read.dtype == torch.float32
    assert fps == 8
    assert (bar_middles(read) - bar_middles(frames)).abs().max() * 255 < 6
    tags = video.read_metadata(path)
    assert tags["comment"] == {"seed": 3, "prompt": "größer"} and tags["title"] == "a clip"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("fps", [2, 0.1, 23.976, 30000 / 1001, 60])
def test_rates(tmp_path, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, moving_bars(5), fps)
    assert video.read_video(path)[1] == pytest.approx(fps, rel=1e-6)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(fps).limit_denominator(1001)
        times = [frame.time for frame in container.decode(stream)]
    assert times == pytest.approx([index / fps for index in range(5)], abs=1e-3)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [0.1, 24, 29.97, 50])
def test_animations_last_as_long_as_they_should(tmp_path, suffix, fps):
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, moving_bars(12), fps)
    read, read_fps = video.read_video(path)
    assert len(read) == 12 and read_fps == fps
    with images.Image.open(path) as image:
        shown = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            shown.append(image.info["duration"])
    assert sum(shown) == pytest.approx(12_000 / fps, abs=5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_at_rest_are_not_lost(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    frames = moving_bars(3).repeat_interleave(torch.tensor([1, 3, 1]), 0)
    video.write_video(path, frames, 24)
    read, _ = video.read_video(path)
    assert (bar_middles(read) - bar_middles(frames)).abs().max() * 255 < 6


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_bt709_is_said_and_done(tmp_path, suffix):
    """Luma of the pure colours by Rec. 709 (0.2126, 0.7152, 0.0722) on 16-235; Rec. 601 would give 81, 145, 41."""
    path = tmp_path / f"clip{suffix}"
    frames = torch.eye(3)[:, :, None, None].expand(3, 3, 32, 32)
    video.write_video(path, frames, 2)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert context.pix_fmt == "yuv420p"
        luma = [frame.to_ndarray()[:32].mean() for frame in container.decode(video=0)]
    assert luma == pytest.approx([16 + 219 * weight for weight in (0.2126, 0.7152, 0.0722)], abs=1.5)


def test_mp4_starts_to_play_before_it_is_all_there(tmp_path):
    video.write_video(tmp_path / "clip.mp4", moving_bars(), 8)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_clips_are_equal_bytes(tmp_path, suffix):
    a, b, c = (tmp_path / f"{name}{suffix}" for name in "abc")
    generator = torch.Generator().manual_seed(0)
    frames = moving_bars() + 0.05 * torch.rand(9, 3, 64, 96, generator=generator)
    video.write_video(a, frames, 8, {"seed": "1"})
    video.write_video(b, iter(frames), 8, {"seed": "1"})
    video.write_video(c, frames.flip(0), 8, {"seed": "1"})
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()


def test_changing_light_is_written_the_same_way_every_time(tmp_path):
    """Where brightness changes, x264's macroblock tree gave other bytes in some runs."""
    generator = torch.Generator().manual_seed(1)
    frames = 0.9 * torch.rand(1, 3, 12, 12, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    frames = torch.cat([frames.roll(index, 3) for index in range(9)])
    frames = frames + 0.1 * torch.rand(9, 3, 1, 1, generator=generator)
    files = set()
    for index in range(12):
        video.write_video(tmp_path / f"{index}.mp4", frames, 2)
        files.add((tmp_path / f"{index}.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_sizes(tmp_path, suffix):
    size = (48, 34) if suffix in video.CODECS else (47, 33)
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, moving_bars(3, 47, 33), 8)
    read, _ = video.read_video(path)
    assert (read.shape[3], read.shape[2]) == size
    assert (read[..., 32:, 4:44] - read[..., 31:32, 4:44]).abs().max() < 0.05  # the last line repeated, not black


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("made", [0, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_clip_leaves_nothing(tmp_path, suffix, made, error):
    def frames():
        yield from moving_bars()[:made]
        raise error

    with pytest.raises(error):
        video.write_video(tmp_path / f"clip{suffix}", frames(), 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_clip_of_no_frames_is_refused(tmp_path, suffix):
    with pytest.raises(MicroCinemaError, match="without frames"):
        video.write_video(tmp_path / f"clip{suffix}", [], 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("clip.avi", None, "end it in .mp4 or .webm or .gif or .webp"),
        ("clip", None, "end it in"),
        ("missing/clip.mp4", None, "does not exist: create it"),
        ("file/clip.mp4", None, "does not exist"),
        ("folder.mp4", None, "is a folder"),
        (f"{'x' * 300}.mp4", None, "cannot be written"),
        ("clip.gif", 64, "50 frames per second, not 64"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, name, fps, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MicroCinemaError, match=message):
        video.check_output(tmp_path / name, fps)
    assert sorted(tmp_path.iterdir()) == before


def test_checking_an_output_touches_nothing(tmp_path):
    (tmp_path / "clip.mp4").write_text("before")
    video.check_output(tmp_path / "clip.mp4", 8)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("clip.mp4", "before")]


def test_frames_are_fitted_while_they_are_read(tmp_path):
    video.write_video(tmp_path / "clip.mp4", moving_bars(), 8)
    assert video.read_video(tmp_path / "clip.mp4", (32, 48))[0].shape == (9, 3, 48, 32)


def test_a_video_held_upright_is_read_upright(tmp_path):
    """The display matrix (in mp4's tkhd) that phones write: the stored picture is shown turned a quarter clockwise."""
    path = tmp_path / "clip.mp4"
    frames = torch.zeros(2, 3, 32, 64)
    frames[:, 0, :, :32] = 1  # stored: the left half is red; shown: the upper half
    video.write_video(path, frames, 2)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(content)
    read, _ = video.read_video(path)
    assert read.shape == (2, 3, 64, 32)
    assert read[:, 0, :28].min() > 0.9 and read[:, 0, 36:].max() < 0.1


def test_a_foreign_gif(tmp_path):
    pictures = [images.Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=200, comment=b"hello")
    frames, fps = video.read_video(tmp_path / "a.gif")
    assert len(frames) == 6 and fps == 5
    assert video.read_metadata(tmp_path / "a.gif") == {"comment": "hello"}


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.mkv"])
@pytest.mark.parametrize(("content", "message"), [(b"hello", "broken"), (b"", "broken"), (None, "does not exist")])
def test_files_that_are_no_videos(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MicroCinemaError, match=message):
        video.read_video(tmp_path / name)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_a_truncated_video(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, moving_bars(), 8)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(MicroCinemaError, match="broken"):
        video.read_video(path)


def test_a_video_too_large_for_memory(tmp_path, monkeypatch):
    video.write_video(tmp_path / "clip.mp4", moving_bars(), 8)
    monkeypatch.setattr(video, "MOST_VALUES", 50_000)
    with pytest.raises(MicroCinemaError, match="too many large frames"):
        video.read_video(tmp_path / "clip.mp4")
