"""Bytes of an image file -> the grayscale square the models read. Training and serving share it.

On the host: file -> `decode` -> `resize` -> uint8 square, as prepared datasets store it. On the device:
`to_input`, that square at the size of a network's input, standardised.

The square is *squashed*: padding bars and the aspect ratio give the label away in this dataset, so neither
is kept: bars are cut away. Colour is dropped for the same reason.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

STORAGE_SIZE = 224  # px, the side of the square a prepared dataset stores
MIN_SIDE = 64  # px
MIN_DEVIATION = 0.02  # of pixels in [0, 1], that a film is divided by
FAINT = 0.03  # of pixels in [0, 1]: what deviates less from its neighbourhood, as collimated strips do, stays faint
OVERSHOOT = 1.5  # of a float film in [0, 1]: resampling leaves more than 1 at edges
DETECTORS = (8, 10, 12, 14, 16)  # bits
MAX_PIXELS = 100_000_000  # width x height; a 14 x 17 inch film at 100 um is 15 million
MAX_BYTES = 4 * MAX_PIXELS  # of a file: the largest film of 32 bits, as it is
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
BAR_SPREAD = 6  # gray values, of 255, within a row or column of a bar: JPEG leaves a few
BARS = 8  # within one another, at most, each of another gray
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = None  # `decode` has a bound of its own, which says how many there are and does not warn


class ImageRefused(ValueError):
    """An image that cannot be read as a film; the message is a sentence for the person who sent it."""


@dataclass(frozen=True)
class Decoded:
    """A film as its file gives it: pixels (H, W) uint8, and what the file said before conversion."""

    pixels: np.ndarray  # (H, W) uint8, upright, without the bars that a film is padded with
    width: int  # of the upright picture with its bars, px
    height: int
    mode: str  # Pillow's mode of the source: "L", "RGB", "I;16", ...
    chroma: float  # what is left of colour without a tint of the whole, in gray values of 255; gray is 0


def decode(data: bytes) -> Decoded:
    """Decodes an image file to upright 8-bit grayscale.

    Args:
      data: the whole file: PNG, JPEG, WebP, TIFF or BMP; any colour mode; 8 to 16 bits, or float.

    Returns:
      The film at its own size; EXIF orientation applied, transparency laid over black, plain bars along its sides cut
      away. Of several pages or pictures in a file it is the first.

    Raises:
      ImageRefused: empty, truncated, of another format, too small or too large; the message names the value,
        the bound and the cure.
    """
    check_length(len(data))
    if data[128:132] == b"DICM":
        raise ImageRefused("this is a DICOM file; export the film as PNG or JPEG and send that")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageRefused(
                    f"image is {width} x {height} px; at most {MAX_PIXELS:,} pixels are read: scale it down"
                )
            if min(width, height) < MIN_SIDE:
                raise ImageRefused(f"image is {width} x {height} px; at least {MIN_SIDE} x {MIN_SIDE} is needed")
            image.load()
            inverted = (
                image.format == "TIFF"
                and image.mode[0] in "IF"
                and image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
            )
            upright = _upright(image)
            pixels = _to_gray(upright)
            if inverted:  # Pillow inverts white-is-zero TIFFs of 8 bits by itself, wider ones not
                pixels = 255 - pixels
            return Decoded(_without_bars(pixels), *upright.size, image.mode, _chroma(upright))
    except ImageRefused:
        raise
    except UnidentifiedImageError as error:
        raise ImageRefused(
            "not a PNG, JPEG, WebP, TIFF or BMP image; save it as one of these, or unpack what it is packed in"
        ) from error
    # Decoders report damage with whatever their format makes of it: struct.error, SyntaxError, EOFError, ...
    except Exception as error:
        raise ImageRefused(f"the image is damaged or cut short; copy or export it again ({error})") from error


def check_length(count: int) -> None:
    """Raises ImageRefused where a file of `count` bytes cannot be a film; asked before it is read."""
    if not count:
        raise ImageRefused("the file is empty")
    if count > MAX_BYTES:
        raise ImageRefused(f"the file has {count:,} bytes; at most {MAX_BYTES:,} are read: save the film alone, as PNG")


def resize(pixels: np.ndarray, size: int = STORAGE_SIZE) -> np.ndarray:
    """Squashes (H, W) uint8 to (size, size) uint8, anti-aliased; the identity where it has that size."""
    if pixels.shape == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def sample(image: jax.Array, affine: jax.Array, size: int) -> jax.Array:
    """Bilinear gather of one image at a regular grid carried through an affine map; outside, the edge repeats.

    Args:
      image: (H, W), any number type.
      affine: (2, 3), output -> source, both in (y, x) where the image spans [-1, 1]^2.
      size: side of the result, px.

    Returns:
      (size, size) float32, in the units of `image`.
    """
    height, width = image.shape
    grid = (jnp.arange(size) + 0.5) * (2 / size) - 1  # pixel centres
    y, x = jnp.meshgrid(grid, grid, indexing="ij")
    source = affine[:, :2] @ jnp.stack([y.ravel(), x.ravel()]) + affine[:, 2:]  # (2, size * size)
    rows = jnp.clip((source[0] + 1) * (height / 2) - 0.5, 0, height - 1)
    columns = jnp.clip((source[1] + 1) * (width / 2) - 0.5, 0, width - 1)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top, columns - left
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    below, beside = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    flat = image.ravel()

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return flat[row * width + column].astype(jnp.float32)

    upper = at(top, left) * (1 - right) + at(top, beside) * right
    lower = at(below, left) * (1 - right) + at(below, beside) * right
    return (upper * (1 - down) + lower * down).reshape(size, size)


def smoothed(images: jax.Array, deviation: jax.Array | float) -> jax.Array:
    """A Gaussian blur of (..., S, S), `deviation` in px: each pixel a weighted mean of its row, then of its column."""
    place = jnp.arange(images.shape[-1])
    squares = (place[:, None] - place) ** 2
    weights = jax.nn.softmax(-squares / (2 * jnp.maximum(deviation, 1e-2) ** 2), axis=1)
    return weights @ images @ weights.T


def standardise(pixels: jax.Array, neighbourhood: float = 0.0) -> jax.Array:
    """Films in [0, 1], each by its own mean and deviation, so that exposure and contrast are gone.

    A film that is nearly blank stays faint rather than becoming all noise.

    Args:
      pixels: (..., S, S) in [0, 1].
      neighbourhood: standard deviation, as a part of S, of the Gaussian over which the mean is first taken off each
        place and its deviation divided by, so that uneven exposure and curves of tone show less (local contrast
        normalisation, after the layer of that name of Jarrett et al. 2009); 0: not at all.

    Returns:
      (..., S, S, 1) of mean 0 and standard deviation 1.
    """
    if neighbourhood:
        radius = neighbourhood * pixels.shape[-1]
        pixels = pixels - smoothed(pixels, radius)
        pixels = pixels / jnp.sqrt(smoothed(pixels**2, radius) + FAINT**2)
    pixels = pixels - pixels.mean(axis=(-2, -1), keepdims=True)
    deviation = jnp.sqrt((pixels**2).mean(axis=(-2, -1), keepdims=True))
    return (pixels / jnp.maximum(deviation, MIN_DEVIATION))[..., None]


def to_input(images: jax.Array, size: int, side: float = 1.0, neighbourhood: float = 0.0) -> jax.Array:
    """What a network is evaluated and served on.

    Args:
      images: (N, H, W) uint8 films.
      size: side of the result, px.
      side: of the middle of the film that is seen, as a part of the film's.
      neighbourhood: as `standardise` says.

    Returns:
      (N, size, size, 1) float32, standardised.
    """
    pixels = jax.vmap(lambda image: sample(image, side * jnp.eye(2, 3), size))(images)
    return standardise(pixels / 255, neighbourhood)


def from_middle(maps: jax.Array, side: float) -> jax.Array:
    """Maps of the middle of films, as `to_input` saw it -> of whole films, 0 in cells whose middle it did not see.

    Args:
      maps: (..., h, w) float.
      side: of the middle, as a part of the film's.

    Returns:
      (..., h', w') float32, cells of about the same size.
    """
    if side == 1:
        return maps
    cells = round(maps.shape[-1] / side)
    place = jnp.abs((jnp.arange(cells) + 0.5) * (2 / cells) - 1) < side
    whole = jax.vmap(lambda one: sample(one, jnp.eye(2, 3) / side, cells))(maps.reshape(-1, *maps.shape[-2:]))
    return (whole * (place[:, None] & place)).reshape(*maps.shape[:-2], cells, cells)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; damaged EXIF, which viewers pass over, says nothing.

    ImageOps.exif_transpose writes the rest of it anew, which fails where any of it is damaged.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever is made of the damage
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_gray(image: Image.Image) -> np.ndarray:
    """Any Pillow image -> (H, W) uint8."""
    if image.mode[0] in "IF":  # more than 8 bits: convert("L") would clip to white
        return _scale_to_8_bits(np.asarray(image))
    if image.mode == "LAB":
        image = image.getchannel("L")
    elif image.has_transparency_data:
        colour = image.convert("RGBA")
        image = Image.new("RGB", colour.size)  # black
        image.paste(colour, mask=colour)
    return np.asarray(image.convert("L"))


def _without_bars(pixels: np.ndarray) -> np.ndarray:
    """Cuts rows and columns of one gray value off the sides of (H, W): what viewers and phones pad films with."""
    film = pixels
    for _ in range(BARS):
        rows, columns = (np.flatnonzero(np.ptp(film, axis=axis) > BAR_SPREAD) for axis in (1, 0))
        if not rows.size or not columns.size:
            return pixels  # blank
        cut = film[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if cut.shape == film.shape or min(cut.shape) < MIN_SIDE:
            return film
        film = cut  # which may have bars of another gray
    return film


def _chroma(image: Image.Image) -> float:
    """How coloured a picture is: the mean distance of the largest from the smallest of red, green and blue.

    Fine detail and the noise of JPEG's colours are averaged away first, and a tint of the whole, as a lamp or the blue
    base of a film gives it, is taken out: each colour is scaled to the mean of the three.
    """
    if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;"):
        return 0.0
    small = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BOX)).astype(float)
    means = small.mean(axis=(0, 1))
    return float(np.ptp(small * (means.mean() / np.maximum(means, 1)), axis=2).mean())


def _scale_to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Integers or floats of 8 bits or more to uint8; the depth is the smallest of DETECTORS that holds the maximum."""
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise ImageRefused("the image holds values that are not numbers; export it again")
    if low < 0:
        raise ImageRefused(f"the image holds negative values (down to {low}); export it as 8- or 16-bit")
    of_one = pixels.dtype.kind == "f" and high <= OVERSHOOT
    depths = (max(1.0, float(high)),) if of_one else (*(2.0**bits - 1 for bits in DETECTORS), float(high))
    full = next(depth for depth in depths if high <= depth)
    if pixels.dtype.kind == "f" or high >= 2**16:
        scaled = np.multiply(pixels, 255 / full, dtype=np.float32)
        return np.round(scaled, out=scaled).astype(np.uint8)
    # Each value once: a large film as floats would take gigabytes.
    return np.round(np.arange(int(high) + 1) * (255 / full)).astype(np.uint8)[pixels]
