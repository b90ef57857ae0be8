"""Adapting a language model to the item vectors of a trained recommender.

A recommender with item IDs (a teacher with item_features='text+id', a student, …) has learned item
vectors from what users did. The language model's text tower is trained to give the same vectors;
the result is a Hugging Face folder, to be the frozen language model of another run.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from kd_jax.core import process
from kd_jax.core.errors import InputError
from kd_jax.core.files import disk_is_full, locked, write_json
from kd_jax.core.logging import Log
from kd_jax.experiment import roles
from kd_jax.experiment.adaptation import Adaptation
from kd_jax.experiment.config import changed
from kd_jax.experiment.roles import role_of
from kd_jax.experiment.sections import leaves
from kd_jax.experiment.trained import open_workdir, written

# How the language model learns: fields of section ``teacher``. The rest is the run's own.
RECIPE: dict[str, dict[str, Any]] = {
    "lm": {
        "train": "top_n",
        "top_n": 2,
        "lora_rank": 8,
        "lora_targets": ("query", "value"),
        "dtype": "float32",
        "remat": False,
    },
    "model": {"dropout": 0.1},
    "optimizer": {
        "steps": 400,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "lm_learning_rate": 2e-4,
        "schedule": "cosine",
        "warmup_steps": 20,
        "accumulate": 1,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "eval_every": 100,
        "patience": 4,
    },
}
LEARNS = tuple(name for name, _ in leaves(RECIPE))
# How it reads a text, beyond the settings in the saved folder, with the defaults of launch.py:
# other values are needed where it is used.
READS = {
    "lm.template": "",
    "lm.backend": "native",
}
MIX = 0.5  # half way kept more of what was good before, on validation (docs/results.md)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The content of adapted.json.

    model, seed: of the item vectors that were learned. explained: the share of their variance that
    the texts explain, for training items and for ``held_out`` others; explained_before: None where
    the language model was not the source's own. teacher: the fields of that section that define how
    the model was trained and how it encodes a text.
    """

    model: str
    seed: int
    mix: float
    items: int
    held_out: int
    explained_before: dict[str, float] | None
    explained: dict[str, float]
    best_step: int
    steps: int
    train_seconds: float
    data: str
    teacher: dict[str, Any]

    def summary(self, out: Path) -> str:
        """The result and how to use ``out``, as text for the console."""
        now, before = self.explained, self.explained_before or {}
        shares = {
            kind: f"{now[kind]:.1%}" + (f" ({before[kind]:.1%} before)" if before else "")
            for kind in now
        }
        lines = [
            f"{out}: learned from {self.items:,} items in {self.train_seconds:.0f} s, best at step"
            f" {self.best_step} of {self.steps}, where texts explain {shares['learned']} of the"
            f" variance of their vectors, and {shares['held_out']} of that of {self.held_out:,}"
            f" held-out items; {self.mix:g} of the way there is saved"
        ]
        worse = [kind.replace("_", "-") for kind in now if now[kind] < before.get(kind, 0.0)]
        if worse:
            lines.append(
                f"warning: of the {' and '.join(worse)} items' vectors the texts explain less than"
                f" {'before' if before else 'their mean does'}; try another number of"
                " teacher.optimizer.steps, a lower teacher.optimizer.lm_learning_rate or a smaller"
                " --mix, and compare on validation with the first weights"
            )
        changed = {name: self.teacher[name] for name in READS if self.teacher[name] != READS[name]}
        fields = {"lm.weights": out} | changed
        flags = (f"--config.teacher.{name}={shlex.quote(str(x))}" for name, x in fields.items())
        return "\n".join([*lines, f"use it with {' '.join(flags)}"])


def adapt(
    workdir: Path,
    out: Path,
    name: str = "",
    seed: int | None = None,
    mix: float = MIX,
    changes: Sequence[str] = (),
) -> Adapted:
    """Trains and writes the folder ``out``, with adapted.json; returns the content of that file.

    name: the role of the model that provides the item vectors, '' for the teacher. seed: of that
    model; None: the run's first. mix: see ``mixed``. changes: 'teacher.optimizer.steps=200', …, see
    ``RECIPE``. A run that was interrupted resumes from its checkpoints in the workdir. Raises
    InputError for a workdir without that model, and for a folder that is not empty.
    """
    config = written(workdir)
    if not 0 < mix <= 1:
        raise InputError(
            f"adapt: --mix={mix} must be more than 0 and at most 1, the trained weights themselves"
        )
    role = role_of(name, "adapt: --model=") if name else roles.main_teacher()
    out = _empty(out.resolve())  # '.' has no name to write beside
    (workdir / "adapted").mkdir(exist_ok=True)
    with locked(workdir), Log(workdir / "adapted/metrics.jsonl", metric="explained") as log:
        process.keep_compiled(workdir)
        models = open_workdir(workdir, log, config)
        seeds = models.experiment.seeds
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            raise InputError(f"adapt: --seed={seed} is none of the run's seeds {seeds}")
        config = _settings(models.experiment.settings(roles.main_teacher()), changes)
        adaptation = Adaptation(models, config, role, seed)
        before = adaptation.shares(adaptation.params) if adaptation.reads else None
        trained = adaptation.fit()
        fields = dict(leaves(config.teacher))
        report = Adapted(
            model=role.name,
            seed=seed,
            mix=mix,
            items=len(adaptation.items),
            held_out=len(adaptation.held),
            explained_before=before,
            explained=adaptation.shares(trained.params),
            best_step=trained.best_step,
            steps=trained.steps,
            train_seconds=trained.seconds,
            data=models.experiment.dataset.checksum,
            teacher={field: fields[field] for field in (*LEARNS, *READS)},
        )
        partial = out.with_name(f".{out.name}.partial")  # what is there is whole
        shutil.rmtree(partial, ignore_errors=True)
        adaptation.save(partial, trained.params, mix)
        write_json(partial / "adapted.json", dataclasses.asdict(report))
        partial.replace(out)
    return report


def _empty(out: Path) -> Path:
    """``out`` as a path to write to; raises InputError if it cannot be written or is not empty."""
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
    return out


def _settings(config: ConfigDict, changes: Sequence[str]) -> ConfigDict:
    """A copy of ``config`` with ``RECIPE`` and the changes in section ``teacher``."""
    config = ConfigDict(config.to_dict())
    config.teacher.update(RECIPE)
    config = changed(config, changes, LEARNS)
    # A short trial warms up shortly, and is evaluated as often.
    how = config.teacher.optimizer
    for field, most in (("warmup_steps", how.steps // 10), ("eval_every", how.steps // 4)):
        if not any(change.startswith(f"teacher.optimizer.{field}=") for change in changes):
            how[field] = min(how[field], max(1, most))
    return config
