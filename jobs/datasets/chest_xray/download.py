"""The published archive: a download that resumes, and is checked against what was recorded the first time."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import requests

from jobs import JobError, whole

URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
ARCHIVE = "ChestXRay2017.zip"
_CHUNK = 1 << 20  # bytes
_TIMEOUT_SECONDS = 60


def download(folder: Path, advance: Callable[[int, int], None] = lambda done, total: None, url: str = URL) -> Path:
    """Fetches the archive into a folder, or checks the one that is there.

    A part left by an interrupted download is continued. Size and sha256 are recorded beside the archive when it is
    first complete; from then on a file that differs is an error.

    Args:
      folder: where archive, part and record live.
      advance: called with (bytes done, bytes in all).
      url: of the archive.

    Returns:
      The path of the archive.

    Raises:
      JobError: no network, or no zip file there (the message names the file to fetch by hand and where to put it), or
        a file that differs from the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive, part, record = folder / ARCHIVE, folder / f"{ARCHIVE}.part", folder / f"{ARCHIVE}.json"
    if not archive.exists():
        try:
            _fetch(url, part, advance)
        except requests.RequestException as error:
            raise JobError(
                f"the archive could not be fetched ({error}); run the same command again to go on, or fetch {url} "
                f"by other means and put it at {archive}"
            ) from error
        if not zipfile.is_zipfile(part):  # a page to log in by, say
            part.unlink()
            raise JobError(f"{url} gave something that is no zip file; fetch it by other means and put it at {archive}")
        part.replace(archive)
    measured = _measure(archive)
    if not record.exists():
        with whole(record) as scratch:
            scratch.write_text(json.dumps({"url": url, **measured}, indent=1))
    expected = json.loads(record.read_text())
    for key, value in measured.items():
        if value != expected[key]:
            raise JobError(
                f"{archive} has {key} {value}, recorded was {expected[key]}; delete it to fetch it again, or delete "
                f"{record} if you trust the new file"
            )
    return archive


def _fetch(url: str, part: Path, advance: Callable[[int, int], None]) -> None:
    """Appends to `part` what is missing of `url`; starts over where the server cannot continue."""
    done = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            total = int(response.headers.get("Content-Range", "*/-1").rpartition("/")[2])
            if total == done:
                return
            part.unlink()
            raise requests.HTTPError(f"the part was larger than the archive of {total} bytes and was removed")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if done else "wb") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                advance(done, total)
        if total and done != total:
            raise requests.ConnectionError(f"the connection ended after {done} of {total} bytes")


def _measure(archive: Path) -> dict[str, int | str]:
    with archive.open("rb") as file:
        return {"size": archive.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
