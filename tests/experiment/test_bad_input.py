"""User errors, end to end.

Each gives one line that starts with 'error:' and exit status 2, and nothing is lost.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from helpers import toy
from helpers.runs import ROOT, config
from kd_jax.core.files import disk_is_full, locked
from kd_jax.experiment import pipeline

SHORT = ("data", "student")
# TensorStore's threads complain about the event loop that Orbax closed when it met a damaged file;
# launch.py hides it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A workdir with a trained student. Tests change copies of it."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert pipeline.main(config(world, stages=SHORT), workdir) == 0
    return workdir


@pytest.fixture
def copy(trained, tmp_path):
    subprocess.run(["cp", "-r", trained, tmp_path / "run"], check=True)
    return tmp_path / "run"


@pytest.fixture
def refused(capsys):
    """refused(config, workdir, pattern): the run ends with one line that has the pattern."""

    def check(c, workdir, pattern):
        capsys.readouterr()
        assert pipeline.main(c, workdir) == 2
        printed = capsys.readouterr().err.splitlines()
        assert len(printed) == 1 and printed[0].startswith("error: "), printed
        assert re.search(pattern, printed[0]), printed[0]

    return check


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def rows(world):
    header, *lines = (world / "interactions.csv").read_text().splitlines()
    assert header == "user,item,timestamp,rating"
    return lines


def mended(world, folder, change, items=None, **fields):
    """The toy world with its interactions, a list of lines, changed."""
    header = fields.pop("header", "user,item,timestamp,rating")
    folder.mkdir(exist_ok=True)
    (folder / "r.csv").write_text("\n".join([header, *change(rows(world))]) + "\n")
    (folder / "i.csv").write_text((world / "items.csv").read_text() if items is None else items)
    paths = {
        "data.files.path": str(folder / "r.csv"),
        "data.files.items_path": str(folder / "i.csv"),
    }
    return config(world, **{"stages": SHORT, **paths, **fields})


@pytest.mark.parametrize(
    ("change", "fields", "pattern"),
    [
        (
            lambda r: [*r, "100,500,9,great"],
            {},
            r"r\.csv:482: rating 'great' is not a number .*data\.max_malformed",
        ),
        (lambda r: [*r, "100,500,9,nan"], {}, r"r\.csv:482: rating 'nan' is not a finite number"),
        (lambda r: [*r, "100,-5,9,5"], {}, r"1 of 25 items .* are not in it \(-5\)"),
        (lambda r: [*r, "100,500"], {}, r"r\.csv:482: "),
        (lambda r: [], {}, r"r\.csv: there is no interaction; give a file with rows"),
        (
            lambda r: [row.replace(",5", ",x").replace(",2", ",x") for row in r[:9]],
            {"data.max_malformed": 1.0},
            r"r\.csv:2: .*\(9 of 9 rows are malformed\); fix them$",
        ),
        (
            lambda r: [f"{u},50{u},05.01.2026 10:0{u},5" for u in range(9)],
            {"data.files.date_format": "%d.%m.%Y"},
            r"'05\.01\.2026 10:00' does not match data\.files\.date_format='%d\.%m\.%Y'",
        ),
        (
            lambda r: r,
            {"items": "item,title\n1,film 1\n2,film 2\n"},
            r"i\.csv: none of the 24 items of .*r\.csv is in it: ids are like 500 there and 1 here",
        ),
        (
            lambda r: r,
            {"header": "user;item;timestamp"},
            r"r\.csv has a single column, .*is ';' its separator\?",
        ),
        (
            lambda r: r,
            {"header": "user,film,timestamp,rating"},
            r"no column 'item' .*data\.files\.columns\.item",
        ),
        (
            lambda r: r,
            {"data.min_rating": 9.0},
            r"none of 480 interactions is left after data\.min_rating=9",
        ),
        (
            lambda r: r,
            {"data.min_interactions": 99},
            r"r\.csv: none of 480 interactions is left after data\.min_interactions=99; lower it$",
        ),
        (
            lambda r: r[::12],
            {"data.min_interactions": 0},
            r"leaves valid empty: .* at most 1 of one user; change data\.",
        ),
        (lambda r: r, {"items": ""}, r"i\.csv is empty \(items\)"),
        (
            lambda r: r,
            {"items": "item,title\n500,film 1\n"},
            r"i\.csv: 23 of 24 items of .*r\.csv are not in it \(501, .*data\.missing_text",
        ),
        (
            lambda r: r,
            {"items": "item,title\n500,a\n500,b\n"},
            r"i\.csv:3: item id 500 is there twice",
        ),
        (
            lambda r: r,
            {"items": "id,title\n500,a\n"},
            r"no column 'item' .*data\.files\.columns\.item_id",
        ),
        (
            lambda r: [f"{u},500,1,5" for u in range(40)],
            {"data.min_interactions": 0},
            r"leaves valid empty",
        ),
        (
            lambda r: [f"{u},500,{u},5" for u in range(40)],
            {"data.split": "temporal", "data.min_interactions": 0},
            r"no valid user has an earlier interaction",
        ),
    ],
)
def test_bad_data(world, tmp_path, refused, change, fields, pattern):
    refused(mended(world, tmp_path / "data", change, **fields), tmp_path / "run", pattern)


def test_missing_and_empty_files(world, tmp_path, refused):
    refused(
        config(world, **{"data.files.path": str(tmp_path / "no.csv")}),
        tmp_path / "run",
        r"no\.csv: no such file",
    )
    refused(
        config(world, **{"data.files.items_path": str(tmp_path / "no.csv")}),
        tmp_path / "run",
        r"no\.csv: no such file",
    )
    (tmp_path / "empty.csv").write_text("")
    refused(
        config(world, **{"data.files.path": str(tmp_path / "empty.csv")}),
        tmp_path / "run",
        r"empty\.csv is empty",
    )
    refused(
        config(world, **{"data.files.path": ""}),
        tmp_path / "run",
        r"data\.reader='files' needs data\.files\.path",
    )
    refused(
        config(world, **{"data.files.items_path": ""}),
        tmp_path / "run",
        r"no items table; name one .*data\.files\.items_path",
    )
    assert not (tmp_path / "run").exists(), "a run that could not start leaves nothing"


def test_a_workdir_keeps_its_data_and_names_the_file_that_changed(world, tmp_path, refused):
    def made(change, **fields):
        return mended(world, tmp_path / "data", change, stages=("data",), **fields)

    assert pipeline.main(made(lambda r: r), tmp_path / "run") == 0
    pattern = (
        rf"was made from other files \(r\.csv\); .*--config\.init_from={tmp_path}/run to start"
    )
    refused(made(lambda r: r[1:]), tmp_path / "run", pattern)
    swapped = made(lambda r: r)
    files = swapped.data.files
    files.path, files.items_path = files.items_path, files.path
    refused(swapped, tmp_path / "run", r"was made from other files \(i\.csv, r\.csv\)")
    other = made(lambda r: r[1:], **{"data.min_interactions": 2})
    refused(other, tmp_path / "run", r"other settings \(data\.min_interactions: \d there, 2 here\)")


def test_a_timestamp_under_another_name_is_not_forgotten_in_silence(world, tmp_path, capsys):
    def warnings_of(workdir, **fields):
        fields |= {"header": "user,item,when,rating", "stages": ("data",)}
        assert (
            pipeline.main(
                mended(world, tmp_path / "data", lambda r: r, **fields), tmp_path / workdir
            )
            == 0
        )
        return [line for line in capsys.readouterr().out.splitlines() if "warning" in line]

    (line,) = warnings_of("run")
    assert (
        "takes the order of the rows as time" in line and "r.csv has no column 'timestamp'" in line
    )
    assert "data.files.columns.timestamp (columns that nothing reads: when)" in line
    assert warnings_of("named", **{"data.files.columns.timestamp": "when"}) == []
    assert warnings_of("none", **{"data.files.columns.timestamp": ""}) == []


def test_a_user_with_one_interaction_and_a_repeated_one_are_counted(world, tmp_path, capsys):
    change = lambda r: [*r, "9000,500,3,5", r[0]]  # noqa: E731
    fields = {"stages": ("data",), "data.min_interactions": 0}
    assert pipeline.main(mended(world, tmp_path / "data", change, **fields), tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "41 users, 24 items, 481 interactions" in printed
    assert "users with fewer than 3: 1" in printed and "481 kept (1 repeated)" in printed


@pytest.mark.slow
def test_a_single_user_is_enough(world, tmp_path, capsys):
    c = mended(world, tmp_path / "data", lambda r: r[:12], stages=(*SHORT, "evaluate"))
    assert pipeline.main(c, tmp_path / "run") == 0
    assert "warning: the test split has one user" in capsys.readouterr().out
    report = json.loads((tmp_path / "run/report/metrics.json").read_text())
    assert report["dataset"]["users"] == 1 and np.isfinite(report["models"][-1]["test"]["ndcg@10"])


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"student.optimizer.steps": 0}, r"steps=0 .*must be at least 1"),
        ({"student.optimizer.eval_every": -1}, r"eval_every=-1 .*must be at least 1"),
        ({"student.optimizer.batch_size": 0}, r"batch_size=0 .*must be at least 1"),
        (
            {"student.optimizer.schedule": "cosine", "student.optimizer.warmup_steps": 20},
            r"warmup_steps=20 .*less than steps=20",
        ),
        ({"student.mf.dim": 0}, r"student\.mf: dim=0 must be at least 1"),
        ({"student.mf.dropout": 1.0}, r"student\.mf: dropout=1\.0 must be"),
        (
            {"student.name": "sasrec", "student.sasrec.heads": 3},
            r"student\.sasrec: dim=8 is no multiple of heads=3",
        ),
        (
            {"student.clicks": {"loss": "ce", "weight": "one"}},
            r"student\.clicks\.weight='one' must be",
        ),
        (
            {"stages": ("teacher",), "teacher.model.heads": 3},
            r"width 16 is not divisible by 3 heads",
        ),
        (
            {"stages": ("teacher",), "teacher.lm.max_tokens": 0},
            r"teacher\.lm\.max_tokens=0 leaves no room",
        ),
        ({"eval.batch_size": 0}, r"eval\.batch_size=0 must be at least 1"),
        (
            {"eval.select": "ndcg@7"},
            r"eval\.select='ndcg@7' is not among the metrics.*did you mean 'ndcg@",
        ),
        ({"eval.metrics": ("ndgc",)}, r"'ndgc'; did you mean 'ndcg'"),
        ({"mesh.data": 99}, r"mesh\.data=99"),
        (
            {"mesh.data": -1, "mesh.model": 99},
            r"mesh\.data=-1 x mesh\.model=99 does not fit .*JAX_NUM_CPU_DEVICES=N",
        ),
        ({"data.max_users": -1}, r"data\.max_users=-1 must be 0 .*or more"),
        ({"seeds": ()}, r"different numbers from 0"),
    ],
)
def test_bad_settings(world, tmp_path, refused, fields, pattern):
    refused(config(world, **{"stages": SHORT} | fields), tmp_path / "run", pattern)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (
            {"teacher.lm.template": "An {genr}"},
            r"teacher\.lm\.template='An {genr}' cannot be filled .*did you mean 'genre'",
        ),
        ({"distill.labels": "cachd"}, r"distill\.labels='cachd' is unknown"),
        ({"distill.teachers": "both"}, r"distill\.teachers='both' is unknown"),
        ({"distill.teachers": "all", "distill.labels": "online"}, r"use distill\.labels='cached'"),
        (
            {"distill.terms": {"soft": {"loss": "kll"}}},
            r"distill\.terms\.soft\.loss='kll' is unknown; did you mean 'kl'",
        ),
        ({"distill.terms": {"soft": {}}}, r"distill\.terms\.soft\.loss='' is unknown"),
        (
            {"distill.terms": {"soft": {"loss": "kl", "wieght": 1.0}}},
            r"distill\.terms\.soft\.wieght is unknown; did you mean 'weight'",
        ),
        ({"distill.terms": {}}, r"distill\.terms is empty"),
        (
            {"distill.terms": {"soft": {"loss": "kl", "items": "warn"}}},
            r"distill\.terms\.soft\.items='warn' is unknown; did you mean 'warm'",
        ),
        (
            {
                "distill.terms": {
                    "soft": {"loss": "kl", "weight": {"start": 1, "schedule": "cosin"}}
                }
            },
            r"distill\.terms\.soft\.weight\.schedule='cosin' is unknown; did you mean 'cosine'",
        ),
        (
            {"distill.terms": {"soft": {"loss": "kl", "temperature": 0.0}}},
            r"distill\.terms\.soft\.temperature=0\.0 must be a number, more than 0",
        ),
        (
            {"teacher.clicks": {"loss": "kl"}},
            r"teacher\.clicks reads a teacher, and \w+ learns from clicks alone; use loss='ce'",
        ),
        ({"student.mf.dropout": 2.0}, r"student\.mf: dropout=2\.0 must be"),
        ({"student.optimizer.schedule": "cosin"}, r"schedule 'cosin' is unknown"),
        ({"student.optimizer.learning_rate": -1.0}, r"learning_rate=-1\.0 must be more than 0"),
        ({"eval.bootstrap": 0}, r"eval\.bootstrap=0 must be at least 1"),
        (
            {"student.name": "sasrec", "student.sasrec.history": 7},
            r"teacher\.model\.history >= student\.sasrec\.history \(now 6 and 7\)",
        ),
        (
            {"student.name": "sasrec", "teacher.popularity.enabled": True},
            r"use teacher\.popularity\.enabled=False",
        ),
    ],
)
def test_settings_of_later_stages_are_refused_before_anything_is_trained(
    world, tmp_path, refused, fields, pattern
):
    refused(config(world, **fields), tmp_path / "run", pattern)
    assert not (tmp_path / "run/teacher").exists()


@pytest.mark.slow
def test_labels_that_are_not_all_there_are_refused(world, tmp_path, refused):
    assert (
        pipeline.main(config(world, stages=("data", "control_teacher", "labels")), tmp_path / "run")
        == 0
    )
    file = tmp_path / "run/labels/control_teacher.seed0/rows-00000.safetensors"
    save_file({name: value[:-3].copy() for name, value in load_file(file).items()}, file)
    refused(
        config(world, stages=("data", "control")),
        tmp_path / "run",
        "hold 37 of 40 rows; delete the folder",
    )


# The teacher's weights


def test_bad_weights(world, tmp_path, refused):
    bert = toy.tiny_bert(tmp_path / "bert")
    c = config(world, stages=("data", "teacher"), **{"teacher.lm.weights": str(bert)})
    whole = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(
        c, tmp_path / "run", r"model\.safetensors .*truncated or damaged: copy or download it again"
    )
    (bert / "model.safetensors").unlink()
    refused(c, tmp_path / "run", r"model\.safetensors is missing")
    (bert / "model.safetensors").write_bytes(whole)
    settings = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(settings | {"hidden_size": 32}))
    refused(
        c, tmp_path / "run", r"does not fit config\.json; .*take both files from the same model"
    )
    (bert / "config.json").write_text(json.dumps(settings | {"model_type": "bloom"}))
    refused(
        c, tmp_path / "run", r"model_type 'bloom' is not supported .*teacher\.lm\.backend='hf_flax'"
    )


def test_weights_that_are_not_numbers_are_reported_as_damaged(world, tmp_path, refused):
    bert = toy.tiny_bert(tmp_path / "bert")
    tensors = load_file(bert / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    save_file(tensors, bert / "model.safetensors")
    c = config(world, stages=("data", "teacher"), **{"teacher.lm.weights": str(bert)})
    refused(
        c, tmp_path / "run", "vectors of 24 of 24 texts are not finite: its weights are damaged"
    )


# Training


@pytest.mark.parametrize("rate", [float("inf"), 1e38])
@pytest.mark.slow
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(world, tmp_path, refused, rate):
    # Warm-up makes the first step harmless: it is saved before the second one breaks the
    # parameters.
    fields = {
        "student.optimizer.learning_rate": rate,
        "student.optimizer.eval_every": 1,
        "student.optimizer.warmup_steps": 10 if rate == 1e38 else 0,
    }
    kept = "the checkpoint of step 1 is kept" if rate == 1e38 else "no checkpoint was written yet"
    refused(
        config(world, stages=SHORT, **fields),
        tmp_path / "run",
        f"student: the loss is not finite at .*{kept}",
    )
    saved = [
        path for path in (tmp_path / "run/student/checkpoints").iterdir() if path.name.isdigit()
    ]
    assert [path.name for path in saved] == (["1"] if rate == 1e38 else [])
    if not saved:  # without a checkpoint, other settings may follow
        assert pipeline.main(config(world, stages=SHORT), tmp_path / "run") == 0


# The workdir


def test_another_config_changes_nothing_in_the_workdir(world, copy, refused):
    before = files(copy)
    refused(
        config(world, stages=SHORT, **{"student.mf.dim": 4}),
        copy,
        r"another config \(student\.mf\.dim: 8 there, 4 here\)",
    )
    refused(
        config(world, stages=SHORT, **{"data.split": "ratio"}),
        copy,
        r"data\.split: leave_one_out there, ratio",
    )
    after = files(copy)
    changed = {
        str(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }
    assert changed <= {".lock", "manifest.json"}


def test_a_workdir_in_use(world, copy, refused):
    with locked(copy):
        before = files(copy)
        refused(config(world, stages=SHORT), copy, r"in use by another run \(process \d+\)")
        assert files(copy) == before


# All data files at once: Orbax may keep a small array in either of its two layers.
@pytest.mark.parametrize(
    "what", ["state/_METADATA", "state/**/d/*", "data/metadata", "metrics/metrics"]
)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_without_it(world, copy, refused, what):
    (copy / "student/result.json").unlink()  # as if it was cut off before the end
    newest = copy / "student/checkpoints/20"
    for path in newest.glob(what):
        os.truncate(path, path.stat().st_size // 2)
    pattern = (
        rf"{newest} is damaged .*; delete {copy / 'student'} .*, or {newest} alone to resume from"
        r" .* step 10$"
    )
    refused(config(world, stages=SHORT), copy, pattern)
    if what == "metrics/metrics":  # the cure works
        subprocess.run(["rm", "-r", newest], check=True)
        assert pipeline.main(config(world, stages=SHORT), copy) == 0


def test_a_trained_model_that_is_damaged_or_gone(world, copy, refused):
    c = config(world, stages=(*SHORT, "evaluate"))
    best = json.loads((copy / "student/result.json").read_text())["best_step"]
    state = copy / f"student/checkpoints/{best}/state"
    subprocess.run(["rm", "-r", state], check=True)
    refused(
        c,
        copy,
        rf"checkpoints/{best} is damaged \(.*\); delete {copy / 'student'} to train it anew$",
    )
    subprocess.run(["rm", "-r", state.parent], check=True)
    for stages in (
        SHORT,
        (*SHORT, "evaluate"),
    ):  # also where the student is already trained
        c.stages = stages
        refused(
            c, copy, rf"checkpoints/{best} is missing; delete {copy / 'student'} to train it anew$"
        )
    os.truncate(copy / "student/result.json", 9)
    refused(c, copy, r"student/result\.json cannot be read")
    os.truncate(copy / "student/identity.json", 9)
    refused(c, copy, r"student/identity\.json cannot be read .*delete .*student to train it anew")


@pytest.mark.parametrize("name", ["identity.json", "dataset.json", "interactions.parquet"])
def test_a_damaged_data_set(world, copy, refused, name):
    os.truncate(copy / "dataset" / name, 20)
    refused(config(world, stages=SHORT), copy, r"dataset.* can('t|not) be read .*delete")


# The disk


def test_every_kind_of_full_disk_is_known():
    assert disk_is_full(OSError(28, "No space left on device")) and disk_is_full(
        OSError(122, "Disk quota exceeded")
    )
    assert disk_is_full(
        ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device")
    )  # TensorStore
    assert disk_is_full(
        pl.exceptions.ComputeError("IO error: No space left on device (os error 28)")
    )
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("the thread failed") from error
    except RuntimeError as error:
        assert disk_is_full(error)
    assert not disk_is_full(OSError(13, "Permission denied")) and not disk_is_full(
        ValueError("shape")
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_that_cannot_grow(world, copy, refused):
    (copy / "student/result.json").unlink()
    (copy / "metrics.jsonl").unlink()
    (copy / "metrics.jsonl").symlink_to("/dev/full")
    subprocess.run(["rm", "-r", copy / "student"], check=True)
    refused(
        config(world, stages=SHORT),
        copy,
        r"the disk of .* is full; free some space and run the same command again",
    )


def test_a_folder_that_may_not_be_written_is_named(world, tmp_path, refused, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied", "run/dataset")

    # root, who runs tests in containers, may write anywhere
    monkeypatch.setattr(pipeline, "describe_data", forbidden)
    refused(
        config(world, stages=SHORT),
        tmp_path / "run",
        r"run/dataset: Permission denied; change its permissions",
    )


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


LAUNCH = """
import sys
sys.argv = ["launch.py", *sys.argv[1:]]
sys.path[:0] = {paths}
from helpers import runs
from kd_jax.core import process
from kd_jax.experiment import pipeline
from pathlib import Path
process.quiet()
c = runs.config(Path(sys.argv[1]), stages=("data", "student"), **{fields})
sys.exit(pipeline.main(c, Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(world, tmp_path, disk):
    """The run has its own process, as for a user.

    So the output of library threads is checked as well.
    """
    fields = {
        "student.optimizer.steps": 60,
        "student.optimizer.eval_every": 5,
        "student.optimizer.patience": 100,
    }
    whole, run = tmp_path / "whole", disk / "run"
    assert pipeline.main(config(world, stages=SHORT, **fields), whole) == 0
    assert pipeline.main(config(world, stages=("data",), **fields), run) == 0
    space = os.statvfs(disk)
    free = space.f_bavail * space.f_bsize
    (disk / "ballast").write_bytes(b"x" * (free - 200_000))  # room for two checkpoints and a half
    program = LAUNCH.format(paths=[str(ROOT), str(ROOT / "tests")], fields=fields)
    done = subprocess.run(
        [sys.executable, "-c", program, str(world), str(run)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert done.returncode == 2, done.stderr
    message = (
        f"error: the disk of {run} is full; free some space and run the same command again: it"
        " resumes"
    )
    assert done.stderr.splitlines() == [message]
    assert (run / "student/checkpoints").exists() and not (run / "student/result.json").exists()
    (disk / "ballast").unlink()
    assert pipeline.main(config(world, stages=SHORT, **fields), run) == 0
    results = [
        json.loads((workdir / "student/result.json").read_text()) for workdir in (whole, run)
    ]
    assert [results[0][key] for key in ("best_step", "best_score", "steps")] == [
        results[1][key] for key in ("best_step", "best_score", "steps")
    ]


def test_a_read_only_workdir(world, disk, refused):
    assert pipeline.main(config(world, stages=("data",)), disk / "run") == 0
    before = files(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused(
        config(world, stages=SHORT),
        disk / "run",
        r"--workdir=.* cannot be used as a folder \(Read-only file system\)",
    )
    refused(
        config(world, stages=SHORT),
        disk / "new",
        r"--workdir=.* cannot be used as a folder \(Read-only file system\)",
    )
    assert files(disk) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"stages": ("data", "student", "distilled")},
            r"labels/teacher.seed0 is missing .*; run the stage 'labels' first",
        ),
        (
            {"stages": ("data", "teacher"), "teacher.lm.train": "top_n", "teacher.lm.top_n": 9},
            r"top_n=9: .* has 2 layers",
        ),
        (
            {"student.name": "sasrec", "student.sasrec.history": 99},
            r"as much: use teacher.model.history >= student.sasrec.history \(now \d+ and 99\)$",
        ),
        *(
            (
                {"student.name": name, "student.optimizer.vector_norm": 2.0},
                rf"vector_norm=2.0 .* student.name='{name}' with task='rank'",
            )
            for name in ("mlp", "sasrec", "two_tower")
        ),
        (
            {"student.optimizer.vector_norm": 2.0, "student.optimizer.weight_decay": 0.1},
            r"weight_decay=0.1 shortens the vectors",
        ),
        ({"mesh.model": 0}, r"mesh.data=1, mesh.model=0 must be at least 1 each"),
        (
            {
                "stages": ("data", "teacher"),
                "teacher.lm.train": "lora",
                "teacher.model.hard_negatives": 999,
            },
            r"hard_negatives=999 must be .* fewer than the \d+ items",
        ),
    ],
    ids=lambda value: "",
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(
    world, tmp_path, refused, fields, message
):
    refused(config(world, **fields), tmp_path / "run", message)
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data.split": "temporal"},
            r"; there is no timestamp \(data.files.columns.timestamp\): rows are taken to be in"
            r" the order of time",
        ),
        (
            {"task": "rate", "data.split": "leave_one_out"},
            r"ratings that differ; here all are 1, .* data.files.columns.rating",
        ),
    ],
    ids=lambda value: "",
)
def test_a_column_that_is_not_there_is_named(world, tmp_path, refused, fields, message):
    by_user = sorted((line.split(",")[:2] for line in rows(world)), key=lambda row: row[0])
    (tmp_path / "pairs.csv").write_text("user,item\n" + "\n".join(map(",".join, by_user)) + "\n")
    refused(
        config(world, **{"data.files.path": str(tmp_path / "pairs.csv"), **fields}),
        tmp_path / "run",
        message,
    )


def test_an_export_that_cannot_be_written_is_refused_before_training(
    world, tmp_path, refused, monkeypatch
):
    stages = (*SHORT, "export")
    refused(
        config(world, stages=stages, **{"export.runtime.bits": 3}),
        tmp_path / "run",
        r"export.runtime.bits=3 is unknown; known: 32, 16, 8, 4, 1",
    )
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused(
        config(world, stages=stages, **{"export.formats": ("runtime", "ann")}),
        tmp_path / "run",
        r"'ann' needs the package faiss-cpu; pip install 'kd_jax\[ann\]'",
    )
    assert not (tmp_path / "run/student").exists()
