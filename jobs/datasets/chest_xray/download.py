"""The published archive: a download that resumes, and is checked against what was recorded the first time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import requests

from jobs import JobError, whole
from jobs.datasets.chest_xray.files import DAMAGE

URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
ARCHIVE = "ChestXRay2017.zip"
_CHUNK = 1 << 20  # bytes
_TIMEOUT_SECONDS = 60


def download(folder: Path, advance: Callable[[int, int], None] = lambda done, total: None, url: str = URL) -> Path:
    """Fetches the archive into a folder, or checks the one that is there.

    A part left by an interrupted download is continued. The archive may have become another in between, so every file
    in it is compared with the checksum that the zip gives of it. Size and sha256 of the whole are recorded beside it
    when it is first complete; from then on an archive that differs is an error.

    Args:
      folder: where archive, part and record live.
      advance: called with (bytes done, bytes in all).
      url: of the archive.

    Returns:
      The path of the archive.

    Raises:
      JobError: no network, or no whole zip file there (the message names the file to fetch by hand and where to put
        it), another download into the folder, or a file that differs from the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive, part, record = folder / ARCHIVE, folder / f"{ARCHIVE}.part", folder / f"{ARCHIVE}.json"
    if not archive.exists():
        with part.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which `_fault`, closing the part, does not undo
            except BlockingIOError as error:
                raise JobError(f"another process is fetching into {part}; wait for it, or stop it") from error
            except OSError:  # some mounted buckets keep no locks; two at once are a fault there
                pass
            try:
                _fetch(url, file, advance)
            except requests.RequestException as error:
                raise JobError(
                    f"the archive could not be fetched ({error}); run the same command again to go on, or fetch {url} "
                    f"by other means and put it at {archive}"
                ) from error
            if fault := _fault(part):
                part.unlink()
                raise JobError(
                    f"what {url} gave cannot be used ({fault}) and was removed; run the same command again, or fetch "
                    f"it by other means and put it at {archive}"
                )
            part.replace(archive)
    measured = _measure(archive)
    if not record.exists():
        with whole(record) as scratch:
            scratch.write_text(json.dumps({"url": url, **measured}, indent=1))
    try:
        recorded = json.loads(record.read_text())
        expected = {key: recorded[key] for key in measured}
    except (ValueError, KeyError, TypeError) as error:
        raise JobError(f"{record} does not say size and sha256 of {archive}; delete it if you trust that") from error
    for key, value in measured.items():
        if value != expected[key]:
            raise JobError(
                f"{archive} has {key} {value}, recorded was {expected[key]}; delete it to fetch it again, or delete "
                f"{record} if you trust the new file"
            )
    return archive


def _fetch(url: str, part: BinaryIO, advance: Callable[[int, int], None]) -> None:
    """Appends what is missing of `url`, and flushes it; starts over where the server cannot continue."""
    done = part.tell()
    headers = {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            total = int(response.headers.get("Content-Range", "*/-1").rpartition("/")[2])
            if total == done:
                return
            part.truncate(0)
            raise requests.HTTPError(f"the part was larger than the archive of {total} bytes and was thrown away")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            part.truncate(0)
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        for chunk in response.iter_content(_CHUNK):
            part.write(chunk)
            done += len(chunk)
            advance(done, total)
        part.flush()
        if total and done != total:
            raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")


def _fault(part: Path) -> str:
    """What is wrong with a zip file, if anything is."""
    if not zipfile.is_zipfile(part):
        return "it is no zip file"  # but a page to log in by, say
    try:
        with zipfile.ZipFile(part) as archive:
            damaged = archive.testzip()
        return f"{damaged} in it is damaged" if damaged else ""
    except RuntimeError:  # of a file that is locked, or packed in another way, which preparing tells
        return ""
    except DAMAGE as error:
        return f"it is damaged: {error}"


def _measure(archive: Path) -> dict[str, int | str]:
    with archive.open("rb") as file:
        return {"size": archive.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
