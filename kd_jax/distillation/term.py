"""A term of the objective: which loss, its weight and temperature, and the teacher it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from kd_jax.core.errors import InputError, nearest
from kd_jax.distillation.schedule import Schedule
from kd_jax.losses import LOSSES
from kd_jax.losses.base import CandidateLoss, Loss, OnPolicyLoss, SoftmaxLoss, VectorLoss

ITEMS = ("all", "warm", "sampled", "sampled_warm", "shown")
OWN = ""  # the name, among a student's teachers, of the run's own


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the objective: ``weight · loss``.

    name: its key in the log. items: a softmax over 'all' items of the catalogue or over the 'warm'
    ones, those with at least one training interaction; 'sampled' and 'sampled_warm' estimate the
    two from ``negatives`` drawn items, the targets and the teacher's ``top`` items; 'shown': over
    the items of the impression that the example is. Of losses of candidates and of item vectors:
    over which items. teacher: the name of the one it reads, ``OWN`` for the run's own. head:
    whether the student's context goes through a linear map of this term's own, which starts at the
    identity and is an auxiliary parameter.
    """

    name: str
    loss: Loss
    weight: Schedule = Schedule(1.0)
    temperature: Schedule = Schedule(1.0)
    items: str = "all"
    teacher: str = OWN
    head: bool = False
    negatives: int = 0
    top: int = 0

    @property
    def sampled(self) -> bool:
        return self.items.startswith("sampled")

    @property
    def warm(self) -> bool:
        return self.items.endswith("warm")

    @property
    def shown(self) -> bool:
        return self.items == "shown"

    @property
    def reads_teacher(self) -> bool:
        return not isinstance(self.loss, SoftmaxLoss) or self.loss.reads_teacher

    @property
    def num_top(self) -> int:
        """The teacher's items of highest score that it reads exactly."""
        if isinstance(self.loss, CandidateLoss):
            return self.loss.top
        named = max(self.loss.apart, 0) if isinstance(self.loss, SoftmaxLoss) else 0
        return max(named, self.top if self.sampled and self.reads_teacher else 0)

    def identity(self) -> dict[str, Any]:
        """The identity of the term: all that determines its loss."""
        values = dataclasses.asdict(self)
        loss = next(name for name, kind in LOSSES.items() if type(self.loss) is kind)
        return values | {"loss": {"name": loss} | dataclasses.asdict(self.loss)}


Objective = tuple[Term, ...]
NOT_CONFIGURED = ("name", "negatives", "top")
FIELDS = tuple(f.name for f in dataclasses.fields(Term) if f.name not in NOT_CONFIGURED)


def of_section(field: str, section: Mapping[str, Any], *, negatives: int = 0, top: int = 0) -> Term:
    """The term of a config section; fields beyond ``FIELDS`` are hyper-parameters of its loss.

    field: the section's full name, for errors; its last part is the term's name. Raises InputError
    for what is unknown or cannot be.
    """
    values = dict(section)
    kind = values.get("loss", "")
    if kind not in LOSSES:
        raise InputError(f"{field}.loss={kind!r} is unknown{nearest(kind, LOSSES)}")
    loss_fields = {f.name: f.type for f in dataclasses.fields(LOSSES[kind])}
    for name in values:
        if name not in FIELDS and name not in loss_fields:
            raise InputError(f"{field}.{name} is unknown{nearest(name, (*FIELDS, *loss_fields))}")
    loss = LOSSES[kind](**{name: values[name] for name in loss_fields if name in values})
    items = values.get("items", "all")
    if items not in ITEMS:
        raise InputError(f"{field}.items={items!r} is unknown{nearest(items, ITEMS)}")
    weight = Schedule.of(values.get("weight", 1.0), f"{field}.weight")
    temperature = Schedule.of(values.get("temperature", 1.0), f"{field}.temperature", positive=True)
    common = {name: values[name] for name in FIELDS if name in values}
    common |= {"loss": loss, "weight": weight, "temperature": temperature}
    term = Term(field.rpartition(".")[2], **common)
    _check_fields(term, field)
    if not term.sampled:
        return term
    if negatives < 1 or top < 0:
        raise InputError(
            f"distill.negatives={negatives}, distill.top={top}: for {field}.items={items!r} draw at"
            " least 1 negative, and take 0 or more of the teacher's top items"
        )
    return dataclasses.replace(term, negatives=negatives, top=top if term.reads_teacher else 0)


def _check_fields(term: Term, field: str) -> None:
    softmax = isinstance(term.loss, SoftmaxLoss)
    if not term.reads_teacher and term.teacher != OWN:
        raise InputError(
            f"{field}.teacher={term.teacher!r}: this loss learns from clicks and reads no teacher;"
            " leave it out"
        )
    if not (softmax and term.reads_teacher) and term.temperature != Schedule(1.0):
        raise InputError(
            f"{field}.temperature: only losses that compare two softmaxes have a temperature; leave"
            " it at 1"
        )
    if term.head and isinstance(term.loss, VectorLoss):
        raise InputError(f"{field}.head=True: losses of vectors have no scores; leave it out")


@dataclasses.dataclass(frozen=True)
class Limits:
    """The abilities of a model that determine which terms can be computed.

    factorised: whether its scores are factors. owns_item_table: whether rows of its item table can
    be gathered. num_items: of the catalogue. ranks: False where it gives classes of a pair. lists:
    names of the teachers that list a few items. no_lists_shown: why it cannot learn from
    impressions; '' where it can.
    """

    factorised: bool
    owns_item_table: bool
    num_items: int
    ranks: bool = True
    lists: Collection[str] = ()
    no_lists_shown: str = ""


