"""The commands a person types. What they share, how a job starts, fails, walks folders and writes, is here."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags, logging

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_THE_DISK = (
    *_FULL,
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    *(errno.EBUSY, errno.EXDEV),
)
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # of whatever path, to read or to write


class JobError(Exception):
    """Something the user can mend; the message names the value, the bound and the cure."""


class UsageError(JobError):
    """The command line, or the config, asks for something that cannot be; nothing was done."""


def run(main: Callable[..., int | None], *mendable: type[Exception]) -> None:
    """Runs a job: flags, then `main` with the words that are no flags; where it takes none, there may be none.

    Exit codes: 0 done (and --help), 2 an invalid command line or config, 1 any error that `main` raises. JobError and
    the `mendable` errors are printed without a traceback.
    """
    script = sys.modules["__main__"].__doc__ or ""
    errors: tuple[type[Exception], ...] = (JobError, *mendable)

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-h", "-help"} & set(argv[1:]):
            options = flags.FLAGS.main_module_help().strip()
            print(script.strip() + (f"\n\nFlags:\n{options}" if options else ""), flush=True)
            sys.exit(0)
        try:
            words = flags.FLAGS(argv)
            if "config" in flags.FLAGS:
                flags.FLAGS.config.to_dict()  # a file that is not there is an error only once it is used
            for name in flags.FLAGS:
                # As of a variable that is not set; a field of the config may be empty.
                given = flags.FLAGS[name].value
                if "." not in name and (
                    given == "" != flags.FLAGS[name].default or (isinstance(given, list) and "" in given)
                ):
                    raise flags.Error(f"--{name} is empty; give a value: {flags.FLAGS[name].help}")
            return words
        except Exception as error:
            print(f"error: {' '.join(_misread(error).split())}\nsee --help", file=sys.stderr)
            sys.exit(2)

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        with contextlib.suppress(AttributeError):  # where something else stands in for it
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            words = argv[1:]
            takes_words = inspect.signature(main).parameters
            if words and not takes_words:
                raise UsageError(f"{words[0]!r} is one word too many; a flag begins with --, and --help lists them")
            code = main(words) if takes_words else main()
            sys.stdout.flush()
            sys.exit(code)
        except errors as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except OSError as error:
            if error.errno in _OF_THE_NAME:
                cure = "give another path"
            elif error.errno in _OF_THE_DISK:
                cure = f"{'free some room, or ' if error.errno in _FULL else ''}give a place that can be written"
            else:
                raise
            print(f"error: {error}; {cure}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)  # as shells say it

    try:
        app.run(guarded, flags_parser=parse)
    except BrokenPipeError:  # who reads what is printed has left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _misread(error: Exception) -> str:
    """Why the flags, or the config that they name, could not be read.

    ml_collections raises AttributeError for an unknown field, IndexError for a phase that there is not, OSError for a
    config file that is not there, and whatever a broken one raises, but for a ValueError, of which it makes a
    flags.Error with the traceback as its text.
    """
    reason: object = error
    while isinstance(reason, Exception) and reason.args and not isinstance(reason, OSError):
        reason = reason.args[0]
    text = str(reason)
    if isinstance(error, SyntaxError):
        return f"--config: {error.filename}, line {error.lineno}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [(frame.filename, frame.lineno) for frame in frames if frame.name in ("<module>", "get_config")]
    if lines:
        file, number = lines[-1]
        return f"--config: {file}, line {number}: {type(error).__name__}: {text}"
    if told := re.findall(r'File "([^"]*)", line (\d+)', text):
        file, number = told[-1]
        return f"--config: {file}, line {number}: {text.strip().splitlines()[-1]}"
    if "has no attribute 'get_config'" in text:
        return "--config: the file has no get_config(); configs/cnn.py shows one"
    if isinstance(error, AttributeError):
        return f"no field {text} in the config; where it has phases, --config.phases[0].epochs and the like"
    if isinstance(error, IndexError):
        return "a phase is set that the config does not have; configs/resnet.py shows how it has some"
    if isinstance(error, OSError):  # its words tell everything that was attempted
        return "--config: " + re.sub(r".*\[Errno \d+\] ", "", text, flags=re.DOTALL)
    if missing := re.search("--([a-z_]+) must have a value other than None", text):
        return f"--{missing[1]} is needed: {flags.FLAGS[missing[1]].help}"
    return text


def walk(folder: Path) -> list[Path]:
    """Every file below a folder in order of path, through links to folders, and the folders that cannot be opened."""
    found: list[Path] = []

    def shut(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, names in os.walk(folder, onerror=shut, followlinks=True):
        above = {path.resolve() for path in (Path(place), *Path(place).parents)}  # where a link would lead in circles
        folders[:] = [name for name in folders if Path(place, name).resolve() not in above]
        found += [Path(place, name) for name in names]
    return sorted(found)


def printable(path: Path) -> str:
    """A path as text for people and files: bytes that are no UTF-8, as old archives have them, as \\xNN."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def command(job: str, *words: object) -> str:
    """What a person types to run a job, as a shell reads it."""
    return shlex.join(["python", f"jobs/{job}.py", *map(str, words)])


def check_replaceable(out: Path, ours: Callable[[Path], bool], what: str, flag: str = "--out") -> None:
    """Raises UsageError where `out` is a folder, or a file that is not empty and not `ours`, as `what` says it."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give the file to write")
    if out.is_file() and out.stat().st_size and not ours(out):
        raise UsageError(f"{out} exists and is no {what}; it is not overwritten: give another {flag}")


def headed(pattern: str) -> Callable[[Path], bool]:
    """Whether the first line of a file begins as the regular expression says."""

    def so(path: Path) -> bool:
        with path.open(encoding="utf-8-sig", errors="replace") as file:  # spreadsheets mark UTF-8 so
            return re.match(pattern, file.readline(10_000).rstrip("\n")) is not None

    return so


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once the block has succeeded: all of a file, or none.

    Of a link it is the file that it leads to which is replaced.

    Raises:
      JobError: there is a device, a pipe or a folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise JobError(f"{path} is not a regular file and cannot be replaced; give the path of a file to write")
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        nameless = error.filename is None and error.errno in _FULL  # as a write on a full disk is
        if error.filename != str(scratch) and not nameless:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # of the file that was asked for
    finally:
        scratch.unlink(missing_ok=True)


def unfinished(path: Path, of: Path) -> bool:
    """Whether `whole` left `path` behind where it was killed while `of` was written."""
    return path.parent == of.parent and re.fullmatch(rf"\.\d+-{re.escape(of.name)}", path.name) is not None


def take_place(new: Path, out: Path) -> None:
    """Moves a folder that is complete to `out`, on the same disk; an older one there is back where that fails."""
    older = new.with_name(f"{new.name}-older")
    if out.exists():
        out.rename(older)
    try:
        new.rename(out)
    except BaseException:
        if older.exists():
            older.rename(out)
        raise
