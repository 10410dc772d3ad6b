"""Weights are read from where they are said to be, to the bit; the damaged and the malicious are refused."""

import collections
import hashlib
import io
import json
import os
import pickle
import struct
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors import numpy as safetensors_numpy

from model import checkpoint
from model.weights import WeightsError, source
from tests.model.test_checkpoint import save, variables

KERNEL = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
BIAS = np.arange(4, dtype=np.float32)


# Files of torch.save, written by hand.


class Called:
    """Pickles as a call of a name that need not exist here."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Storage:
    """Pickles as a persistent id."""

    def __init__(self, data, kind="FloatStorage", count=None, key="0"):
        self.data, self.kind, self.key = np.ascontiguousarray(data), kind, key
        self.count = self.data.size if count is None else count


class Name:
    def __init__(self, full):
        self.full = full


class Pickler(pickle._Pickler):
    """Pickler whose names are written without being imported."""

    def __init__(self, file, legacy=False, protocol=2):
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages[value.key] = value
        identifier = ("storage", Name(f"torch.{value.kind}"), value.key, "cpu", value.count)
        return (*identifier, None) if self.legacy else identifier

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            module, _, name = value.full.rpartition(".")
            if self.proto >= 4:
                self.save(module)
                self.save(name)
                return self.write(pickle.STACK_GLOBAL)
            return self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        if isinstance(value, Called):
            self.save(Name(value.name))
            self.save(value.arguments)
            return self.write(pickle.REDUCE)
        return super().save(value, save_persistent_id)


def tensor(storage, shape=None, strides=None, offset=0):
    shape = storage.data.shape if shape is None else shape
    if strides is None:
        strides = tuple(stride // storage.data.itemsize for stride in np.empty(shape, storage.data.dtype).strides)
    return Called("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, collections.OrderedDict())


def write_zip(path, value, protocol=2, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol=protocol)
    pickler.dump(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", buffer.getvalue())
        archive.writestr("model/byteorder", byteorder)
        for key, storage in pickler.storages.items():
            archive.writestr(f"model/data/{key}", storage.data.tobytes())
        archive.writestr("model/version", "3\n")
    return path


def write_legacy(path, value, little_endian=True, counts=None):
    buffer = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little_endian}):
        pickle.dump(header, buffer, 2)
    pickler = Pickler(buffer, legacy=True)
    pickler.dump(value)
    pickle.dump(sorted(pickler.storages), buffer, 2)
    for key, storage in sorted(pickler.storages.items()):
        buffer.write(struct.pack("<q", (counts or {}).get(key, storage.data.size)) + storage.data.tobytes())
    path.write_bytes(buffer.getvalue())
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}


def weights():
    """Every kind of view of few storages, and the arrays that they are."""
    whole = Storage(np.arange(24, dtype=np.float32))
    half = Storage(np.array([1.5, -2], np.float16), "HalfStorage", key="1")
    brain = Storage(np.array([3.140625, 2], ml_dtypes.bfloat16), "BFloat16Storage", key="2")
    steps = Storage(np.array([7], np.int64), "LongStorage", key="3")
    double = Storage(np.array([0.1]), "DoubleStorage", key="4")
    flags = Storage(np.array([True, False]), "BoolStorage", key="5")
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = collections.OrderedDict(
        {
            "whole": tensor(whole, (4, 6)),
            "turned": tensor(whole, (6, 4), (1, 6)),
            "middle": tensor(whole, (2, 3), (12, 2), offset=1),
            "none": tensor(whole, (0, 3)),
            "half": tensor(half),
            "brain": Called("torch._utils._rebuild_parameter", tensor(brain), True, collections.OrderedDict()),
            "steps": tensor(steps, Called("torch.Size", ()), ()),
            "double": tensor(double),
            "flags": tensor(flags),
            "scalar": tensor(whole, (), (), offset=5),
        }
    )
    arrays = {
        "whole": grid,
        "turned": grid.T,
        "middle": grid[::2, 1:6:2],
        "none": np.zeros((0, 3), np.float32),
        "half": np.array([1.5, -2], np.float32),
        "brain": np.array([3.140625, 2], np.float32),
        "steps": np.int64(7),
        "double": np.array([0.1], np.float32),
        "flags": np.array([True, False]),
        "scalar": np.float32(5),
    }
    return found, arrays


def same(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape and got[name].flags.c_contiguous, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_torch_files_are_read_through_their_views(tmp_path, write):
    stored, expected = weights()
    path = write(tmp_path / "w.pth", stored)
    read = source.read(str(path))
    same(read.arrays, expected)
    data = path.read_bytes()
    assert read.facts == {
        "from": str(path), "file": "w.pth", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert read.meta is None


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_any_protocol_of_pickle_is_read(tmp_path, protocol):
    stored, expected = weights()
    same(source.read(str(write_zip(tmp_path / "w.pt", stored, protocol))).arrays, expected)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_weights_of_a_training_checkpoint_are_unwrapped(tmp_path, key):
    wrapped = {
        "epoch": 3,
        "best_accuracy": tensor(Storage(KERNEL + 2, key="b")),
        "optimizer": {"state": {0: {"momentum": tensor(Storage(KERNEL + 1, key="o"))}}, "lr": [0.1, None]},
        key: {"kernel": tensor(Storage(KERNEL)), "note": "no tensor"},
    }
    for write in WRITERS.values():
        same(source.read(str(write(tmp_path / "w.bin", wrapped))).arrays, {"kernel": KERNEL})


def test_pairs_of_python_2_and_attributes_are_read(tmp_path):
    class Dict(dict):
        def __reduce__(self):
            return Name("collections.OrderedDict"), ([["kernel", tensor(Storage(KERNEL))]],), {"_metadata": {"v": 1}}

    class WithState(Pickler):
        def save(self, value, save_persistent_id=True):
            if isinstance(value, Dict):
                self.save(Called("collections.OrderedDict", [["kernel", tensor(Storage(KERNEL))]]))
                self.save({"_metadata": {"version": 1}})
                return self.write(pickle.BUILD)
            return super().save(value, save_persistent_id)

    buffer = io.BytesIO()
    WithState(buffer).dump(Dict())
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        archive.writestr("a/data/0", KERNEL.tobytes())
    same(source.read(str(tmp_path / "w.pth")).arrays, {"kernel": KERNEL})


# What must not be believed.


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nothing_in_a_file_is_run(tmp_path, write):
    mark = tmp_path / "was-run"
    path = write(tmp_path / "w.pth", {"x": Payload(mark), "kernel": tensor(Storage(KERNEL))})
    with pytest.raises(WeightsError, match=r"it names (posix|nt)\.mkdir, which is not run; save the weights alone"):
        source.read(str(path))
    assert not mark.exists()
    if write is write_zip:  # a reader that trusts it runs it
        with zipfile.ZipFile(path) as archive, pytest.raises((pickle.UnpicklingError, ModuleNotFoundError)):
            pickle.loads(archive.read("model/data.pkl"))
        assert mark.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Called("torch._utils._rebuild_tensor_v3", 1)}, "it names torch._utils._rebuild_tensor_v3"),
        ({"a": Called("torch.FloatStorage", 1)}, "torch.FloatStorage is called"),
        ({"a": Called("builtins.eval", "1")}, "it names builtins.eval"),
        ({"a": {1, 2}}, r"it names __builtin__.set"),
        ({(1, 2): 3}, "a key is a tuple"),
        ({"a": 1}, r"it holds no tensors by name \(its keys: a\); save the weights alone"),
        ({}, r"its keys: none"),
        ([1], "it holds a list, not a dict of tensors"),
        (tensor(Storage(KERNEL)), "it holds a Tensor, not a dict"),
        ({"a": tensor(Storage(KERNEL), (4, 4))}, "a reaches to number 15 of the 12 of its storage"),
        ({"a": tensor(Storage(KERNEL), (4, 3), (3, 1), 1)}, "a reaches to number 12 of the 12"),
        ({"a": tensor(Storage(KERNEL), (2,), (12,))}, "a reaches to number 12 of the 12"),
        ({"a": tensor(Storage(KERNEL), (2,), (1,), -1)}, "a has a shape, stride or offset of -1"),
        ({"a": tensor(Storage(KERNEL), (2,), (-1,), 5)}, "a has a shape, stride or offset of -1"),
        ({"a": tensor(Storage(KERNEL), (2, 2), (1,))}, "argument"),
        ({"a": tensor(Storage(KERNEL), (2.0,), (1,))}, "a float stands where a int must"),
        ({"a": tensor(Storage(KERNEL), (1 << 40,), (0,))}, "its tensors claim 4,398,046,511,104 bytes, of a file of "),
        ({"a": tensor(Storage(KERNEL, count=1 << 60))}, r"0 is (48 bytes|12 numbers), not 1152921504606846976"),
        ({"a": tensor(Storage(KERNEL, count=-1))}, "a storage of -1 numbers"),
        ({"a": tensor(Storage(KERNEL, "ComplexFloatStorage"))}, "it names torch.ComplexFloatStorage"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_is_no_weights_is_refused(tmp_path, write, value, message):
    path = write(tmp_path / "w.pth", value)
    with pytest.raises(WeightsError, match=message) as error:
        source.read(str(path))
    assert str(path) in str(error.value)


def test_many_views_of_one_storage_take_no_memory(tmp_path):
    storage = Storage(np.zeros(10_000, np.float32))
    path = write_zip(tmp_path / "w.pth", {f"{index}": tensor(storage) for index in range(1000)})
    with pytest.raises(WeightsError, match="its tensors claim 40,000,000 bytes"):
        source.read(str(path))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (pickle.BYTEARRAY8 + struct.pack("<Q", 1 << 40), "expected 1099511627776 bytes in a bytearray8"),
        (pickle.BINBYTES8 + struct.pack("<Q", 1 << 40) + b"x", "expected 1099511627776 bytes in a bytes8"),
        (pickle.BINUNICODE8 + struct.pack("<Q", 1 << 62) + b"x", "expected 4611686018427387904 bytes in a unicode"),
        (b"}" + pickle.LONG_BINPUT + struct.pack("<I", 0xFFFFFFFF) + b".", "it holds no tensors"),
        (pickle.FRAME + struct.pack("<Q", 1 << 60) + b".", "is damaged"),
        (b".", "is damaged, or was not written by torch.save"),
        (b"h\x01.", "is damaged"),
        (b"", "is damaged"),
        (b"not a pickle", "is damaged"),
        (b"\x80\x09}", "exhausted before seeing STOP"),
        (b"(" * 1000 + b"}.", "it holds no tensors"),
        (b"c__builtin__\neval\n.", "it names __builtin__.eval"),
        (b"i__builtin__\neval\n.", "it needs the instruction INST"),
        (b"ccollections\nOrderedDict\n)\x81.", "it needs the instruction NEWOBJ"),
        (b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.", "a key is a tuple"),  # whose hash would overflow the stack
        (  # one list, copied again and again into dicts that are kept
            b"ccollections\nOrderedDict\nq\x00]q\x01("
            + b"".join(b"K%cK\x00\x86" % n for n in range(200))
            + b"e]"
            + b"h\x00h\x01\x85Ra" * 5000
            + b".",
            "it copies more than it holds",
        ),
    ],
)
def test_a_bad_pickle_is_one_error_and_takes_no_memory(tmp_path, program, message):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
    began = time.monotonic()
    with pytest.raises(WeightsError, match=message):
        source.read(str(path))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_cut_and_every_flipped_byte_is_the_truth_or_an_error(tmp_path, write):
    """A flip in a storage of the older format, which has no checksum, is the one that no reader can see."""
    path = write(tmp_path / "w.pth", {"kernel": tensor(Storage(KERNEL)), "bias": tensor(Storage(BIAS, key="1"))})
    data = path.read_bytes()
    refused = 0
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place])
        with pytest.raises(WeightsError):
            source.read(str(path))
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            arrays = source.read(str(path)).arrays
        except WeightsError:
            refused += 1
            continue
        if write is write_zip and set(arrays) == {"kernel", "bias"} and arrays["kernel"].shape == (4, 3):
            np.testing.assert_array_equal(arrays["kernel"], KERNEL)
            np.testing.assert_array_equal(arrays["bias"], BIAS)
    assert refused > len(data) // 7 // 3


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    value = {"a": tensor(Storage(np.zeros(100_000, np.float32)))}
    with pytest.raises(WeightsError, match="its entries claim 400,"):
        source.read(str(write_zip(tmp_path / "bomb.pth", value, compression=zipfile.ZIP_DEFLATED)))
    with pytest.raises(WeightsError, match="big-endian machine"):
        source.read(str(write_zip(tmp_path / "w.pth", value, byteorder=b"big")))
    with pytest.raises(WeightsError, match="big-endian machine"):
        source.read(str(write_legacy(tmp_path / "w.pth", value, little_endian=False)))
    with pytest.raises(WeightsError, match="cut short: storage 0 ends at byte"):
        source.read(str(write_legacy(tmp_path / "w.pth", value, counts={"0": 1 << 40})))
    with pytest.raises(WeightsError, match="cut short: storage 0 ends at byte"):
        source.read(str(write_legacy(tmp_path / "w.pth", value, counts={"0": -1})))
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("photo.jpeg", b"x")
    with pytest.raises(WeightsError, match=r"a zip file, but not of torch\.save"):
        source.read(str(tmp_path / "photos.pt"))


# Safetensors.


def test_safetensors_are_read_as_float32(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = {
        "half": np.array([1.5, 2], np.float16),
        "brain": np.array([3.140625], ml_dtypes.bfloat16),
        "kernel": KERNEL,
        "steps": np.array(3, np.int64),
    }
    safetensors_numpy.save_file(arrays, path)
    read = source.read(str(path))
    assert {name: str(array.dtype) for name, array in read.arrays.items()} == {
        "half": "float32", "brain": "float32", "kernel": "float32", "steps": "int64",
    }  # fmt: skip
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array.astype(read.arrays[name].dtype))
    assert read.facts["file"] == "w.safetensors" and read.facts["bytes"] == path.stat().st_size and read.meta is None


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors_numpy.save_file({"kernel": KERNEL}, path)
    data = path.read_bytes()
    for damaged in (data[:-1], data[:20], struct.pack("<Q", 1 << 62) + data[8:], b"x" * 100, data + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"{path} is damaged"):
            source.read(str(path))
    safetensors_numpy.save_file({}, path)
    with pytest.raises(WeightsError, match="holds no arrays"):
        source.read(str(path))


# Runs, and what is none of all these.


def test_the_best_step_of_a_run_is_read(tmp_path):
    save(tmp_path, [0.1, 0.9, 0.5])
    read = source.read(str(tmp_path))
    meta = checkpoint.load(tmp_path).meta
    assert read.meta == meta and read.meta["step"] == 2
    assert read.facts == {"from": str(tmp_path), "step": 2, "weights_digest": checkpoint.weights_digest(meta)}
    expected = checkpoint.to_arrays(variables(2))
    assert read.arrays.keys() == {"params/conv/kernel", "batch_stats/norm/mean"} == expected.keys()
    np.testing.assert_array_equal(read.arrays["params/conv/kernel"], expected["params/conv/kernel"])


def test_an_ensemble_is_asked_for_one_member(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"member-{number}", [0.1])
    with pytest.raises(
        WeightsError, match=f"is an ensemble of 2; give one of its members, such as {tmp_path}/member-1"
    ):
        source.read(str(tmp_path))
    assert source.read(str(tmp_path / "member-2")).facts["step"] == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/w.pth", r"nowhere/w\.pth does not exist \(looked for at /.*/nowhere/w\.pth\); give hf://OWNER/NAME"),
        ("", r"no checkpoint in \."),
        (
            "folder",
            r"no checkpoint in folder; give .*; it holds b\.safetensors: give --config\.init_from=folder/b",
        ),
        ("notes.txt", r"notes\.txt is of no known kind; read are hf://.*\.safetensors, \.pth, \.pt, \.bin"),
        ("empty.pth", r"empty\.pth is empty; fetch it again"),
        ("https://example.org/w.pth", r"https://example\.org/w\.pth is no source of weights; .*fetch the file"),
        ("hf://", "hf:// is no file of the hub; give hf://OWNER/NAME"),
        ("hf://name", "hf://name is no file of the hub"),
        ("hf://a/b@", "is no file of the hub"),
        ("hf://a/b@main/w.h5", r"w\.h5 is of no known kind"),
        ("pipe.pth", r"pipe\.pth is no regular file"),
        ("\0.pth", "cannot be read|does not exist"),
        ("x" * 300 + ".pth", "cannot be read|does not exist"),
    ],
)
def test_what_is_no_source_is_said_so(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty.pth").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(WeightsError, match=message):
        source.read(spec)


def test_the_mean_and_deviation_of_timm_are_facts(tmp_path):
    path = write_zip(tmp_path / "w.pth", {"kernel": tensor(Storage(KERNEL))})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "crop": 1}}))
    facts = source.read(str(path)).facts
    assert facts["mean"] == [0.5, 0.4, 0.3] and facts["std"] == [0.2, 0.2, 0.2] and "crop" not in facts
    old = {"architecture": "resnet50", "mean": [0.5], "std": [0.2]}
    config.write_text(json.dumps(old))
    facts = source.read(str(path)).facts
    assert (facts["network"], facts["mean"], facts["std"]) == ("resnet50", [0.5], [0.2])
    config.write_text(json.dumps({"model_type": "other", "architecture": "another"}))
    assert not {"mean", "network"} & source.read(str(path)).facts.keys()
    for text in (
        "{",
        "[]",
        '{"pretrained_cfg": {"mean": "x"}}',
        '{"pretrained_cfg": {"std": [0.0]}}',
        '{"pretrained_cfg": 1}',
    ):
        config.write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json, beside the weights, cannot be read"):
            source.read(str(path))


# The hub.

COMMIT = "c" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback with files by repository, and an empty cache."""
    files: dict[str, dict[str, bytes]] = {}
    errors: dict[str, tuple[int, str]] = {}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if "/resolve/" not in self.path:  # the client asks for more than files
                return self.send_error(404)
            asked.append(f"{self.command} {self.path}")
            owner, name, _, revision, *file = self.path.lstrip("/").split("/")
            repository, file = f"{owner}/{name}", "/".join(file)
            code, reason = errors.get(repository, (200, ""))
            if code == 200 and repository not in files:
                code, reason = 401, "RepoNotFound"
            elif code == 200 and revision not in ("main", "v1", "refs%2Fpr%2F1", COMMIT):
                code, reason = 404, "RevisionNotFound"
            elif code == 200 and file not in files[repository]:
                code, reason = 404, "EntryNotFound"
            data = files[repository][file] if code == 200 else b""
            self.send_response(code)
            self.send_header("X-Repo-Commit", COMMIT)
            if reason:
                self.send_header("X-Error-Code", reason)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
            return None

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    server.files, server.errors, server.asked = files, errors, asked
    yield server
    server.shutdown()
    server.server_close()


