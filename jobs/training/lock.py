"""One trainer a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import logging

from jobs import JobError

NAME = "lock.json"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[str | None]:
    """Makes `workdir` where it is absent and holds it; the system lets go of it however this process ends.

    Yields:
      Who held it before and did not end in peace, as a person reads it; None where nobody did.

    Raises:
      JobError: another living process holds it; the message says which.
    """
    path = workdir / NAME
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    except OSError as error:
        raise JobError(f"{path} cannot be written ({error.strerror}); give another --workdir") from error
    with opened as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # POSIX record locks: NFS keeps them, too
        except BlockingIOError as error:
            raise JobError(
                f"{workdir} is in use by {_owner(file)}; wait for it, stop it, or give another --workdir"
            ) from error
        except OSError as error:  # some mounted buckets
            logging.warning("%s keeps no locks (%s): see to it that no other trainer uses it", workdir, error.strerror)
        stale = _owner(file) if path.stat().st_size else None
        file.truncate(0)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write(json.dumps(owner))
        file.flush()
        try:
            yield stale
        finally:
            file.truncate(0)


def _owner(file: IO[str]) -> str:
    file.seek(0)
    # Read through the file that holds the lock: closing any other one on it would let go of the lock.
    try:
        owner = json.load(file)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):
        return "a process that left no name"
