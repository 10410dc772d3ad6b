"""A checkpoint small enough to make in a second, films to show it, and the page over it."""

from __future__ import annotations

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jobs.datasets.phantom import drawing
from model import checkpoint, registry
from model.labels import CLASSES
from model.predictor import Predictor
from space import app
from tests.conftest import free_port

STEP = 7


def meta() -> dict:
    return {
        "architecture": "cnn",
        "options": {"widths": (4, 8), "blocks": (1, 1)},
        "classes": list(CLASSES),
        "image_size": 32,
        "side": 1.0,
        "storage_size": 64,
        "config": {"augment": {"flip_probability": 0.0}},
        "dataset": {
            "name": "chest_xray",
            "license": "CC BY 4.0",
            "citation": "A. Author: Films of Somewhere",
            "fingerprint": "f" * 64,
            "source": "some_folder",
        },
        "metrics": {"val_accuracy": 0.8125, "val_binary_auroc": None, "val_ece": 0.0625},
        "epoch": 3,
        "history": [],
        "packages": {},
    }


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A checkpoint directory with a random tiny CNN."""
    directory = tmp_path_factory.mktemp("space") / "checkpoint"
    about = meta()
    module = registry.build(about["architecture"], about["options"])
    size = about["image_size"]
    variables = module.init(jax.random.key(0), jnp.zeros((1, size, size, 1)))
    with checkpoint.Writer(directory) as writer:
        writer.save(STEP, variables, about, score=0.5)
    return directory


@pytest.fixture(scope="session")
def predictor(bundle):
    return Predictor.open(bundle)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Paths of {name: film}, one of each class."""
    folder = tmp_path_factory.mktemp("films")
    paths = {name: folder / f"phantom_{name}.png" for name in CLASSES}
    for index, path in enumerate(paths.values()):
        Image.fromarray(drawing.draw(index, 128).image).save(path)
    return paths


@pytest.fixture(scope="session")
def damaged(tmp_path_factory, films):
    """Path of a film cut short."""
    path = tmp_path_factory.mktemp("damaged") / "damaged.png"
    path.write_bytes(films["viral"].read_bytes()[:3000])
    return path


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


@contextlib.contextmanager
def served(directory):
    """The address of the page over a checkpoint directory."""
    page = app.build(directory)
    _, url, _ = page.launch(
        prevent_thread_lock=True, server_name="127.0.0.1", server_port=free_port(), quiet=True, **app.LAUNCH
    )
    try:
        yield url
    finally:
        page.close(verbose=False)


@pytest.fixture(scope="session")
def url(bundle):
    with served(bundle) as address:
        yield address


@pytest.fixture(scope="session")
def url_without_model(tmp_path_factory):
    with served(tmp_path_factory.mktemp("empty")) as address:
        yield address
