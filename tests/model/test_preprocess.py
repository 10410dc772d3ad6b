"""Every kind of image file, upright and gray; what is no film is refused in a sentence."""

import io
import struct
import tracemalloc
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from scipy.ndimage import gaussian_filter

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


@pytest.mark.parametrize("gray", [0, 90, 255])
def test_bars_are_cut_away(gray):
    framed = np.pad(np.pad(FILM, 9, constant_values=255 - gray), ((20, 0), (0, 33)), constant_values=gray)
    film = decode(encoded(Image.fromarray(framed)))
    np.testing.assert_array_equal(film.pixels, FILM)
    assert (film.width, film.height) == (90 + 18 + 33, 72 + 18 + 20)
    blurred = decode(encoded(Image.fromarray(np.pad(FILM, 40, constant_values=gray)), "JPEG")).pixels
    # Blocks of 8 px ring on both sides.
    assert all(0 <= found - wanted <= 16 for found, wanted in zip(blurred.shape, FILM.shape, strict=True))


@pytest.mark.parametrize(("spread", "bars"), [(6, True), (7, False)])
def test_a_bar_is_of_nearly_one_gray(spread, bars):
    edge = np.full((72, 20), 90, np.uint8)
    edge[::2] += spread
    assert decode(encoded(Image.fromarray(np.hstack([edge, FILM])))).pixels.shape == (72, 90 if bars else 110)


def test_noise_of_colours_is_no_colour():
    noise = np.random.default_rng(0).integers(-40, 41, (640, 640, 3))
    assert decode(encoded(Image.fromarray((128 + noise).astype(np.uint8)))).chroma < 8


@pytest.mark.parametrize("film", [np.full((80, 70), 7, np.uint8), np.tile(np.arange(90, dtype=np.uint8), (70, 1))])
def test_what_is_bars_alone_stays(film):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(film))).pixels, film)


def test_frames_within_frames_are_looked_at_a_few_times(monkeypatch):
    y, x = np.mgrid[:600, :600]
    rings = np.minimum(np.minimum(x, y), np.minimum(599 - x, 599 - y))  # each of another gray than the next
    looked, peak_to_peak = [], np.ptp
    monkeypatch.setattr(np, "ptp", lambda *of, **how: [looked.append(0), peak_to_peak(*of, **how)][1])
    assert min(decode(encoded(Image.fromarray((rings % 2 * 200).astype(np.uint8)))).pixels.shape) > 550
    assert 2 <= len(looked) <= 2 * preprocess.BARS


def test_a_film_of_too_few_pixels_keeps_its_bars():
    framed = np.pad(FILM[:60, :60], 10)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(framed))).pixels, framed)


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
    overshot = FILM * np.float32(1.02 / FILM.max())  # as resampling leaves it
    pixels = decode(encoded(Image.fromarray(overshot), "TIFF")).pixels
    np.testing.assert_allclose(pixels, FILM * (255 / FILM.max()), atol=0.51)
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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_passed_over(kind):
    whole = decode(encoded(Image.fromarray(FILM), kind)).pixels
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(FILM), kind, exif=b"Exif\0\0garbage")).pixels, whole)


def test_an_orientation_beside_a_tag_that_cannot_be_written_again_is_obeyed():
    # Tag 256 as a number below 0, and 274, which says that the camera was upside down.
    entries = struct.pack("<HHIi", 256, 9, 1, -5) + struct.pack("<HHIHH", 274, 3, 1, 3, 0)
    exif = b"Exif\0\0" + struct.pack("<2sHIH", b"II", 42, 8, 2) + entries + struct.pack("<I", 0)
    turned = encoded(Image.fromarray(FILM[::-1, ::-1]), exif=exif)
    np.testing.assert_array_equal(decode(turned).pixels, FILM)


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


def test_too_many_bytes(monkeypatch):
    data = encoded(Image.fromarray(FILM))
    monkeypatch.setattr(preprocess, "MAX_BYTES", len(data))
    assert decode(data).pixels.shape == (72, 90)
    monkeypatch.setattr(preprocess, "MAX_BYTES", len(data) - 1)
    with pytest.raises(
        ImageRefused, match=rf"the file has {len(data):,} bytes; at most {len(data) - 1:,} are read: save the film"
    ):
        decode(data)


