"""Every entry of ``LOSSES``: its definition, gradients, masks, types and all engines."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from helpers.candidate_oracles import CANDIDATES, HYPER, STEPWISE, Row, log_softmax
from helpers.marks import first_fast
from helpers.terms import loss_of, term
from helpers.toy import refused
from kd_jax.core.scores import Factors, Listed, TeacherScores
from kd_jax.core.tiling import Axes
from kd_jax.core.types import PAD
from kd_jax.devices import sharding
from kd_jax.distillation.objective import auxiliary_params, chosen_items
from kd_jax.distillation.term import Limits, check
from kd_jax.losses import LOSSES
from kd_jax.losses.base import CandidateLoss, OnPolicyLoss, SoftmaxLoss, VectorLoss
from kd_jax.losses.candidates import top_items
from kd_jax.losses.sampled import Draws
from kd_jax.losses.sharded import engine_for
from kd_jax.losses.streamed import local

B, P, N, D = 8, 3, 301, 6
KEY = jax.random.key(0)


def huber(x):
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def rkd(s, t, _, distance=1.0, angle=2.0):
    """Relational distillation by loops; every vector has the same value, the whole loss."""
    count = len(s)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    triplets = [(i, j, k) for i, j in pairs for k in range(count) if k not in (i, j)]
    lengths, cosines = [], []
    for x in (np.asarray(s, np.float64), np.asarray(t, np.float64)):
        found = np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
        lengths.append(found / found.mean())

        def unit(i, j, x=x):
            gap = x[i] - x[j]
            return gap / max(np.linalg.norm(gap), 1e-12)

        cosines.append(np.array([unit(i, j) @ unit(k, j) for i, j, k in triplets]))
    total = distance * np.mean([huber(x) for x in lengths[0] - lengths[1]])
    total += angle * np.mean([huber(x) for x in cosines[0] - cosines[1]])
    return np.full(count, total)


def ftd(s, t, _):
    cosines = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t)]
    gap = cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T
    off = ~np.eye(len(s), dtype=bool)
    return np.full(len(s), np.mean(gap[off] ** 2))


def htd(s, t, p, alpha=0.5, tau=0.1):
    """Hierarchical topology distillation by loops; the whole loss for every vector."""
    s, t = np.asarray(s, np.float64), np.asarray(t, np.float64)
    p, places = {k: np.asarray(v, np.float64) for k, v in p.items()}, p["places"]
    groups, drawn = len(p["group_bias"]), HYPER["htd"]["drawn"]
    noise = jax.random.gumbel(jax.random.fold_in(KEY, 0), (drawn, groups))
    noise = np.asarray(noise, np.float64)[np.asarray(places)]

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    group, rebuilt = [], []
    for x, y, g in zip(s, t, noise, strict=True):
        chance = np.exp(log_softmax(y @ p["group"] + p["group_bias"]))
        group.append(int(np.argmax(chance)))
        z = np.exp(log_softmax((np.log(chance) + g) / tau))
        found = np.zeros(len(y))
        for k in range(groups):
            hidden = np.maximum(x @ p["up"][k] + p["up_bias"][k], 0)
            found += z[k] * (hidden @ p["down"][k] + p["down_bias"][k])
        rebuilt.append(np.mean((found - y) ** 2))
    pairs = [
        (cos(s[i], s[j]) - cos(t[i], t[j])) ** 2
        for i in range(len(s))
        for j in range(len(s))
        if i != j and group[i] == group[j]
    ]
    between = []
    for k in set(group):
        inside = np.array(group) == k
        means = s[inside].mean(0), t[inside].mean(0)
        between += [(cos(means[0], x) - cos(means[1], y)) ** 2 for x, y in zip(s, t, strict=True)]
    assert len(set(group)) > 1 and pairs
    total = alpha * (np.mean(pairs) + np.mean(between)) + (1 - alpha) * np.mean(rebuilt)
    return np.full(len(s), total)


def mixture(s, t):
    return np.log(0.5 * (np.exp(s) + np.exp(t)))


# Name -> (log-probabilities of the student, of the teacher, [C] each) -> the loss of one row.
SOFTMAX = {
    "soft_ce": lambda s, t: -np.sum(np.exp(t) * s),
    "kl": lambda s, t: np.sum(np.exp(t) * (t - s)),
    "js": lambda s, t: (
        0.5 * np.sum(np.exp(t) * (t - mixture(s, t)) + np.exp(s) * (s - mixture(s, t)))
    ),
    "reverse_kl": lambda s, t: np.sum(np.exp(s) * (s - t)),
    "generalised_js": lambda s, t: generalised_js(s, t, 0.1),
    "standardised_kl": lambda s, t: np.sum(np.exp(t) * (t - s)),  # of standardised logits
}


def decoupled(s, t, named):
    """Decoupled KL with alpha = beta = 1."""
    found, (q, p) = 0.0, (np.exp(x) for x in (s, t))
    for a, b in ((p[named].sum(), q[named].sum()), (p[~named].sum(), q[~named].sum())):
        found += a * np.log(a / b) if a > 0 else 0.0
    p, q = (x[~named] / x[~named].sum() for x in (p, q))
    return found + np.sum(p * np.log(p / q))


def top_and_rest(s, t, named):
    p, q = (np.append(np.exp(x)[named], np.exp(x)[~named].sum()) for x in (t, s))
    return np.sum(p * np.log(p / q))


# Name -> (log-probabilities of the student, of the teacher, bool: the items apart, [C] each).
APART = {"dkd": decoupled, "topk_kl": top_and_rest}


def generalised_js(s, t, beta):
    middle = np.log(beta * np.exp(t) + (1 - beta) * np.exp(s))
    return np.sum(beta * np.exp(t) * (t - middle) + (1 - beta) * np.exp(s) * (s - middle))


def matching(s, t, p):
    return 0.5 * np.mean((s @ np.asarray(p["kernel"]) + np.asarray(p["bias"]) - t) ** 2, -1)


# Name -> (student vectors [M, Ds], teacher vectors [M, Dt], auxiliary parameters) -> [M].
VECTORS = {
    "squared_distance": lambda s, t, _: 0.5 * np.mean((s - t) ** 2, -1),
    "context_matching": matching,
    "item_matching": matching,
    "rkd": rkd,
    "ftd": ftd,
    "htd": htd,
}
HYPER |= {"topk_kl": {"k": 30}, "rkd": {"drawn": 9}, "ftd": {"drawn": 11}}
HYPER |= {"htd": {"drawn": 11, "groups": 3}}
SAME_WIDTH = ("squared_distance",)  # for vectors of one width

names = pytest.mark.parametrize("name", LOSSES)


def of(kind):
    """The names of the losses of a family, for parametrize."""
    return pytest.mark.parametrize("name", [n for n, c in LOSSES.items() if issubclass(c, kind)])


@dataclasses.dataclass
class World:
    """A student, a teacher and a batch. width: of the teacher's vectors."""

    seed: int = 0
    width: int = D
    dtype: type = jnp.float32

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.student = self.factors(rng, D)
        self.teacher = self.factors(rng, self.width)
        self.warm = jnp.asarray(rng.random(N) < 0.7)
        targets = rng.integers(0, N, (B, P, 2))
        targets[1] = PAD
        self.batch = {
            "targets": jnp.asarray(targets, jnp.int32),
            "target_weights": jnp.asarray(rng.dirichlet((1, 1), (B, P)), jnp.float32),
            "weights": jnp.asarray(rng.random((B, P)), jnp.float32),
        }

    def factors(self, rng, width):
        return Factors(
            jnp.asarray(rng.normal(size=(B, P, width)), self.dtype),
            jnp.asarray(rng.normal(size=(N, width)), self.dtype),
            jnp.asarray(rng.normal(size=N), jnp.float32),
        )

    def teachers(self, teacher=None):
        return {"": TeacherScores(self.teacher if teacher is None else teacher)}

    def inputs(self, one, teacher=None):
        """The arguments of ``loss_of`` behind the scores."""
        teachers = self.teachers(teacher)
        items = chosen_items((one,), teachers, N, KEY)
        auxiliary = auxiliary_params((one,), self.student, teachers, KEY)
        return {
            "batch": self.batch, "teachers": teachers, "warm": self.warm, "items": items,
            "key": KEY, "auxiliary": auxiliary,
        }  # fmt: skip

    @property
    def weights(self):
        weights = np.asarray(self.batch["weights"], np.float64)
        return weights / weights.sum()


