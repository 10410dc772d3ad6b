"""The rooms and their doors: imports point one way, pmap lives in one file, TensorFlow nowhere."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"configs", "model", "jobs", "space"}
# What each room may import of ours, and what it may not import at all.
ALLOWED = {"configs": {"configs"}, "model": {"model"}, "jobs": {"jobs", "model"}, "space": {"space", "model"}}
FORBIDDEN = {
    "configs": {"jax", "flax", "gradio"},
    "model": {"gradio", "tensorflow_datasets", "grain", "optax", "sklearn", "rich"},
    "jobs": {"gradio"},
    "space": {"tensorflow_datasets", "grain", "optax", "sklearn"},
}


def sources(*rooms):
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path):
    """Top-level names of all modules a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(OURS))
def test_imports_point_one_way(room):
    assert sources(room)
    for path in sources(room):
        names = imported(path)
        assert not (names & OURS) - ALLOWED[room], f"{path} imports {(names & OURS) - ALLOWED[room]}"
        assert not names & FORBIDDEN[room], f"{path} imports {names & FORBIDDEN[room]}"


def test_pmap_is_in_one_file():
    users = [path.relative_to(ROOT).as_posix() for path in sources(*OURS) if "pmap" in path.read_text()]
    assert users == ["jobs/training/steps.py"]


def test_no_tensorflow_installed():
    assert importlib.util.find_spec("tensorflow") is None
    requirements = "".join(path.read_text() for path in ROOT.glob("requirements*.txt"))
    assert not [line for line in requirements.splitlines() if line.startswith(("tensorflow==", "tf-", "clu"))]


@pytest.mark.parametrize("module", ["jobs.prepare", "jobs.train", "jobs.calibrate", "space.app"])
def test_no_tensorflow_imported(module):
    program = f"import sys, {module}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_every_requirement_is_pinned():
    for path in [*ROOT.glob("requirements*.txt"), ROOT / "space/requirements.txt"]:
        for line in path.read_text().splitlines():
            wanted = line.split("#")[0].strip()
            assert not wanted or wanted.startswith("-") or "==" in wanted, f"{path}: {line}"


def test_the_space_pins_what_the_project_pins():
    def pins(path):
        lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
        return dict(line.split("==") for line in lines if "==" in line)

    project, space = pins(ROOT / "requirements.txt"), pins(ROOT / "space/requirements.txt")
    assert space and all(project[name] == version for name, version in space.items())
