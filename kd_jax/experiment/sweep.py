"""The search behind ``tuned`` in a configuration, by Optuna: the same budget for every role.

Every trial trains the first seed, and ends early if it is behind at an evaluation; the best few
then train the others too, and the best mean wins. All scores are of validation; the test split is
never read. A trial reads the data and the labels of the workdir, and trains in a folder of its own
in ``tune/<search>``, where the journal of the trials is, too: a search that was cut off goes on.
What was found is in report/search.json.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from kd_jax.core import fields
from kd_jax.core.errors import InputError
from kd_jax.core.files import fingerprint, locked, read_json, write_json
from kd_jax.core.logging import Log
from kd_jax.distillation.term import OWN
from kd_jax.evaluation.names import LOWER_IS_BETTER
from kd_jax.experiment import roles
from kd_jax.experiment.builders import recipe_of
from kd_jax.experiment.config import selects, settings_of
from kd_jax.experiment.experiment import Experiment
from kd_jax.experiment.identity import identity_of
from kd_jax.experiment.label_store import LabelStore
from kd_jax.experiment.objectives import teachers_of
from kd_jax.experiment.roles import Kind, Role, role_of
from kd_jax.experiment.sections import leaves
from kd_jax.experiment.trained import TrainedModels, written
from kd_jax.experiment.trainer import fit
from kd_jax.models.students import student_class
from kd_jax.report.search import FILE, FIX
from kd_jax.training.job import OnScore
from kd_jax.training.loop import Diverged

if TYPE_CHECKING:
    import optuna


class Range(NamedTuple):
    """All numbers between two; log: drawn evenly by their logarithm."""

    low: float
    high: float
    log: bool = False


Space = dict[str, "Range | tuple[Any, ...]"]  # config field -> a range, or values to choose from

SPACES: dict[Kind, Space] = {
    Kind.TEACHER: {
        "teacher.optimizer.learning_rate": Range(5e-4, 1e-2, log=True),
        "teacher.optimizer.weight_decay": (0.0, 0.01, 0.1),
        "teacher.model.dropout": Range(0.0, 0.5),
        "teacher.optimizer.batch_size": (256, 512),
        "teacher.popularity.horizon_days": (7.0, 14.0, 28.0),
        "teacher.popularity.window_days": (30.0, 60.0, 120.0),
        "teacher.model.init_scale": (0.03, 0.1),  # of the control's ID table
        "teacher.model.hidden": (128, 256),  # of the language model's item tower
        "teacher.model.whitening": (0.5, 0.75),
    },
    Kind.STUDENT: {
        "student.optimizer.learning_rate": Range(1e-3, 5e-2, log=True),
        "student.optimizer.schedule": ("constant", "cosine"),
        "student.optimizer.weight_decay": (0.0, 0.01),
    },
}
VECTOR_NORM = Range(1.5, 5.0)  # in place of the weight decay, of students that have a length
# Fields of a student's own section, for the students that have them.
STUDENT_SPACE: Space = {
    "dropout": Range(0.0, 0.6),
    "decay": Range(0.5, 30.0, log=True),
    "user_power": (0.0, 0.5),
}
# Fields of the soft term, of students with a teacher; the weight beside a term of clicks.
SOFT = "soft"
TERM_SPACE: Space = {"temperature": (1.0, 2.0, 4.0), "weight": Range(0.3, 10.0, log=True)}

BEHIND_AFTER = 0.25  # of a trial's steps: before, it is not compared
COMPARED_WITH = 4  # finished trials, at least, before one ends early
SCORES = ("first_seed", "all_seeds")
SHOWN = 5  # trials of a role in report/search.json

Point = dict[str, Any]  # config field -> value


def space(role: Role, config: ConfigDict) -> Space:
    """What is searched for a role."""
    if role.is_teacher:
        return SPACES[role.kind]
    name = config.student.name
    known = fields.defaults(student_class(name).spec)
    own = {f"student.{name}.{key}": values for key, values in STUDENT_SPACE.items() if key in known}
    found = SPACES[role.kind] | own
    if settings_of(config, role).student.optimizer.vector_norm:
        del found["student.optimizer.weight_decay"]  # is refused beside it
        found["student.optimizer.vector_norm"] = VECTOR_NORM
    terms = config.distill.terms
    if role.distilled and SOFT in terms:
        found |= {
            f"distill.terms.{SOFT}.{key}": values
            for key, values in TERM_SPACE.items()
            if key != "weight" or len(terms) > 1
        }
    return found


def tree(point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as nested sections of a config, the form of ``tuned``."""
    return unflatten_dict({tuple(field.split(".")): value for field, value in point.items()})