def make(name, temperature=1.0, **fields):
    softmax = name in SOFTMAX or name in APART
    return term(name, 1.3, temperature if softmax else 1.0, hyper=HYPER.get(name), **fields)


def value(one, world, scores=None, **more):
    inputs = world.inputs(one) | more
    batch = inputs.pop("batch")
    scores = world.student if scores is None else scores
    return loss_of((one,), scores, batch, **inputs)[0]


def value_and_slopes(one, world, **more):
    """The loss, and its gradients in the contexts, vectors and biases of the student."""
    differentiate = jax.value_and_grad(lambda student: value(one, world, student, **more))
    found, gradients = differentiate(world.student)
    return float(found), gradients


def slopes(one, world):
    return value_and_slopes(one, world)[1]


@names
@pytest.mark.parametrize("items", ["all", "warm"])
def test_the_closed_form(name, items):
    world, one = World(), make(name, 1.7, items=items)
    kept = np.flatnonzero(world.warm) if items == "warm" else np.arange(N)
    student, teacher = (np.asarray(f.dense(), np.float64) for f in (world.student, world.teacher))
    wanted = np.zeros((B, P))
    if isinstance(one.loss, SoftmaxLoss):
        for place in np.ndindex(B, P):
            wanted[place] = row_of_softmax(name, one, student[place], teacher[place], kept, place)
    elif isinstance(one.loss, CandidateLoss):
        wanted = rows_of_candidates(name, one, world, student, teacher, kept)
    else:
        sides = (world.student, world.teacher)
        auxiliary = world.inputs(one)["auxiliary"].get(name, {})
        if one.loss.of_items:
            rows = kept
            if one.loss.drawn:
                drawn = np.asarray(world.inputs(one)["items"][name].drawn)
                rows = drawn[np.isin(drawn, kept)]
                auxiliary = auxiliary | {"places": np.flatnonzero(np.isin(drawn, kept))}
            each = VECTORS[name](*(np.asarray(f.vectors)[rows] for f in sides), auxiliary)
            assert float(value(one, world)) == pytest.approx(1.3 * np.mean(each), rel=1e-4)
            return
        wanted = VECTORS[name](*(np.asarray(f.contexts) for f in sides), auxiliary)
    total = np.sum(wanted * World().weights)
    assert float(value(one, world)) == pytest.approx(1.3 * total, rel=1e-4)


