"""The processes of one job: how they find each other, how all of them stop at one step, and how one fails alone.

Everything else is told by `jax.process_index()`: process 0 writes the log and the plots.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jobs import JobError, UsageError

HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead
FAILING_TOGETHER_SECONDS = 10  # within which the others meet the same error as this process, where they do


def settings(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None where this process is alone.

    The flags come first. Slurm (one task a process) and Open MPI up to version 4 tell everything; later Open MPI and
    Kubernetes (an Indexed Job) tell the rank, and JAX_COORDINATOR_ADDRESS tells where process 0 listens; Kubernetes
    needs JAX_NUM_PROCESSES, too.

    Raises:
      UsageError: some of it is missing or cannot be.
    """
    flags = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    if any(value is not None for value in flags.values()):
        missing = [name for name, value in flags.items() if value is None]
        if missing:
            raise UsageError(
                f"{', '.join(missing)} must be given, too: a job of many processes needs {', '.join(flags)}"
            )
        return _explicit(coordinator, num_processes, process_id)
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment:
        return {"cluster_detection_method": "slurm"}
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        if address is None and "OMPI_MCA_orte_hnp_uri" in environment:
            return {"cluster_detection_method": "ompi"}  # up to version 4, which tells where rank 0 is
        if address is None:
            raise UsageError(
                "mpirun started this, but JAX_COORDINATOR_ADDRESS is not set; set it to HOST:PORT of rank 0"
            )
        told = _explicit(address, environment["OMPI_COMM_WORLD_SIZE"], environment.get("OMPI_COMM_WORLD_RANK", ""))
        if int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")) > 1:  # each has one GPU of its host
            told["local_device_ids"] = [int(environment["OMPI_COMM_WORLD_LOCAL_RANK"])]
        return told
    if "JOB_COMPLETION_INDEX" in environment and address is not None:
        if "JAX_NUM_PROCESSES" not in environment:
            raise UsageError(
                "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES is not; set it to the number of pods"
            )
        count = environment["JAX_NUM_PROCESSES"]
        return _explicit(address, count, environment["JOB_COMPLETION_INDEX"]) if count != "1" else None
    return None


def _explicit(coordinator: str | None, num_processes: int | str | None, process_id: int | str | None) -> dict[str, Any]:
    try:
        count, index = int(num_processes or ""), int(process_id if process_id is not None else "")
    except ValueError as error:
        raise UsageError(f"the process count and id are {num_processes!r} and {process_id!r}; give integers") from error
    if not 0 <= index < count:
        raise UsageError(f"process id {index} of {count} processes; it must be from 0 to {count - 1}")
    if not re.fullmatch(r".+:[0-9]{1,5}", coordinator or ""):  # or the library ends Python
        raise UsageError(f"the coordinator is {coordinator!r}; give HOST:PORT of process 0, a port that is free there")
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def joined(told: dict[str, Any] | None) -> Iterator[None]:
    """Joins the other processes for the length of the block; a process alone joins nobody.

    A process that fails says so and waits a little for the others, since most errors are met by all of them and the
    end of process 0 aborts every one that is still at work. It waits no longer: one that failed alone would hang, and
    the others are told by the connections it closes.

    Raises:
      JobError: the others were not found.
    """
    if told is None:
        yield
        return
    try:
        jax.distributed.initialize(**told, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        raise JobError(
            f"the processes of this job did not find each other ({_first_line(error)}); check the address of process 0 "
            "and that all of them are started with the same count"
        ) from error
    faulthandler.disable()  # where process 0 dies, JAX says so and aborts; a dump of every frame would bury that
    me = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            print(
                f"error: {me} lost another one ({_first_line(error)}). Start the job again, with as many processes as "
                "remain: it goes on from its last checkpoint",
                file=sys.stderr,
            )
        else:
            print(f"error: {me}: {error or type(error).__name__}", file=sys.stderr, flush=True)
            together = threading.Thread(target=_leave, daemon=True)
            together.start()
            together.join(FAILING_TOGETHER_SECONDS)
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UsageError) else 1)
    jax.distributed.shutdown()


def _leave() -> None:
    with contextlib.suppress(RuntimeError):  # another one is gone already
        jax.distributed.shutdown()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


class StopSignal:
    """Remembers SIGTERM and SIGINT for as long as it is entered; a second one ends the process at once.

    In a job of many processes both are handed to JAX, which tells all processes; a checkpoint manager's
    `reached_preemption` is then true in each of them after the same step.

    A thread listens, since Python runs no handler while the main thread waits for a compiler or another process.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._tell_all: Callable[[int], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if jax.process_count() > 1:
            # JAX's handler is native, so Python neither shows it nor calls it: C does both.
            handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
            libc = ctypes.CDLL(None)
            libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
            self._tell_all = handler(libc.signal(signal.SIGTERM, None))
        heard, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._wakeup_before = signal.set_wakeup_fd(self._written)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._written)  # which ends the thread

    def _listen(self, heard: int) -> None:
        while number := os.read(heard, 1):
            if number[0] not in self._before:
                continue
            if self.name:
                os._exit(128 + number[0])
            self.name = signal.Signals(number[0]).name
            if self._tell_all:
                self._tell_all(signal.SIGTERM)
        os.close(heard)
