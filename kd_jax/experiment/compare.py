"""The models that the page of the server shows beside the exported one (``runtime.compared``)."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from flax import nnx

from kd_jax.core.errors import InputError
from kd_jax.core.files import read_tensors
from kd_jax.data.splits import TEST
from kd_jax.devices.processes import leader
from kd_jax.distillation import label_cache
from kd_jax.experiment import roles
from kd_jax.experiment.build_student import inputs_of
from kd_jax.experiment.builders import build, trains_language_model
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.new_items import NewItems, biases_of, kept_of
from kd_jax.experiment.new_users import NewUsers
from kd_jax.experiment.objectives import description
from kd_jax.experiment.parts import ModelParts
from kd_jax.experiment.roles import Role
from kd_jax.experiment.served import for_texts, served
from kd_jax.experiment.trained import TrainedModel, TrainedModels
from kd_jax.models.scorer import catalogue
from kd_jax.runtime import compared
from kd_jax.runtime.compared import Described
from kd_jax.runtime.store import Export
from kd_jax.serving.exporters import Bundle
from kd_jax.serving.exporters.runtime import export_of


def write(models: TrainedModels, exported: Role, seed: int) -> None:
    """Writes the students and the main teacher of a seed, without ``exported``, beside its export.

    A model that NumPy cannot score is left out, with a note. All processes call it; one writes.
    """
    experiment, found = models.experiment, []
    folder, c = experiment.workdir / "export", experiment.config.export
    if leader():
        shutil.rmtree(folder / compared.FOLDER, ignore_errors=True)
    if "runtime" not in c.formats or not c.get("compare", True) or experiment.config.task != "rank":
        return
    chosen = {role.name for role in (*roles.students(), roles.main_teacher())}
    for role in roles.in_tables():
        if role.name not in chosen or not models.has(role, seed):
            continue
        parts = build(experiment, role, seed)
        if role != exported:
            export = (
                _teacher(models, role, seed, parts)
                if role.is_teacher
                else _student(models, models.open(role, seed, parts=parts), exported)
            )
            if export is None:
                experiment.log.note(f"export: the server's page does not show {role.name}")
                continue
            if leader():
                compared.write(folder, role.name, export)
        look = role.appearance
        size = 4 * parts.num_params
        found.append(
            Described(role.name, description(experiment, role), size, look.colour, look.dark)
        )
    if leader():
        compared.write_list(folder, found, _dataset(models))


def _dataset(models: TrainedModels) -> dict[str, Any]:
    dataset = models.experiment.dataset
    return {"name": dataset.name, "checksum": dataset.checksum}


def _student(models: TrainedModels, trained: TrainedModel, exported: Role) -> Export | None:
    """What the runtime reads of a student; None where that needs JAX.

    exported: the student whose settings its text map has, and whose biases its new items get.
    """
    experiment, role, seed = trained.experiment, trained.role, trained.seed
    users, new_items = NewUsers(trained), NewItems(trained)
    settings, biases = kept_of(models, exported, seed), biases_of(models, exported, seed)
    newest = served(trained, users, biases, TEST + 1, crossed=False)
    model: Any = nnx.merge(trained.parts.graphdef, *newest)
    bundle = Bundle(
        experiment.dataset,
        model,
        {"model": role.name, "task": experiment.config.task, "history": trained.parts.history},
        inputs_of(experiment, role, trained=True),
        users.history_map(),
        for_texts(new_items.text_map(settings) if settings else None, biases),
    )
    if model.runtime_context() is None and bundle.history_map is None:
        return None
    return export_of(bundle)


def _teacher(models: TrainedModels, role: Role, seed: int, parts: ModelParts) -> Export | None:
    """What the runtime reads of a teacher; None where that needs its language model.

    The vectors of a teacher with a trained language model are those of its soft labels.
    """
    experiment, dataset = models.experiment, models.experiment.dataset
    params = models.best_params(role, seed, parts)
    given = parts.graphdef, params, parts.constants
    model: Any = nnx.merge(*given)
    context = model.runtime_context()
    if context is None:
        return None
    trained = trains_language_model(experiment, role)
    rows = _cached(models, role, seed) if trained else catalogue(*given)
    if rows is None:
        return None
    indptr, seen = dataset.history(TEST + 1)
    vectors, bias = np.asarray(rows[0]), np.asarray(rows[1])
    return Export(
        {"model": role.name, "dataset": _dataset(models)},
        user_ids=dataset.user_ids.to_list(),
        item_ids=dataset.item_ids.to_list(),
        titles=dataset.titles,
        item_vectors=vectors,
        item_bias=bias,
        user_vectors=np.zeros((0, vectors.shape[1]), np.float32),
        indptr=indptr,
        items=seen,
        context=context,
    )


def _cached(models: TrainedModels, role: Role, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The item vectors and biases of a teacher in its finished soft labels; None without them."""
    student = next(other for other in roles.students() if other.labels_from == role.name)
    for labels in LabelStore(models).of(student, [seed]):
        if labels.folder.name == f"{role.name}.seed{seed}" and labels.finished:
            try:
                arrays = read_tensors(labels.folder / label_cache.ITEMS, "")
            except InputError:
                return None
            if "items" in arrays:
                return arrays["items"], arrays["bias"]
    return None