def row_of_softmax(name, one, student, teacher, kept, place):
    world = World()
    if not one.reads_teacher:
        log_p = dict(zip(kept, log_softmax(student[kept]), strict=True))
        targets = np.asarray(world.batch["targets"])[place]
        weights = np.asarray(world.batch["target_weights"])[place]
        return -sum(w * log_p[t] for t, w in zip(targets, weights, strict=True) if t in log_p)
    t = one.temperature.start
    if one.loss.standardised:
        student, teacher = (x / np.std(x[kept]) for x in (student, teacher))
    logs = [log_softmax(x[kept] / t) for x in (student, teacher)]
    if one.loss.apart:
        items = np.asarray(world.batch["targets"])[place]
        if one.loss.apart > 0:
            items = np.argsort(-teacher)[: one.loss.apart]
        return t**2 * APART[name](*logs, np.isin(kept, items))
    return t**2 * SOFTMAX[name](*logs)


def rows_of_candidates(name, one, world, student, teacher, kept):
    drawn = np.asarray(world.inputs(one)["items"][name].drawn)
    wanted = np.zeros((B, P))
    oracle = CANDIDATES[name](one.loss, jax.random.fold_in(KEY, 0), B * P)
    for number, place in enumerate(np.ndindex(B, P)):
        top = np.argsort(-teacher[place])[: one.loss.top]
        own = np.argsort(-student[place])[: getattr(one.loss, "own", 0)]
        items = np.concatenate([top, own, drawn])
        first = np.zeros(len(items), bool)
        first[np.unique(items, return_index=True)[1]] = True
        row = Row(
            fixed=student[place][items], teacher=teacher[place][items],
            valid=first & np.isin(items, kept), own=np.isin(items, own), num_top=len(top),
            num_items=N,
        )  # fmt: skip
        wanted[place] = oracle(number, student[place][items], row)
    return wanted