def point_to(monkeypatch, endpoint, cache):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


def torch_bytes(tmp_path, array=KERNEL):
    return write_zip(tmp_path / "made.pth", {"kernel": tensor(Storage(array))}).read_bytes()


def test_a_repository_is_read_pinned_and_cached(hub, tmp_path, monkeypatch, caplog):
    data = safetensors_numpy.save({"kernel": KERNEL})
    config = json.dumps({"pretrained_cfg": {"mean": [0.5], "std": [0.25]}}).encode()
    hub.files["timm/net"] = {"model.safetensors": data, "pytorch_model.bin": b"not read", "config.json": config}
    read = source.read("hf://timm/net")
    same(read.arrays, {"kernel": KERNEL})
    expected = {
        "from": "hf://timm/net",
        "file": "model.safetensors",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "repository": "timm/net",
        "commit": COMMIT,
        "reached": True,
        "mean": [0.5],
        "std": [0.25],
    }
    assert read.facts == expected and read.meta is None
    fetched = [line for line in hub.asked if line.startswith("GET")]
    assert len(fetched) == 2
    for revision in ("v1", "refs/pr/1"):
        assert source.read(f"hf://timm/net@{revision}").facts == expected | {"from": f"hf://timm/net@{revision}"}
    assert [line for line in hub.asked if line.startswith("GET")] == fetched  # nothing twice

    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # discard: nobody listens
    began = time.monotonic()
    for spec in ("hf://timm/net", f"hf://timm/net@{COMMIT}", "hf://timm/net@v1/model.safetensors"):
        offline = source.read(spec)
        assert offline.facts == expected | {"from": spec, "reached": False}
        same(offline.arrays, {"kernel": KERNEL})
    assert time.monotonic() - began < 5
    assert f"hf://timm/net is taken from its cache, commit {COMMIT}" in caplog.text