def check(objective: Objective, limits: Limits, where: str) -> None:
    """Raises InputError for a term that no engine can compute, before anything is trained.

    where: the section of the terms, for the error.
    """
    sampled = [term for term in objective if term.sampled]
    if sampled and len(sampled) < len(objective):
        raise InputError(
            f"{where}: some terms read a sample of the catalogue and some all of it, and a step"
            " does one or the other; give all of them items='sampled' or 'sampled_warm', or none"
            f"{'; shown items go with neither' if any(t.shown for t in objective) else ''}"
        )
    for term in objective:
        field = f"{where}.{term.name}" if len(objective) > 1 else where
        if sampled:
            _check_sampled(term, limits, field)
        if term.shown:
            _check_shown(term, limits, field)
        if term.head and not (limits.ranks and limits.factorised):
            raise InputError(
                f"{field}.head=True is a map of context vectors, and this model has none; use"
                " head=False, or task='rank' with another student.name"
            )
        if isinstance(term.loss, SoftmaxLoss):
            reads_list = term.reads_teacher and term.teacher in limits.lists
            if max(term.loss.apart, 0) >= limits.num_items:
                raise InputError(
                    f"{field}.k={term.loss.apart} leaves none of the {limits.num_items} items for"
                    " the others; lower it, or use loss='kl'"
                )
            if term.loss.apart > 0 and not limits.ranks:
                raise InputError(f"{field}: this loss compares rankings of items; use task='rank'")
            if reads_list and term.loss.entropy_coefficient is None:
                raise InputError(
                    f"{field}: the teacher {term.teacher!r} lists a few items, and this loss needs"
                    " a score of every item; use one of those that docs/methods.md marks for lists,"
                    " or one of candidates"
                )
            continue
        if not limits.ranks:
            raise InputError(f"{field}: this loss compares rankings of items; use task='rank'")
        if isinstance(term.loss, VectorLoss):
            _check_vectors(term, limits, field)
        else:
            _check_candidates(term, term.loss, limits, field)


def _check_sampled(term: Term, limits: Limits, field: str) -> None:
    if not limits.ranks:
        raise InputError(
            f"{field}.items={term.items!r} samples a catalogue, and task='rate' has classes; use"
            " items='all'"
        )
    if not limits.factorised:
        raise InputError(
            f"{field}.items={term.items!r} needs a model whose scores factorise; use items='all' or"
            " 'warm', or another student.name"
        )
    if not limits.owns_item_table:
        raise InputError(
            f"{field}.items={term.items!r} gathers rows of an item table, and this model owns none;"
            " use items='all' or 'warm' (a student class declares its table in ``tables``)"
        )
    if isinstance(term.loss, SoftmaxLoss) and term.loss.standardised:
        raise InputError(
            f"{field}.items={term.items!r} reads a sample, and this loss the standard deviation"
            " over all items; use items='all' or 'warm'"
        )
    if isinstance(term.loss, SoftmaxLoss) and term.loss.apart > term.top:
        raise InputError(
            f"{field}.k={term.loss.apart} reads the teacher's best items, and a sample has"
            f" distill.top={term.top} of them; raise distill.top"
        )


def _check_candidates(term: Term, loss: CandidateLoss, limits: Limits, field: str) -> None:
    sizes = {"top": loss.top, "drawn": loss.drawn}
    if isinstance(loss, OnPolicyLoss):
        sizes["own"] = loss.own
        if term.sampled:
            raise InputError(
                f"{field}.items={term.items!r} reads a sample, and the student's own best items are"
                " those of the whole catalogue; use items='all' or 'warm'"
            )
    if sum(sizes.values()) < 1:
        raise InputError(
            f"{field}: {' and '.join(f'{name}=0' for name in sizes)} leave no candidate; raise one"
            " of them"
        )
    for name in ("own", "top"):
        if sizes.get(name, 0) > limits.num_items:
            raise InputError(
                f"{field}.{name}={sizes[name]} is more than the {limits.num_items} items there are;"
                " lower it"
            )


def _check_shown(term: Term, limits: Limits, field: str) -> None:
    if term.reads_teacher:
        raise InputError(
            f"{field}.items='shown' is for losses of clicks, and this one reads a teacher; use"
            " items='all' or 'warm'"
        )
    if limits.no_lists_shown or not limits.ranks:
        reason = limits.no_lists_shown or "task='rate' has no lists"
        raise InputError(f"{field}.items='shown': {reason}; use items='all' or 'warm'")


def _check_vectors(term: Term, limits: Limits, field: str) -> None:
    assert isinstance(term.loss, VectorLoss)
    if not limits.factorised or term.teacher in limits.lists:
        raise InputError(
            f"{field}: this loss compares vectors, and the student or the teacher has none; use"
            " another loss, another student.name or another teacher"
        )
    if term.loss.drawn and not term.loss.of_items:
        raise InputError(
            f"{field}.drawn={term.loss.drawn}: this loss compares the contexts of the batch and"
            " draws nothing; set drawn=0"
        )
    if term.sampled and term.loss.of_items and not term.loss.drawn:
        raise InputError(
            f"{field}.drawn=0 reads the vectors of all items, and items={term.items!r} a sample;"
            " set drawn to a number of items"
        )
