"""Images: what is decoded and refused, crops and augmentation against their definitions."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy import stats
from trees_text import write_photo

from igm_fast.data.problems import BadFile
from igm_fast.data.readers.images import (
    CLIP_MEAN,
    CLIP_STD,
    OPERATIONS,
    check_image,
    decode_image,
    flip,
    normalize,
    rand_augment,
    random_box,
    random_flip,
    random_resized_crop,
    resize,
)

SIDES = st.sampled_from([1, 2, 3, 7, 64, 500])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(seed))


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ---- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_pixels_that_were_saved(tmp_path, format):
    image = noise(3, 5, 7)
    pillow(image).save(tmp_path / "photo.jpg", format=format)  # the content decides, not the suffix
    assert torch.equal(decode_image(tmp_path / "photo.jpg"), image)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_give_the_pixels_that_pillow_sees(tmp_path, format):
    pillow(noise(3, 16, 24)).save(tmp_path / "photo.jpg", format=format)
    decoded = decode_image(str(tmp_path / "photo.jpg"))
    assert decoded.dtype == torch.uint8
    assert decoded.is_contiguous()
    with Image.open(tmp_path / "photo.jpg") as image:
        assert torch.equal(decoded, tensor(image.convert("RGB")))


def test_grey_palette_cmyk_and_bilevel_become_rgb(tmp_path):
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    grey.save(tmp_path / "grey.png")
    assert torch.equal(decode_image(tmp_path / "grey.png"), torch.from_numpy(np.array(grey)).expand(3, 3, 4))

    colours = Image.new("P", (2, 1))
    colours.putpalette([255, 0, 0, 0, 255, 0])
    colours.putpixel((1, 0), 1)
    colours.save(tmp_path / "palette.gif")
    assert decode_image(tmp_path / "palette.gif")[:, 0].T.tolist() == [[255, 0, 0], [0, 255, 0]]

    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(
        tmp_path / "cmyk.jpg", quality=100
    )  # cyan 0, magenta and yellow full
    red, green, blue = decode_image(tmp_path / "cmyk.jpg")[:, 4, 4].tolist()
    assert red > 250 > 5 > max(green, blue)

    Image.new("1", (2, 2), 1).save(tmp_path / "bilevel.png")
    assert decode_image(tmp_path / "bilevel.png").unique().tolist() == [255]


def test_transparency_is_dropped_without_a_warning(tmp_path):
    Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert decode_image(tmp_path / "clear.png")[:, 0, 0].tolist() == [10, 20, 30]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] * 2)
    palette.save(tmp_path / "clear-palette.png", transparency=b"\0\x80")
    assert decode_image(tmp_path / "clear-palette.png")[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_keep_the_high_eight(tmp_path):
    values = np.array([[0, 255, 256], [0x1234, 0xABFF, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert torch.equal(decode_image(tmp_path / "deep.png")[0], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "moving.gif")[:, 0, 0].tolist() == [255, 0, 0]


def png_header(width: int, height: int) -> bytes:
    """A PNG of some bytes that claims any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("sides", [(60_000, 60_000), (10_000, 10_000), (7072, 7071)])
@pytest.mark.parametrize("read", [decode_image, check_image])
def test_huge_sizes_are_refused_before_decoding(tmp_path, sides, read):
    (tmp_path / "bomb.png").write_bytes(png_header(*sides))
    with pytest.raises(BadFile, match=r"bomb\.png: is too large .*at most 50 million pixels.*Shrink it"):
        read(tmp_path / "bomb.png")


def test_fifty_million_pixels_are_within_the_limit(tmp_path):
    (tmp_path / "large.png").write_bytes(png_header(7071, 7071))
    check_image(tmp_path / "large.png")


