"""Detection of several processes: their coordinator, number and ids, from flags or a cluster.

The first source that applies decides: flags; SLURM; a Kubernetes Indexed Job or JobSet; Cloud TPU.
JAX's own detection is not used where it falls short: under SLURM it gives a process one GPU of its
node and cannot read host lists such as ``rack[0-1]node[2-3]``, and in Kubernetes it needs a client
package and the right to list pods. docs/clusters.md lists the variables.
"""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from kd_jax.core.errors import InputError

PORT = 8476  # of the coordinator in Kubernetes, where every pod has an address of its own
ALONE = "or --num_processes=1 for this process alone"


class Processes(NamedTuple):
    """The processes of a run as this process sees them."""

    coordinator: str  # HOST:PORT, on the host of process 0
    num_processes: int
    process_id: int


def detect(
    environment: Mapping[str, str],
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
) -> Processes | None:
    """The processes given by flags or, without flags, by the variables of SLURM or Kubernetes.

    coordinator: HOST:PORT of process 0, or "". num_processes: 0 where not given. process_id: -1
    where not given. Returns None for a single process. Raises InputError if the description is
    incomplete or contradicts itself.
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
    """The processes given by the variables of srun (manual of srun, OUTPUT ENVIRONMENT)."""
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
    """The processes given by the variables of a pod in a Kubernetes Indexed Job or JobSet.

    Kubernetes sets JOB_COMPLETION_INDEX in an Indexed Job; the manifest (cluster/jobset.yaml) sets
    the other variables. The stable name of a pod is <jobset>-<replicated job>-<job index>-
    <completion index>.<jobset> in a JobSet, and <job>-<completion index>.<headless service> in a
    Job.
    """
    # Any of these shows that the pod is one of several. JOB_NAME does not: other tools set it too.
    signs = [
        name
        for name in ("JOBSET_NAME", "PODS_PER_JOB", "JOB_COMPLETION_INDEX")
        if environment.get(name)
    ]
    if not signs:
        return None
    jobset = "JOBSET_NAME" in signs
    sign = f"{signs[0]}={environment[signs[0]]}"
    _require(
        environment,
        ("PODS_PER_JOB",),
        sign,
        "set it in the manifest to its parallelism (cluster/jobset.yaml): 1 if every pod is a run"
        f" of its own, {ALONE}",
    )
    pods = _integer(environment, "PODS_PER_JOB")
    jobs = _integer(environment, "JOB_REPLICAS", 1)
    if pods * jobs == 1:
        return None
    name_parts = ["REPLICATED_JOB_NAME"] if jobset else ["JOB_NAME", "JOB_SUBDOMAIN"]
    names = ["JOB_COMPLETION_INDEX", *name_parts]
    _require(
        environment,
        [*names, "JOB_INDEX"] if jobs > 1 else names,
        sign,
        "set completionMode: Indexed and the variables of cluster/jobset.yaml in the manifest,"
        f" {ALONE}",
    )
    completion = _integer(environment, "JOB_COMPLETION_INDEX")
    if not 0 <= completion < pods:
        raise InputError(
            f"JOB_COMPLETION_INDEX={completion} is not below PODS_PER_JOB={pods}; set it to"
            " parallelism"
        )
    found = Processes(
        f"{_first_pod(environment, jobset)}:{_port(environment, PORT)}",
        jobs * pods,
        _integer(environment, "JOB_INDEX", 0) * pods + completion,
    )
    return _checked(found, "JOB_REPLICAS, JOB_INDEX, PODS_PER_JOB, JOB_COMPLETION_INDEX")


def _first_pod(environment: Mapping[str, str], jobset: bool) -> str:
    if not jobset:
        return f"{environment['JOB_NAME']}-0.{environment['JOB_SUBDOMAIN']}"
    name = environment["JOBSET_NAME"]
    subdomain = environment.get("JOB_SUBDOMAIN") or name
    return f"{name}-{environment['REPLICATED_JOB_NAME']}-0-0.{subdomain}"


def tpu_hosts(environment: Mapping[str, str]) -> int:
    """The number of hosts of this machine's Cloud TPU slices; 0 without a TPU.

    On GKE the hosts are in TPU_WORKER_HOSTNAMES, on a TPU VM at its metadata server. Raises
    InputError if the metadata server cannot be read.
    """
    # On a machine with TPU chips `import jax` adds "tpu" to this option.
    if "tpu" not in (getattr(jax.config, "jax_platforms", None) or ""):
        return 0
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    slices = environment.get("MEGASCALE_NUM_SLICES")
    if "TPU_SKIP_MDS_QUERY" not in environment and not hosts:
        hosts = _metadata(environment, "worker-network-endpoints")
        tpu_env = _metadata(environment, "tpu-env")
        match = re.search(r"^MEGASCALE_NUM_SLICES: *'?(\d+)", tpu_env, re.M)
        slices = slices or (match[1] if match else None)
    return len((hosts or "alone").split(",")) * int(slices or 1)


def _metadata(environment: Mapping[str, str], key: str) -> str:
    """An attribute of this machine at the metadata server; "" if there is no such attribute."""
    host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for pause in (0.5, 2.0, 0.0):
        try:
            with direct.open(request, timeout=5) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return ""
            failure: Exception = error
        except OSError as error:
            failure = error
        time.sleep(pause)
    raise InputError(
        "this host has a TPU, but the number of hosts in its slice cannot be read from"
        f" {host} ({failure}); give --coordinator, --num_processes and --process_id, {ALONE}"
    )


def _require(environment: Mapping[str, str], names: Sequence[str], sign: str, fix: str) -> None:
    """Raises InputError if a variable is missing where ``sign`` shows several processes."""
    if missing := [name for name in names if not environment.get(name)]:
        raise InputError(f"{sign} means several processes, but {_are_missing(missing)}; {fix}")


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
    """``found``, or None for one process; raises InputError if a value is out of range.

    sources: the names of the variables or flags that gave the values.
    """
    host, _, port = found.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"coordinator {found.coordinator!r} is not HOST:PORT, as in 10.0.0.1:8476 ({sources})"
        )
    if found.num_processes < 1 or not 0 <= found.process_id < found.num_processes:
        raise InputError(
            f"process {found.process_id} of {found.num_processes} is out of range: there must be"
            f" at least one process, and process ids count from 0 ({sources})"
        )
    return found if found.num_processes > 1 else None
