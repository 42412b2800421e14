"""Drawn scenes do what their captions say, and are the same on every call."""

import pytest
import torch
import torch.nn.functional as F

from microcinema_core.demo import shards
from microcinema_core.demo.captions import COLOURS, MOTIONS, SPEEDS, THINGS, camera_caption, reverse
from microcinema_core.demo.scenes import DRAWING, SPEED_PIXELS, SPEED_ROLL, SPEED_ZOOM, camera_move, draw_clip
from microcinema_core.errors import MicroCinemaError

SIZE = 96
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def centroids(weights):
    """(t, h, w) → (t, 2): x and y of the centre of mass, in pixels from the picture's centre."""
    weights = weights.double()
    height, width = weights.shape[-2:]
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    return torch.stack([(weights * c).sum((1, 2)) / weights.sum((1, 2)) for c in (x, y)], 1)


def step_of(clause):
    """Pixels a frame that a clause about a thing promises, read from its words alone."""
    words = clause.split()
    direction = next((DIRECTIONS[w] for w in words if w in DIRECTIONS), (0, 0))
    speed = next((w for w in words if w in ("slowly", "quickly")), "")
    return torch.tensor(direction, dtype=torch.float64) * SPEED_PIXELS[speed]


@pytest.fixture(scope="module")
def things():
    return [draw_clip(seed, kind="thing", frames=5) for seed in range(16)]


# --- things ---


def test_things_move_as_their_caption_says(things):
    for clip in things:
        expected = step_of(clip.caption).expand(4, 2)
        assert torch.allclose(centroids(clip.masks).diff(dim=0), expected, atol=0.25), clip.caption
    assert len({(clip.motion, clip.speed) for clip in things}) > 6


def test_second_thing_moves_as_its_clause_says():
    clips = [draw_clip(seed, kind="things", frames=5) for seed in range(8)]
    for clip in clips:
        first, _, second = clip.caption.partition(" and ")
        for masks, clause in ((clip.masks, first), (clip.other_masks, second)):
            assert torch.allclose(centroids(masks).diff(dim=0), step_of(clause).expand(4, 2), atol=0.25), clip.caption
    assert any(" and " in clip.caption for clip in clips)


def test_interpolation_learns_from_quarter_steps():
    clips = [draw_clip(seed, kind="thing", frames=5, rate=0.25) for seed in range(9)]
    clip = next(clip for clip in clips if "quickly" in clip.caption)
    assert torch.allclose(centroids(clip.masks).diff(dim=0), step_of(clip.caption).expand(4, 2) / 4, atol=0.25)
    assert step_of(clip.caption).abs().max() == 5


def test_masks_are_where_the_frame_differs_from_the_background(things):
    overlaps = []
    for clip in things:
        differs = (clip.frames - clip.background).abs().amax(1) > 0.15
        overlap = (differs & clip.masks).sum() / (differs | clip.masks).sum()
        overlaps.append(overlap.item())
        near = torch.nn.functional.max_pool2d(clip.masks.float(), 5, 1, 2) > 0
        background = clip.background.expand_as(clip.frames)
        far = ~near[:, None].expand_as(clip.frames)
        assert torch.equal(clip.frames[far], background[far])
    assert min(overlaps) > 0.75 and sum(overlaps) / len(overlaps) > 0.88


def test_things_have_the_colour_and_name_of_their_caption(things):
    names, palette = list(COLOURS), torch.tensor(list(COLOURS.values()))
    for clip in things:
        nearest = names[(palette - clip.colour).norm(dim=1).argmin()]
        assert nearest in clip.caption.split()
        assert set(THINGS) & set(clip.caption.split())


# --- the camera ---


def blob(x, y, radius=9.0, height=SIZE, width=SIZE):
    """A soft white spot on black, its centre x, y pixels from the picture's."""
    line_y = torch.arange(height)[:, None] - (height - 1) / 2
    line_x = torch.arange(width) - (width - 1) / 2
    return torch.exp(-((line_x - x) ** 2 + (line_y - y) ** 2) / (2 * (radius / 2) ** 2)).expand(3, -1, -1)


