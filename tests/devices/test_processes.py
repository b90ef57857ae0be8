"""Detection of several processes, two real processes, and the files in cluster/."""

import http.server
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jsonschema
import kubernetes_validate
import pytest
import yaml

from kd_jax.core.errors import InputError
from kd_jax.devices import clusters, processes
from kd_jax.devices.clusters import detect

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "cluster").glob("*.sh"))
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login1",
}
JOBSET = {
    "JOBSET_NAME": "kd-jax",
    "REPLICATED_JOB_NAME": "worker",
    "JOB_REPLICAS": "3",
    "JOB_INDEX": "2",
    "PODS_PER_JOB": "4",
    "JOB_COMPLETION_INDEX": "1",
}
JOB = {
    "JOB_NAME": "train",
    "JOB_SUBDOMAIN": "pods",
    "PODS_PER_JOB": "2",
    "JOB_COMPLETION_INDEX": "1",
}


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


# detection


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (SLURM, ("gpu07:61441", 4, 3)),
        (SLURM | {"JAX_COORDINATOR_PORT": "1234"}, ("gpu07:1234", 4, 3)),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (without(SLURM, "SLURM_NTASKS"), None),  # an interactive allocation of one task
        (JOBSET, ("kd-jax-worker-0-0.kd-jax:8476", 12, 9)),
        (JOBSET | {"JOB_SUBDOMAIN": "net"}, ("kd-jax-worker-0-0.net:8476", 12, 9)),
        (without(JOBSET, "JOB_REPLICAS", "JOB_INDEX"), ("kd-jax-worker-0-0.kd-jax:8476", 4, 1)),
        (JOBSET | {"JOB_REPLICAS": "1", "PODS_PER_JOB": "1", "JOB_COMPLETION_INDEX": "0"}, None),
        (JOB, ("train-0.pods:8476", 2, 1)),
        (JOB | {"PODS_PER_JOB": "1"}, None),  # every pod a run of its own
        (
            {"JOB_NAME": "nightly", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            None,
        ),  # any pod, any build server
    ],
)
def test_detection_of_processes(environment, expected):
    assert detect(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("tux-[3,5]", "tux-3"),
        ("rack[0-1]node[02,05-07]-ib,other[1-2]", "rack0node02-ib"),
        ("n1.cluster.example.org", "n1.cluster.example.org"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes, first):
    found = detect(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert found is not None and found.coordinator == f"{first}:61441"


@pytest.mark.parametrize(
    ("environment", "pattern"),
    [
        (
            without(SLURM, "SLURM_STEP_NODELIST"),
            r"^SLURM_NTASKS=4 .* but SLURM_STEP_NODELIST is missing; .*srun",
        ),
        (
            without(SLURM, "SLURM_PROCID", "SLURM_STEP_NODELIST"),
            r"SLURM_PROCID and SLURM_STEP_NODELIST are missing",
        ),
        (SLURM | {"SLURM_PROCID": "4"}, r"process 4 of 4 is out of range"),
        (SLURM | {"SLURM_NTASKS": "four"}, r"SLURM_NTASKS='four' is not a whole number"),
        (SLURM | {"JAX_COORDINATOR_PORT": "99999"}, r"'gpu07:99999' is not HOST:PORT"),
        (
            {"JOB_COMPLETION_INDEX": "0"},
            r"^JOB_COMPLETION_INDEX=0 .* but PODS_PER_JOB is missing; .*manifest",
        ),
        (without(JOBSET, "PODS_PER_JOB"), r"^JOBSET_NAME=kd-jax .* but PODS_PER_JOB is missing"),
        (
            without(JOBSET, "JOB_COMPLETION_INDEX"),
            r"but JOB_COMPLETION_INDEX is missing; set completionMode: Indexed",
        ),
        (without(JOBSET, "REPLICATED_JOB_NAME"), r"but REPLICATED_JOB_NAME is missing"),
        (without(JOBSET, "JOB_INDEX"), r"but JOB_INDEX is missing"),
        (JOBSET | {"JOB_INDEX": "3"}, r"process 13 of 12 is out of range"),
        (
            JOBSET | {"JOB_COMPLETION_INDEX": "4"},
            r"JOB_COMPLETION_INDEX=4 is not below PODS_PER_JOB=4",
        ),
        (without(JOB, "JOB_SUBDOMAIN"), r"but JOB_SUBDOMAIN is missing"),
        (without(JOB, "JOB_NAME", "JOB_SUBDOMAIN"), r"but JOB_NAME and JOB_SUBDOMAIN are missing"),
    ],
)
def test_a_half_described_cluster_is_refused(environment, pattern):
    with pytest.raises(InputError, match=pattern):
        detect(environment)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("10.0.0.1:1234", 2, 1), ("10.0.0.1:1234", 2, 1)),
        (("[fd00::1]:1234", 2, 0), ("[fd00::1]:1234", 2, 0)),
        (("", 1, -1), None),
        (("10.0.0.1:1234", 1, 0), None),
    ],
)
def test_flags_come_before_the_cluster(flags, expected):
    assert detect(SLURM, *flags) == expected


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (("10.0.0.1:1234", 0, -1), r"^--num_processes=N and --process_id=I are missing"),
        (("", 2, -1), r"^--coordinator=HOST:PORT and --process_id=I are missing"),
        (("", 0, 0), r"^--coordinator=HOST:PORT and --num_processes=N are missing"),
        (("10.0.0.1:1234", 2, -1), r"^--process_id=I is missing"),
        (("10.0.0.1", 2, 0), r"'10.0.0.1' is not HOST:PORT"),
        ((":1234", 2, 0), r"':1234' is not HOST:PORT"),
        (("10.0.0.1:http", 2, 0), r"not HOST:PORT"),
        (("10.0.0.1:1234", 2, 2), r"process 2 of 2 is out of range"),
        (("10.0.0.1:1234", -2, 0), r"process 0 of -2 is out of range"),
        (("10.0.0.1:1234", 1, 3), r"process 3 of 1 is out of range"),
    ],
)
def test_half_given_flags_are_refused(flags, pattern):
    with pytest.raises(InputError, match=pattern):
        detect({}, *flags)


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a TPU VM."""

    attributes: dict[str, str] = {}

    def do_GET(self):
        known = self.attributes.get(
            self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
        )
        right = known is not None and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if right else 404)
        self.end_headers()
        self.wfile.write((known or "").encode() if right else b"no such attribute")

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        server.shutdown()
    Metadata.attributes = {}


def test_hosts_of_a_cloud_tpu(metadata, monkeypatch):
    assert clusters.tpu_hosts(metadata) == 0  # JAX_PLATFORMS=cpu
    monkeypatch.setattr(clusters.jax, "config", type("Config", (), {"jax_platforms": "tpu,cpu"}))
    assert clusters.tpu_hosts(metadata) == 1  # a machine without these attributes
    Metadata.attributes = {
        "worker-network-endpoints": "0:u:10.0.0.1,0:u:10.0.0.2",
        "tpu-env": "TYPE: 'v5'\n",
    }
    assert clusters.tpu_hosts(metadata) == 2
    Metadata.attributes["tpu-env"] += "MEGASCALE_NUM_SLICES: '3'\n"
    assert clusters.tpu_hosts(metadata) == 6
    assert clusters.tpu_hosts(metadata | {"TPU_SKIP_MDS_QUERY": "1"}) == 1
    assert clusters.tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}) == 4  # GKE
    assert (
        clusters.tpu_hosts({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}) == 2
    )
    monkeypatch.setattr(clusters.time, "sleep", lambda _: None)
    with pytest.raises(
        InputError, match=r"number of hosts .* from 127.0.0.1:1 .*--num_processes=1"
    ):
        clusters.tpu_hosts({"GCE_METADATA_IP": "127.0.0.1:1"})


def test_a_single_process_starts_nothing(monkeypatch):
    for name in {*SLURM, *JOBSET, *JOB}:
        monkeypatch.delenv(name, raising=False)
    processes.initialize()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    processes.initialize(num_processes=1)
    assert not jax.distributed.is_initialized()


# real processes

TWO = """
import sys
from kd_jax.devices import processes
from kd_jax.experiment import pipeline  # as launch.py; no import may start a backend
processes.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), timeout=60)
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
from kd_jax.devices import sharding
mesh = sharding.make_mesh()
mine = np.full((1, 3), 1.0 + jax.process_index(), np.float32)
both = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), mine)
add_up = jax.shard_map(
    lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
)
total = jax.jit(add_up)(both)
gathered = multihost_utils.process_allgather(np.int32(jax.process_index()))
total = total.addressable_data(0).tolist()
print("seen", jax.process_count(), jax.device_count(), total, gathered.tolist(), flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **environment},
    )