def test_the_file_of_torch_is_taken_where_there_is_no_other(hub, tmp_path, monkeypatch):
    hub.files["a/b"] = {"pytorch_model.bin": torch_bytes(tmp_path), "deep/w.pth": torch_bytes(tmp_path, BIAS)}
    assert source.read("hf://a/b").facts["file"] == "pytorch_model.bin"
    same(source.read("hf://a/b@v1/deep/w.pth").arrays, {"kernel": BIAS})
    same(source.read("hf://a/b/deep/w.pth").arrays, {"kernel": BIAS})
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    assert source.read("hf://a/b").facts["commit"] == COMMIT
    assert source.read("hf://a/b@v1/deep/w.pth").facts["commit"] == COMMIT


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "hf://no/such",
            r"the hub has no no/such, or it is private; compare http://127.*/no/such, or log in: hf auth login",
        ),
        ("hf://a/gated", r"a/gated is gated; ask for access at http.*/a/gated, then log in: hf auth login"),
        ("hf://a/b@v9", "a/b has no revision v9; see http.*/a/b/commits/main"),
        (
            "hf://a/b",
            r"^hf://a/b: the hub has no model\.safetensors, pytorch_model\.bin, model\.pt in a/b at main; see .*/main",
        ),
        ("hf://a/b@v1/w.pth", r"^hf://a/b@v1/w\.pth: the hub has no w\.pth in a/b at v1"),
        ("hf://a/down", r"the hub cannot be reached \(.*503.*\), and its cache has no such file"),
        ("hf://a/b--c", "could not be fetched|the hub has no"),
        ("hf://a/b/../../w.pth", "could not be fetched|the hub has no"),
    ],
)
def test_what_the_hub_has_not_is_said_so(hub, spec, message):
    hub.files["a/b"] = {"README.md": b"x"}
    hub.errors["a/gated"] = 403, "GatedRepo"
    hub.errors["a/down"] = 503, ""
    began = time.monotonic()
    with pytest.raises(WeightsError, match=message) as error:
        source.read(spec)
    assert str(error.value).startswith(f"{spec}: ") or spec in str(error.value)
    assert time.monotonic() - began < 5