@pytest.mark.parametrize("side", [11_000, 20_000])
@pytest.mark.filterwarnings("error")
def test_a_picture_is_too_large_by_its_first_bytes_without_a_warning(side):
    claimed = bytearray(encoded(Image.fromarray(FILM)))
    claimed[16:24] = struct.pack(">II", side, side)
    claimed[29:33] = struct.pack(">I", zlib.crc32(claimed[12:29]))
    with pytest.raises(ImageRefused, match=f"image is {side} x {side} px; at most 100,000,000 pixels are read: scale"):
        decode(bytes(claimed))


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
    np.testing.assert_array_equal(preprocess.resize(FILM[:72, :72], 72), FILM[:72, :72])
    small = preprocess.resize(FILM, 36)
    assert small.shape == (36, 36)
    np.testing.assert_array_equal(small, np.asarray(Image.fromarray(FILM).resize((36, 36), Image.Resampling.BILINEAR)))
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.ptp(preprocess.resize(stripes, 32).astype(int)[:, 2:-2]) < 40  # averaged, not picked


def by_itself(films):
    """(N, H, W) of any mean and deviation -> each film with mean 0 and standard deviation 1."""
    films = np.asarray(films, float)
    return (films - films.mean((1, 2), keepdims=True)) / films.std((1, 2), keepdims=True)