@names
def test_gradients_match_finite_differences_and_reach_the_student_alone(name):
    world, one = World(), make(name, 1.5)
    if name not in STEPWISE:  # tests/losses/test_candidates.py has the gradients of those
        check_grads(
            lambda student: value(one, world, student), (world.student,), order=1, modes=["rev"],
            atol=2e-2, rtol=2e-2, eps=1e-2,
        )  # fmt: skip
    assert any(np.abs(slope).max() > 0 for slope in jax.tree.leaves(slopes(one, world)))

    def by_teacher(teacher):
        frozen = jax.lax.stop_gradient(teacher)
        given = world.teachers(frozen)
        return value(one, world, teachers=given)

    for slope in jax.tree.leaves(jax.grad(by_teacher)(world.teacher)):
        np.testing.assert_array_equal(slope, 0.0)


@names
def test_nothing_that_takes_part_is_loss_and_gradient_zero(name):
    world, one = World(), make(name, 2.0, items="warm")
    if isinstance(one.loss, VectorLoss) and not one.loss.of_items:
        world.batch["weights"] = jnp.zeros((B, P))  # contexts have no items to mask
    world.warm = jnp.zeros(N, bool)
    found, gradients = value_and_slopes(one, world)
    assert found == 0
    for slope in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(slope, 0.0)


@names
@pytest.mark.slow
def test_bf16_factors_are_compared_in_f32(name):
    narrow, one = World(dtype=jnp.bfloat16), make(name, 1.5)
    wide = World()
    for side in ("student", "teacher"):
        setattr(wide, side, jax.tree.map(lambda x: x.astype(jnp.float32), getattr(narrow, side)))
    found, gradients = value_and_slopes(one, narrow)
    assert found == pytest.approx(float(value(one, wide)), rel=2e-2)
    assert [slope.dtype for slope in gradients[:3]] == [
        jnp.bfloat16, jnp.bfloat16, jnp.float32,
    ]  # fmt: skip


def tiled(terms, gradients, student, inputs):
    return local(terms, gradients, student, inputs, Axes(), B * P * 130)  # three chunks


ONCE = Draws(jnp.asarray(np.random.default_rng(1).permutation(N), jnp.int32), jnp.zeros(N))
ENGINES = {
    "tiles": lambda: {"engine": tiled},
    "sampled": lambda: {"draws": ONCE},
    "data=4, model=2": lambda: {"engine": engine_for(sharding.make_mesh(4, 2))},
    "model=8": lambda: {"engine": engine_for(sharding.make_mesh(1, 8))},
}


@functools.cache
def of_one_device(name, items):
    """A term, and its value and gradients without an engine."""
    one = make(name, 1.5, items=items)
    return one, value_and_slopes(one, World(width=D if name in SAME_WIDTH else D + 2))


