"""Many hosts, one process on each: who coordinates, how many there are, which one this is; and
JAX's runtime started.

The first that speaks decides: flags; SLURM; a Kubernetes Indexed Job or JobSet; Cloud TPU. Where
JAX's own detection is not enough it is left out: under SLURM it gives a process one GPU of its node
and cannot read host lists such as ``rack[0-1]node[2-3]``, and in Kubernetes it needs a client
package and rights to list pods. docs/clusters.md names the variables.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kd_jax.core.errors import InputError

T = TypeVar("T")
HEARTBEAT = 30  # seconds after which a process that is gone takes the others with it (JAX: 100)
TIMEOUT = 300  # seconds for all processes to find each other
PORT = 8476  # of the coordinator in Kubernetes, where every pod has an address of its own
ALONE = "or --num_processes=1 for this process alone"


class Processes(NamedTuple):
    coordinator: str  # HOST:PORT, on the host of process 0
    num_processes: int
    process_id: int


def initialize(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, timeout: float = TIMEOUT
) -> None:
    """Starts ``jax.distributed`` exactly when there is more than one process; call it before JAX
    has a backend.

    coordinator: HOST:PORT of process 0; num_processes: in all (1: this one alone, whatever the
    cluster says); process_id: from 0. With none of the three the environment is asked. timeout:
    seconds. Collectives between processes on CPU go through gloo, which is JAX's default.

    Raises InputError if only a part of what is needed is given, ConnectionError if the processes do
    not find each other in time. After a ConnectionError the process can only end: its attempt to
    connect is still under way.
    """
    found = detect(os.environ, coordinator, num_processes, process_id)
    if found is not None:
        _check_coordinator(found, timeout)
        # Every device of the host is this process's own; JAX_LOCAL_DEVICE_IDS says otherwise.
        _start(timeout, found)
    elif not num_processes and tpu_hosts(os.environ) > 1:
        _start(timeout)


def leader() -> bool:
    """Whether this is process 0, the one that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def several() -> bool:
    return jax.process_count() > 1


def agreed(answer: bool) -> bool:
    """What process 0 answers; all ask together."""
    return (
        answer
        if jax.process_count() == 1
        else bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))
    )


def leader_first(call: Callable[[], T]) -> T:
    """``call()`` in process 0, and then, when it is done there, in the others: the first leaves
    files for them.

    Raises InputError in the others if it fails in process 0, which says why: nobody waits for what
    will not come.
    """
    if not leader():
        if not agreed(True):
            raise InputError("process 0 could not go on; its output says why")
        return call()
    try:
        found = call()
    except BaseException:
        agreed(False)
        raise
    agreed(True)
    return found