def test_to_input():
    images = jnp.asarray(np.stack([FILM[:72, :72], FILM[:72, 18:90] // 2 + 30]))
    found = preprocess.to_input(images, 72)[..., 0]
    np.testing.assert_allclose(found, by_itself(images), atol=1e-3)
    np.testing.assert_allclose(preprocess.to_input(images // 2 + 40, 72)[..., 0], found, atol=0.05)  # but for rounding
    halves = np.asarray(images, float).reshape(2, 36, 2, 36, 2).mean((2, 4))
    np.testing.assert_allclose(preprocess.to_input(images, 36)[..., 0], by_itself(halves), atol=1e-3)


def test_contrast_is_that_of_the_neighbourhood():
    """Each place less the mean around it and by the deviation around it, of what lies on the film."""
    pixels = np.stack([FILM[:72, :72], FILM[:72, 18:90]]) / 255

    def around(values):
        def blurred(one):
            return gaussian_filter(one, (0, 7.2, 7.2), mode="constant", truncate=12)

        return blurred(values) / blurred(np.ones_like(values))

    less = pixels - around(pixels)
    expected = by_itself(less / np.sqrt(around(less**2) + preprocess.FAINT**2))
    found = preprocess.standardise(jnp.asarray(pixels), 0.1)[..., 0]
    np.testing.assert_allclose(found, expected, atol=2e-3)
    images = jnp.asarray(np.stack([FILM[:72, :72], FILM[:72, 18:90]]))
    np.testing.assert_allclose(preprocess.to_input(images, 72, 1.0, 0.1)[..., 0], found, atol=1e-3)


def test_uneven_exposure_is_hardly_seen_where_contrast_is_local():
    texture = gaussian_filter(np.random.default_rng(0).normal(size=(72, 72)), 2)
    film = jnp.asarray(0.5 + 0.1 * texture / texture.std())
    slope = jnp.linspace(-0.2, 0.2, 72)
    apart = [
        float(jnp.abs(preprocess.standardise(film + slope, radius) - preprocess.standardise(film, radius)).mean())
        for radius in (0.0, 0.1)
    ]
    assert apart[1] < 0.3 * apart[0]


def test_the_middle_of_a_film_and_back():
    images = jnp.asarray(FILM[:72, :72][None])
    middle = preprocess.to_input(images, 36, 0.5)[..., 0]
    np.testing.assert_allclose(middle, by_itself(images[:, 18:54, 18:54]), atol=1e-3)
    whole = np.asarray(preprocess.from_middle(middle, 0.5))
    assert whole.shape == (1, 72, 72)
    np.testing.assert_allclose(whole[:, 18:54, 18:54], middle, atol=1e-5)
    outside = np.ones((72, 72), bool)
    outside[18:54, 18:54] = False
    assert (whole[:, outside] == 0).all()
    np.testing.assert_array_equal(preprocess.from_middle(middle, 1.0), middle)
    stacked = preprocess.from_middle(jnp.stack([middle, 2 * middle]), 0.5)
    np.testing.assert_allclose(stacked[1], 2 * whole, atol=1e-5)


def test_a_blank_film_stays_faint():
    films = np.full((1, 72, 72), 100, np.uint8)
    films[0, 0, 0] = 101
    assert np.abs(preprocess.to_input(jnp.asarray(films), 72)).max() < 0.21  # 1/255 over the smallest deviation, .02


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


TURNED = {  # orientation -> what a camera held that way stores: EXIF 2.32, table 6 of tag 274
    1: lambda film: film,
    2: lambda film: film[:, ::-1],
    3: lambda film: film[::-1, ::-1],
    4: lambda film: film[::-1],
    5: lambda film: film.T,
    6: lambda film: np.rot90(film),
    7: lambda film: film[::-1, ::-1].T,
    8: lambda film: np.rot90(film, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("kind", "depth"), [("JPEG", np.uint8), ("WEBP", np.uint8), ("TIFF", np.uint8), ("PNG", np.uint16), ("TIFF", ">u2")]
)
def test_orientation_of_every_format(kind, depth, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](FILM)).astype(depth)
    stored = stored if stored.dtype == np.uint8 else stored * 257
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    decoded = decode(encoded(Image.fromarray(stored), kind, exif=exif, **options)).pixels
    np.testing.assert_allclose(decoded, FILM, atol=3 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("source", "kind", "mode"),
    [
        (Image.fromarray(FILM > 100), "TIFF", "1"),
        (Image.fromarray(FILM), "BMP", "L"),
        (Image.fromarray(FILM).convert("P"), "PNG", "P"),
        (Image.fromarray(FILM).convert("RGBA"), "PNG", "RGBA"),
        (Image.fromarray(FILM.astype(np.uint16)), "PNG", "I;16"),
        (Image.fromarray(FILM.astype(">u2")), "TIFF", "I;16B"),
        (Image.fromarray(FILM.astype(np.int32)), "TIFF", "I"),
        (Image.fromarray(FILM.astype(np.float32)), "TIFF", "F"),
        (Image.fromarray(FILM).convert("CMYK"), "JPEG", "CMYK"),
    ],
)
def test_the_mode_is_the_files(source, kind, mode):
    assert decode(encoded(source, kind)).mode == mode


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "JPEG"])
def test_colours_are_weighed_as_luma(kind):
    # ITU-R BT.601: .299 R + .587 G + .114 B
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
    stored = Image.fromarray(np.kron(colours, np.ones((64, 64, 1), np.uint8)))
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels = decode(encoded(stored, kind, **options)).pixels
    middles = pixels[32::64, 32::64]
    np.testing.assert_allclose(middles, colours @ [0.299, 0.587, 0.114], atol=2 if kind == "JPEG" else 0.6)


def test_cmyk_jpeg_is_not_a_negative():
    pixels = decode(encoded(Image.fromarray(FILM).convert("CMYK"), "JPEG", quality=95)).pixels
    np.testing.assert_allclose(pixels, FILM, atol=3)


def test_lab_is_read_by_its_lightness():
    lab = Image.merge("LAB", [Image.fromarray(FILM), Image.new("L", (90, 72), 200), Image.new("L", (90, 72), 50)])
    np.testing.assert_array_equal(decode(encoded(lab, "TIFF")).pixels, FILM)


HALF = np.where(X < 45, 255, 128).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_half_transparent_colour_is_half_as_bright(kind):
    source = Image.merge("RGBA", [Image.fromarray(FILM)] * 3 + [Image.fromarray(HALF)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(encoded(source, kind, **options)).pixels
    np.testing.assert_allclose(pixels, FILM * (HALF / 255), atol=1)


def test_transparent_entries_of_a_palette_and_transparent_values_are_black():
    stripes = (X // 30).astype(np.uint8)  # 0, 1, 2 from left to right
    palette = Image.fromarray(stripes, "P")
    palette.putpalette([250, 250, 250, 0, 255, 0, 90, 90, 90])
    expected = np.select([stripes == 0, stripes == 1], [0, 150], 90)
    np.testing.assert_array_equal(decode(encoded(palette, transparency=0)).pixels, expected)
    half = decode(encoded(palette, transparency=bytes([0, 128, 255]))).pixels
    np.testing.assert_allclose(half, np.select([stripes == 0, stripes == 1], [0, 75], 90), atol=1)
    gray = Image.fromarray(np.where(stripes == 0, 250, FILM).astype(np.uint8))
    pixels = decode(encoded(gray, transparency=250)).pixels
    np.testing.assert_array_equal(pixels, np.where(stripes == 0, 0, FILM))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_sixteen_bits_in_either_byte_order(byte_order):
    full = np.linspace(0, 255, FILM.size).reshape(FILM.shape).astype(np.uint8)
    deep = (full.astype(np.uint16) * 257).astype(byte_order)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(deep), "TIFF")).pixels, full)


@pytest.mark.parametrize(
    ("dtype", "brightest", "full"),
    [
        (np.uint16, 256, 1023),
        (np.uint16, 1023, 1023),
        (np.uint16, 4095, 4095),
        (np.uint16, 4096, 16383),
        (np.uint16, 16383, 16383),
        (np.uint16, 16384, 65535),
        (np.uint16, 65535, 65535),
        (np.int32, 65536, 65536),
        (np.int32, 2_000_000_000, 2_000_000_000),
        (np.float32, 1.0, 1.0),
        (np.float32, 0.5, 1.0),
        (np.float32, 1.4, 1.4),
        (np.float32, 4095.0, 4095),
        (np.float32, 3e9, 3e9),
    ],
)
def test_the_depth_is_the_smallest_that_holds_the_brightest(dtype, brightest, full):
    film = np.zeros((64, 64), dtype)
    film[0, 0], film[1, 1] = brightest, brightest / 2
    expected = [round(255 * value / full) for value in (brightest, brightest / 2, 0)]
    pixels = decode(encoded(Image.fromarray(film), "TIFF")).pixels
    np.testing.assert_allclose(pixels[[0, 1, 2], [0, 1, 2]], expected, atol=1)
    assert pixels[0, 0] == expected[0]


@pytest.mark.parametrize(
    "source",
    [
        Image.fromarray(np.full((3000, 3000), 4095, np.uint16)),
        Image.fromarray(np.full((3000, 3000), 4095, np.int32)),
        Image.fromarray(np.full((3000, 3000), 1.0, np.float32)),
    ],
    ids=["I;16", "I", "F"],
)
def test_a_large_film_takes_few_times_its_size(source):
    data = encoded(source, "TIFF")
    tracemalloc.start()
    try:
        assert decode(data).pixels.shape == (3000, 3000)
        assert tracemalloc.get_traced_memory()[1] < 10 * 9_000_000  # as float64 alone it would have 8 bytes a pixel
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_eight_bits_in_a_wider_type_are_the_same_film(dtype):
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(FILM.astype(dtype)), "TIFF")).pixels, FILM)