@pytest.mark.parametrize("motion", MOTIONS)
def test_centre_frame_is_the_picture_to_the_bit(motion):
    picture = torch.rand(3, 40, 64, generator=torch.Generator().manual_seed(0))
    clip, visible = camera_move(picture, motion, "quickly")
    assert clip.shape == (9, 3, 40, 64) and visible.shape == (9, 40, 64)
    assert torch.equal(clip[4], picture)


@pytest.mark.parametrize(
    ("motion", "content"), [("left", (1, 0)), ("right", (-1, 0)), ("up", (0, 1)), ("down", (0, -1)), ("still", (0, 0))]
)
@pytest.mark.parametrize("speed", SPEEDS)
def test_content_moves_against_the_camera(motion, content, speed):
    clip, _ = camera_move(blob(0, 0), motion, speed)
    expected = torch.tensor(content, dtype=torch.float64) * SPEED_PIXELS[speed]
    assert torch.allclose(centroids(clip[:, 0]).diff(dim=0), expected.expand(8, 2), atol=0.05)


@pytest.mark.parametrize(("motion", "sign"), [("in", 1), ("out", -1)])
def test_zoom_changes_areas_by_the_square_of_its_factor(motion, sign):
    clip, _ = camera_move(blob(0, 0, 20), motion, "")
    areas = clip[:, 0].double().sum((1, 2))
    expected = torch.tensor(SPEED_ZOOM[""] ** (2 * sign), dtype=torch.float64)
    assert torch.allclose(areas[1:] / areas[:-1], expected, rtol=0.005)


@pytest.mark.parametrize(("motion", "sign"), [("clockwise", -1), ("counterclockwise", 1)])
def test_content_turns_against_a_rolling_camera(motion, sign):
    clip, _ = camera_move(blob(28, 0), motion, "quickly")
    x, y = centroids(clip[:, 0]).unbind(1)
    angles = torch.rad2deg(torch.atan2(y, x))  # clockwise on the screen, where y points down
    assert torch.allclose(angles.diff(), torch.tensor(sign * SPEED_ROLL["quickly"], dtype=torch.float64), atol=0.1)


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "still"])
def test_played_backwards_a_camera_move_is_its_opposite(motion):
    picture = torch.rand(3, 40, 64, generator=torch.Generator().manual_seed(0))
    caption = reverse(camera_caption(motion, "slowly"))
    opposite = caption.split()[-2]
    assert opposite != motion and opposite in MOTIONS
    backwards, _ = camera_move(picture, opposite, "slowly")
    assert torch.allclose(camera_move(picture, motion, "slowly")[0].flip(0), backwards, atol=1e-5)


def test_what_the_picture_does_not_show_is_not_visible():
    _, visible = camera_move(blob(0, 0), "left", "")
    assert not visible[8, :, :12].any()  # four frames of three pixels, from the left
    assert visible[8, 2:-2, 15:-2].all()
    assert visible[4, 2:-2, 2:-2].all()


# --- captions and determinism ---


def test_reversing_a_caption_twice_gives_it_back(small_clips):
    for clip in small_clips:
        reversed_caption = reverse(clip.caption)
        assert reverse(reversed_caption) == clip.caption
        has_motion = any(word in MOTIONS[:-1] for word in clip.caption.split())
        assert (reversed_caption != clip.caption) == has_motion
    assert reverse("a red star moves left and the camera rolls clockwise") == (
        "a red star moves right and the camera rolls counterclockwise"
    )


@pytest.mark.parametrize("kind", ["thing", "things", "camera"])
def test_a_seed_is_a_clip(kind):
    before = torch.random.get_rng_state()
    first, again, other = (draw_clip(seed, kind=kind, frames=3, size=48) for seed in (5, 5, 6))
    assert first.kind == kind and first.frames.shape == (3, 3, 48, 48)
    assert torch.equal(first.frames, again.frames) and first.caption == again.caption
    assert not torch.equal(first.frames, other.frames)
    assert first.frames.min() >= 0 and first.frames.max() <= 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kinds_come_in_their_shares(small_clips):
    kinds = [clip.kind for clip in small_clips]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert shares == pytest.approx({"camera": 0.45, "thing": 0.4, "things": 0.15}, abs=0.1)


