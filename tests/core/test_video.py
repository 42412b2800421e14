"""A clip written and read again is the same clip; the files are what players expect; equal clips are equal bytes."""

import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from microcinema_core import images, video
from microcinema_core.errors import MicroCinemaError

SUFFIXES = [".mp4", ".webm", ".gif", ".webp", ".mov", ".mkv"]
ODD = [".mp4", ".webm", ".mov"]  # two pixels of a line share a colour there
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
def test_bt709_is_declared_and_applied(tmp_path, suffix):
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
    size = (48, 34) if suffix in ODD else (47, 33)
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
        ("clip.avi", None, "end it in .mp4 or .webm or .gif or .webp or .mov or .mkv"),
        ("clip", None, "end it in"),
        ("missing/clip.mp4", None, "does not exist: create it"),
        ("file/clip.mp4", None, "does not exist"),
        ("folder.mp4", None, "is a folder"),
        (f"{'x' * 300}.mp4", None, "cannot be written"),
        ("clip.gif", 64, "50 frames per second, not 64"),
        ("clip.mp4", 0.001, "0.001 frames per second are too few: give 0.01 or more"),
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


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".mov", ".mkv"])
def test_a_video_that_is_cut_off_says_where(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    frames = torch.rand(24, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    video.write_video(path, frames, 8)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    where = r"end after [12]\.[0-9]+ s" if suffix not in (".gif", ".webp") else "last frames are missing"
    with pytest.raises(MicroCinemaError, match=f"cut off.*{where}.*fetch it again"):
        video.open_video(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_damaged_video_says_where(tmp_path, suffix):
    """Some of its data is overwritten: the frames are all there, but not all can be decoded."""
    path = tmp_path / f"clip{suffix}"
    video.write_video(path, torch.rand(24, 3, 64, 96, generator=torch.Generator().manual_seed(0)), 8)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    with pytest.raises(MicroCinemaError, match=r"damaged at 1\.[0-9]+ s: save it anew"):
        video.read_video(path)


# --- videos of others ---


def write_jpegs(path, pictures, times, rate=1000):
    """A video of any frames (h, w, 3) at any times, by default in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuvj420p"
        stream.time_base = Fraction(1, rate)
        for picture, time in zip(pictures, times, strict=True):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *picture.shape[:2], "yuvj420p"
            encoder.time_base = Fraction(1, rate)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, rate), time, time
                container.mux(packet)


def grey(value, width=32, height=32):
    return np.full((height, width, 3), value, np.uint8)


def shades(frames):
    return [round(frame.mean().item() * 255 / 40) for frame in frames]


def test_a_variable_rate_keeps_its_time_and_says_so(tmp_path):
    path = tmp_path / "a.mkv"
    write_jpegs(path, [grey(40 * index) for index in range(6)], [0, 100, 200, 500, 600, 700])
    opened = video.open_video(path)
    assert shades(opened.frames) == [0, 1, 2, 2, 2, 3, 4, 5]
    assert opened.fps == 10 and opened.count == 8
    [note] = opened.notes
    assert "different times" in note and "10 frames per second" in note


def test_frames_that_an_avi_drops_are_those_before(tmp_path):
    """An AVI counts them in its header, but has no data for them: it is not cut off."""
    path = tmp_path / "a.avi"
    write_jpegs(path, [grey(40 * index) for index in range(4)], [0, 1, 4, 5], rate=10)
    opened = video.open_video(path)
    assert shades(opened.frames) == [0, 1, 1, 1, 2, 3] and opened.fps == 10


def test_rounded_times_are_no_variable_rate(tmp_path):
    """Milliseconds of 29.97 frames per second, and a first picture that does not come at once."""
    path = tmp_path / "a.mkv"
    times = [500 + round(index * 33.3667) for index in range(60)]
    write_jpegs(path, [grey(40 * (index % 6)) for index in range(60)], times)
    opened = video.open_video(path)
    assert shades(opened.frames) == [index % 6 for index in range(60)]
    assert opened.fps == pytest.approx(29.97, rel=0.01) and not opened.notes


@pytest.mark.parametrize("times", [[0, 100, 200, 10**9], [0, 10**9, 2 * 10**9, 2 * 10**9 + 1]])
def test_times_that_cannot_be_are_refused(tmp_path, times):
    write_jpegs(tmp_path / "a.mkv", [grey(40 * index) for index in range(4)], times)
    with pytest.raises(MicroCinemaError, match="the times in .* are broken: 4 frames would last .* s: save it anew"):
        video.open_video(tmp_path / "a.mkv")


def test_a_change_of_size_is_refused_or_evened_out(tmp_path):
    path = tmp_path / "a.mkv"
    write_jpegs(path, [grey(0), grey(40), grey(80, 64, 48), grey(120, 64, 48)], [0, 500, 1000, 1500])
    with pytest.raises(MicroCinemaError, match="changes from 32x32 to 64x48 at 1.00 s: .* --size 32x32"):
        video.read_video(path)
    read, fps = video.read_video(path, (32, 32))
    assert read.shape == (4, 3, 32, 32) and shades(read) == [0, 1, 2, 3]


def test_tags_that_are_no_text_do_no_harm(tmp_path):
    path = tmp_path / "clip.mp4"
    video.write_video(path, moving_bars(), 8, {"title": "abcdefgh"})
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"ab\xff\xfe\xc3efg"))
    assert len(video.read_video(path)[0]) == 9
    assert video.read_metadata(path)["title"].startswith("ab")


@pytest.mark.parametrize(
    "text", ['{"fps": "x", "tags": {}}', '{"fps": -1, "tags": {}}', '{"fps": NaN, "tags": 3}', "[" * 9999]
)
def test_a_gif_whose_comment_is_almost_ours(tmp_path, text):
    pictures = [images.Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    options = {"save_all": True, "append_images": pictures[1:], "duration": 200, "comment": text.encode()}
    pictures[0].save(tmp_path / "a.gif", **options)
    frames, fps = video.read_video(tmp_path / "a.gif")
    assert len(frames) == 6 and fps == 5


def test_delays_of_zero_are_those_of_browsers(tmp_path):
    pictures = [images.Image.new("RGB", (8, 8), colour) for colour in COLOURS]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=0)
    opened = video.open_video(tmp_path / "a.gif")
    assert len(list(opened.frames)) == 6 and opened.fps == 10 and not opened.notes


def test_a_gif_of_several_delays_keeps_its_time_and_says_so(tmp_path):
    pictures = [images.Image.new("RGB", (8, 8), (40 * index,) * 3) for index in range(4)]
    durations = [100, 0, 400, 100]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=durations)
    opened = video.open_video(tmp_path / "a.gif")
    assert shades(opened.frames) == [0, 1, 2, 2, 2, 2, 3] and opened.count == 7
    assert opened.fps == 10 and "100 to 400 ms" in opened.notes[0]


def test_a_gif_that_would_last_for_hours_is_refused(tmp_path):
    pictures = [images.Image.new("RGB", (8, 8), (40 * index,) * 3) for index in range(4)]
    durations = [20, 20, 20, 600_000]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=durations)
    with pytest.raises(MicroCinemaError, match="the times in .* are broken: 4 frames would last 600 s: save it anew"):
        video.open_video(tmp_path / "a.gif")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(MicroCinemaError, match="no pictures in it: choose a video"):
        video.open_video(tmp_path / "a.mp4")


# --- sound ---


def bursts(seconds, rate=44_100):
    """Two channels: a tone of 441 Hz in the second half of every second, quiet on the left."""
    time = torch.arange(round(seconds * rate)) / rate
    tone = torch.sin(2 * math.pi * 441 * time) * (time % 1 >= 0.5)
    return torch.stack((0.1 * tone, 0.5 * tone)), rate


def heard(path):
    """Loudness (channels, n) of every 20 ms from the first picture on."""
    sound = video.open_video(path).sound
    samples = np.concatenate(list(sound.pieces), 1)
    step = sound.rate // 50
    return np.abs(samples[:, : samples.shape[1] // step * step].reshape(sound.channels, -1, step)).max(2)


@pytest.mark.parametrize("suffix", video.WITH_SOUND)
def test_sound_is_kept_in_time_and_cut_where_the_pictures_end(tmp_path, suffix):
    first, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    video.write_video(first, moving_bars(24), 8, audio=bursts(10))
    opened = video.open_video(first)
    video.write_video(again, opened.frames, 8, audio=opened.sound)
    for path in (first, again):
        loud = heard(path)
        assert loud.shape[0] == 2 and loud.shape[1] == pytest.approx(150, abs=3)
        expected = (np.arange(loud.shape[1]) % 50 >= 25).astype(float)
        middles = (np.arange(loud.shape[1]) % 25 > 3) & (np.arange(loud.shape[1]) % 25 < 22)
        for channel, volume in zip(loud, (0.1, 0.5), strict=True):
            assert np.abs(channel - volume * expected)[middles].max() < 0.02


@pytest.mark.parametrize("delay", [-0.5, 0.5])
def test_sound_that_starts_at_another_time_stays_there(tmp_path, delay):
    """Pictures from 1 s on; sound from 0.5 s or 1.5 s on."""
    path = tmp_path / "a.mkv"
    samples, rate = bursts(2)
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("ffv1", rate=8), container.add_stream("flac", rate=rate, layout="stereo")
        pictures.height, pictures.width, pictures.pix_fmt = 32, 32, "bgr0"
        for index in range(16):
            frame = av.VideoFrame.from_ndarray(grey(0), format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = 8 + index, Fraction(1, 8)
            container.mux(pictures.encode(frame))
        whole = (samples * 32767).short().numpy().T.reshape(1, -1).copy()
        frame = av.AudioFrame.from_ndarray(whole, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, round((1 + delay) * rate), Fraction(1, rate)
        container.mux([*pictures.encode(None), *sound.encode(frame), *sound.encode(None)])
    loud = heard(path)[1]
    shifted = (np.arange(len(loud)) / 50 - delay) % 1
    clear = (np.abs(shifted - 0.5) > 0.05) & (shifted > 0.05) & (shifted < 0.95)
    expected = 0.5 * (shifted >= 0.5) * (np.arange(len(loud)) / 50 >= delay)
    assert np.abs(loud - expected)[clear].max() < 0.02


@pytest.mark.parametrize("rate", [12_345, 96_000, 192_000])
def test_rates_of_sound_that_no_encoder_takes(tmp_path, rate):
    video.write_video(tmp_path / "a.mp4", moving_bars(8), 8, audio=bursts(1, rate))
    assert video.open_video(tmp_path / "a.mp4").sound.rate == 48_000


def test_sound_does_not_wait_for_the_end_of_the_file(tmp_path):
    """Players read a file from its start: sound lies beside the pictures that it belongs to."""
    video.write_video(tmp_path / "a.mkv", moving_bars(32), 8, audio=bursts(4))
    with av.open(str(tmp_path / "a.mkv")) as container:
        times = {"video": 0.0, "audio": 0.0}
        for packet in container.demux():
            if packet.pts is not None:
                times[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(times["video"] - times["audio"]) < 0.6


def test_damaged_sound_says_where(tmp_path):
    """One byte in the middle of a FLAC frame."""
    path = tmp_path / "a.mkv"
    video.write_video(path, torch.zeros(16, 3, 32, 32), 8, audio=bursts(2))
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(audio=0) if p.pts and 1.6 < p.pts * p.time_base < 1.8]
    content = path.read_bytes()
    for packet in packets:
        content = content.replace(packet, bytes(len(packet)))
    path.write_bytes(content)
    with pytest.raises(MicroCinemaError, match=r"the sound of .* is damaged at 1\.[567]\d s: save the video anew"):
        video.write_video(tmp_path / "b.mp4", video.open_video(path).frames, 8, audio=video.open_video(path).sound)
    assert not (tmp_path / "b.mp4").exists()


# --- for those who edit ---


def test_ffv1_keeps_every_pixel(tmp_path):
    frames = torch.rand(3, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    video.write_video(tmp_path / "a.mkv", frames, 8)
    read, _ = video.read_video(tmp_path / "a.mkv")
    assert torch.equal((read * 255).round(), (frames * 255).round())


@pytest.mark.parametrize(
    ("name", "codec", "encoding", "pixels", "tag"),
    [("a.mov", None, "prores", "yuv422p10le", "apch"), ("a.mp4", "h265", "hevc", "yuv420p10le", "hvc1")],
)
def test_ten_bits_hold_shades_that_eight_do_not(tmp_path, name, codec, encoding, pixels, tag):
    """A ramp over 32 of 255 shades: eight bits give at most 29 values of luma, ten four times as many."""
    ramp = torch.linspace(0.4, 0.4 + 32 / 255, 256).expand(4, 3, 64, 256)
    video.write_video(tmp_path / name, ramp, 8, codec=codec, crf=None if codec is None else 4)
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.codec_tag) == (encoding, pixels, tag)
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert context.color_range == 1 or encoding == "prores"  # which older FFmpegs leave open: it is limited
        luma = next(container.decode(video=0)).reformat(format="gray16le").to_ndarray()
    assert len(set(luma[32].tolist())) > 80


def test_crf_is_the_encoders_own_and_instead_of_quality(tmp_path):
    frames = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, options in {"a": {"quality": 80}, "b": {"crf": 14, "quality": 0}, "c": {"crf": 30}}.items():
        video.write_video(tmp_path / f"{name}.mp4", frames, 8, **options)
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b and len(c) < len(a) / 2
    with pytest.raises(MicroCinemaError, match="CRF from 0 to 51, not 60"):
        video.write_video(tmp_path / "d.mp4", frames, 8, crf=60)
    video.write_video(tmp_path / "d.webm", frames, 8, crf=60)


def test_a_video_too_large_for_memory(tmp_path, monkeypatch):
    video.write_video(tmp_path / "clip.mp4", moving_bars(), 8)
    monkeypatch.setattr(video, "MAX_VALUES", 50_000)
    with pytest.raises(MicroCinemaError, match="too many large frames"):
        video.read_video(tmp_path / "clip.mp4")