def preempted() -> bool:
    """Of several processes: whether one of them was told to end (SIGTERM) and all stop here. All
    ask equally often.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_asked))


_asked = itertools.count(1)  # for the whole life of the process: JAX wants a number that only grows


def detect(
    environment: Mapping[str, str],
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
) -> Processes | None:
    """What flags or, without any, the variables of SLURM or Kubernetes say; None for a single
    process.

    Raises InputError if what is given is incomplete or contradicts itself.
    """
    if coordinator or num_processes != 0 or process_id != -1:
        return _from_flags(coordinator, num_processes, process_id)
    return _from_slurm(environment) or _from_kubernetes(environment)


def _from_flags(coordinator: str, num_processes: int, process_id: int) -> Processes | None:
    if num_processes == 1 and process_id in (-1, 0):
        return None
    given = {
        "--coordinator=HOST:PORT": bool(coordinator),
        "--num_processes=N": num_processes != 0,
        "--process_id=I": process_id != -1,
    }
    if missing := [flag for flag, is_given in given.items() if not is_given]:
        raise InputError(
            f"{_are_missing(missing)}: several processes need --coordinator, --num_processes and"
            " --process_id, the first two the same for all"
        )
    return _checked(
        Processes(coordinator, num_processes, process_id),
        "--coordinator, --num_processes, --process_id",
    )


def _from_slurm(environment: Mapping[str, str]) -> Processes | None:
    """The variables that srun gives to every task (srun's manual, OUTPUT ENVIRONMENT VARIABLES)."""
    if "SLURM_JOB_ID" not in environment or _integer(environment, "SLURM_NTASKS", 1) == 1:
        return None
    names = ("SLURM_PROCID", "SLURM_STEP_NODELIST")
    _require(
        environment,
        names,
        f"SLURM_NTASKS={environment['SLURM_NTASKS']}",
        f"start every process with srun (cluster/slurm.sh), {ALONE}",
    )
    # As JAX does: two jobs on one node get two ports.
    port = _port(environment, 61440 + _integer(environment, "SLURM_JOB_ID") % 4096)
    found = Processes(
        f"{_first_host(environment['SLURM_STEP_NODELIST'])}:{port}",
        _integer(environment, "SLURM_NTASKS"),
        _integer(environment, "SLURM_PROCID"),
    )
    return _checked(found, "SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_PROCID")


def _first_host(nodes: str) -> str:
    """The first name of a SLURM host list: rack[0-1]node[02,05-07]-ib,other -> rack0node02-ib."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)


def _from_kubernetes(environment: Mapping[str, str]) -> Processes | None:
    """JOB_COMPLETION_INDEX is set by Kubernetes in an Indexed Job, the rest by the manifest
    (cluster/jobset.yaml).

    A pod's stable name is <jobset>-<replicated job>-<job index>-<completion index>.<jobset> in a
    JobSet, and <job>-<completion index>.<headless service> in a Job.
    """
    # PODS_PER_JOB, JOBSET_NAME and JOB_COMPLETION_INDEX give a set of processes away; JOB_NAME is
    # anybody's.
    signs = [
        name
        for name in ("JOBSET_NAME", "PODS_PER_JOB", "JOB_COMPLETION_INDEX")
        if environment.get(name)
    ]
    if not signs:
        return None
    jobset = "JOBSET_NAME" in signs
    told = f"{signs[0]}={environment[signs[0]]}"
    _require(
        environment,
        ("PODS_PER_JOB",),
        told,
        "set it in the manifest to its parallelism (cluster/jobset.yaml): 1 if every pod is a run"
        f" of its own, {ALONE}",
    )
    pods = _integer(environment, "PODS_PER_JOB")
    jobs = _integer(environment, "JOB_REPLICAS", 1)
    if pods * jobs == 1:
        return None
    names = [
        "JOB_COMPLETION_INDEX",
        *(("REPLICATED_JOB_NAME",) if jobset else ("JOB_NAME", "JOB_SUBDOMAIN")),
    ]
    _require(
        environment,
        [*names, "JOB_INDEX"] if jobs > 1 else names,
        told,
        "set completionMode: Indexed and the variables of cluster/jobset.yaml in the manifest,"
        f" {ALONE}",
    )
    if jobset:
        job = f"{environment['JOBSET_NAME']}-{environment['REPLICATED_JOB_NAME']}-0"
        subdomain = environment.get("JOB_SUBDOMAIN") or environment["JOBSET_NAME"]
    else:
        job, subdomain = environment["JOB_NAME"], environment["JOB_SUBDOMAIN"]
    completion = _integer(environment, "JOB_COMPLETION_INDEX")
    if not 0 <= completion < pods:
        raise InputError(
            f"JOB_COMPLETION_INDEX={completion} is not below PODS_PER_JOB={pods}; set it to"
            " parallelism"
        )
    found = Processes(
        f"{job}-0.{subdomain}:{_port(environment, PORT)}",
        jobs * pods,
        _integer(environment, "JOB_INDEX", 0) * pods + completion,
    )
    return _checked(found, "JOB_REPLICAS, JOB_INDEX, PODS_PER_JOB, JOB_COMPLETION_INDEX")


def tpu_hosts(environment: Mapping[str, str]) -> int:
    """How many hosts the Cloud TPU slices have that this machine belongs to; 0 where JAX sees no
    TPU.

    On GKE they are in TPU_WORKER_HOSTNAMES; on a TPU VM its metadata server knows them. Raises
    InputError if that does not answer.
    """
    if "tpu" not in (
        getattr(jax.config, "jax_platforms", None) or ""
    ):  # on a machine with TPU chips `import jax` has put it there
        return 0
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = environment.get("MEGASCALE_NUM_SLICES")
    if "TPU_SKIP_MDS_QUERY" not in environment and not hosts:
        hosts = _metadata(environment, "worker-network-endpoints")
        told = re.search(
            r"^MEGASCALE_NUM_SLICES: *'?(\d+)", _metadata(environment, "tpu-env"), re.M
        )
        slices = slices or (told[1] if told else None)
    return len((hosts or "alone").split(",")) * int(slices or 1)


def _metadata(environment: Mapping[str, str], key: str) -> str:
    host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for pause in (0.5, 2.0, 0.0):
        try:
            with direct.open(request, timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            why: Exception = error
        except OSError as error:
            why = error
        time.sleep(pause)
    raise InputError(
        f"this host has a TPU, but {host} does not say of how many hosts its slice is ({why}); "
        f"give --coordinator, --num_processes and --process_id, {ALONE}"
    )


def _require(
    environment: Mapping[str, str], names: list[str] | tuple[str, ...], told: str, cure: str
) -> None:
    if missing := [name for name in names if not environment.get(name)]:
        raise InputError(f"{told} speaks of several processes, but {_are_missing(missing)}; {cure}")


def _are_missing(names: list[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"


def _integer(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or ("" if default is None else str(default))
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"{name}={text!r} is not a whole number; set it to one, {ALONE}")
    return int(text)


def _port(environment: Mapping[str, str], default: int) -> int:
    return _integer(environment, "JAX_COORDINATOR_PORT", default)


def _checked(found: Processes, sources: str) -> Processes | None:
    """``found``, or None if it is one process. Raises InputError if it cannot be; ``sources`` are
    its three parts.
    """
    host, _, port = found.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator {found.coordinator!r} is not HOST:PORT, as in 10.0.0.1:8476 ({sources})"
        )
    if found.num_processes < 1 or not 0 <= found.process_id < found.num_processes:
        raise InputError(
            f"process {found.process_id} of {found.num_processes} cannot be: there must be at least"
            f" one, and they count from 0 ({sources})"
        )
    return found if found.num_processes > 1 else None


def _check_coordinator(found: Processes, timeout: float) -> None:
    """What JAX's runtime would answer with a crash and a stack trace: a port in use, a coordinator
    out of reach.
    """
    host, _, digits = found.coordinator.rpartition(":")
    port = int(digits)
    if found.process_id == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    return  # no IPv4, say: JAX will see
                raise InputError(
                    f"port {port} of the coordinator cannot be opened here ({error.strerror});"
                    " choose another for all processes, with --coordinator or JAX_COORDINATOR_PORT"
                ) from None
        return
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise ConnectionError(
                    f"process {found.process_id} of {found.num_processes} could not reach the"
                    f" coordinator {found.coordinator} within {timeout:g} s ({error}); process 0"
                    " must run on that host, and the port be open to the others"
                ) from None
        time.sleep(min(1, timeout / 10))


def _start(timeout: float, found: Processes | None = None) -> None:
    """jax.distributed.initialize, in a thread: JAX aborts the process when its own, later, timeout
    is over.
    """
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
            f"{who} waited {timeout:g} s for the others in vain; start all of them, then again"
        )
