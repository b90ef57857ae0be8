"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest
from test_pipeline import config, metrics_of, run

import kd_jax
from kd_jax import pipeline
from kd_jax.models import student

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def mean_student():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "STUDENTS[" in block)
    assert len(code.splitlines()) <= 30
    known = dict(student.STUDENTS)
    exec(compile(code, "README.md", "exec"), vars(student))
    yield
    student.STUDENTS.clear()
    student.STUDENTS.update(known)


def test_the_student_of_the_readme_trains_distils_and_recommends(world, tmp_path, mean_student):
    run(config(world, **{"student.name": "mean", "train.steps": 60, "train.learning_rate": 0.05}), tmp_path / "run")
    rows = {row["name"]: row for row in metrics_of(tmp_path / "run")["models"]}
    assert rows.keys() == {"popularity", *pipeline.MODELS}
    assert rows["student"]["test"]["ndcg@10"] > rows["popularity"]["test"]["ndcg@10"]
    recommender = kd_jax.load(tmp_path / "run")
    titles = recommender.dataset.titles
    one, other = (recommender.recommend(history=titles[start:20:4], k=3)["title"].to_list() for start in (0, 1))
    assert one != other and not set(one) & set(titles[0:20:4])


def test_the_files_and_commands_that_the_readme_names_exist():
    root = Path(__file__).parents[1]
    for name in re.findall(r"\]\(([\w/.]+)\)|`((?:configs|examples|docs)/[\w.]+)", README):
        assert (root / (name[0] or name[1])).exists(), name
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"make (quickstart|test)\b", README):
        assert f"\n{target}:" in makefile