@pytest.mark.parametrize(
    ("stored", "orientation"),
    [
        ((255 - FILM).astype(np.uint16) * 257, 1),
        (np.rot90(255 - FILM).astype(np.uint16) * 257, 6),
        ((255 - FILM) / np.float32(255), 1),
    ],
    ids=["16 bits", "16 bits, turned", "float"],
)
def test_white_is_zero_of_every_depth(stored, orientation):
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "TIFF", tiffinfo={262: 0, 274: orientation})
    np.testing.assert_array_equal(decode(data).pixels, FILM)


def test_white_is_zero_of_twelve_bits():
    data = encoded(Image.fromarray(4095 - FILM.astype(np.uint16) * 16), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(decode(data).pixels, FILM * (16 * 255 / 4095), atol=1)


def test_white_is_zero_of_eight_bits_is_not_turned_around_twice():
    data = encoded(Image.fromarray(FILM), "TIFF", tiffinfo={262: 0})
    assert (255 - FILM).tobytes() in data  # Pillow writes it turned around, too
    np.testing.assert_array_equal(decode(data).pixels, FILM)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "MPO"])
def test_of_many_pictures_the_first_is_read(kind):
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}}.get(kind, {})
    data = encoded(Image.fromarray(FILM), kind, save_all=True, append_images=[Image.fromarray(255 - FILM)], **options)
    np.testing.assert_allclose(decode(data).pixels, FILM, atol=3 if kind == "MPO" else 0)


