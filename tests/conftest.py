"""Eight virtual devices for every test, set before JAX starts; and small datasets that several tests read."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import importlib
import io
import socket
from pathlib import Path
from types import ModuleType

# Tests and the commands they start compile the same programs over and over.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from jobs.datasets.films import write
from jobs.datasets.phantom.builder import Phantom, film

flags.FLAGS.mark_as_parsed()  # grain asks for its own; a job has parsed them
SHARED = Path(__file__).parents[2] / "shared"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Each program is mapped into memory in pieces, of which Linux allows a process 65,530: at that XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared():
    """The folder of real images, where there is one."""
    if not (SHARED / "chest_xray").is_dir():
        pytest.skip(f"the real images are not at {SHARED / 'chest_xray'}")
    return SHARED


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory):
    """A prepared phantom set of 48, 12 and 12 films."""
    folder = tmp_path_factory.mktemp("data")
    splits = {
        "train": [film(index) for index in range(48)],
        "validation": [film(index) for index in range(300, 312)],
        "test": [film(index) for index in range(600, 612)],
    }
    write(Phantom, splits, folder, "phantom")
    return folder


def command(name: str) -> ModuleType:
    """A file of jobs/ as a module, but for its flags: another command of the same process may have them, too."""
    module = importlib.import_module(f"jobs.{name}")
    for flag in flags.FLAGS.get_flags_for_module(module):
        if flag.name in flags.FLAGS:
            delattr(flags.FLAGS, flag.name)
    return module


def jpeg(seed: int, size: tuple[int, int] = (80, 70), mode: str = "L") -> bytes:
    """A small JPEG whose bytes depend on the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0]), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def anew(path: Path) -> bytes:
    """The same picture as a PNG file in colour."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, path: str, data: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


@pytest.fixture
def kaggle(tmp_path):
    """A source in the Kaggle layout: 10 patients a class in train, 3 in test, a val folder without viral films."""
    root = tmp_path / "kaggle"
    seed = iter(range(10_000))
    for number in range(10):
        put(root, f"train/NORMAL/IM-{number:04d}-0001.jpeg", jpeg(next(seed)))
        for copy in range(2):
            put(root, f"train/PNEUMONIA/person{number}_bacteria_{2 * number + copy}.jpeg", jpeg(next(seed)))
        put(root, f"train/PNEUMONIA/person{number}_virus_{number}.jpeg", jpeg(next(seed), mode="RGB"))
    put(root, "val/NORMAL/NORMAL2-IM-0900-0001.jpeg", jpeg(next(seed)))
    put(root, "val/PNEUMONIA/person90_bacteria_900.jpeg", jpeg(next(seed)))
    for number in range(50, 53):
        put(root, f"test/NORMAL/IM-{number:04d}-0001.jpeg", jpeg(next(seed)))
        put(root, f"test/PNEUMONIA/person{number}_bacteria_{number}.jpeg", jpeg(next(seed)))
        put(root, f"test/PNEUMONIA/person{number}_virus_{number}.jpeg", jpeg(next(seed)))
    return root
