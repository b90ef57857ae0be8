"""Several processes, one on each host: JAX's distributed runtime, barriers and agreement."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kd_jax.core.errors import InputError
from kd_jax.devices.clusters import Processes, detect, tpu_hosts

T = TypeVar("T")
HEARTBEAT = 30  # seconds without a sign of life after which all processes end (JAX: 100)
TIMEOUT = 300  # seconds for all processes to connect


def initialize(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, timeout: float = TIMEOUT
) -> None:
    """Starts ``jax.distributed`` if there is more than one process.

    To be called before JAX has a backend. coordinator: HOST:PORT of process 0. num_processes: the
    number of all processes (1: this process alone, even in a cluster). process_id: from 0. Without
    these three the environment is read (``clusters.detect``). timeout: seconds. Collectives between
    processes on CPUs go through gloo, JAX's default.

    Raises InputError if the description is incomplete, ConnectionError if the processes do not
    connect in time. After a ConnectionError the process can only end: its attempt to connect is
    still under way.
    """
    found = detect(os.environ, coordinator, num_processes, process_id)
    if found is not None:
        _check_coordinator(found, timeout)
        # Every device of the host belongs to this process, unless JAX_LOCAL_DEVICE_IDS is set.
        _start(timeout, found)
    elif not num_processes and tpu_hosts(os.environ) > 1:
        _start(timeout)


def leader() -> bool:
    """Whether this is process 0, which writes the files and the console output."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has reached the barrier ``name``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def agreed(value: bool) -> bool:
    """The value of process 0, in all processes; every process must call this."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def leader_first(call: Callable[[], T]) -> T:
    """Runs ``call()`` in process 0 first, then in the others, which may read the files it wrote.

    If it raises in process 0, the others raise InputError instead of waiting forever.
    """
    if not leader():
        if not agreed(True):
            raise InputError("process 0 failed; see its output for the error")
        return call()
    try:
        found = call()
    except BaseException:
        agreed(False)
        raise
    agreed(True)
    return found


def preempted() -> bool:
    """Whether one of several processes received SIGTERM and all are to stop at this point.

    Every process must call this equally often.
    """
    if jax.process_count() == 1:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_sync_point))


# For the whole life of the process, since JAX needs numbers that only grow.
_sync_point = itertools.count(1)


def _check_coordinator(found: Processes, timeout: float) -> None:
    """Raises an error with a fix where JAX's runtime would abort with a stack trace.

    InputError: the port is in use. ConnectionError: the coordinator is out of reach.
    """
    host, _, digits = found.coordinator.rpartition(":")
    port = int(digits)
    if found.process_id == 0:
        _check_port(port)
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"process {found.process_id} of {found.num_processes} could not reach the"
                    f" coordinator {found.coordinator} within {timeout:g} s ({error}); process 0"
                    " must run on that host, and the port be open to the others"
                ) from None
        time.sleep(min(1, timeout / 10))


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                return  # without IPv4, for example, JAX may still succeed
            raise InputError(
                f"port {port} of the coordinator cannot be opened here ({error.strerror});"
                " choose another for all processes, with --coordinator or JAX_COORDINATOR_PORT"
            ) from None


def _start(timeout: float, found: Processes | None = None) -> None:
    """Calls jax.distributed.initialize in a thread, since JAX aborts the process at its timeout."""
    failed: list[Exception] = []
    coordinator, num_processes, process_id = found or (None, None, None)

    def connect() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method="deactivate" if found else None,
                initialization_timeout=int(timeout) + 60,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    if failed:
        raise failed[0]
    if thread.is_alive():
        who = f"process {found.process_id} of {found.num_processes}" if found else "this process"
        raise ConnectionError(
            f"{who} waited {timeout:g} s and not all other processes connected; start all of them"
            " again"
        )
