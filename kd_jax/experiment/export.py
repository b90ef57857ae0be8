"""The export of a workdir: a student, and the trained language models of the teachers."""

from __future__ import annotations

import shutil
from typing import Any

from flax import nnx

from kd_jax.core.errors import InputError
from kd_jax.data.splits import TEST
from kd_jax.devices.processes import leader
from kd_jax.experiment import compare, roles
from kd_jax.experiment.build_student import inputs_of, spec_of
from kd_jax.experiment.builders import build, trains_language_model
from kd_jax.experiment.new_items import NewItems
from kd_jax.experiment.new_users import NewUsers
from kd_jax.experiment.roles import Role
from kd_jax.experiment.served import for_texts, served
from kd_jax.experiment.trained import TrainedModels
from kd_jax.models.teachers import head
from kd_jax.serving import exporters
from kd_jax.serving.exporters import Bundle


def export(models: TrainedModels) -> None:
    """Exports ``TrainedModels.exported``, its vectors and weights, and trained language models.

    Raises InputError if there is nothing to export.
    """
    seed = models.experiment.seeds[0]
    student = models.exported()
    teachers = [role for role in roles.teachers() if _has_language_model(models, role, seed)]
    for role in teachers:
        _export_language_model(models, role, seed)
    if student is not None:
        _export_student(models, student, seed)
        compare.write(models, student, seed)
    elif not teachers:
        raise InputError(
            "nothing to export: no student is trained; run one of the stages"
            f" {', '.join(repr(role.name) for role in roles.students())} first"
        )


def _export_student(models: TrainedModels, role: Role, seed: int) -> None:
    experiment = models.experiment
    # Orbax reads, and texts are encoded, in all processes together.
    trained, inputs = models.open(role, seed), inputs_of(experiment, role, trained=True)
    parts, users, items = trained.parts, NewUsers(trained), NewItems(trained)
    biases = items.biases()
    history_map, text_map = users.history_map(), for_texts(items.text_map(), biases)
    newest = served(trained, users, biases, TEST + 1, crossed=False)
    if not leader():
        return
    description = dict(
        model=role.name,
        student=experiment.settings(role).student.name,
        task=experiment.config.task,
        history=parts.history,
        spec=spec_of(experiment, role).plain(),
    )
    model = nnx.merge(parts.graphdef, *newest)
    bundle = Bundle(
        experiment.dataset, model, description, inputs, history_map, text_map, trained=trained.model
    )
    if biases.judged_by and not experiment.dataset.warm.all():
        experiment.log.note(
            f"export: added to the biases of new items: {biases.trained:.3g}, of those that get"
            f" theirs from a text {biases.text:.3g}: the most that costs {biases.judged_by}, on"
            " validation (export.new_items)"
        )
    folder, c = experiment.workdir / "export", experiment.config.export
    written = exporters.write(bundle, folder, tuple(c.formats), c.to_dict())
    for name, files in written.items():
        if not files:
            experiment.log.note(f"export: format {name!r} does not support this student; skipped")
    experiment.log.note(f"export: {role.name} (seed {seed}) in {folder}")


def _has_language_model(models: TrainedModels, role: Role, seed: int) -> bool:
    return trains_language_model(models.experiment, role) and models.has(role, seed)


def _export_language_model(models: TrainedModels, role: Role, seed: int) -> None:
    """Exports the language model of a teacher as a Hugging Face folder, with the head beside it."""
    experiment = models.experiment
    parts = build(experiment, role, seed)
    params = models.best_params(role, seed, parts)
    if leader():
        folder = experiment.workdir / "export" / role.name
        shutil.rmtree(folder, ignore_errors=True)
        # Its constants, vectors of all texts, are not exported.
        lm, data = experiment.texts(role).language_model, experiment.dataset.checksum
        lm.save(folder, parts.graphdef, params, parts.constants, data)
        teacher: Any = nnx.merge(parts.graphdef, params, parts.constants)
        c = experiment.settings(role).teacher.to_dict()
        del c["lm"]["weights"]  # those that training started from
        head.write(folder, teacher, {name: c[name] for name in ("lm", "model", "popularity")})
        experiment.log.note(f"export: the fine-tuned language model (seed {seed}) in {folder}")
