"""Files of `torch.save`, read without torch and without running anything that is in them.

Such a file is a pickle, which is a program, beside the raw numbers of its tensors. The program is run here by a machine
that knows a few dozen instructions and five names. None of them calls anything: a name that is not known is refused
before it is looked up.
"""

from __future__ import annotations

import collections
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from model.weights import WeightsError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which a training checkpoint keeps its weights
LARGEST = 16  # times the file, that its tensors may be: half precision doubles, and tied weights are counted twice
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how a file of torch before 1.6 begins

_STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_ORDERED, _SIZE = "collections.OrderedDict", "torch.Size"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_NAMES = {_ORDERED, _SIZE, _TENSOR, _PARAMETER, *_STORAGES}

# Instructions that put a value on the stack, which `pickletools` has parsed already.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CURE = "save the weights alone, torch.save(model.state_dict(), PATH), or give a .safetensors file"
_BIG_ENDIAN = "it was written on a big-endian machine; save it again on another"


class _Name(NamedTuple):
    full: str


class _Storage(NamedTuple):
    """The numbers behind tensors: where they lie, of which type, and how many."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth`, `.pt` or `.bin` file by name, as `torch.save` wrote them.

    Args:
      path: the file, in the zip format of torch since 1.6 or the one before it. It holds a dict of tensors or
        Parameters, or a dict that has one under a key of WRAPPERS; what is no tensor is left out.

    Returns:
      Arrays of their stored types and shapes, contiguous.

    Raises:
      WeightsError: the file is damaged, claims more than it can hold, or names something that is no weights.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                root, load = _open_zip(file, size)
            else:
                root, load = _open_legacy(file, size)
            return _arrays(_weights(root), load, size)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    # Damage shows as whatever the layer that meets it raises: BadZipFile, IndexError, UnicodeDecodeError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path} is damaged, or was not written by torch.save ({reason}); fetch it again") from error


def _open_zip(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """torch >= 1.6: NAME/data.pkl, and NAME/data/KEY for every storage."""
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    programs = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(programs) != 1:
        raise WeightsError("a zip file, but not of torch.save: it holds no data.pkl; give the file of the weights")
    if (total := sum(entry.file_size for entry in entries)) > size:  # compressed or overlapping
        raise WeightsError(f"its entries claim {total:,} bytes, of a file of {size:,}; fetch it again")
    folder = programs[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise WeightsError(_BIG_ENDIAN)

    def load(storage: _Storage) -> np.ndarray:
        data = archive.read(f"{folder}data/{storage.key}")  # its checksum is compared
        if len(data) != storage.size * storage.dtype.itemsize:
            raise WeightsError(
                f"storage {storage.key} is {len(data)} bytes, not {storage.size} x {storage.dtype}; fetch it again"
            )
        return np.frombuffer(data, storage.dtype)

    root, _ = _run(archive.read(programs[0]))
    return root, load


def _open_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """torch < 1.6: pickles of a magic number, a version, the machine, the object and the keys; then the storages."""
    places: dict[str, tuple[int, int]] = {}  # of each storage how many numbers, and from which byte
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (_run(data)[0], _run(data)[0]) != (_MAGIC, _PROTOCOL):
            raise ValueError("it begins as neither of its formats")
        if not _run(data)[0]["little_endian"]:
            raise WeightsError(_BIG_ENDIAN)
        root, storages = _run(data)
        keys, _ = _run(data)
        for key in keys:
            (count,) = struct.unpack("<q", data.read(8))
            end = data.tell() + count * storages[key].dtype.itemsize
            if count < 0 or end > size:
                raise WeightsError(f"it is cut short: storage {key} ends at byte {end} of {size}; fetch it again")
            places[key] = count, data.tell()
            data.seek(end)

    def load(storage: _Storage) -> np.ndarray:
        count, place = places[storage.key]
        if count != storage.size:
            raise WeightsError(f"storage {storage.key} is {count} numbers, not {storage.size}; fetch it again")
        file.seek(place)
        return np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)

    return root, load


def _run(program: bytes | mmap.mmap) -> tuple[Any, dict[str, _Storage]]:
    """Runs a pickle up to its end; gives the object, and the storages that it names."""
    length = len(program)
    stack: list[Any] = []
    outer: list[list[Any]] = []  # what lay on the stack at each open MARK
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}
    copied = 0

    def put(into: Any, items: Iterable[tuple[Any, Any]]) -> None:
        for key, value in items:
            if type(key) not in (str, bytes, int, float, bool, type(None)):  # hashing a nest of tuples may never end
                raise ValueError(f"a key is a {type(key).__name__}")
            _expect(into, dict)[key] = value

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):  # type: ignore[arg-type]  # an mmap reads as a file does
        if opcode.name in _VALUES:
            stack.append(argument)
            continue
        if opcode.name in _CONSTANTS:
            stack.append(_CONSTANTS[opcode.name])
            continue
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                outer.append(stack)
                stack = []
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                items, stack = tuple(stack), outer.pop()
                stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items, stack = tuple(stack), outer.pop()
                _expect(stack[-1], list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                put(stack[-1], [(key, value)])
            case "SETITEMS":
                flat, stack = stack, outer.pop()
                put(stack[-1], zip(flat[::2], flat[1::2], strict=True))
            case "GLOBAL":
                stack.append(_name(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(f"{module}.{name}"))
            case "BINPERSID":
                storage = _storage(stack.pop())
                stack.append(storages.setdefault(storage.key, storage))
            case "BUILD":  # the attributes of an OrderedDict, which torch calls _metadata; weights need none
                stack.pop()
            case "REDUCE":
                arguments, called = _expect(stack.pop(), tuple), _expect(stack.pop(), _Name).full
                if called == _TENSOR:
                    stack.append(_Tensor(*arguments[:4]))
                elif called == _PARAMETER:
                    stack.append(_expect(arguments[0], _Tensor))
                elif called == _SIZE:
                    stack.append(_expect(arguments[0], tuple))
                elif called == _ORDERED:
                    stack.append({})
                    # As Python 2 wrote it. Copying one list again and again would fill the memory.
                    for pairs in arguments:
                        copied += len(_expect(pairs, list))
                        if copied > length:
                            raise ValueError("it copies more than it holds")
                        put(stack[-1], pairs)
                else:
                    raise ValueError(f"{called} is called")
            case _:
                raise WeightsError(f"it needs the instruction {opcode.name}, which no weights need; {_CURE}")
    return stack.pop(), storages


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} must")
    return value


def _name(full: str) -> _Name:
    if full not in _NAMES:
        raise WeightsError(f"it names {full}, which is not run; {_CURE}")
    return _Name(full)


def _storage(identifier: Any) -> _Storage:
    """('storage', its type, its key, the device, how many), and in the older format None."""
    kind, name, key, _, count, *view = _expect(identifier, tuple)
    if kind != "storage" or _expect(name, _Name).full not in _STORAGES or view not in ([], [None]):
        raise ValueError(f"{str(identifier)[:80]} is no storage")
    if _expect(count, int) < 0:
        raise ValueError(f"a storage of {count} numbers")
    return _Storage(_expect(key, str), _STORAGES[name.full], count)


def _weights(root: Any) -> dict[str, _Tensor]:
    """The tensors of the dict under a key of WRAPPERS, or of all of it: a wrapper may have tensors of its own."""
    if not isinstance(root, dict):
        raise WeightsError(f"it holds a {type(root).__name__.strip('_')}, not a dict of tensors; {_CURE}")
    for inner in (*(root.get(key) for key in WRAPPERS), root):
        if isinstance(inner, dict):
            found = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, _Tensor)}
            if found:
                return found
    keys = ", ".join(str(key)[:40] for key in list(root)[:8]) or "none"
    raise WeightsError(f"it holds no tensors by name (its keys: {keys}); {_CURE}")


def _arrays(tensors: dict[str, _Tensor], load: Callable[[_Storage], np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The tensors' numbers. All claims are checked before any memory is taken, and each storage is read once."""
    of_storage: dict[_Storage, list[str]] = collections.defaultdict(list)
    total = 0
    for name, (storage, offset, shape, strides) in tensors.items():
        _expect(storage, _Storage)
        for number in (offset, *_expect(shape, tuple), *_expect(strides, tuple)):
            if _expect(number, int) < 0:
                raise ValueError(f"{name} has a shape, stride or offset of {number}")
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.size:
            raise WeightsError(f"{name} reaches to number {last} of the {storage.size} of its storage; fetch it again")
        total += math.prod(shape) * storage.dtype.itemsize
        of_storage[storage].append(name)
    if total > LARGEST * size:
        raise WeightsError(f"its tensors claim {total:,} bytes, of a file of {size:,}; {_CURE}")
    arrays = {}
    for storage, names in of_storage.items():
        numbers = load(storage)
        for name in names:
            _, offset, shape, strides = tensors[name]
            steps = [stride * storage.dtype.itemsize for stride in strides]
            arrays[name] = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()
    return {name: arrays[name] for name in tensors}
