"""The older run that a run starts from (``init_from``): checks, and the first parameters.

Nothing is written to the older workdir. Rows of users and items are found by id, all other
parameters are taken whole, and the optimiser starts without moments. What is needed after the first
step is kept in ``origin/``.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import atomic, difference, fingerprint, read_json, write_json, write_tensors
from kd_jax.core.types import PAD, Params
from kd_jax.data.splits import VALID
from kd_jax.devices.processes import agreed, barrier, leader
from kd_jax.experiment import origin
from kd_jax.experiment.build_student import COUNT_BIAS
from kd_jax.experiment.builders import build
from kd_jax.experiment.config import reads_text, student_section
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.new_users import history_map, map_items
from kd_jax.experiment.objectives import start_of_bias
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import ROLES, Kind, Role, main_teacher
from kd_jax.experiment.trained import TrainedModels, open_workdir
from kd_jax.models.language.encoding import EARLIER
from kd_jax.models.scorer import rows_by_id
from kd_jax.runtime.contexts import HistoryMap
from kd_jax.serving.history_map import means
from kd_jax.serving.text_map import fit
from kd_jax.training.carry import Places, carried, places
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.compiled import first_params

RIDGE = 1.0  # of the text map of new items; selected in every seed of the quickstart
# Fields that change how a model is trained, and not which parameters it has.
FREE = {
    Kind.STUDENT.value: (
        *("dropout", "item_dropout", "init_scale", "bias", "popularity_days"),
        *("decay", "decay_unit", "user_power"),
    ),
    "teacher.model": ("dropout", "init_scale", "softmax", "negatives", "hard_negatives"),
    "teacher.lm": ("weights", "remat"),  # weights: their content is compared
}


class EarlierRun:
    """The run in ``init_from``; its parts are read on first use."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.path = Path(origin.init_from(experiment)).expanduser()
        self._constants: dict[tuple[str, int], dict[str, Any]] = {}  # of a teacher of a seed

    @functools.cached_property
    def models(self) -> TrainedModels:
        """The trained models of the older run; raises InputError if it is none."""
        try:
            found = open_workdir(self.path, self.experiment.log)
        except InputError as error:
            raise InputError(f"init_from: {error}") from None
        found.experiment.cache = self.experiment.cache / EARLIER
        return found

    def check(self) -> None:
        """Compares the two runs and writes ``origin/origin.json``; no effect without ``init_from``.

        Raises InputError if the older run does not fit, or is not the one that this run began with.
        """
        if not origin.init_from(self.experiment):
            return
        note = origin.note(self.experiment)
        kept = read_json(note, "run launch.py again") if note.exists() else {}
        if kept and not self.path.exists():
            return  # models that are not trained yet are refused in ``start``
        if self.path.resolve() == self.experiment.workdir.resolve():
            raise InputError(f"init_from={self.path} is the workdir itself; use another --workdir")
        self._check_data()
        found: dict[str, Any] = {}
        for role, seed in self._models():
            found[self.experiment.folder(role, seed).name] = self._entry(role, seed)
        both = kept.keys() & found.keys()
        before, now = ({name: of[name] for name in both} for of in (kept, found))
        if changed := difference(before, now):
            raise InputError(
                f"{self.experiment.workdir} was started from other models than those now in"
                f" {self.path} ({changed}); use another --workdir"
            )
        if leader():
            self._copy_cache()
            write_json(note, kept | found)
        barrier("origin")

    def _models(self) -> Iterator[tuple[Role, int]]:
        """The models of the stages."""
        for role in ROLES.values():
            if role.name in self.experiment.config.stages:
                yield from ((role, seed) for seed in self.experiment.seeds)

    def _check_data(self) -> None:
        there, here = self.models.experiment, self.experiment
        if there.config.task != here.config.task:
            raise InputError(
                f"init_from: {self.path} was trained for task={there.config.task!r}, here it is"
                f" {here.config.task!r}; use the same task in both"
            )
        if here.config.data.split == "strong":
            raise InputError(
                "init_from: data.split='strong' draws other users for valid and test as soon as"
                " there are more, and the older run has learned from some of them; use another"
                " data.split"
            )
        for kind in ("user", "item"):
            try:
                self._places(kind)
            except InputError as error:
                raise InputError(f"init_from: {self.path}: {kind} {error}") from None

    def _entry(self, role: Role, seed: int) -> dict[str, Any] | None:
        """The identity of the older model of a role; None, with a note, if there is none."""
        origin.share(self.experiment, role)
        if seed not in self.models.experiment.seeds or not self.models.has(role, seed):
            self.experiment.log.note(
                f"init_from: {self.path} has no trained {role.name} of seed {seed}: it starts fresh"
            )
            return None
        there, here = self.models.experiment.settings(role), self.experiment.settings(role)
        compare = _teacher if role.is_teacher else _student
        if changed := difference(compare(there), compare(here)):
            raise InputError(
                f"init_from: {role.name} in {self.path} is another model ({changed}); use the same"
                " values in both, or start without init_from"
            )
        folder = self.models.experiment.folder(role, seed)
        identity = read_json(folder / "identity.json", f"delete {folder} to train it anew")
        if role.is_teacher and reads_text(here.teacher):
            lm = self.experiment.texts(role).language_model
            if lm.checksum != identity["weights"]:
                raise InputError(
                    f"init_from: {role.name} in {self.path} has another language model (checksum"
                    f" {identity['weights']}, here {lm.checksum}); use the same teacher.lm.weights"
                )
            if not lm.live:  # it is loaded once
                older = self.models.experiment
                older.texts(role).language_model = lm.with_cache(older.cache)
        step = self.models.result(role, seed)["best_step"]
        return {"model": fingerprint(identity), "step": step}

    def _copy_cache(self) -> None:
        """Copies what the older run has encoded, and its compiled programs."""
        there, here = self.path / "cache", self.experiment.cache
        known = [*there.glob("tokens-*"), *there.glob("vectors-*")]
        for path in known:
            _copy(path, here / EARLIER / path.name)
        for path in there.glob("xla/*"):
            _copy(path, here / "xla" / path.name)

    def keep_constants(self, role: Role, seed: int) -> None:
        """Writes the constants that a model needs from its older one, once."""
        path = origin.tensors(self.experiment, role, seed)
        if not role.is_teacher or not reads_text(self.experiment.settings(role).teacher):
            return
        if agreed(path.exists()):
            return
        there = self.models.experiment
        of = seed if origin.init_from(there) else there.seeds[0]  # the same for all seeds
        if (role.name, of) not in self._constants:
            found = origin.kept_constants(build(there, role, of).constants)
            self._constants[role.name, of] = found
        kept = self._constants[role.name, of]
        if kept and leader():
            write_tensors(path, {name: np.asarray(value) for name, value in kept.items()})
        barrier("constants")

    def start(self, role: Role, seed: int, parts: ModelParts, fresh: Any) -> Params:
        """The first parameters of a model.

        fresh: those without an older run, or the function that makes them.
        """
        step = self.models.result(role, seed)["best_step"]
        folder = self.models.experiment.folder(role, seed)
        older = Checkpoints(folder).plain(step)["params"]
        first = jax.device_get(jax.jit(first_params)(fresh))
        kinds = rows_by_id(parts.graphdef)
        rows = {name: self._places(kind) for name, kind in kinds.items() if name in first}
        found = carried(first, older, rows, f"init_from: {folder}")
        moving = start_of_bias(self.experiment.settings(role)) != COUNT_BIAS
        if not role.is_teacher and moving and "bias" in found:
            found["bias"] = first["bias"]  # what is popular now
        texts = (
            self.experiment.texts(main_teacher()).items if role.distilled and role.text else None
        )
        for name, table in rows.items():
            if kinds[name] == "item" and np.ndim(found[name]) == 2:
                found[name] = with_new_items(found[name], table, texts)
        if role.is_teacher or "user" not in rows:
            return found
        known = history_map(folder, step)
        if known is None:
            self.experiment.log.note(
                f"init_from: {folder} has no map of new users, whose rows start as in any run; run"
                " the stage 'evaluate' there to fit one"
            )
        else:
            found["user"] = self._with_new_users(parts, found, known)
        return found

    def _with_new_users(self, parts: ModelParts, params: Params, known: HistoryMap) -> np.ndarray:
        """The table of users, with the map's vectors for users who were never trained."""
        model: Any = nnx.merge(parts.graphdef, params, parts.constants)
        indptr, items = histories = self.experiment.dataset.history(VALID)
        users = np.array(params["user"])
        new = (np.diff(indptr) > 0) & ~users.any(1)
        mean = means(histories, map_items(model), known.decay, known.shrink)
        users[new] = mean[new] @ known.weight + known.intercept
        return users

    def _places(self, kind: str) -> Places:
        there, here = self.models.experiment.dataset, self.experiment.dataset
        if kind == "user":
            return places(here.user_ids, there.user_ids)
        return places(here.item_ids, there.item_ids)