def test_bounds_are_inclusive(monkeypatch):
    assert decode(encoded(Image.fromarray(FILM[:64, :64]))).pixels.shape == (64, 64)
    with pytest.raises(ImageRefused, match="image is 63 x 72 px; at least 64 x 64 is needed"):
        decode(encoded(Image.fromarray(FILM[:, :63])))
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 72 * 90)
    assert decode(encoded(Image.fromarray(FILM))).pixels.shape == (72, 90)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 72 * 90 - 1)
    with pytest.raises(ImageRefused, match="90 x 72 px; at most 6,479 pixels are read: scale it down"):
        decode(encoded(Image.fromarray(FILM)))


def test_a_bomb_is_refused_in_a_plain_sentence():
    data = bytearray(encoded(Image.fromarray(FILM)))
    data[16:24] = struct.pack(">II", 20_000, 20_000)  # width and height in the header
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageRefused) as refusal:
        decode(bytes(data))
    assert "100,000,000 pixels" in str(refusal.value) and "attack" not in str(refusal.value)


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (np.full((70, 70), np.inf, np.float32), "not numbers; export it again"),
        (-FILM.astype(np.float32), r"negative values \(down to -2\d\d.0\); export it as 8- or 16-bit"),
    ],
)
def test_floats_that_are_no_brightness_are_refused(film, message):
    with pytest.raises(ImageRefused, match=message):
        decode(encoded(Image.fromarray(film), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_film_cut_half_way_says_so(kind):
    noisy = np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8)
    data = encoded(Image.fromarray(noisy), kind)
    with pytest.raises(ImageRefused, match="the image is damaged or cut short; copy or export it again"):
        decode(data[: len(data) // 2])


def test_resize_squashes():
    # A square of light between 1/4 and 1/2 of the width, 1/2 and 3/4 of the height.
    film = np.zeros((100, 300), np.uint8)
    film[50:75, 75:150] = 200
    square = preprocess.resize(film)
    assert square.shape == (224, 224) and square.dtype == np.uint8
    rows, columns = np.nonzero(square > 100)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (112, 168, 56, 112)


def test_resize_averages_what_it_shrinks():
    checkerboard = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)
    assert set(np.unique(preprocess.resize(checkerboard, 32))) <= {127, 128}
    assert (preprocess.resize(np.full((91, 350), 77, np.uint8), 64) == 77).all()


def test_standardise_by_hand():
    pixels = jnp.array([[[0.0, 0.5], [0.5, 1.0]]])  # mean 1/2, variance 1/8
    expected = np.array([[[[-1.0], [0.0]], [[0.0], [1.0]]]]) * np.sqrt(2)
    np.testing.assert_allclose(preprocess.standardise(pixels), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "tolerance"), [(64, 0), (128, 0), (224, 0.01)])
def test_sampling_at_the_same_size_is_the_identity(size, tolerance):
    # Exact where the pixel centres are binary fractions; elsewhere off by a hundredth of a gray level at the most.
    image = np.random.default_rng(size).integers(0, 256, (size, size), np.uint8)
    np.testing.assert_allclose(preprocess.sample(image, jnp.eye(2, 3), size), image, rtol=0, atol=tolerance)


def test_sampling_repeats_the_edge():
    image = FILM[:64, :64]
    shifted = preprocess.sample(image, jnp.array([[1, 0, 0], [0, 1, -8 * 2 / 64]]), 64)
    np.testing.assert_array_equal(shifted, np.pad(image, ((0, 0), (8, 0)), mode="edge")[:, :64])
    far = preprocess.sample(image, jnp.array([[1.0, 0, 9], [0, 1, 9]]), 64)
    assert (far == float(image[-1, -1])).all()


def test_a_crop_by_affine_is_the_crop():
    image = np.random.default_rng(1).integers(0, 256, (64, 128), np.uint8)
    # The right lower quarter: half the span, centred at (1/2, 1/2); its 32 x 64 px become 32 x 32.
    crop = preprocess.sample(image, jnp.array([[0.5, 0, 0.5], [0, 0.5, 0.5]]), 32)
    expected = image[32:, 64:].astype(float).reshape(32, 32, 2).mean(2)
    np.testing.assert_allclose(crop, expected, atol=1e-3)