@pytest.mark.slow
def test_two_processes_find_each_other_and_add_up():
    address = f"127.0.0.1:{free_port()}"
    pair = [start("-c", TWO, address, "2", str(index)) for index in range(2)]
    for process in pair:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "seen 2 2 [[3.0, 3.0, 3.0]] [0, 1]" in out


@pytest.mark.slow
def test_a_failed_start_is_one_line(tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"^port {port} of the coordinator cannot be opened here"
        ):
            processes.initialize(f"127.0.0.1:{port}", 2, 0)
    closed = f"127.0.0.1:{free_port()}"
    with pytest.raises(
        ConnectionError, match=rf"^process 1 of 2 could not reach .*{closed} within 0.2 s"
    ):
        processes.initialize(closed, 2, 1, timeout=0.2)
    command = f"""
import sys, launch
from kd_jax.devices import processes
processes.initialize.__kwdefaults__["timeout"] = 1
sys.argv = ["launch.py", "--coordinator={closed}", "--num_processes=2", "--process_id=0"]
sys.argv += ["--workdir={tmp_path}/run"]
launch.app.run(launch.main, flags_parser=launch.parse)
"""
    alone = start("-c", command)
    half = start("launch.py", "--num_processes=2", f"--workdir={tmp_path}/run")
    for process, status, message in (
        (alone, 75, "error: process 0 of 2 waited 1 s and not all other processes connected; "),
        (half, 2, "error: --coordinator=HOST:PORT and --process_id=I are missing: "),
    ):
        _, err = process.communicate(timeout=60)
        assert (
            process.returncode == status and len(err.splitlines()) == 1 and err.startswith(message)
        ), err
    assert not (tmp_path / "run").exists()


