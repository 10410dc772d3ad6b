"""Where pre-trained weights come from: the Hugging Face hub, a file, a run. All of them become named arrays."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging
from huggingface_hub import constants, errors

from model import checkpoint
from model.weights import WeightsError, torch_file

HUB = "hf://"
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt")  # looked for in this order where no file is named
SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin")
META = "pneumoscope_meta"  # the entry of a .safetensors file that holds a checkpoint's meta
TIMEOUT_SECONDS = 10
_FORMS = f"{HUB}OWNER/NAME[@REVISION][/FILE], a file ({', '.join(SAFETENSORS + TORCH)}), a run directory or a bundle"


class Source(NamedTuple):
    """Weights as they were found."""

    arrays: dict[str, np.ndarray]  # floats are float32; names as the source has them, of ours `params/stem/conv/kernel`
    facts: dict[str, Any]  # JSON values: where they are from, to the byte
    meta: dict[str, Any] | None  # of a checkpoint of this project; None for any other weights


class _Found(NamedTuple):
    """A file of the hub, as it lies in the cache."""

    path: Path
    commit: str
    reached: bool  # whether the hub was asked, not the cache alone


def read(spec: str) -> Source:
    """Reads weights; a file of the hub is fetched once, with a progress bar, and then taken from the hub's cache.

    Args:
      spec: one of
        `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`, `hf://OWNER/NAME@REVISION/FILE`: a repository of the Hugging Face
          hub, a branch, tag or commit (main), and a file (the first of HUB_FILES that is there);
        a `.safetensors` file, of this project (`python jobs/export.py`) or any other;
        a `.pth`, `.pt` or `.bin` file of `torch.save`; nothing in it is run;
        a run directory or a bundle, of which the best step is taken.

    Returns:
      Arrays by name. `facts` holds `from`, the spec; of a file `file`, `bytes`, `sha256`; of the hub `repository`,
      `commit` and `reached`, whether the hub was asked or, without network, its cache alone; of a checkpoint `step` and
      `weights_digest`; and where the file lies beside a config.json of timm, `network`, as timm calls it, and `mean`
      and `std` of a pixel in [0, 1].

    Raises:
      WeightsError: nothing there, or nothing that can be read and verified.
    """
    if "://" in spec and not spec.startswith(HUB):
        raise WeightsError(f"{spec} is no source of weights; give {_FORMS}, or fetch the file and give its path")
    path = Path(spec)
    try:
        if spec.startswith(HUB):
            return _from_hub(spec)
        if path.is_dir():
            return _from_run(spec, path)
        if not path.is_file():
            what = "is no regular file" if path.exists() else f"does not exist (looked for at {path.absolute()})"
            raise WeightsError(f"{spec} {what}; give {_FORMS}")
        return _from_file(spec, path)
    except OSError as error:
        raise WeightsError(f"{spec} cannot be read ({error.strerror or error}); mend its permissions") from error


def _from_run(spec: str, directory: Path) -> Source:
    members = checkpoint.member_folders(directory)
    if len(members) > 1:
        raise WeightsError(f"{spec} is an ensemble of {len(members)}; give one of its members, such as {members[0]}")
    files = sorted(path for path in directory.iterdir() if path.suffix in SAFETENSORS + TORCH)
    try:
        loaded = checkpoint.load(members[0])
    except checkpoint.CheckpointError as error:
        cure = f"it holds {files[0].name}: give --config.init_from={files[0]}" if files else f"or give {_FORMS}"
        raise WeightsError(f"{error}; {cure}") from error
    arrays = {name: _widen(array) for name, array in checkpoint.to_arrays(loaded.variables).items()}
    return Source(arrays, {"from": spec} | _of_checkpoint(loaded.meta), loaded.meta)


def _from_file(spec: str, path: Path, **facts: Any) -> Source:
    """`facts` are those that the path does not tell."""
    if path.suffix not in SAFETENSORS + TORCH:
        raise WeightsError(f"{spec} is of no known kind; read are {_FORMS}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not (size := path.stat().st_size):
        raise WeightsError(f"{spec} is empty; fetch it again")
    arrays, meta = _read_safetensors(path) if path.suffix in SAFETENSORS else (torch_file.read(path), None)
    if not arrays:
        raise WeightsError(f"{spec} holds no arrays; give the file of the weights")
    facts = {"from": spec, "file": path.name, "bytes": size, "sha256": digest} | facts
    facts |= _of_checkpoint(meta) if meta else _of_config(path.with_name("config.json"))
    return Source({name: _widen(array) for name, array in arrays.items()}, facts, meta)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The arrays in their stored types, and the meta where this project wrote them, which is then verified."""
    try:
        with safetensors.safe_open(path, "np") as file:
            arrays, text = file.get_tensors(), (file.metadata() or {}).get(META)
    except Exception as error:  # SafetensorError for damage; for types that numpy has not, whatever the lookup raises
        raise WeightsError(f"{path} is damaged, or of a type that numpy has not ({error}); fetch it again") from error
    if text is None:
        return arrays, None
    cure = "export it again: python jobs/export.py"
    try:
        meta = json.loads(text)
        if meta["sha256"] != checkpoint.json_digest(meta) or meta["format"] != checkpoint.FORMAT:
            raise ValueError("its digest or format is another")
        expected = {name.removeprefix("variables/"): entry["sha256"] for name, entry in meta["arrays"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: what it says of its checkpoint is damaged ({error}); {cure}") from error
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    if wrong := sorted(name for name, _ in digests.items() ^ expected.items()):
        raise WeightsError(f"{path}: {wrong[0]} does not match its digest; {cure}")
    return arrays, meta


def _widen(array: np.ndarray) -> np.ndarray:
    """Floats of any width as float32, integers as they are; a copy, for the file may change."""
    return array.astype(np.float32 if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype)


def _of_checkpoint(meta: dict[str, Any]) -> dict[str, Any]:
    return {"step": meta["step"], "weights_digest": checkpoint.weights_digest(meta)}


def _of_config(path: Path) -> dict[str, Any]:
    """Of a config.json of timm the network, and the mean and deviation of each channel; of any other what it has."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
        pretrained = config.get("pretrained_cfg", config)  # timm had all in one before
        found = {name: [float(value) for value in pretrained[name]] for name in ("mean", "std") if name in pretrained}
        if not all(math.isfinite(value) for values in found.values() for value in values) or 0 in found.get("std", []):
            raise ValueError(f"mean and std are {found}")
        network = {"network": str(config["architecture"])} if found and "architecture" in config else {}
    except (ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}, beside the weights, cannot be read ({error}); mend it, or move it away") from error
    return found | network


def _from_hub(spec: str) -> Source:
    parts = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@(refs/[^/@]+/[^/@]+|[^/@]+))?(?:/(.+))?", spec)
    if not parts:
        raise WeightsError(f"{spec} is no file of the hub; give {HUB}OWNER/NAME[@REVISION][/FILE]")
    repository, revision, named = parts[1], parts[2] or "main", parts[3]
    page = f"{constants.ENDPOINT}/{repository}"
    if named and Path(named).suffix not in SAFETENSORS + TORCH:
        raise WeightsError(f"{spec}: {named} is of no known kind; read are {', '.join(SAFETENSORS + TORCH)}")
    try:
        found = _fetch(repository, revision, [named] if named else HUB_FILES)
        if found and found.reached:
            _fetch(repository, found.commit, ["config.json"])  # to lie beside it
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{spec}: {repository} is gated; ask for access at {page}, then log in: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"{spec}: the hub has no {repository}, or it is private; compare {page}, or log in: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{spec}: {repository} has no revision {revision}; see {page}/commits/main") from error
    except errors.LocalEntryNotFoundError as error:
        name = named or HUB_FILES[0]
        raise WeightsError(
            f"{spec}: the hub cannot be reached ({error}), and its cache has no such file. Where there is a network, "
            f"fetch {name}, and config.json if there is one, from {page}; put them into one folder here and give "
            f"--config.init_from=PATH/{Path(name).name}"
        ) from error
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{spec} could not be fetched from {page} ({reason}); try again") from error
    if not found:
        wanted = named or ", ".join(HUB_FILES)
        raise WeightsError(f"{spec}: the hub has no {wanted} in {repository} at {revision}; see {page}/tree/main")
    if not found.reached:
        logging.warning("the hub cannot be reached: %s is taken from its cache, commit %s", spec, found.commit)
    source = _from_file(spec, found.path, repository=repository, commit=found.commit, reached=found.reached)
    # The cache names a large file by its sha256, as the hub stated it.
    stated = found.path.readlink().name if found.path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", stated) and stated != source.facts["sha256"]:
        raise WeightsError(f"{spec}: {found.path.resolve()} is not what the hub sent; delete it, and run this again")
    return source


def _fetch(repository: str, revision: str, names: Sequence[str]) -> _Found | None:
    """The first of some files that the hub has, or its cache where it is not reached; None where the hub has none.

    The hub's client tries for half a minute where there is no network: it is asked once, then told where to look.

    Raises:
      errors.LocalEntryNotFoundError: the hub is not reached, and the cache has none; it says why.
    """
    reason = ""
    for name in names:
        try:
            if not reason:
                url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
                huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        except errors.RemoteEntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            raise
        except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
        try:
            path = huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=bool(reason))
        except errors.LocalEntryNotFoundError:
            if not reason:
                raise
            continue
        return _Found(Path(path), Path(path).parts[-1 - len(Path(name).parts)], reached=not reason)
    if reason:
        raise errors.LocalEntryNotFoundError(reason)
    return None