@pytest.mark.parametrize("kind", ["thing", "things", "camera"])
def test_flow_is_where_every_pixel_goes(kind):
    for seed in range(8):
        clip = draw_clip(seed, kind=kind, frames=3, rate=0.5)
        y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
        places = torch.stack((x, y), -1) + clip.flow[0].movedim(0, -1)
        found = F.grid_sample(clip.frames[1:2], (2 * places[None] + 1) / SIZE - 1, align_corners=False)[0]
        inside = ((places > 2) & (places < SIZE - 3)).all(-1)
        error = (found - clip.frames[0]).abs().mean(0)[inside].mean()
        assert error < 0.012, (clip.caption, error)
        if clip.motion != "still" and kind == "camera":
            assert error < (clip.frames[1] - clip.frames[0]).abs().mean() / 2 + 0.003, clip.caption
        if kind != "camera" and clip.motion != "still":
            flow = clip.flow[0].movedim(0, -1)[clip.masks[0]]
            assert torch.equal(flow, (step_of(clip.caption.partition(" and ")[0]) / 2).float().expand_as(flow))


# --- the pool on disk ---


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 6)


def test_a_shard_is_the_same_wherever_it_is_drawn(small_shards, tmp_path):
    paths = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        paths.append(shards.draw_shard(folder, 1, 3, 16))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    frames, captions = shards.load(paths[:1], "frames"), shards.load_captions(paths[:1])
    assert frames.shape == (6, 3, 3, 16, 16) and frames.dtype == torch.uint8
    clip = draw_clip(1 * 6 + 2, frames=3, size=16)
    assert captions[2] == clip.caption
    assert torch.equal(shards.load(paths[:1], "flow")[2], clip.flow[1].half())  # of the centre frame
    assert torch.allclose(frames[2] / 255, clip.frames, atol=0.5 / 255 + 1e-6)


def test_a_pool_draws_only_what_is_missing(small_shards, tmp_path):
    first = shards.draw_pool(tmp_path, 1, 3, 16, workers=1)
    drawn = first[0].stat().st_mtime_ns
    both = shards.draw_pool(tmp_path, 2, 3, 16, workers=1)
    assert both[0] == first[0] and both[0].stat().st_mtime_ns == drawn
    assert len(shards.load(both, "frames")) == len(shards.load_captions(both)) == 12
    assert sorted(tmp_path.iterdir()) == sorted(both)  # no part files are left


def test_shards_of_other_settings_have_other_names(small_shards, tmp_path, monkeypatch):
    """Each of these once had the name of the first, and was taken for it."""
    names = {shards.shard_path(tmp_path, 0, *shape).name for shape in ((3, 16), (4, 16), (3, 24))}
    for changed, value in (("CLIPS_PER_SHARD", 7), ("DRAWING", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(shards, changed, value)
            names.add(shards.shard_path(tmp_path, 0, 3, 16).name)
    assert len(names) == 5


def test_a_damaged_shard_is_named(small_shards, tmp_path):
    path = shards.draw_shard(tmp_path, 0, 3, 16)
    path.write_bytes(path.read_bytes()[:-100])
    for read in (lambda: shards.load([path], "frames"), lambda: shards.load_captions([path])):
        with pytest.raises(MicroCinemaError, match=f"{path.name}' is damaged .*: delete it"):
            read()


def test_what_is_drawn_changes_only_with_its_number():
    """Whoever changes what is drawn raises DRAWING, by which shards are identified, and these figures with it."""
    clips = [draw_clip(seed, frames=3, size=32) for seed in range(40)]
    figures = [
        sum(float(of(clip)) for clip in clips) / len(clips)
        for of in (lambda c: c.frames.mean(), lambda c: c.frames.std(), lambda c: c.flow.abs().mean())
    ]
    assert DRAWING == 1 and figures == pytest.approx([0.48493, 0.20815, 0.19473], abs=1e-4)
    assert sum(len(clip.caption) for clip in clips) == 1129
