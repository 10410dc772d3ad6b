"""Every kind of image file, upright and gray; what is no film is refused in a sentence."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from model import preprocess
from model.preprocess import ImageRefused, decode

Y, X = np.mgrid[:72, :90]
FILM = (40 + Y + X).astype(np.uint8)  # (72, 90), no two corners alike


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})],
)
def test_formats(kind, options):
    pixels = decode(encoded(Image.fromarray(FILM), kind, **options)).pixels
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, FILM, atol=3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK"])
def test_colour_modes(mode):
    source = Image.fromarray(FILM)
    source = source.convert(mode) if mode in ("P", "LA") else source.convert("RGB").convert(mode)
    pixels = decode(encoded(source, "TIFF" if mode == "CMYK" else "PNG")).pixels
    np.testing.assert_allclose(pixels.astype(int), FILM, atol=1)


def test_lightness_is_read_of_a_lab_image():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(FILM).convert("RGB"), to_lab)
    np.testing.assert_array_equal(decode(encoded(lab, "TIFF")).pixels, np.asarray(lab.getchannel("L")))


def test_transparency_is_laid_over_black():
    layers = Image.merge("LA", [Image.fromarray(FILM), Image.fromarray(np.where(X < 45, 255, 0).astype(np.uint8))])
    pixels = decode(encoded(layers)).pixels
    np.testing.assert_array_equal(pixels, np.where(X < 45, FILM, 0))


def test_one_bit():
    pixels = decode(encoded(Image.fromarray(FILM > 100))).pixels
    np.testing.assert_array_equal(pixels, np.where(FILM > 100, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    deep = Image.fromarray(FILM.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encoded(deep, kind)).pixels, FILM)


def test_twelve_bits_in_sixteen():
    pixels = decode(encoded(Image.fromarray(FILM.astype(np.uint16) * 16))).pixels
    np.testing.assert_array_equal(pixels, np.round(FILM.astype(float) * 16 * 255 / 4095))


def test_floats_and_32_bits():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(FILM / np.float32(255)), "TIFF")).pixels, FILM)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(FILM.astype(np.int32) * 257), "TIFF")).pixels, FILM)


def test_white_is_zero_of_sixteen_bits_is_turned_around():
    deep = Image.fromarray((255 - FILM).astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode(encoded(deep, "TIFF", tiffinfo={262: 0})).pixels, FILM)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = Image.fromarray(FILM)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, "PNG", exif=exif)).pixels, FILM)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a PNG, JPEG, WebP, TIFF or BMP image"),
        (b"\0" * 128 + b"DICM" + b"\0" * 99, "this is a DICOM file; export the film as PNG or JPEG"),
        (encoded(Image.fromarray(FILM), "GIF"), "not a PNG, JPEG, WebP, TIFF or BMP image"),
        (encoded(Image.fromarray(FILM[:63])), "image is 90 x 63 px; at least 64 x 64 is needed"),
        (encoded(Image.fromarray(np.full((70, 70), np.nan, np.float32)), "TIFF"), "not numbers"),
        (encoded(Image.fromarray(-FILM.astype(np.int32)), "TIFF"), r"negative values \(down to -2"),
    ],
)
def test_refusals(data, message):
    with pytest.raises(ImageRefused, match=message):
        decode(data)


def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 6000)
    with pytest.raises(ImageRefused, match="90 x 72 px; at most 6,000 pixels are read"):
        decode(encoded(Image.fromarray(FILM)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_files_are_refused(kind, share):
    noisy = np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8)
    data = encoded(Image.fromarray(noisy), kind)
    with pytest.raises(ImageRefused):
        decode(data[: int(share * len(data))])


INTACT = [encoded(Image.fromarray(FILM), kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(INTACT), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), st.data())
def test_damage_is_a_film_or_a_refusal(data, edits, draw):
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for place, value in edits:
        if damaged:
            damaged[place % len(damaged)] = value
    try:
        pixels = decode(bytes(damaged)).pixels
    except ImageRefused as refusal:
        assert str(refusal)
    else:
        assert pixels.ndim == 2 and pixels.dtype == np.uint8


def test_resize():
    assert preprocess.resize(FILM[:72, :72], 72) is not None
    np.testing.assert_array_equal(preprocess.resize(FILM[:72, :72], 72), FILM[:72, :72])
    small = preprocess.resize(FILM, 36)
    assert small.shape == (36, 36)
    np.testing.assert_array_equal(small, np.asarray(Image.fromarray(FILM).resize((36, 36), Image.Resampling.BILINEAR)))
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.ptp(preprocess.resize(stripes, 32).astype(int)[:, 2:-2]) < 40  # averaged, not picked


def test_to_input():
    images = jnp.asarray(np.stack([FILM[:72, :72], FILM[:72, 18:90]]))
    np.testing.assert_allclose(preprocess.to_input(images, 72, 0, 1)[..., 0] * 255, images, atol=1e-3)
    halves = np.asarray(images, float).reshape(2, 36, 2, 36, 2).mean((2, 4))
    np.testing.assert_allclose(
        preprocess.to_input(images, 36, 0.5, 0.25)[..., 0], (halves / 255 - 0.5) / 0.25, atol=1e-4
    )


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        ([[1, 0, 0], [0, -1, 0]], lambda image: image[:, ::-1]),
        ([[-1, 0, 0], [0, 1, 0]], lambda image: image[::-1]),
        ([[0, 1, 0], [1, 0, 0]], lambda image: image.T),
        ([[0, 1, 0], [-1, 0, 0]], lambda image: np.rot90(image, 1)),
        ([[1, 0, 0.5], [0, 1, 0]], lambda image: np.concatenate([image[16:], np.repeat(image[-1:], 16, 0)])),
    ],
)
def test_sample(affine, expected):
    image = FILM[:64, :64]
    sampled = preprocess.sample(jnp.asarray(image), jnp.asarray(affine, jnp.float32), 64)
    np.testing.assert_allclose(sampled, expected(image), atol=1e-2)