class Sweep:
    """The trials of some roles of a run; the winners are kept in ``config.tuned``.

    searched: the roles, one after another, each with those before it as they won.
    """

    def __init__(self, workdir: Path, searched: Sequence[Role], log: Log, config: ConfigDict):
        self.workdir, self.searched, self.log, self.config = workdir, searched, log, config

    def best(self, role: Role, trials: int, finalists: int) -> tuple[Point, float]:
        """The point with the best mean validation score over all seeds, and that score."""
        optuna, states = _optuna(), _optuna().trial.TrialState
        found = space(role, self.config)
        tuned = leaves(self.config.tuned.get(role.name, {}))
        fixed = {field: value for field, value in tuned if field not in found}
        folder = self._folder(role, fixed, found)
        study = self._study(role, folder)
        ended = (states.COMPLETE, states.PRUNED)
        for number in range(len(study.get_trials(states=ended)), trials):
            # Seeded by the number of ended trials: a search that was cut off goes on as if not.
            study.sampler = optuna.samplers.TPESampler(seed=number)
            trial = study.ask({field: _distribution(values) for field, values in found.items()})
            point = fixed | _rounded(trial.params)
            first = self.config.seeds[:1]
            try:
                study.tell(trial, self.score(role, folder, point, first, number, _judge(trial)))
            except (optuna.TrialPruned, Diverged) as behind:
                study.tell(trial, state=states.PRUNED)
                print(f"{role.name:10s} trial {number:2d} {behind}  {point}", flush=True)
        done = study.get_trials(states=ended)
        rows = self._finals(role, folder, fixed, done, finalists)
        self._write(role, rows[: max(SHOWN, finalists)], done)
        best = next(row for row in rows if row["chosen"])
        self._compare(role, best["all_seeds"])
        self.config.tuned[role.name] = tree(best["point"])
        return best["point"], best["all_seeds"]

    def _compare(self, role: Role, best: float) -> None:
        """Prints the validation score that the role has in the run itself, where it is trained."""
        seeds = self.config.seeds
        models = TrainedModels(Experiment(self.config, self.workdir, self.log))
        if not all(models.has(role, seed) for seed in seeds):
            return
        own, _ = _mean_score(models, role, seeds)
        line = f"{role.name:10s} in the run valid {self.shown(own):.4f} ({len(seeds)} seeds)"
        if own >= best:
            line += "; no trial is better: keep its settings, or give more --trials"
        print(line)

    def _finals(
        self, role: Role, folder: Path, fixed: Point, trials: list[Any], finalists: int
    ) -> list[dict[str, Any]]:
        """The points that were trained to their end, best first; finalists with all seeds."""
        done = {_name(point := fixed | _rounded(t.params)): (t.value, point)
                for t in trials if t.state.name == "COMPLETE"}  # fmt: skip
        rows: list[dict[str, Any]] = [
            {"point": point, "first_seed": value, "all_seeds": None, "chosen": False}
            for value, point in sorted(done.values(), key=lambda pair: -pair[0])
        ]
        for row in rows[:finalists]:
            try:
                row["all_seeds"] = self.score(role, folder, row["point"], tuple(self.config.seeds))
            except Diverged as error:
                print(f"{role.name:10s} finalist {error}  {row['point']}", flush=True)
        known = [row for row in rows if row["all_seeds"] is not None]
        if not known:
            raise InputError(
                f"sweep: no trial of {role.name} was trained to its end; lower learning rates, or"
                " more --trials"
            )
        max(known, key=lambda row: row["all_seeds"])["chosen"] = True
        return rows

    def score(
        self,
        role: Role,
        folder: Path,
        point: Point,
        seeds: Sequence[int],
        number: int | None = None,
        judge: OnScore | None = None,
    ) -> float:
        """Mean over ``seeds`` of the best validation score; number: None is a finalist."""
        config = ConfigDict(self.config.to_dict())
        config.tuned[role.name] = tree(point)
        moved = {one.name: folder / _name(point) for one in self.searched}
        store = LabelStore(TrainedModels(Experiment(config, self.workdir, self.log, moved)))
        fit(store, role, seeds, judge)
        mean, last = _mean_score(store.models, role, seeds)
        what = "finalist" if number is None else f"trial {number:2d}"
        print(
            f"{role.name:10s} {what} valid {self.shown(mean):.4f} ({len(seeds)} seeds), best step"
            f" {last['best_step']} of {last['steps']}, {last['seconds']:.0f} s  {point}",
            flush=True,
        )
        return mean

    def _folder(self, role: Role, fixed: Point, found: Space) -> Path:
        """The folder of a search, by all that its scores depend on beside the searched fields."""
        config = ConfigDict(self.config.to_dict())
        first = {
            field: values.low if isinstance(values, Range) else values[0]
            for field, values in found.items()
        }
        config.tuned[role.name] = tree(fixed | first)
        identity = identity_of(
            Experiment(config, self.workdir, self.log), role, self.config.seeds[0]
        )
        asked = {field: list(values) for field, values in found.items()}
        digest = fingerprint({"identity": identity, "space": asked})
        return self.workdir.absolute() / "tune" / f"{role.name}.{digest[:8]}"

    def _study(self, role: Role, folder: Path) -> optuna.Study:
        """The trials of before, without those that were cut off."""
        optuna = _optuna()
        steps = recipe_of(Experiment(self.config, self.workdir, self.log), role).steps
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "journal"
        _drop_unfinished_line(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=role.name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=COMPARED_WITH,
                n_warmup_steps=int(BEHIND_AFTER * steps),
                n_min_trials=COMPARED_WITH,
            ),
        )
        state = optuna.trial.TrialState
        for trial in study.get_trials(states=(state.RUNNING,)):
            study.tell(trial.number, state=state.FAIL)  # the same point is drawn again
        return study

    def _write(self, role: Role, rows: list[dict[str, Any]], trials: list[Any]) -> None:
        path = self.workdir / "report" / FILE
        path.parent.mkdir(exist_ok=True)
        found = read_json(path, FIX) if path.exists() else {"roles": {}}
        found["roles"][role.name] = {
            "metric": selects(self.config),
            "trials": len(trials),
            "ended_early": sum(trial.state.name == "PRUNED" for trial in trials),
            "best": [row | self._shown(row) for row in rows],
        }
        write_json(path, found)

    def _shown(self, row: dict[str, Any]) -> dict[str, float]:
        return {key: self.shown(row[key]) for key in SCORES if row[key] is not None}

    def shown(self, score: float) -> float:
        """The metric; scores of metrics where lower is better are negative."""
        return -score if selects(self.config) in LOWER_IS_BETTER else score


