"""The files of a folder or a zip, as they lie there."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from jobs import JobError, printable, walk
from model.preprocess import ImageRefused, check_length

DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError)


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a source, as it lies there."""

    path: str  # within the source, folders parted by slashes
    data: bytes
    unread: str = ""  # why there are no data


def files(source: Path) -> tuple[int, Iterator[File]]:
    """How many files a folder or zip holds, and each of them, in order of path.

    Raises:
      JobError: the source is neither, or a zip whose list of files is damaged.
    """
    if source.is_dir():
        paths = walk(source)
        return len(paths), (File(printable(path.relative_to(source)), *_read(path)) for path in paths)
    if source.is_file() and zipfile.is_zipfile(source):
        try:
            with zipfile.ZipFile(source) as archive:
                members = sorted((one for one in archive.infolist() if not one.is_dir()), key=lambda one: one.filename)
        # Names that are no UTF-8 are a ValueError, and a version of zip that there is not is the last.
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise JobError(
                f"{source} is a damaged zip file ({error}); fetch it again, or give an unpacked folder"
            ) from error
        return len(members), _members(source, members)
    if source.is_file():
        with contextlib.suppress(OSError), source.open("rb") as file:
            if file.read(2) == b"PK":
                raise JobError(f"{source} is a zip file that is cut short; fetch it again, or give an unpacked folder")
    if not source.exists():
        raise JobError(f"{source} is not there; give the folder that holds train/ and test/, or a zip of it")
    raise JobError(f"{source} is neither a folder nor a zip file; give the folder that holds train/ and test/")


def _read(path: Path) -> tuple[bytes, str]:
    """The bytes of a file, and why there are none."""
    try:
        if not path.is_file():
            return b"", "neither a file nor a link to one"  # reading a pipe would wait for ever
        check_length(path.stat().st_size)
        return path.read_bytes(), ""
    except ImageRefused as refusal:
        return b"", str(refusal)
    except OSError as error:
        return b"", f"cannot be read ({error.strerror})"


def _members(source: Path, members: Iterable[zipfile.ZipInfo]) -> Iterator[File]:
    before = set()
    with zipfile.ZipFile(source) as archive:
        for member in members:
            path = member.filename.replace("\\", "/")  # as some programs of Windows write them
            if path in before:
                yield File(path, b"", "another file of the zip has the same path and is taken; rename one")
                continue
            before.add(path)
            try:
                check_length(member.file_size)
                yield File(path, archive.read(member))
            except ImageRefused as refusal:
                yield File(path, b"", str(refusal))
            except NotImplementedError:
                yield File(path, b"", "compressed in a way that cannot be read here; unpack the zip, give the folder")
            except RuntimeError:  # so zipfile says it
                yield File(path, b"", "locked by a password; unpack the zip, give the folder")
            except DAMAGE as error:
                yield File(path, b"", f"damaged in the zip ({error})")