def broken(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "photo.jpg"
    whole = write_photo(path, (64, 64)).read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "long name":
        return tmp_path / ("x" * 300)
    else:
        content = {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "text": b"<html>404</html>",
            "eps": b"%!PS-Adobe-3.0 EPSF",
        }
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such image file.*Copy it there"),
        ("folder", "no such image file"),
        ("long name", "File name too long"),
        ("empty", "is empty.*Copy the file again"),
        ("truncated", "cannot be decoded.*truncated.*Copy the file again"),
        ("text", "is no image in one of the formats JPEG"),
        ("eps", "is no image in one of the formats JPEG"),
    ],
)
def test_broken_files_are_named_with_a_way_out(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(BadFile, match=message) as raised:
        decode_image(path)
    assert raised.value.path == str(path)


# ---- sizes and crops -------------------------------------------------------------------------------------------------


@given(height=SIDES, width=SIDES, to=st.tuples(SIDES, SIDES), filter=st.sampled_from(["bilinear", "bicubic"]))
@settings(max_examples=60)
def test_resize_is_pillows_but_for_rounding(height, width, to, filter):
    """Both round after each of two passes: an error of 1/2, which the second pass of absolute weight ≤ 5/4 carries on.

    So each is within 9/8 of the exact value (and the error of fixed-point weights, 2⁻⁸ and less), and they differ by 2
    at most. Values of 64 to 192 keep bicubic overshoots (of at most 64 · 25/16) from being cut off.
    """
    image = noise(3, height, width) // 2 + 64
    expected = pillow(image).resize((to[1], to[0]), getattr(Image.Resampling, filter.upper()))
    resized = resize(image, to, filter=filter)
    assert resized.dtype == torch.uint8
    assert (resized.int() - tensor(expected).int()).abs().max() <= 2


def test_resize_of_a_photograph_is_pillows_in_nearly_every_pixel():
    smooth = resize(noise(3, 12, 18), (300, 400), filter="bicubic")
    expected = tensor(pillow(smooth).resize((224, 224), Image.Resampling.BICUBIC))
    differ = resize(smooth, (224, 224), filter="bicubic") != expected
    assert differ.float().mean() < 0.01


def test_resize_does_not_depend_on_threads():
    image = noise(3, 300, 200)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(resize(image, (224, 224), filter="bicubic"))
    assert torch.equal(*results)


def test_resize_takes_frames_and_single_channels():
    frames = noise(2, 1, 9, 11)
    resized = resize(frames, (4, 5))
    assert resized.shape == (2, 1, 4, 5)
    assert torch.equal(resized[1, 0], resize(frames[1, 0], (4, 5)))


def test_nothing_outside_the_box_counts():
    image = noise(3, 20, 30)
    inside = resize(image, (6, 6), box=(4, 5, 10, 12), filter="bicubic")
    changed = torch.zeros_like(image)
    changed[:, 4:14, 5:17] = image[:, 4:14, 5:17]
    assert torch.equal(resize(changed, (6, 6), box=(4, 5, 10, 12), filter="bicubic"), inside)
    assert torch.equal(inside, resize(image[:, 4:14, 5:17].clone(), (6, 6), filter="bicubic"))


def test_flip_exchanges_left_and_right():
    image = noise(3, 4, 5)
    assert torch.equal(flip(image), tensor(ImageOps.mirror(pillow(image))))
    draws = generator()
    flipped = sum(torch.equal(random_flip(image, draws), flip(image)) for _ in range(1000))
    assert abs(flipped - 500) < 5 * math.sqrt(250)  # 5 standard deviations of a fair coin


def test_boxes_follow_the_definition():
    """Area uniform in the scale, log of the aspect uniform in ±log 4/3. In a square all boxes of this scale fit."""
    side, scale, draws = 1000, (0.3, 0.7), generator()
    boxes = np.array([random_box(side, side, scale, draws) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (boxes >= [0, 0, 1, 1]).all()
    assert (top + height <= side).all()
    assert (left + width <= side).all()
    # Rounding moves a side by half a pixel of 400 or more: far less than what 2000 draws can tell.
    area = height * width / side**2
    aspect = np.log(width / height) / math.log(4 / 3)
    assert stats.kstest(area, stats.uniform(scale[0], scale[1] - scale[0]).cdf).pvalue > 1e-3
    assert stats.kstest(aspect, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    # Given its size, every place is as likely: the place as a share of the room is uniform (up to one pixel of it).
    room = side - height
    assert stats.kstest(((top + 0.5) / (room + 1))[room > 100], stats.uniform().cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 500, (0, 249, 1, 1)), (500, 1, (249, 0, 1, 1)), (30, 300, (0, 130, 30, 40)), (300, 30, (130, 0, 40, 30))],
)
def test_where_no_box_fits_the_centre_is_taken(height, width, expected):
    """Areas of at least 90 % of such a strip need an aspect far from 4:3."""
    assert random_box(height, width, (0.9, 1.0), generator()) == expected


@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**60))
@settings(max_examples=40)
def test_crops_of_any_size_are_inside_and_repeatable(height, width, seed):
    image = noise(3, height, width)
    crops = [random_resized_crop(image, (8, 9), (0.5, 1.0), "bicubic", generator(seed)) for _ in range(2)]
    assert crops[0].shape == (3, 8, 9)
    assert crops[0].dtype == torch.uint8
    assert torch.equal(*crops)
    top, left, h, w = random_box(height, width, (0.5, 1.0), generator(seed))
    assert torch.equal(crops[0], resize(image[:, top : top + h, left : left + w], (8, 9), filter="bicubic"))


# ---- RandAugment -----------------------------------------------------------------------------------------------------

GREY = 128


def apply(name: str, plane: np.ndarray, sign: int = 1) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(plane), sign)).astype(np.int64)


@pytest.fixture
def plane():
    return np.random.default_rng(0).integers(40, 200, (40, 50), dtype=np.uint8)


def test_contrast_and_brightness_operations(plane):
    assert np.array_equal(apply("Identity", plane), plane)
    low, high = int(plane.min()), int(plane.max())
    stretched = (plane.astype(np.float64) - low) * 255 / (high - low)
    assert np.abs(apply("AutoContrast", plane) - stretched).max() <= 1  # truncated to integers
    assert np.abs(apply("Brightness", plane) - np.minimum(1.36 * plane.astype(np.float64), 255)).max() <= 1