def _mean_score(
    models: TrainedModels, role: Role, seeds: Sequence[int]
) -> tuple[float, dict[str, Any]]:
    """The mean over ``seeds`` of the best validation score, and the result of the last seed."""
    results = [models.result(role, seed) for seed in seeds]
    return sum(result["best_score"] for result in results) / len(results), results[-1]


def _optuna() -> Any:
    """The package, which prints nothing by itself; raises InputError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise InputError("the search needs Optuna: pip install 'kd_jax[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _drop_unfinished_line(journal: Path) -> None:
    """Optuna would append to a line that a full disk left unfinished, and never read it again."""
    if journal.exists():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def _distribution(values: Range | tuple[Any, ...]) -> Any:
    distributions = _optuna().distributions
    if isinstance(values, Range):
        return distributions.FloatDistribution(values.low, values.high, log=values.log)
    return distributions.CategoricalDistribution(values)


def _rounded(point: Mapping[str, Any]) -> Point:
    """Numbers with two digits, which are enough to choose and can be read."""
    return {
        field: float(f"{value:.2g}") if isinstance(value, float) else value
        for field, value in point.items()
    }


def _name(point: Point) -> str:
    return fingerprint(point)[:8]


def _judge(trial: optuna.Trial) -> OnScore:
    """A function that ends a trial which is worse than half of the others were at this step."""

    def judge(step: int, score: float) -> None:
        trial.report(score, step)
        if trial.should_prune():
            raise _optuna().TrialPruned(f"ended early at step {step}")

    return judge


def chosen(experiment: Experiment, names: Sequence[str]) -> list[Role]:
    """The roles to search; names: () = the students of the run's stages.

    A role that learns from another one of them has to wait for its labels: without names it is
    left out, by name it raises InputError.
    """
    stages = experiment.config.stages
    found = [role_of(name, "sweep: --models: ") for name in names]
    found = found or [role for role in roles.students() if role.name in stages]
    waiting = set()
    for role in found:
        own = {OWN: role.labels_from}
        teachers = {own.get(name, name) for name in teachers_of(experiment, role)}
        first = [other.name for other in found if other.name in teachers]
        if first and names:
            raise InputError(
                f"sweep: {role.name} learns from the labels of {first[0]}, which is searched too:"
                f" search {first[0]} alone, put its line into the config, run launch.py again, then"
                f" search {role.name}"
            )
        if first:
            waiting.add(role.name)
    return [role for role in found if role.name not in waiting]


def sweep(workdir: Path, names: Sequence[str], trials: int, finalists: int) -> None:
    """Searches the best hyper-parameters of each role; prints every trial and each winner.

    A winner is printed as a line for the config. names: see ``chosen``. Raises InputError for a
    workdir without a run, an unknown role, counts below 1, and without Optuna.
    """
    config = written(workdir)
    if config.get("init_from", ""):
        raise InputError(
            f"{workdir} starts from init_from={config.init_from}, so its models have the sizes of"
            " that run; search in the workdir of a run without init_from"
        )
    for name, count in (("trials", trials), ("finalists", finalists)):
        if count < 1:
            raise InputError(f"sweep: --{name}={count} must be at least 1")
    log_file = workdir / f"tune-{'-'.join(names) or 'students'}.jsonl"
    with locked(workdir), Log(log_file, metric=selects(config)) as log:
        found = chosen(Experiment(config, workdir, log), names)
        search = Sweep(workdir, found, log, config)
        for role in found:
            point, score = search.best(role, trials, finalists)
            print(
                f"c.tuned.{role.name} = {tree(point)}  # valid {search.shown(score):.4f}",
                flush=True,
            )