# cluster/


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    checked = subprocess.run(
        ["shellcheck", script], capture_output=True, text=True, env=with_path()
    )
    assert checked.returncode == 0, checked.stdout
    assert os.access(script, os.X_OK)


def with_path(*folders):
    """The environment with ``folders``, and the folder of shellcheck, at the head of PATH."""
    return {
        **os.environ,
        "PATH": os.pathsep.join(
            [*map(str, folders), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
    }


def pretend(folder, **commands):
    """Creates shell commands that append their arguments to ``folder``/calls."""
    for name, body in commands.items():
        path = folder / name
        path.write_text(
            f'#!/bin/bash\necho {name} "$@" >> {shlex.quote(str(folder / "calls"))}\n{body}\n'
        )
        path.chmod(0o755)
    return with_path(folder)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (143, True)])
def test_a_saved_slurm_job_goes_back_into_the_queue(tmp_path, status, requeued):
    environment = pretend(tmp_path, srun=f"exit {status}", scontrol="")
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(
        [ROOT / "cluster/slurm.sh", "--workdir=a b"], env=environment, capture_output=True
    )
    assert done.returncode == status
    srun, *rest = (tmp_path / "calls").read_text().splitlines()
    assert (
        srun.startswith("srun ")
        and srun.endswith("-u launch.py --workdir=a b")
        and "--cpus-per-task=4" in srun
    )
    assert rest == (["scontrol requeue 7"] if requeued else [])


def test_a_cancelled_slurm_job_stays_cancelled(tmp_path):
    environment = pretend(tmp_path, srun="kill -TERM $PPID; exit 143", scontrol="")
    environment |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7"}
    done = subprocess.run([ROOT / "cluster/slurm.sh"], env=environment, capture_output=True)
    assert done.returncode == 143 and "scontrol" not in (tmp_path / "calls").read_text()


