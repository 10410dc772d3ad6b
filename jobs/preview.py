"""Writes a contact sheet of what the network sees while it trains.

    python jobs/preview.py --config configs/cnn.py --out preview.png

One row a film: the whole film, then as seven training steps would see it, standardised, mixup aside.
Set the fields of config.augment on the command line and look again: --config.augment.rotation_degrees=30.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from jobs import UsageError, check_replaceable, run, whole
from jobs.datasets import films
from jobs.training import objectives
from jobs.training.plan import check
from model.labels import CLASSES
from model.preprocess import sample

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, such as configs/cnn.py.")
_OUT = flags.DEFINE_string("out", "preview.png", "The PNG to write.")
flags.mark_flag_as_required("config")

TITLE = "Pneumoscope: what the network sees"  # in the PNG, so that it is known as one
ROWS_PER_CLASS, VIEWS = 3, 7
GAP_PX, TITLE_PX = 4, 16
DEVIATIONS = 2.5  # of a standardised view, on either side of gray, until black and white


def main() -> None:
    out = Path(_OUT.value)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out={out} does not end in .png; a PNG is what is written")
    check_replaceable(out, _is_sheet, "contact sheet of this version")
    out.parent.mkdir(parents=True, exist_ok=True)  # an --out that cannot be is known before the work
    marked = PngInfo()
    marked.add_text("Title", TITLE)
    page = sheet(_CONFIG.value)
    with whole(out) as scratch:
        page.save(scratch, "PNG", pnginfo=marked)
    print(out)


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Title") == TITLE
    except (OSError, ValueError):
        return False


def sheet(config: ConfigDict) -> Image.Image:
    """The contact sheet: ROWS_PER_CLASS rows a class, 1 + VIEWS columns."""
    check(config)
    data = config.data
    split = films.read(Path(data.dir), data.dataset, "train", True, data.folds, data.fold, data.leave_out)
    films.check_classes(split, "training", Path(data.dir))
    size = data.train_size or data.image_size
    rows = [np.flatnonzero(split.labels == label)[:ROWS_PER_CLASS] for label in range(len(CLASSES))]
    chosen = np.concatenate(rows)
    images = jnp.asarray(split.images[chosen])
    views = objectives.views(
        jax.random.key(config.seed),
        jnp.arange(len(chosen) * VIEWS),
        jnp.repeat(images, VIEWS, axis=0),
        size,
        config.augment.to_dict(),
        data.neighbourhood,
    )
    seen = jnp.clip(0.5 + views[..., 0] / (2 * DEVIATIONS), 0, 1)
    plain = jax.vmap(lambda image: sample(image, jnp.eye(2, 3), size))(images) / 255
    tiles = jnp.concatenate([plain[:, None], seen.reshape(len(chosen), VIEWS, size, size)], axis=1)
    pixels = np.round(np.asarray(tiles) * 255).astype(np.uint8)  # (rows, columns, size, size)

    step = size + GAP_PX
    page = Image.new("L", ((VIEWS + 1) * step + GAP_PX, TITLE_PX + len(chosen) * (step + TITLE_PX)), 32)
    draw = ImageDraw.Draw(page)
    draw.text((GAP_PX, 2), f"left: the film; then {VIEWS} training views at {size} px, standardised", fill=255)
    for row, index in enumerate(chosen):
        top = TITLE_PX + row * (step + TITLE_PX)
        draw.text((GAP_PX, top + 1), f"{CLASSES[split.labels[index]]}: {split.names[index]}", fill=200)
        for column in range(VIEWS + 1):
            tile = Image.fromarray(pixels[row, column])
            page.paste(tile, (GAP_PX + column * step, top + TITLE_PX))
    return page


if __name__ == "__main__":
    run(main)