def test_equalize_levels_the_histogram():
    drawn = np.random.default_rng(0).integers(40, 200, (400, 400))
    skewed = (drawn**2 // 256).astype(np.uint8)
    levelled = apply("Equalize", skewed)
    cumulated = np.array([(levelled <= value).mean() for value in range(256)])
    # A grey value stays in one piece; places are integers, in steps of N/255 that are rounded down to integers, too.
    most = np.bincount(skewed.ravel()).max() / skewed.size
    assert np.abs(cumulated - (np.arange(256) + 1) / 256).max() <= most + 2 / 256 + 255 / skewed.size


def test_sharpness_moves_away_from_the_smoothed_image(plane):
    x = plane.astype(np.float64)
    near = sum(np.roll(x, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))
    smooth = (near + 4 * x) / 13
    expected = np.clip(smooth + 1.36 * (x - smooth), 0, 255)[1:-1, 1:-1]
    # the smoothed image is rounded to 1/2, which is carried on with weight 0.36, and the result is truncated
    assert np.abs(apply("Sharpness", plane)[1:-1, 1:-1] - expected).max() <= 1.2


@pytest.mark.parametrize("sign", [1, -1])
def test_translations_move_by_seven_pixels(plane, sign):
    right = np.full_like(plane, GREY)
    right[:, 7:] = plane[:, :-7]
    down = np.full_like(plane, GREY)
    down[7:] = plane[:-7]
    if sign < 0:
        right[:], down[:] = GREY, GREY
        right[:, :-7], down[:-7] = plane[:, 7:], plane[7:]
    assert np.array_equal(apply("TranslateX", plane, sign), right)
    assert np.array_equal(apply("TranslateY", plane, sign), down)


@pytest.mark.parametrize("sign", [1, -1])
def test_shears_move_a_line_by_a_share_of_its_distance(sign):
    """A vertical stripe becomes x = x₀ + 0.21 y; its middle is measured per row, in pixels."""
    stripe = np.zeros((40, 60), np.uint8)
    stripe[:, 28:32] = 100  # never mixes to 128, which fills up
    for name, measured in (("ShearX", stripe), ("ShearY", stripe.T.copy())):
        sheared = apply(name, measured, sign)
        sheared = sheared if name == "ShearX" else sheared.T
        sheared = np.where(sheared == GREY, 0, sheared)
        middles = [(row * (np.arange(60) + 0.5)).sum() / row.sum() for row in sheared]
        expected = 30 + sign * 0.21 * (np.arange(40) + 0.5)
        assert np.abs(np.array(middles) - expected).max() < 0.1  # rounding of the four edge pixels to 1/255


@pytest.mark.parametrize("sign", [1, -1])
def test_rotation_turns_by_21_degrees_about_the_centre(sign):
    dot = np.zeros((61, 61), np.uint8)
    dot[28:33, 48:53] = 200  # 20 pixels right of the centre
    rows, columns = np.nonzero(np.where(apply("Rotate", dot, sign) > 150, 1, 0))
    angle = math.degrees(math.atan2(30 - rows.mean(), columns.mean() - 30))
    assert abs(angle - sign * 21) < 1.5  # half a pixel at a distance of 20


def test_augmentation_draws_two_operations_each_half_the_time():
    """All ten operations change this image but Identity: P(unchanged) = (1/2 + 1/2 · 1/10)²."""
    image = noise(3, 12, 12).clamp(50, 200)
    draws = generator()
    unchanged = sum(torch.equal(rand_augment(image, draws), image) for _ in range(1500))
    share = 0.55**2
    assert abs(unchanged - 1500 * share) < 5 * math.sqrt(1500 * share * (1 - share))


def test_augmentation_is_a_chain_of_the_named_operations():
    image = noise(3, 12, 12).clamp(50, 200)
    once = {name: torch.stack([torch.from_numpy(apply(name, plane.numpy())) for plane in image]) for name in OPERATIONS}
    seen = set()
    for seed in range(400):
        augmented = rand_augment(image, generator(seed))
        seen |= {name for name, expected in once.items() if torch.equal(augmented.long(), expected)}
    assert seen == set(OPERATIONS)


@given(height=SIDES, width=SIDES, seed=st.integers(0, 2**60))
@settings(max_examples=40)
def test_augmentation_of_any_size_is_repeatable(height, width, seed):
    image = noise(3, height, width)
    kept = image.clone()
    first, second = (rand_augment(image, generator(seed)) for _ in range(2))
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(image, kept)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_takes_a_single_pixel(name):
    assert apply(name, np.array([[77]], np.uint8)).shape == (1, 1)


# ---- values ----------------------------------------------------------------------------------------------------------


def test_normalization_is_undone_by_its_inverse():
    image = noise(2, 3, 8, 9)
    normalized = normalize(image, CLIP_MEAN, CLIP_STD)
    assert normalized.dtype == torch.float32
    mean, std = (np.array(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    back = (normalized.double().numpy() * std + mean) * 255
    # four roundings of values up to 1/std · 255, each within 2⁻²⁴
    assert np.abs(back - image.numpy()).max() < 255 * 4 * 2**-24 / std.min()
