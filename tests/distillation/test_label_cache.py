"""Teachers from outside: lists and other workdirs, several at once, and the labels' verifier."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, softmax

from helpers import toy
from helpers.runs import config, run
from helpers.terms import loss_of, term
from kd_jax import labels as labels_command
from kd_jax.core.lookup import Lookup
from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.types import PAD
from kd_jax.data import lists
from kd_jax.distillation import label_cache, labellers
from kd_jax.distillation.objective import StepInputs
from kd_jax.distillation.teachers import cached_teacher
from kd_jax.evaluation.tasks import Rank
from kd_jax.experiment import pipeline, roles
from kd_jax.losses import sampled
from kd_jax.losses.dense import listed
from kd_jax.losses.softmax import KL
from kd_jax.models.scorer import Frozen, split
from kd_jax.models.students.base import UserSpec
from kd_jax.models.students.mf import MatrixFactorization
from kd_jax.report.page import render
from kd_jax.training.step import StepSpec, gathered

B, P, N, D, K = 6, 2, 40, 5, 4
RNG = np.random.default_rng(0)
WARM = RNG.random(N) < 0.7
START = jnp.zeros(())


def factors(width=D):
    parts = RNG.normal(size=(B, P, width)), RNG.normal(size=(N, width)), RNG.normal(size=N)
    return Factors(*(jnp.asarray(part, jnp.float32) for part in parts))


def list_of(size=K):
    """Listed items of every position, the last position of the last row without any."""
    items = (
        np.stack([RNG.permutation(N)[:size] for _ in range(B * P)])
        .reshape(B, P, size)
        .astype(np.int32)
    )
    items[-1, -1], items[0, 0, 2:] = PAD, PAD
    return Listed(jnp.asarray(items), jnp.asarray(RNG.normal(size=items.shape), jnp.float32))


STUDENT, OWN, BIG, LIST = factors(), factors(), factors(D + 2), list_of()
TRUST = jnp.asarray(RNG.random((B, P)), jnp.float32)
BATCH = {
    "targets": jnp.asarray(RNG.integers(0, N, (B, P, 1)), jnp.int32),
    "target_weights": jnp.ones((B, P, 1)),
    "weights": jnp.asarray(RNG.random((B, P)), jnp.float32),
    "user": jnp.arange(B),
}
TEACHERS = {
    "": TeacherScores(OWN),
    "big": TeacherScores(BIG, 1 - TRUST),
    "llm": TeacherScores(LIST, TRUST),
}


def by_hand(term, logits, trust):
    """KL or cross-entropy of the lists in LIST against student logits [B, P, N], in numpy.

    The mean is summed one position at a time.
    """
    total, t = 0.0, term.temperature.start
    for b in range(B):
        for p in range(P):
            listed = [
                (i, x) for i, x in zip(LIST.items[b, p], LIST.logits[b, p], strict=True) if i != PAD
            ]
            listed = [(int(i), float(x)) for i, x in listed if WARM[i] or not term.warm]
            if not listed:
                continue
            items, values = map(np.array, zip(*listed, strict=True))
            target = softmax(values / t)
            among = np.where(WARM | (not term.warm), logits[b, p] / t, -np.inf)
            loss = -np.sum(target * log_softmax(among)[items])
            if isinstance(term.loss, KL):
                loss += np.sum(target * np.log(target))
            total += t**2 * loss * float(BATCH["weights"][b, p]) * trust[b, p]
    return total / float(BATCH["weights"].sum())


TERMS = tuple(
    term(n, 0.7, t, items=i, teacher="llm", name=f"{n}-{t}")
    for n in ("kl", "soft_ce")
    for t, i in ((1.0, "all"), (2.5, "warm"))
)


@pytest.mark.parametrize("one", TERMS, ids=lambda one: one.name)
@pytest.mark.parametrize("dense", [False, True])
def test_the_loss_of_a_list_is_that_of_the_definition(one, dense):
    logits = STUDENT.dense()
    total, means = loss_of(
        (one,), logits if dense else STUDENT, BATCH, TEACHERS, jnp.asarray(WARM), START
    )  # fmt: skip
    wanted = by_hand(one, np.asarray(logits, np.float64), np.asarray(TRUST))
    assert float(means[one.name]) == pytest.approx(wanted, rel=1e-5)
    assert float(total) == pytest.approx(0.7 * wanted, rel=1e-5)


def test_the_gradient_of_a_list_is_the_same_from_factors_and_from_logits():
    objective = (term("ce"), *TERMS)
    value = jax.jit(
        lambda scores: loss_of(objective, scores, BATCH, TEACHERS, jnp.asarray(WARM), START)[0]
    )
    from_logits = jax.grad(lambda s: value(s.dense()))(STUDENT)
    for one, other in zip(
        jax.tree.leaves(jax.grad(value)(STUDENT)), jax.tree.leaves(from_logits), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_a_list_of_all_items_is_the_teacher_itself():
    everything = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (B, P, N))
    whole = {"": TeacherScores(OWN), "list": TeacherScores(Listed(everything, OWN.dense()))}
    for name in ("kl", "soft_ce"):
        terms = [term(name, 1.0, 2.0, items="warm", teacher=teacher) for teacher in whole]
        one, other = (
            loss_of((t,), STUDENT, BATCH, whole, jnp.asarray(WARM), START)[0] for t in terms
        )
        assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_a_list_on_a_sample_of_every_item_is_the_list_on_the_catalogue():
    objective = tuple(
        dataclasses.replace(t, items="sampled_warm" if t.warm else "sampled", negatives=N)
        for t in TERMS
    )
    once = sampled.Draws(jnp.arange(N, dtype=jnp.int32), jnp.zeros(N))
    full, _ = loss_of(TERMS, STUDENT, BATCH, TEACHERS, jnp.asarray(WARM), START)
    part, _ = loss_of(objective, STUDENT, BATCH, TEACHERS, jnp.asarray(WARM), START, once)
    assert float(part) == pytest.approx(float(full), rel=1e-5)


def test_several_teachers_are_the_sum_of_each_alone():
    objective = (
        term("ce", 0.5, items="warm"),
        term("kl", 2.0, 1.5),
        term("kl", 1.0, teacher="big"),
        *TERMS[:2],
        term("soft_ce", 0.3, 2.0, items="warm", teacher="big"),
    )
    total, means = loss_of(objective, STUDENT, BATCH, TEACHERS, jnp.asarray(WARM), START)
    alone = [
        loss_of((t,), STUDENT, BATCH, {t.teacher: TEACHERS[t.teacher]}, jnp.asarray(WARM), START)
        for t in objective
    ]
    assert float(total) == pytest.approx(float(sum(value for value, _ in alone)), rel=1e-5)
    assert means.keys() == {"ce", "kl", "kl:big", "kl-1.0", "kl-2.5", "soft_ce:big"}
    assert float(means["kl"]) == pytest.approx(float(alone[1][1]["kl"]), rel=1e-5)
    dense, _ = loss_of(objective, STUDENT.dense(), BATCH, TEACHERS, jnp.asarray(WARM), START)
    assert float(total) == pytest.approx(float(dense), rel=1e-5)


def test_an_example_of_weight_zero_adds_nothing_and_lifts_no_other():
    one = (term("kl", teacher="llm"),)
    some = TRUST.at[:3].set(0.0)
    parts = [
        loss_of(one, STUDENT, BATCH, {"llm": TeacherScores(LIST, w)}, None, START)[0]
        for w in (TRUST, some, TRUST - some)
    ]
    assert float(parts[0]) == pytest.approx(float(parts[1] + parts[2]), rel=1e-5)
    slope = jax.grad(
        lambda s: loss_of(one, s, BATCH, {"llm": TeacherScores(LIST, some)}, None, START)[0]
    )(STUDENT)
    assert not np.any(slope.contexts[:3]) and np.any(slope.contexts[3:])


def test_certainty_is_one_less_the_share_of_the_largest_entropy():
    logits = RNG.normal(size=(3, 7)).astype(np.float32)
    p = softmax(logits, -1)
    np.testing.assert_allclose(
        labellers.certainty(logits), 1 + (p * np.log(p)).sum(-1) / np.log(7), rtol=1e-4
    )
    assert labellers.certainty(jnp.zeros((1, 7))) == pytest.approx(0.0, abs=1e-6)


# reading


def jsonl(path, *rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


@pytest.fixture(scope="module")
def data():
    return toy.dataset()


def test_ids_come_before_titles_that_differ_in_case_or_spaces(data):
    lookup = Lookup(data.user_ids.to_list(), data.item_ids.to_list(), data.titles)
    assert data.titles[13] == "film 1 3"
    for name in ("film 1 3", "  FILM 1  3", 513, "513"):
        assert lookup.items(name) == [13], name
    assert lookup.items("film 9 9") == [] and lookup.items(13) == []
    assert (lookup.user(100), lookup.user("101"), lookup.user(99)) == (0, 1, None)


def test_every_kind_of_list_is_a_distribution_and_what_is_not_found_is_counted(data, tmp_path):
    path = jsonl(
        tmp_path / "l.jsonl",
        {"user": 100, "items": [500, "nobody", 502], "weight": 0.5},
        "",
        {"user": "101", "items": [503, 504, 503], "scores": [2.0, -1.0, 9.0], "model": "x"},
        {"history": [501, "Film 2"], "items": [505, 506, 507], "probabilities": [0.6, 0.0, 0.2]},
        {"user": 5, "items": [500]},
    )
    found = lists.read(path, data, rank_decay=2.0, max_unmatched=0.2)
    np.testing.assert_array_equal(found.items, [[PAD, PAD], [0, 2], [3, 4], [5, 7]])
    assert found.weights.tolist() == [0.0, 0.5, 1.0, 1.0] and found.history == 2
    np.testing.assert_array_equal(found.by_user[:4], [1, 2, 0, 0])
    p, _ = listed(found.items, found.logits)
    np.testing.assert_allclose(
        p[1:], [softmax([0, -2 / 2.0]), softmax([2.0, -1.0]), [0.75, 0.25]], rtol=1e-5
    )
    warmer, _ = listed(found.items[3], found.logits[3], 2.0)
    np.testing.assert_allclose(warmer, np.sqrt([3, 1]) / np.sqrt([3, 1]).sum(), rtol=1e-5)
    notes = " | ".join(found.notes)
    assert "3 lists of up to 2 items" in notes and "2 of 15 users, items and titles" in notes
    assert "'nobody'" in notes and "user 5" in notes and "1 lines are left out" in notes
    assert "1 items are in their list twice" in notes and "fields, ignored: model" in notes
    toy.refused(
        lambda: lists.read(path, data, max_unmatched=0.1),
        "l.jsonl:1: 2 of 15",
        "distill.max_unmatched",
    )


def test_a_list_belongs_to_the_positions_that_end_with_its_history(data, tmp_path):
    path = jsonl(
        tmp_path / "l.jsonl",
        {"history": [502], "items": [510]},
        {"history": [501, 502], "items": [511]},
        {"user": 101, "items": [512]},
    )
    found = lists.read(path, data)
    history = np.array([[PAD, 1, 2, 3], [2, 3, 4, 2], [PAD, PAD, 1, 2]], np.int32)
    user = np.array([0, 1, 2])
    np.testing.assert_array_equal(
        found.place(user, history, "all"), [[0, 0, 2, 0], [1, 0, 0, 3], [0, 0, 0, 2]]
    )
    np.testing.assert_array_equal(found.place(user, history, "user"), [[0], [3], [2]])
    np.testing.assert_array_equal(found.place(user, history[:, -1:], "user"), [[0], [3], [1]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{user: 1}", "l.jsonl:2: no JSON"),
        ("[1, 2]", "l.jsonl:2: '[1, 2]' is no object"),
        ({"items": [500]}, "l.jsonl:2: give either 'user' or 'history'"),
        ({"user": 100, "history": [500], "items": [500]}, "l.jsonl:2: give either"),
        ({"user": 101}, "l.jsonl:2: 'items' is None; it must be a list"),
        ({"user": 101, "items": []}, "l.jsonl:2: 'items' is []"),
        ({"user": 101, "items": [[500]]}, "l.jsonl:2: 'items' is [[500]]"),
        (
            {"user": 101, "items": [500, 501], "scores": [1.0]},
            "l.jsonl:2: 'scores' has 1 values for 2 items",
        ),
        (
            {"user": 101, "items": [500], "scores": [float("nan")]},
            "l.jsonl:2: nan among 'scores' must be a finite number",
        ),
        (
            {"user": 101, "items": [500], "probabilities": [-0.1]},
            "l.jsonl:2: -0.1 among 'probabilities'",
        ),
        (
            {"user": 101, "items": [500], "probabilities": [0]},
            "l.jsonl:2: all 'probabilities' are 0",
        ),
        (
            {"user": 101, "items": [500], "scores": [1], "probabilities": [1]},
            "l.jsonl:2: give 'scores' or 'probabilities'",
        ),
        ({"user": 101, "items": [500], "weight": -1}, "l.jsonl:2: 'weight' is -1"),
        ({"user": 100, "items": [500]}, "l.jsonl:2: user 100 has a list already, in line 1"),
        (
            {"user": 101, "items": ["a", "b", 1, 2, 3, 4]},
            "l.jsonl:2: 6 of 9 users, items and titles",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_line_is_refused_with_its_number(data, tmp_path, row, message):
    path = jsonl(tmp_path / "l.jsonl", {"user": 100, "items": [500]}, row)
    toy.refused(lambda: lists.read(path, data), message)


def test_all_bad_lines_are_named_at_once(data, tmp_path):
    good, bad = {"user": 100, "items": [500]}, '{"user": 101'
    path = jsonl(
        tmp_path / "l.jsonl",
        bad,
        good,
        {"user": 102},
        *[bad] * 5,
        {"user": 103, "items": [501]},
        good,
    )
    message = (
        "l.jsonl:1: no JSON (",
        "; line 3: 'items' is None; it must be",
        "; and 3 more, in lines 7, 8, 10",
    )
    toy.refused(lambda: lists.read(path, data), *message)
    path = jsonl(
        tmp_path / "l.jsonl",
        good,
        {"user": 101, "items": ["b", 9, "b"]},
        {"user": 9, "items": [501, "b"]},
    )
    toy.refused(
        lambda: lists.read(path, data),
        "l.jsonl:2: 5 of 9",
        "'b' in line 2, 3 times in all; 9 in line 2; user 9 in line 3",
    )


def test_an_empty_file_is_refused(data, tmp_path):
    toy.refused(lambda: lists.read(jsonl(tmp_path / "l.jsonl"), data), "l.jsonl holds no list")


# whole runs

SOURCES = ("data", "labels", "control", "distilled")
TEACHING = {
    "clicks": {"loss": "ce", "items": "warm"},
    "lists": {"loss": "kl", "weight": 0.5, "temperature": 2.0, "teacher": "llm"},
    "wide": {"loss": "kl", "items": "warm", "teacher": "big"},
}
LISTS = {"lists": TEACHING["lists"]}


@pytest.fixture(scope="module")
def big(world, tmp_path_factory):
    """A workdir with a wider student."""
    workdir = tmp_path_factory.mktemp("big") / "run"
    run(config(world, stages=("data", "student"), **{"student.mf.dim": 12}), workdir)
    return workdir


def taught(world, big, path, **fields):
    sources = {"llm": {"path": str(path)}, "big": {"path": str(big), "confidence": "entropy"}}
    return config(
        world, **{"stages": SOURCES, "distill.sources": sources, "distill.terms": TEACHING} | fields
    )


@pytest.fixture(scope="module")
def finished(world, big, tmp_path_factory):
    """A run that learns from lists and from another workdir, without a teacher of its own.

    The lists are those of half of the users.
    """
    folder = tmp_path_factory.mktemp("taught")
    path = jsonl(
        folder / "l.jsonl",
        *({"user": u, "items": [500 + u % 24, f"film {u % 10}"]} for u in range(100, 120)),
    )
    run(taught(world, big, path), folder / "run")
    return folder / "run", path


def losses_of(workdir):
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        found.setdefault(event["model"], set()).update(event.get("terms", ()))
    return found


@pytest.mark.slow
def test_a_run_learns_from_lists_and_from_another_workdir(finished, world, big, capsys):
    workdir, path = finished
    logged = losses_of(workdir)
    assert logged["distilled"] == {"clicks", "lists", "wide"}
    assert logged["control"] == {"clicks", "wide"}, "lists may come from a language model"
    assert not (workdir / "teacher").exists()
    kinds = {one.parent.name for one in (workdir / "labels").glob("*/*/done.json")}
    assert len(list((workdir / "labels").glob("*/*/done.json"))) == 2 and len(kinds) == 2
    found = label_cache.read(next((workdir / "labels/llm").iterdir()))
    assert np.count_nonzero(found["list"]) == 20
    assert 0 < label_cache.read(next((workdir / "labels/big").iterdir()))["weights"].min() < 1
    capsys.readouterr()
    run(taught(world, big, path), workdir)
    assert "labels:" not in capsys.readouterr().out, "nothing is parsed again"


@pytest.mark.slow
def test_the_verifier_recomputes_labels_and_finds_one_that_was_changed(finished, tmp_path, capsys):
    workdir, _ = finished
    assert labels_command.main(["--workdir", str(workdir), "--rows", "30"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("30 rows again") == 2 and "bytes each, read in" in printed
    (file,) = (workdir / "labels/big").glob("*/rows-*.safetensors")
    whole = file.read_bytes()
    rows = load_file(file)
    save_file(rows | {"contexts": rows["contexts"] * 1.01}, file)
    assert labels_command.main(["--workdir", str(workdir)]) == 1
    assert "labels/big" in (printed := capsys.readouterr().out) and printed.count("(WRONG)") == 1
    save_file(rows | {"contexts": rows["contexts"] * np.nan}, file)
    assert labels_command.main(["--workdir", str(workdir)]) == 1
    assert "differ by at most nan" in capsys.readouterr().out
    file.write_bytes(whole)
    assert labels_command.main(["--workdir", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_mean_of_two_sources_is_a_teacher(world, big, tmp_path):
    """A source named twice is its own mean."""

    def last(teacher):
        sources = {name: {"path": str(big)} for name in ("big", "twin")}
        terms = {"clicks": TEACHING["clicks"], "soft": {"loss": "kl", "teacher": teacher}}
        fields = {"distill.sources": sources, "distill.terms": terms}
        stages = ("data", "labels", "distilled")
        run(config(world, stages=stages, **fields), tmp_path / teacher)
        lines = (tmp_path / teacher / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["terms"] for line in lines if "terms" in line]

    one, mean = last("big"), last("big+twin")
    assert len(one) == len(mean) > 1 and one[-1]["soft"] > 0
    for here, there in zip(one, mean, strict=True):
        assert here == pytest.approx(there, rel=1e-3)


@pytest.mark.slow
def test_the_plain_students_of_all_seeds_are_a_teacher(world, tmp_path, capsys):
    """The same as when another run has them as sources."""
    terms = {"clicks": TEACHING["clicks"], "soft": {"loss": "kl", "teacher": "student"}}
    both = {"seeds": (0, 1), "distill.teachers": "all", "distill.terms": terms, "mesh.model": 2}
    stages = ("data", "student", "labels", "control", "distilled", "evaluate")
    run(config(world, stages=stages, **both), tmp_path / "one")
    folders = [tmp_path / "one" / name for name in ("student", "student.seed1")]
    sources = {f"s{n}": {"path": str(folder)} for n, folder in enumerate(folders)}
    terms = terms | {"soft": {"loss": "kl", "teacher": "s0+s1"}}
    outside = {"distill.sources": sources, "distill.terms": terms, "seeds": (0, 1)}
    outside["mesh.model"] = 2
    run(config(world, stages=("data", "labels", "distilled"), **outside), tmp_path / "two")

    def last(workdir, model="distilled"):
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [line["terms"] for line in lines if "terms" in line and line["model"] == model]

    assert last(tmp_path / "one") == last(tmp_path / "two")
    assert last(tmp_path / "one") == last(tmp_path / "one", "control"), "no text is read"
    assert labels_command.main(["--workdir", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.count("rows again") == 4
    metrics = json.loads((tmp_path / "one/report/metrics.json").read_text())
    assert np.isfinite(metrics["gain"]["ndcg@10"]["relative"])
    (row,) = [row for row in metrics["models"] if row["name"] == "ensemble"]
    alone = [row for row in metrics["models"] if row["name"] == "student"]
    assert row["params"] == sum(one["params"] for one in alone) and row["test"]["ndcg@10"] > 0
    assert metrics["gain"]["ndcg@10"]["transfer"]["lead"] == pytest.approx(
        row["test"]["ndcg@10"] - np.mean([one["test"]["ndcg@10"] for one in alone]), abs=1e-6
    )
    assert metrics["descriptions"]["distilled"] == (
        "learns from the soft labels of the mean of the plain students of all seeds"
    )
    assert metrics["gain"]["ndcg@10"]["transfer"]["taught_by"] == "ensemble"
    page = render(tmp_path / "one", roles.legend())
    assert "the ensemble’s lead over the plain student" in page and "teacher’s lead" not in page
    assert ("Over control: the share" in page) == (
        "control" in {m["name"] for m in metrics["models"]}
    )

    early = ("data", "labels", "distilled")
    assert pipeline.main(config(world, stages=early, **both), tmp_path / "three") == 2
    assert "run the stage 'student' first" in capsys.readouterr().err


def test_lists_alone_are_labelled_and_verified_without_any_student(world, tmp_path, capsys):
    path = jsonl(
        tmp_path / "l.jsonl", {"user": 100, "items": [500]}, {"history": [501, 502], "items": [503]}
    )
    fields = {"distill.sources": {"llm": {"path": str(path)}}, "distill.terms": LISTS}
    run(config(world, stages=("data", "labels"), **fields), tmp_path / "run")
    assert "1 of 2 lists are used, the others fit no training example" in capsys.readouterr().out
    assert labels_command.main(["--workdir", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("rows again") == 1


@pytest.mark.slow
def test_unread_sources_and_those_that_the_control_lacks_are_printed(world, big, tmp_path, capsys):
    path = jsonl(tmp_path / "l.jsonl", {"user": 100, "items": [500]})
    fields = {
        "distill.terms": LISTS | {"clicks": TEACHING["clicks"]},
        "student.optimizer.steps": 4,
        "student.optimizer.eval_every": 2,
        "stages": (*SOURCES, "student"),
    }
    c = taught(world, big, path, **fields)
    c.stages = (*c.stages, "evaluate", "report")
    run(c, tmp_path / "run")
    printed = " ".join(capsys.readouterr().out.split())
    assert "no term of distill.terms reads big" in printed
    assert (
        "control: without llm, which may hold a language model; it learns from clicks alone"
        in printed
    )
    assert "Without a control distilled from an ID-only teacher" in printed
    gain = json.loads((tmp_path / "run/report/metrics.json").read_text())["gain"]["ndcg@10"]
    assert "distilled" in gain and "lm_share" not in gain


@pytest.mark.slow
def test_other_lists_are_another_run(finished, world, big, capsys):
    workdir, path = finished
    before = path.read_text()
    path.write_text(before.replace("film 1", "film 2"))
    assert pipeline.main(taught(world, big, path), workdir) == 2
    assert "distill.sources.llm.content" in capsys.readouterr().err
    path.write_text(before)


def test_a_list_after_a_history_is_the_label_of_that_position_of_a_sequence(data, tmp_path):
    indptr, items = data.targets(0)
    one = [int(500 + item) for item in items[indptr[3] + 4 : indptr[3] + 7]]
    path = jsonl(
        tmp_path / "l.jsonl",
        {"history": one, "items": [500, 501]},
        {"user": 110, "items": [505], "weight": 3},
    )
    examples = Rank(data, "ndcg@10", ("ndcg",), (10,), 16).examples("all", history=6)
    labeller = labellers.of_lists(
        lists.read(path, data), data.num_items, example_kind="all", confidence="entropy"
    )
    label_cache.write(tmp_path / "labels", labeller, examples, batch_size=16)
    found = label_cache.read(tmp_path / "labels")
    assert found["position"].shape == (40, 6) and found["list"][found["position"][10, -1]] == 2
    np.testing.assert_array_equal(
        found["list"][found["position"][3]], [0, 0, 0, 1, 0, 0]
    )  # the window starts at the user's fourth item
    p = softmax([0, -0.1])
    np.testing.assert_allclose(
        found["list_weights"], [0, 1 + np.sum(p * np.log(p)) / np.log(24), 3.0], rtol=1e-5
    )
    teacher = cached_teacher(tmp_path / "labels")
    labels = teacher.scores(teacher.arrays, examples.gather(np.array([10, 3])))
    assert labels.scores.items.shape == (2, 6, 2) and np.count_nonzero(labels.weights) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"distill.sources": {"llm": {"path": "no.jsonl"}}},
            "distill.sources.llm: no.jsonl not found",
        ),
        ({"distill.sources": {"llm": {}}}, "distill.sources.llm.path is missing"),
        (
            {"distill.sources": {"llm": {"pth": "x"}}},
            "distill.sources.llm: no field 'pth'; did you mean 'path'",
        ),
        ({"distill.sources": {"teacher": {"path": "LISTS"}}}, "'teacher' cannot be a name"),
        (
            {"distill.sources": {"llm": {"path": "LISTS", "confidence": "sure"}}},
            "llm.confidence='sure' is unknown",
        ),
        (
            {"distill.sources": {"llm": {"path": "LISTS", "confidence": "target"}}},
            "distill.sources.llm.confidence='target' reads the probability of every target",
        ),
        ({"distill.debias": 1.5}, "distill.debias=1.5 must be from 0 to 1"),
        ({"distill.debias": 0.5}, "distill.debias=0.5: the teacher 'llm' lists items"),
        ({"distill.sources": {"llm": {"path": "FOLDER"}}}, "holds no model of a kd_jax workdir"),
        (
            {"distill.sources": {"big": {"path": "BIG"}}},
            "distill.terms.lists.teacher='llm': 'llm' is not in distill.sources; known: big",
        ),
        (
            {"distill.terms": {"soft": {"loss": "kl", "teacher": "big+llm"}}},
            "is a mean of logits, which 'big' cannot be part of",
        ),
        (
            {"distill.terms": {"clicks": {"loss": "ce", "teacher": "llm"}}},
            "this loss learns from clicks and reads no teacher",
        ),
        ({"distill.terms": LISTS}, "none is left for the control"),
        ({"data.min_rating": 3.0, "data.min_interactions": 1}, "was trained on other data"),
        ({"student.name": "sasrec"}, "('mf') does not read histories item by item"),
        (
            {"task": "rate", "distill.terms": LISTS | {"clicks": TEACHING["clicks"]}},
            "lists rank items",
        ),
        (
            {"tuned.distilled": {"distill": {"sources": {"x": {"path": ""}}}}},
            "distill.sources is the same for all models",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_source_that_cannot_teach_is_refused_before_anything_is_trained(
    world, big, tmp_path, capsys, fields, message
):
    path = jsonl(tmp_path / "l.jsonl", {"user": 100, "items": [500]})
    names = {"LISTS": str(path), "BIG": str(big), "FOLDER": str(tmp_path)}
    if "distill.sources" in fields:
        fields = fields | {
            "distill.sources": {
                name: {key: names.get(value, value) for key, value in one.items()}
                for name, one in fields["distill.sources"].items()
            }
        }
    capsys.readouterr()
    assert pipeline.main(taught(world, big, path, **fields), tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1, printed
    assert not (tmp_path / "run/labels").exists()


def test_gathered_rows_hold_the_listed_items():
    spec = UserSpec(B, N, 0, np.zeros(N, np.float32), WARM, dim=D)
    model = MatrixFactorization(spec, {}, rngs=nnx.Rngs(0))
    model.proposal = Frozen(jnp.asarray(sampled.proposal(np.ones(N), 0.0)))
    objective = (
        term("ce", items="sampled", negatives=8, top=2),
        term("kl", items="sampled", negatives=8, top=2, teacher="llm"),
    )
    teachers = {"llm": TeacherScores(LIST), "big": TeacherScores(BIG)}
    spec = StepSpec(split(model)[0], objective, optax.identity(), 1)
    inputs = StepInputs(BATCH, teachers)
    given = jax.jit(lambda key: gathered(spec, model, inputs, key))(jax.random.key(0))
    places = np.asarray(given.inputs.teachers["llm"].scores.items)
    there = np.asarray(LIST.items) != PAD
    np.testing.assert_array_equal(
        np.asarray(given.rows["item"])[places[there]], np.asarray(LIST.items)[there]
    )
    assert np.all(places[~there] == PAD)
    np.testing.assert_allclose(
        given.inputs.teachers["big"].scores.vectors[places[0, 0, 0]],
        BIG.vectors[LIST.items[0, 0, 0]],
    )