@names
@pytest.mark.parametrize("items", first_fast(["all", "warm"]))
@pytest.mark.parametrize("engine", first_fast(list(ENGINES)))
def test_every_engine_gives_the_same(name, items, engine):
    world = World(width=D if name in SAME_WIDTH else D + 2)
    one, (wanted, gradients) = of_one_device(name, items)
    how = ENGINES[engine]()
    other = one
    if "draws" in how:
        if isinstance(one.loss, OnPolicyLoss) or getattr(one.loss, "standardised", False):
            other = dataclasses.replace(one, items="sampled", negatives=10)
            limits = Limits(True, True, N)
            refused(lambda: check((other,), limits, "distill.terms"), "reads a sample, and")
            return
        top = max(getattr(one.loss, "apart", 0), 0)
        if top:
            world.teacher = world.teacher._replace(top=top_items(world.teacher, top))
        other = dataclasses.replace(one, items=f"sampled{'_warm' if one.warm else ''}", negatives=N)
    found, parts = value_and_slopes(other, world, **how)
    assert found == pytest.approx(wanted, rel=1e-5)
    for part, whole in zip(parts[:3], gradients[:3], strict=True):
        np.testing.assert_allclose(part, whole, rtol=2e-4, atol=2e-6)


@names
@pytest.mark.slow
def test_whole_logits_give_the_same_as_factors_or_are_refused(name):
    world, one = World(width=D), make(name, 1.5, items="warm")
    if isinstance(one.loss, VectorLoss):
        refused(lambda: check((one,), Limits(False, True, N), "distill.terms"), "has none")
        return

    def dense(student):
        return value(one, world, student.dense())

    found, parts = jax.value_and_grad(dense)(world.student)
    wanted, gradients = value_and_slopes(one, world)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    for part, whole in zip(parts[:3], gradients[:3], strict=True):
        np.testing.assert_allclose(part, whole, rtol=2e-4, atol=2e-6)


@names
def test_a_teacher_that_lists_items_is_read_or_refused(name):
    world, one = World(), make(name, 1.5)
    everything = Listed(
        jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (B, P, N)), world.teacher.dense()
    )
    limits = Limits(True, True, N, lists=("",))
    reads = not isinstance(one.loss, VectorLoss)
    if isinstance(one.loss, SoftmaxLoss) and one.reads_teacher:
        reads = one.loss.entropy_coefficient is not None
    if not reads:
        refused(lambda: check((one,), limits, "distill.terms"), "distill.terms")
        return
    check((one,), limits, "distill.terms")
    inputs = world.inputs(one, everything)
    batch = inputs.pop("batch")
    found = loss_of((one,), world.student, batch, **inputs)[0]
    assert float(found) == pytest.approx(float(value(one, world)), rel=1e-5)


@names
def test_classes_of_a_pair_are_compared_or_refused(name):
    one, limits = make(name), Limits(False, True, N, ranks=False)
    if isinstance(one.loss, SoftmaxLoss) and one.loss.apart <= 0:
        check((one,), limits, "distill.terms")
        return
    refused(lambda: check((one,), limits, "distill.terms"), "distill.terms", "task='rank'")


@of(VectorLoss)
def test_auxiliary_parameters_learn_or_there_are_none(name):
    world = World(width=D if name in SAME_WIDTH else D + 2)
    one = make(name)
    inputs = world.inputs(one)
    batch, auxiliary = inputs.pop("batch"), inputs.pop("auxiliary")

    def loss(auxiliary):
        return loss_of((one,), world.student, batch, auxiliary=auxiliary, **inputs)[0]

    for slope in jax.tree.leaves(jax.grad(loss)(auxiliary)):
        assert np.abs(slope).max() > 0


def test_every_loss_has_an_oracle():
    families = {SoftmaxLoss: SOFTMAX | APART, CandidateLoss: CANDIDATES, VectorLoss: VECTORS}
    for name, kind in LOSSES.items():
        oracles = next(oracles for family, oracles in families.items() if issubclass(kind, family))
        assert name in oracles or not make(name).reads_teacher, f"add an oracle of {name!r} here"
