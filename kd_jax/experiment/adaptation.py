"""Training of a language model towards the item vectors of a recommender.

The text tower learns to give the vectors, by squared distance: each text is read once per pass over
the *items*, where training by clicks reads the texts of a whole history for every example.

Source of the idea: Barkan et al., "CB2CF: A Neural Multiview Content-to-Collaborative Filtering
Model for Completely Cold Item Recommendations", RecSys 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core.errors import InputError
from kd_jax.core.files import fingerprint
from kd_jax.core.scores import Factors, TeacherScores
from kd_jax.core.types import Array, Batch, Params, PyTree
from kd_jax.data.examples.base import Examples
from kd_jax.devices import sharding
from kd_jax.distillation.teachers import Teacher
from kd_jax.distillation.term import OWN, Term
from kd_jax.experiment import roles
from kd_jax.experiment.config import language_model, recipe, student_section
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.roles import Role
from kd_jax.experiment.trained import TrainedModels
from kd_jax.losses.matching import SquaredDistance
from kd_jax.models.language import batching, encoding
from kd_jax.models.language.encoding import Texts
from kd_jax.models.scorer import Frozen, factorises, split
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.models.teachers.text_tower import ItemTower, TextTower
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.job import Trained, TrainingJob
from kd_jax.training.loop import train

HELD_OUT = 20  # one in so many trained items shows how well the texts of others are read
FEWEST = 2 * HELD_OUT
COMPILE_TOKENS = 50_000  # of items that are read while one more shape is compiled


OBJECTIVE = (Term("vectors", SquaredDistance()),)


def item_vectors(models: TrainedModels, role: Role, seed: int) -> tuple[np.ndarray, Any]:
    """The item vectors of one of a run's models, f32 [I, D], and the trained module.

    Raises InputError for a model without item vectors, or with vectors that are not its own.
    """
    experiment = models.experiment
    where, c = f"adapt: {experiment.folder(role, seed)}", experiment.settings(role)
    crossed = role.is_teacher and c.teacher.model.form == "cross"
    if experiment.config.task != "rank" or crossed:
        raise InputError(
            f"{where} has no vectors of items; take a model of a run with task='rank', form='bi'"
        )
    if role.is_teacher and "id" not in c.teacher.model.item_features.split("+"):
        raise InputError(
            f"{where} has no item embeddings beyond the text; train it with"
            " --config.teacher.model.item_features=text+id, or take another model of the run"
            f" (--model={roles.plain_student().name})"
        )
    trained = models.open(role, seed)
    if not factorises(trained.parts.graphdef):
        raise InputError(
            f"{where} ({c.student.name!r}) has no vectors of items; take a student with"
            " factorised scores"
        )
    source = trained.model
    # Popularity features follow, which are no knowledge of the item.
    width = c.teacher.model.dim if role.is_teacher else student_section(c).dim
    return np.asarray(source.items()[0])[:, :width], source


class Adaptation:
    """The training of a run's language model towards the item vectors of one of its models.

    config: how it is trained, section ``teacher``. Raises InputError for a language model that
    would not be trained, and for too few items.
    """

    def __init__(self, models: TrainedModels, config: ConfigDict, role: Role, seed: int):
        experiment = models.experiment
        c, d = config.teacher, experiment.dataset
        if c.lm.train == "head":
            raise InputError(
                "adapt: teacher.lm.train='head' trains no language model; use 'top_n', 'lora' or"
                " 'full' (of backend 'hf_flax': 'full')"
            )
        trained = np.flatnonzero(d.warm)
        if len(trained) < FEWEST:
            raise InputError(
                f"adapt: {len(trained)} of {d.num_items} items have interactions in training;"
                f" {FEWEST} are needed, of which one in {HELD_OUT} is held out"
            )
        self.experiment, self.config, self.role, self.seed = experiment, config, role, seed
        self.texts = experiment.texts(roles.main_teacher()).items
        self.targets, source = item_vectors(models, role, seed)
        self.lm = language_model(c.lm, experiment.cache)
        tower: Any = getattr(source, "text", None)
        # Whether the source reads this language model's vectors already.
        self.reads = tower is not None and tower.encoder is None
        if not self.reads:
            names = ("hidden", "dropout", "components", "whitening")
            fields = {name: c.model[name] for name in names}
            spec = TeacherSpec(d.num_items, np.zeros(0), None, dim=self.targets.shape[1], **fields)
            vectors = Texts(self.lm.texts("text", self.texts).vectors)
            tower = TextTower(vectors, spec, None, rngs=nnx.Rngs(seed))
        tower.dropout = c.model.dropout
        tower.vectors = Frozen(jnp.zeros((0, self.lm.encoder.dim)))  # texts are read, not looked up
        self.graphdef, self.params, self.constants = split(ItemTower(tower, self.lm.encoder))
        order = np.random.default_rng(seed).permutation(trained)
        cut = len(order) // HELD_OUT
        self.held, self.items = order[:cut], order[cut:]
        weight = np.sqrt(d.item_counts.astype(np.float64))
        self.weights = (weight / weight[trained].mean()).astype(np.float32)

    def fit(self) -> Trained:
        """Trains the language model, and returns the best parameters with the training record.

        The best parameters explain the largest share of the variance of the held-out items'
        vectors.
        """
        experiment = self.experiment
        how = recipe(self.config.teacher.optimizer, experiment.dataset.num_users)
        identity = dict(
            source=identity_of(experiment, self.role, self.seed),
            teacher=self.config.teacher.to_dict(),
            weights=self.lm.checksum,
        )
        folder = experiment.workdir / "adapted" / fingerprint(identity)
        vectors = Teacher({"vectors": self.targets}, _targets, lambda: np.zeros(0))
        with Checkpoints(folder, identity) as checkpoints:
            job = TrainingJob(
                "adapt",
                self.seed,
                self.graphdef,
                self.params,
                self.constants,
                self.examples(),
                OBJECTIVE,
                how,
                self.explained(self.held),
                checkpoints,
                experiment.mesh,
                experiment.log,
                teachers={OWN: vectors},
            )
            return train(job)

    def examples(self) -> Examples:
        """One training example per item that is not held out.

        The texts of a batch have about the same length. Every item is drawn equally often, and
        weighted within its batch by the square root of its number of interactions.
        """
        table, states = self.lm.tokens("text", self.texts)
        items = self.items[np.argsort(table.lengths[self.items], kind="stable")]
        shapes = batching.batch_shapes(table.lengths[items], 2**62, COMPILE_TOKENS)
        chance = np.array([stop - start for start, stop, *_ in shapes]) / len(items)

        def draw(rng: np.random.Generator, size: int) -> np.ndarray:
            start, stop, *_ = shapes[rng.choice(len(shapes), p=chance)]
            return start + rng.choice(stop - start, size, replace=stop - start < size)

        def look_up(_: Any, tables: dict[str, Any], rows: Any) -> Batch:
            chosen = tables["items"][rows]
            width = next(width for _, stop, _, width in shapes if rows.max() < stop)
            ids, mask = table.padded(chosen, width)
            batch = {
                "ids": ids,
                "mask": mask,
                "row": chosen,
                "weights": self.weights[chosen][:, None],
            }
            return (
                batch
                if states is None
                else batch | {"states": states[table.token_indices(chosen, width)]}
            )

        tables = {"items": items.astype(np.int32)}
        return Examples(len(items), tables, look_up, draw=draw, on_device=False, one_shape=False)

    def explained(self, items: np.ndarray) -> Callable[[Params, PyTree], float]:
        """A function (params, constants) -> explained share of the variance of item vectors.

        The vectors are those of ``items``; they are predicted from the items' texts.
        """
        texts = [self.texts[item] for item in items]
        table = self.lm.table(texts)
        weights, wanted = self.weights[items, None], self.targets[items]
        spread = np.sum(weights * (wanted - np.average(wanted, axis=0, weights=weights[:, 0])) ** 2)

        def share(params: Params, constants: PyTree) -> float:
            model: Any = nnx.merge(self.graphdef, *sharding.fetch((params, constants)))
            found = model.head.project(jnp.asarray(encoding.encode(model.encoder, table)))
            return float(1 - np.sum(weights * (np.asarray(found) - wanted) ** 2) / spread)

        return share

    def shares(self, params: Params) -> dict[str, float]:
        """The explained variance of the held-out items, and of as many training items."""
        kinds = {"held_out": self.held, "learned": self.items[: len(self.held)]}
        return {
            kind: self.explained(items)(params, self.constants) for kind, items in kinds.items()
        }

    def save(self, folder: Path, params: Params, mix: float) -> None:
        """Saves the language model as a Hugging Face folder.

        mix: weight of the trained parameters in the interpolation with the initial ones
        (``mixed``).
        """
        encoder = mixed(self.params["encoder"], params["encoder"], mix)
        data = self.experiment.dataset.checksum
        self.lm.save(folder, self.graphdef, params | {"encoder": encoder}, self.constants, data)


def mixed(first: Params, trained: Params, mix: float) -> Params:
    """Interpolates linearly between the weights ``first`` (mix=0) and ``trained`` (mix=1).

    For LoRA adapters the linear maps that they add are interpolated.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (WiSE-FT).
    """

    def between(path: Any, a: Array, b: Array) -> Array:
        return b if path[-1].key == "lora_a" else (1 - mix) * a + mix * b  # lora_b is 0 at first

    return jax.tree_util.tree_map_with_path(between, first, trained)


def _targets(arrays: PyTree, batch: Batch) -> TeacherScores:
    contexts = arrays["vectors"][batch["row"]][:, None]
    return TeacherScores(Factors(contexts, jnp.zeros((0, contexts.shape[-1])), jnp.zeros(0)))