def test_slurm_options():
    """sbatch reads options up to the first command only."""
    text = (ROOT / "cluster/slurm.sh").read_text()
    head = text.partition("\nset -uo")[0]
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.M))
    assert options.keys() >= {"nodes", "time", "requeue"} and text.count("#SBATCH --") == len(
        options
    )
    assert (
        options["ntasks-per-node"] == "1"
        and options["signal"] == "TERM@90"
        and options["open-mode"] == "append"
    )


def test_tpu_vm_comes_back_after_a_preemption(tmp_path):
    gcloud = f"""
state={shlex.quote(str(tmp_path / "state"))}
case "$*" in
  *" describe "*) cat "$state" ;;
  *" create "*) echo ACTIVE > "$state" ;;
  *" delete "*) echo ABSENT > "$state" ;;
  *launch.py*)
    [ -e "$state.second" ] || {{ touch "$state.second"; echo SUSPENDED > "$state"; exit 1; }} ;;
esac"""
    environment = pretend(tmp_path, gcloud=gcloud) | {
        "NFS": "10.0.0.2:/runs",
        "PAUSE": "0",
        "TMPDIR": str(tmp_path),
    }
    (tmp_path / "state").write_text("ABSENT\n")
    arguments = ["until-done", "--config.data.files.path=a b", "--workdir=/shared/run"]
    done = subprocess.run(
        [ROOT / "cluster/tpu_vm.sh", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    steps = re.findall(
        r"queued-resources (create|delete)|tpu-vm (scp)|(launch\.py .*) *$", calls, re.M
    )
    assert ["".join(step).split(" ")[0] for step in steps] == [
        "create", "scp", "launch.py", "delete", "create", "scp", "launch.py",
    ]  # fmt: skip
    assert calls.count(r"launch.py --config.data.files.path=a\ b --workdir=/shared/run") == 2
    assert calls.count("--spot") == 2 and not list(tmp_path.glob("*.tar.gz"))

    (tmp_path / "gcloud").write_text(
        "#!/bin/bash\ncase $* in *launch.py*) exit 1 ;; esac\necho ACTIVE\n"
    )
    done = subprocess.run(
        [ROOT / "cluster/tpu_vm.sh", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "failed three times" in done.stderr
    unknown = subprocess.run(
        [ROOT / "cluster/tpu_vm.sh", "start"], env=environment, capture_output=True, text=True
    )
    assert unknown.returncode == 2 and unknown.stderr.startswith("usage: ")


def some(**properties):
    """The schema of an object with these properties alone; a name that ends in _ is required."""
    names = {name.rstrip("_"): schema for name, schema in properties.items()}
    required = [name.rstrip("_") for name in properties if name.endswith("_")]
    return {
        "type": "object",
        "properties": names,
        "required": required,
        "additionalProperties": False,
    }


TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
ANY = {"type": "object"}
TEXTS = {"type": "array", "items": TEXT, "uniqueItems": True}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 40}
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
RULE = some(
    name_={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action_={"enum": ACTIONS},
    onJobFailureReasons=TEXTS,
    onJobFailureMessagePatterns=TEXTS,
    targetReplicatedJobs=TEXTS,
)
STRATEGIES = ("Recreate", "BlockingRecreate", "InPlaceRestart")
REPLICATED = some(
    name_=NAME,
    replicas=COUNT,
    groupName=TEXT,
    dependsOn={"type": "array"},
    template_=some(metadata=ANY, spec_=ANY),
)
# The fields of JobSet v1alpha2 (https://jobset.sigs.k8s.io/docs/reference); the Job inside has
# Kubernetes' own schema.
JOBSET_SCHEMA = some(
    apiVersion_={"const": "jobset.x-k8s.io/v1alpha2"},
    kind_={"const": "JobSet"},
    metadata_=some(name_=NAME, namespace=TEXT, labels=ANY, annotations=ANY),
    spec_=some(
        replicatedJobs_={"type": "array", "minItems": 1, "items": REPLICATED},
        network=some(enableDNSHostnames=FLAG, subdomain=TEXT, publishNotReadyAddresses=FLAG),
        successPolicy=some(operator_={"enum": ("All", "Any")}, targetReplicatedJobs=TEXTS),
        failurePolicy=some(
            maxRestarts=COUNT,
            restartStrategy={"enum": STRATEGIES},
            rules={"type": "array", "items": RULE},
        ),
        suspend=FLAG,
        coordinator=some(replicatedJob_=TEXT, jobIndex=COUNT, podIndex=COUNT),
        managedBy=TEXT,
        ttlSecondsAfterFinished=COUNT,
    ),
)


def manifest(text):
    """The JobSet in ``text`` and the Job inside, both checked against their schemas."""
    jobset = yaml.safe_load(text)
    jsonschema.validate(jobset, json.loads(json.dumps(JOBSET_SCHEMA)))
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}} | replicated[
        "template"
    ]
    kubernetes_validate.validate(job, "1.33", strict=True)
    return jobset, job["spec"]


def uncommented(text):
    """The manifest with its commented-out options enabled."""
    return re.sub(r"^( +)# ((?:  )*[\w./-]+:(?: .*)?)$", r"\1\2", text, flags=re.M)


def test_the_jobset_matches_the_schemas_of_kubernetes():
    text = (ROOT / "cluster/jobset.yaml").read_text()
    jobset, job = manifest(text)
    _, choices = manifest(uncommented(text))
    choices = choices["template"]["spec"]
    assert (
        choices["nodeSelector"] and choices["volumes"][0]["csi"]["volumeAttributes"]["bucketName"]
    )
    assert choices["containers"][0]["resources"]["limits"].keys() == {
        "memory",
        "nvidia.com/gpu",
        "google.com/tpu",
    }
    with pytest.raises(jsonschema.ValidationError):
        manifest(text.replace("maxRestarts", "maxRestart"))
    with pytest.raises(kubernetes_validate.ValidationError):
        manifest(text.replace("backoffLimit: 0", "backofLimit: 0"))

    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 90
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    workdir = next(
        flag for flag in container["command"] if flag.startswith("--workdir=")
    ).partition("=")[2]
    assert any(workdir.startswith(mount["mountPath"] + "/") for mount in container["volumeMounts"])
    for flag in container["command"]:
        if flag.startswith("--config="):
            assert (ROOT / flag.partition("=")[2].partition(":")[0]).exists()


def test_the_jobset_sets_the_variables_that_are_read():
    """The variables are filled in pod by pod, as the JobSet controller does."""
    jobset, job = manifest((ROOT / "cluster/jobset.yaml").read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    name = jobset["metadata"]["name"]
    slices = 2
    pod = job["template"]["spec"]["containers"][0]
    found = []
    for index in range(slices):
        known = {
            "jobset-name": name,
            "replicatedjob-name": replicated["name"],
            "replicatedjob-replicas": slices,
        }
        known["job-index"] = index
        for completion in range(job["completions"]):
            environment = {"JOB_COMPLETION_INDEX": str(completion)}
            for variable in pod["env"]:
                path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
                key = re.fullmatch(
                    r"metadata\.annotations\['jobset\.sigs\.k8s\.io/([\w-]+)'\]", path
                )
                environment[variable["name"]] = str(known[key[1]]) if key else variable["value"]
            found.append(detect(environment))
    count = slices * job["completions"]
    assert found == [
        (f"{name}-{replicated['name']}-0-0.{name}:8476", count, index) for index in range(count)
    ]
    assert [port["containerPort"] for port in pod["ports"]] == [8476]


def test_the_files_and_variables_that_the_documentation_names():
    text = (ROOT / "docs/clusters.md").read_text()
    for name in re.findall(r"`((?:cluster|configs|kd_jax|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    sources = [ROOT / f"kd_jax/devices/{name}.py" for name in ("clusters", "processes")]
    source = "".join(path.read_text() for path in sources)
    read = set(
        re.findall(
            r"\b(?:SLURM|JOB|JOBSET|PODS|TPU|MEGASCALE|REPLICATED|JAX|GCE)_[A-Z_]+\b", source
        )
    )
    assert read <= set(re.findall(r"[A-Z_]{5,}", text)), read - set(re.findall(r"[A-Z_]{5,}", text))
