"""Any picture Pillow opens becomes the tensor a viewer would expect."""

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from microcinema_core import images
from microcinema_core.errors import MicroCinemaError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(picture: torch.Tensor) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left, bottom right as 8-bit RGB."""
    pixels = images.to_bytes(picture)
    return [tuple(int(value) for value in pixels[y, x]) for y in (0, -1) for x in (0, -1)]


@pytest.fixture
def four_colours() -> Image.Image:
    """6 wide, 4 high."""
    pixels = np.empty((4, 6, 3), np.uint8)
    pixels[:2, :3], pixels[:2, 3:], pixels[2:, :3], pixels[2:, 3:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def test_rgb_is_exact(tmp_path, four_colours):
    four_colours.save(tmp_path / "a.png")
    picture = images.load_picture(tmp_path / "a.png")
    assert picture.shape == (3, 4, 6) and picture.dtype == torch.float32 and picture.is_contiguous()
    assert corners(picture) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (2, [GREEN, RED, WHITE, BLUE]),
        (3, [WHITE, BLUE, GREEN, RED]),
        (6, [BLUE, RED, WHITE, GREEN]),  # a phone held upright: turn a quarter clockwise to view
        (8, [GREEN, WHITE, RED, BLUE]),
    ],
)
def test_exif_turns_the_picture_upright(tmp_path, four_colours, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    four_colours.save(tmp_path / "a.png", exif=exif)
    picture = images.load_picture(tmp_path / "a.png")
    assert corners(picture) == expected
    assert picture.shape == ((3, 6, 4) if orientation > 4 else (3, 4, 6))


def test_transparent_parts_become_white(tmp_path):
    half = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [255, 0, 0, 0]]], np.uint8)
    Image.fromarray(half).save(tmp_path / "a.png")
    picture = images.to_bytes(images.load_picture(tmp_path / "a.png"))[0].astype(int)
    assert np.abs(picture - [[255, 0, 0], [255, 127, 127], [255, 255, 255]]).max() <= 1


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *RED])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "opaque.gif")
    assert corners(images.load_picture(tmp_path / "opaque.gif"))[:2] == [GREEN, RED]
    image.save(tmp_path / "clear.png", transparency=1)
    assert corners(images.load_picture(tmp_path / "clear.png"))[:2] == [GREEN, WHITE]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr"])
def test_other_modes_keep_black_and_white(tmp_path, mode):
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 12:
        pytest.skip("older Pillows write YCbCr TIFF files that they cannot read themselves")
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (8, 0, 16, 8))
    image.convert(mode).save(tmp_path / "a.tiff")
    picture = images.load_picture(tmp_path / "a.tiff")
    assert picture.shape == (3, 8, 16)
    assert corners(picture)[:2] == [(0, 0, 0), WHITE]


def test_cmyk_colour(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert (images.load_picture(tmp_path / "a.jpg") - torch.tensor([1.0, 0, 0])[:, None, None]).abs().max() < 0.02


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 200, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    picture = images.load_picture(tmp_path / f"a{suffix}")
    assert torch.allclose(picture[0, 0], torch.tensor([0, 200 / 65535, 100 / 255, 1.0]), atol=1e-6)
    assert torch.equal(picture[0], picture[2])


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path):
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "a.png")
    assert images.load_picture(tmp_path / "a.png").max() < 0.01


def test_float_pictures(tmp_path):
    Image.fromarray(np.array([[0.0, 0.25, 1.0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    assert images.load_picture(tmp_path / "a.tiff")[1, 0].tolist() == [0, 0.25, 1, 0]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corners(images.load_picture(tmp_path / "a.gif"))[0] == BLUE


@pytest.mark.parametrize(("suffix", "mode"), [(".jpg", "RGB"), (".png", "RGBA"), (".png", "I;16")])
def test_a_large_picture_is_reduced_and_keeps_its_shape(tmp_path, monkeypatch, suffix, mode):
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    Image.new(mode, (800, 200)).save(tmp_path / f"a{suffix}")
    picture = images.load_picture(tmp_path / f"a{suffix}")
    assert picture.shape == (3, 50, 200)


def test_a_large_photograph_is_reduced_before_it_is_turned(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 200), RED).save(tmp_path / "a.jpg", exif=exif)
    assert images.load_picture(tmp_path / "a.jpg").shape == (3, 200, 50)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(MicroCinemaError, match="million pixels: save a smaller copy"):
        images.load_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"", "broken or no picture"),
        ("a.jpg", b"hello", "broken or no picture"),
        ("a.png", "cut", "broken or no picture"),
        ("folder", None, "is a folder"),
        ("missing.png", "missing", "does not exist"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, four_colours, name, content, message):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:1000])
    elif content != "missing":
        path.write_bytes(content)
    with pytest.raises(MicroCinemaError, match=message):
        images.load_picture(path)


@pytest.mark.parametrize(
    ("columns", "rows", "factor", "size"),
    [
        (1920, 1080, 8, (384, 216)),
        (1080, 1920, 8, (216, 384)),
        (96, 96, 8, (384, 384)),
        (300, 200, 64, (384, 256)),
        (5000, 20, 8, (384, 64)),  # not below the minimum
        (1, 4000, 16, (64, 384)),
        (1500, 1000, 20, (380, 260)),
    ],
)
def test_a_clip_has_the_shape_of_its_picture(columns, rows, factor, size):
    assert images.size_from(torch.empty(3, rows, columns), factor) == size


def test_the_minimum_side_is_the_models():
    assert images.size_from(torch.empty(3, 20, 5000), 8, minimum=32) == (384, 32)
    assert images.size_from(torch.empty(3, 20, 5000), 24, minimum=32) == (384, 48)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (5000, 20), (20, 5000), (3, 2), (97, 95), (96, 96)])
def test_fit_gives_the_requested_size(columns, rows):
    picture = images.fit(torch.full((3, rows, columns), 0.3), 96, 64)
    assert picture.shape == (3, 64, 96)
    assert torch.allclose(picture, torch.tensor(0.3), atol=1e-5)


def test_fit_cuts_the_centre_and_does_not_stretch():
    picture = torch.zeros(3, 100, 300)
    picture[0, :, :100], picture[1, :, 100:200], picture[2, :, 200:] = 1, 1, 1
    fitted = images.fit(picture, 50, 50)
    assert (fitted - torch.tensor([0.0, 1, 0])[:, None, None]).abs().max() < 1e-5


def test_fit_leaves_a_picture_of_that_size_alone():
    picture = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.fit(picture, 48, 32), picture)


def test_fit_averages_fine_detail_away():
    """One-pixel stripes reduced eight times are grey; without antialias they are black or white."""
    picture = (torch.arange(512) % 2).float().expand(3, 512, 512)
    assert (images.fit(picture, 64, 64)[:, 4:-4, 4:-4] - 0.5).abs().max() < 0.02


def test_a_contact_sheet_shows_all_frames_side_by_side(tmp_path):
    frames = torch.stack([torch.full((3, 4, 6), value / 255) for value in (0, 100, 255)])
    images.contact_sheet(frames, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.size == (18, 4)
        assert [image.getpixel((x, 3)) for x in (5, 6, 11, 12)] == [(0,) * 3, (100,) * 3, (100,) * 3, (255,) * 3]
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
