"""The stage 'data': what was read, in the log, in report/data.json and as a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from kd_jax.core.errors import InputError
from kd_jax.core.files import write_json
from kd_jax.data import summary
from kd_jax.data.next_items import next_items, suggestion
from kd_jax.data.prepared.folder import PreparedDataset
from kd_jax.data.splits import TEST
from kd_jax.data.statistics import dated, statistics, text_lengths
from kd_jax.devices.processes import leader
from kd_jax.experiment import roles
from kd_jax.experiment.config import reads_text
from kd_jax.experiment.experiment import Experiment
from kd_jax.report import data_page


def describe_data(experiment: Experiment) -> None:
    """Logs a description of the data set, and writes report/data.json and report/data.html."""
    d, log = experiment.dataset, experiment.log
    sizes = d.splits if isinstance(d, PreparedDataset) else np.bincount(d.split, minlength=3)
    lines = [
        f"data: {d.name}: {d.num_users:,} users, {d.num_items:,} items, {sum(sizes[:4]):,}"
        f" interactions ({sizes[0]:,} train, {sizes[1]:,} valid, {sizes[2]:,} test; split"
        f" {d.split_name}); {int(np.sum(~d.warm)):,} items have no train interaction",
        *summary.lines(d, experiment.config.teacher.lm.template),
    ]
    if isinstance(d, PreparedDataset) and not d.whole:
        lines.append(f"data: what follows is of the {d.held:,} users that are evaluated")
    elif experiment.config.task == "rank" and (found := next_items(d)) is not None:
        texts = summary.without_text(d) < d.num_items
        lines.append(suggestion(found, dated(d), d.split_name == "temporal", texts))
    for what, count in d.counts.items():
        if count and what not in ("users", "items", "interactions", "rows", *summary.DROPPED):
            lines.append(f"data: {what.replace('_', ' ')}: {count:,}")
    every = experiment.config.data.min_rating is None and not isinstance(d, PreparedDataset)
    warnings = summary.warnings(d, experiment.config.task == "rank", every)
    if len(np.unique(d.user[d.split == TEST])) == 1:
        warnings.append("warning: the test split has one user: its metrics are no estimate")
    for line in (*lines, *warnings):
        log.note(line)
    tokens, problems = _tokens(experiment)
    if leader():
        lines += [note for note in d.notes if not note.startswith("warning")]
        wrong = [note for note in d.notes if note.startswith("warning")]
        wrong = [line.removeprefix("warning: ") for line in (*wrong, *warnings, *problems)]
        page: dict[str, Any] = {"name": d.name, "lines": lines, "warnings": wrong} | statistics(d)
        page["tokens"] = tokens
        write_json(experiment.workdir / "report" / data_page.DATA, page)
        path = data_page.write(experiment.workdir, roles.legend())
        log.note(f"data: page: {path}")


def _tokens(experiment: Experiment) -> tuple[dict[str, Any] | None, list[str]]:
    """The lengths of the item texts as the run's language model reads them, and what is wrong."""
    role = roles.main_teacher()
    if not reads_text(experiment.settings(role).teacher):
        return None, []
    try:
        reader = experiment.texts(role)
        lm, texts = reader.language_model, reader.items
        problem = reader.note_problems(texts)
    except InputError as error:
        experiment.log.note(f"data: the tokens of the item texts are not counted: {error}")
        return None, []
    lengths = lm.table(texts, lm.cache).lengths
    return text_lengths(lengths, lm.encoder.max_length), [problem] if problem else []
