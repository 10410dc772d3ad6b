"""The pictures of an answer: the film, and for each class the film under the map of what speaks for it."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from model import gradcam
from model.labels import CLASSES
from model.predictor import REFUSED, Prediction
from space import words

LONG_SIDE = 768  # px, of every film as shown: small ones are enlarged so that all can be compared
COLOURS = colormaps["inferno"]  # its order can be seen without colour vision
MARGIN = 40  # px below every film, where overlays carry their scale
_TEXT = ImageFont.load_default(20)
_MID_GRAY = 128


def items(pixels: np.ndarray, prediction: Prediction, opacity: float) -> list[tuple[Image.Image, str]]:
    """The film and one overlay a class, all of one size, each with its caption.

    Args:
      pixels: (H, W) uint8, the upright film at its own size.
      prediction: with heat maps; without, or where it was refused, the film alone is returned.
      opacity: of the hottest place, in [0, 1].
    """
    film = fit(pixels)
    shown = [(_framed(np.repeat(film[..., None], 3, axis=2)), "original")]
    if prediction.decision == REFUSED or prediction.heatmaps is None:
        return shown
    assert prediction.probabilities is not None and prediction.blank is not None
    scale = _scale(film.shape[1], opacity)
    for name, probability, heatmap, blank in zip(
        CLASSES, prediction.probabilities, prediction.heatmaps, prediction.blank, strict=True
    ):
        caption = f"{name} {words.percent(probability)}" + (": nothing speaks for this class" if blank else "")
        shown.append((_framed(overlay(film, heatmap, opacity), scale), caption))
    return shown


def fit(pixels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> the same film, its long side LONG_SIDE; the aspect is kept."""
    factor = LONG_SIDE / max(pixels.shape)
    height, width = (max(1, round(side * factor)) for side in pixels.shape)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def overlay(film: np.ndarray, heatmap: np.ndarray, opacity: float) -> np.ndarray:
    """Lays a heat map over a film; the cooler a place, the more of the film is seen.

    Args:
      film: (H, W) uint8.
      heatmap: (h, w) in [0, 1]. The model saw the film squashed to a square: stretched back to the film's shape,
        the map lies where the model looked.
      opacity: of the hottest place, in [0, 1].

    Returns:
      (H, W, 3) uint8.
    """
    heat = gradcam.upsample(heatmap, *film.shape)
    alpha = opacity * heat[..., None]
    return np.round((1 - alpha) * film[..., None] + alpha * 255 * COLOURS(heat)[..., :3]).astype(np.uint8)


def _scale(width: int, opacity: float) -> Image.Image:
    """The strip below an overlay: its colours from the least to the most heat, as they look over mid-gray."""
    strip = Image.new("RGB", (width, MARGIN))
    draw = ImageDraw.Draw(strip)
    middle = MARGIN // 2
    left, right = (round(draw.textlength(text, _TEXT)) + 20 for text in ("least", "most"))
    draw.text((10, middle), "least", "white", _TEXT, anchor="lm")
    draw.text((width - 10, middle), "most", "white", _TEXT, anchor="rm")
    if length := max(0, width - left - right):
        ramp = np.linspace(0, 1, length, dtype=np.float32)[None]
        bar = overlay(np.full((MARGIN // 2, length), _MID_GRAY, np.uint8), ramp, opacity)
        strip.paste(Image.fromarray(bar), (left, MARGIN // 4))
    return strip


def _framed(picture: np.ndarray, scale: Image.Image | None = None) -> Image.Image:
    """Adds the margin: every picture has one, so that the film stays put when leafing through them."""
    height, width, _ = picture.shape
    framed = Image.new("RGB", (width, height + MARGIN))
    framed.paste(Image.fromarray(picture))
    if scale is not None:
        framed.paste(scale, (0, height))
    return framed
