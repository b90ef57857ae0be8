"""Adapting a language model to what a trained recommender knows of its items.

python -m kd_jax.adapt --workdir=runs/ids --out=weights/adapted
python launch.py --config.teacher.lm.weights=weights/adapted

A recommender with item IDs (a teacher with item_features='text+id', a student, …) has put into its
item vectors what users' behaviour says about the items. The language model's text tower is trained
to give the same vectors, by squared distance: each text is read once per pass over the *items*,
where training by clicks reads the texts of a whole history for every example. What leaves is a
Hugging Face folder like any other, to be the frozen language model of another run.

Source of the idea: Barkan et al., "CB2CF: A Neural Multiview Content-to-Collaborative Filtering
Model for Completely Cold Item Recommendations", RecSys 2019.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from kd_jax.core import process
from kd_jax.core.errors import InputError, nearest
from kd_jax.core.files import disk_is_full, fingerprint, locked, write_json
from kd_jax.core.logging import Log
from kd_jax.core.scores import Factors, TeacherScores
from kd_jax.core.types import Array, Batch, Params, PyTree
from kd_jax.data import text
from kd_jax.data.examples.base import Examples
from kd_jax.devices import sharding
from kd_jax.distillation.teachers import Teacher
from kd_jax.distillation.term import OWN, Term
from kd_jax.experiment.config import changed, language_model, recipe, student_section
from kd_jax.experiment.run import Run, written
from kd_jax.experiment.sections import leaves
from kd_jax.experiment.setup import MODELS
from kd_jax.losses.feature import SquaredDistance
from kd_jax.models.language import encoding
from kd_jax.models.language.encoding import Texts
from kd_jax.models.scorer import Frozen, factorises, split
from kd_jax.models.teachers.spec import TeacherSpec
from kd_jax.models.teachers.text_tower import ItemTower, TextTower
from kd_jax.training.checkpoint import Checkpoints
from kd_jax.training.job import Trained, TrainingJob
from kd_jax.training.loop import train

# What of ``teacher`` says how the language model learns; the rest is the run's own.
RECIPE = {
    "lm": {
        "train": "top_n", "top_n": 2, "lora_rank": 8, "lora_targets": ("query", "value"), "dtype": "float32",
        "remat": False,
    },
    "model": {"dropout": 0.1},
    "optimizer": {
        "steps": 400, "batch_size": 256, "learning_rate": 1e-3, "lm_learning_rate": 2e-4, "schedule": "cosine",
        "warmup_steps": 20, "accumulate": 1, "weight_decay": 0.01, "clip_norm": 1.0, "eval_every": 100, "patience": 4,
    },
}  # fmt: skip
LEARNS = tuple(name for name, _ in leaves(RECIPE))
# How it reads a text, with what launch.py takes by default: said where it is to be used.
READS = {
    "lm.pooling": "mean",
    "lm.normalize": False,
    "lm.max_tokens": 64,
    "lm.template": "",
    "lm.backend": "native",
}
MIX = 0.5  # half way kept more of what was good before, on validation (docs/results.md)
HELD_OUT = 20  # one in so many trained items shows how well the texts of others are read
FEWEST = 2 * HELD_OUT
COMPILE_TOKENS = 50_000  # of items that are read while one more shape is compiled


OBJECTIVE = (Term("vectors", SquaredDistance()),)


def item_vectors(run: Run, model: str, seed: int) -> tuple[np.ndarray, Any]:
    """What ``model`` of a run knows of its items, f32 [I, D], and the trained module.

    Raises InputError for a model whose vectors are not its own, or that has none.
    """
    where, c = f"adapt: {run.folder(model, seed)}", run.settings(model)
    if run.config.task != "rank" or (model == "teacher" and c.teacher.model.form == "cross"):
        raise InputError(
            f"{where} has no vectors of items; take a model of a run with task='rank', form='bi'"
        )
    if model == "teacher" and "id" not in c.teacher.model.item_features.split("+"):
        raise InputError(
            f"{where} knows of its items what their text says and no more; train it with"
            " --config.teacher.model.item_features=text+id, or take another model of the run"
            " (--model=student)"
        )
    built = run.build(model, seed)
    if not factorises(built.graphdef):
        raise InputError(
            f"{where} ({c.student.name!r}) has no vectors of items; take a 'mf' or 'sasrec' student"
        )
    source: Any = nnx.merge(built.graphdef, *run.best(model, seed, built))
    width = (
        c.teacher.model.dim if model.endswith("teacher") else student_section(c).dim
    )  # trends follow, which are no knowledge
    return np.asarray(source.items()[0])[:, :width], source


class Adaptation:
    """The language model of a run, to be trained towards the vectors of one of its models."""

    def __init__(self, run: Run, config: ConfigDict, model: str, seed: int):
        if model not in MODELS:
            raise InputError(f"adapt: --model={model!r} is unknown{nearest(model, MODELS)}")
        c, d = config.teacher, run.dataset
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
        self.run, self.config, self.model, self.seed = run, config, model, seed
        self.targets, source = item_vectors(run, model, seed)
        self.lm = language_model(c.lm, run.workdir / "cache")
        tower: Any = getattr(source, "text", None)
        self.reads = (
            tower is not None and tower.encoder is None
        )  # this language model's vectors, already
        if not self.reads:
            names = ("hidden", "dropout", "components", "whitening")
            fields = {name: c.model[name] for name in names}
            spec = TeacherSpec(d.num_items, np.zeros(0), None, dim=self.targets.shape[1], **fields)
            vectors = Texts(self.lm.texts("text", run.item_texts).vectors)
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
        """The parameters that explain most of the held-out items' vectors, and how they came
        about.
        """
        run, how = self.run, recipe(self.config.teacher.optimizer)
        identity = {
            "source": run.identity(self.model, self.seed),
            "teacher": self.config.teacher.to_dict(),
            "weights": self.lm.checksum,
        }
        with Checkpoints(run.workdir / "adapted" / fingerprint(identity), identity) as checkpoints:
            vectors = Teacher({"vectors": self.targets}, _item_vectors, lambda: np.zeros(0))
            return train(
                TrainingJob(
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
                    run.mesh,
                    run.log,
                    teachers={OWN: vectors},
                )
            )

    def examples(self) -> Examples:
        """One per item that is not held out. The texts of a batch are about equally long; every
        item is drawn as often as any other and counts, within its batch, as the root of its
        interactions.
        """
        table, states = self.lm.tokens("text", self.run.item_texts)
        items = self.items[np.argsort(table.lengths[self.items], kind="stable")]
        shapes = encoding.batch_shapes(table.lengths[items], 2**62, COMPILE_TOKENS)
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
        """(params, constants) -> share of the variance of these items' vectors that their text
        explains.
        """
        texts = [self.run.item_texts[item] for item in items]
        table = text.tokenize(self.lm.tokenizer, texts, self.lm.encoder.max_length)
        weights, wanted = self.weights[items, None], self.targets[items]
        spread = np.sum(weights * (wanted - np.average(wanted, axis=0, weights=weights[:, 0])) ** 2)

        def share(params: Params, constants: PyTree) -> float:
            model: Any = nnx.merge(self.graphdef, *sharding.fetch((params, constants)))
            found = model.head.project(jnp.asarray(encoding.encode(model.encoder, table)))
            return float(1 - np.sum(weights * (np.asarray(found) - wanted) ** 2) / spread)

        return share

    def shares(self, params: Params) -> dict[str, float]:
        """What is explained of the items that are held out, and of as many that were learned
        from.
        """
        kinds = {"held_out": self.held, "learned": self.items[: len(self.held)]}
        return {
            kind: self.explained(items)(params, self.constants) for kind, items in kinds.items()
        }

    def save(self, folder: Path, params: Params, mix: float) -> None:
        """The language model as a Hugging Face folder. mix: how far from its first weights to the
        trained ones.
        """
        encoder = mixed(self.params["encoder"], params["encoder"], mix)
        data = self.run.dataset.checksum
        self.lm.save(folder, self.graphdef, params | {"encoder": encoder}, self.constants, data)


def mixed(first: Params, trained: Params, mix: float) -> Params:
    """Weights on the line from ``first`` to ``trained``: the second at mix=1. Of adapters, the maps
    that they add.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (WiSE-FT).
    """

    def between(path: Any, a: Array, b: Array) -> Array:
        return b if path[-1].key == "lora_a" else (1 - mix) * a + mix * b  # lora_b is 0 at first

    return jax.tree_util.tree_map_with_path(between, first, trained)


def _item_vectors(arrays: PyTree, batch: Batch) -> TeacherScores:
    contexts = arrays["vectors"][batch["row"]][:, None]
    return TeacherScores(Factors(contexts, jnp.zeros((0, contexts.shape[-1])), jnp.zeros(0)))


def adapt(
    workdir: Path,
    out: Path,
    model: str = "teacher",
    seed: int | None = None,
    mix: float = MIX,
    changes: Sequence[str] = (),
) -> Any:
    """Train and write the folder ``out``, with adapted.json; returns what that holds.

    seed: of the model, None: the run's first. mix: see ``mixed``. changes: 'teacher.optimizer.steps=200', …,
    see ``RECIPE``. A run that was cut off goes on from its checkpoints in the workdir. Raises
    InputError for a workdir without that model, and for a folder that is not empty.
    """
    config = written(workdir)
    if not 0 < mix <= 1:
        raise InputError(
            f"adapt: --mix={mix} must be more than 0 and at most 1, the trained weights themselves"
        )
    out = out.resolve()  # '.' has no name to write beside
    try:
        if out.exists() and any(out.iterdir()):
            raise InputError(f"adapt: --out={out} exists and is not empty; give another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_is_full(error):
            raise
        raise InputError(
            f"adapt: --out={out} cannot be a folder ({error.strerror}); give another"
        ) from None
    (workdir / "adapted").mkdir(exist_ok=True)
    with locked(workdir), Log(workdir / "adapted/metrics.jsonl", metric="explained") as log:
        process.keep_compiled(workdir)
        run = Run.opened(workdir, log, config)
        seed = run.seeds[0] if seed is None else seed
        if seed not in run.seeds:
            raise InputError(f"adapt: --seed={seed} is none of the run's seeds {run.seeds}")
        config = run.settings("teacher")
        config.teacher.update(RECIPE)
        config = changed(config, changes, LEARNS)
        # A short trial warms up shortly, and is judged as often.
        how = config.teacher.optimizer
        for field, most in (("warmup_steps", how.steps // 10), ("eval_every", how.steps // 4)):
            if not any(change.startswith(f"teacher.optimizer.{field}=") for change in changes):
                how[field] = min(how[field], max(1, most))
        adaptation = Adaptation(run, config, model, seed)
        before = adaptation.shares(adaptation.params) if adaptation.reads else None
        trained = adaptation.fit()
        fields = dict(leaves(config.teacher))
        report = {
            "model": model, "seed": seed, "mix": mix, "items": len(adaptation.items), "held_out": len(adaptation.held),
            "explained_before": before, "explained": adaptation.shares(trained.params),
            "best_step": trained.best_step, "steps": trained.steps,
            "train_seconds": trained.seconds,
            "data": run.dataset.checksum, "teacher": {field: fields[field] for field in (*LEARNS, *READS)},
        }  # fmt: skip
        partial = out.with_name(f".{out.name}.partial")  # what is there is whole
        shutil.rmtree(partial, ignore_errors=True)
        adaptation.save(partial, trained.params, mix)
        write_json(partial / "adapted.json", report)
        partial.replace(out)
    return report