def test_a_damaged_cache_is_not_believed(hub, tmp_path):
    hub.files["a/b"] = {"model.safetensors": safetensors_numpy.save({"kernel": KERNEL})}
    source.read("hf://a/b")
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.stat().st_size)
    blob.write_bytes(safetensors_numpy.save({"kernel": KERNEL + 1}))
    with pytest.raises(WeightsError, match=rf"{blob} is not what the hub sent; delete it, and run this again"):
        source.read("hf://a/b")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_without_network_the_file_to_fetch_is_named_at_once(tmp_path, monkeypatch, endpoint):
    point_to(monkeypatch, endpoint, tmp_path)
    began = time.monotonic()
    with pytest.raises(WeightsError) as error:
        source.read("hf://timm/resnet50.a1_in1k")
    message = str(error.value)
    assert message.startswith("hf://timm/resnet50.a1_in1k: the hub cannot be reached (")
    assert (
        f"fetch model.safetensors, and config.json if there is one, from {endpoint}/timm/resnet50.a1_in1k;" in message
    )
    assert message.endswith("give --config.init_from=PATH/model.safetensors")
    assert time.monotonic() - began < 10


def test_offline_mode_of_the_hub_is_obeyed(tmp_path, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="the hub cannot be reached.*offline"):
        source.read("hf://a/b@v1/w.pth")