def with_new_items(
    table: np.ndarray, rows: Places, texts: Sequence[str] | None = None
) -> np.ndarray:
    """A table of item vectors with rows for the new items, from those of the carried ones.

    They are what a text map that is fitted to the carried items makes of their texts. rows: ``PAD``
    for new items. texts: of all items; None: new items have the mean vector.
    """
    new = rows == PAD
    if new.all() or not new.any():
        return table
    found, known = table.copy(), table[~new]
    if texts is None:
        found[new] = known.mean(0)
        return found
    old_texts, new_texts = (
        [texts[n] for n in np.flatnonzero(part).tolist()] for part in (~new, new)
    )
    found[new] = fit(old_texts, known, np.zeros(len(known)), RIDGE)(new_texts)[0]
    return found


def _student(c: ConfigDict) -> dict[str, Any]:
    return {
        "student.name": c.student.name,
        f"student.{c.student.name}": _without(student_section(c), Kind.STUDENT.value),
    }


def _teacher(c: ConfigDict) -> dict[str, Any]:
    found = {
        "teacher.model": _without(c.teacher.model, "teacher.model"),
        "teacher.popularity.enabled": c.teacher.popularity.enabled,
    }
    if reads_text(c.teacher):
        found["teacher.lm"] = _without(c.teacher.lm, "teacher.lm")
    return found


def _without(section: ConfigDict, free: str) -> dict[str, Any]:
    return {name: value for name, value in section.to_dict().items() if name not in FREE[free]}


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
