"""What the README shows works as it stands there."""

import ast
import re
from pathlib import Path

import pytest

import kd_jax
from helpers.runs import config, metrics_of, run
from kd_jax.experiment import setup
from kd_jax.models import students
from kd_jax.models.students import base

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def mean_student():
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "STUDENTS[" in block
    )
    assert len(code.splitlines()) <= 30
    known = dict(students.STUDENTS)
    exec(compile(code, "README.md", "exec"), vars(base))
    yield
    students.STUDENTS.clear()
    students.STUDENTS.update(known)


def test_the_student_of_the_readme_trains_distils_and_recommends(world, tmp_path, mean_student):
    optimizer = {"student.optimizer.steps": 60, "student.optimizer.learning_rate": 0.05}
    c = config(world, **{"student.name": "mean"} | optimizer)
    c.student.mean = {"dim": 8, "history": 6}
    run(c, tmp_path / "run")
    rows = {row["name"]: row for row in metrics_of(tmp_path / "run")["models"]}
    assert rows.keys() == {"popularity", *setup.MODELS}
    assert rows["student"]["test"]["ndcg@10"] > rows["popularity"]["test"]["ndcg@10"]
    recommender = kd_jax.load(tmp_path / "run")
    titles = recommender.dataset.titles
    one, other = (
        recommender.recommend(history=titles[start:20:4], k=3)["title"].to_list()
        for start in (0, 1)
    )
    assert one != other and not set(one) & set(titles[0:20:4])


def test_the_files_and_commands_that_the_readme_names_exist():
    for name in re.findall(r"\]\(([\w/.]+)\)|`((?:configs|examples|docs)/[\w.]+)", README):
        assert (ROOT / (name[0] or name[1])).exists(), name
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (quickstart|test)\b", README):
        assert f"\n{target}:" in makefile


def test_modules_import_what_stands_beside_them_or_below():
    """As docs/architecture.md lists them; imports at the top of a file count."""
    package, rows = ROOT / "kd_jax", {}
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")} - {
        "__init__.py"
    }
    table = [
        line
        for line in (ROOT / "docs/architecture.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    for number, line in enumerate(table):
        folder = ""
        for name in re.findall(r"`(?:kd_jax/)?([\w/]+\.py)`", line.split("|")[2]):
            folder = name.rpartition("/")[0] + "/" if "/" in name else folder
            rows[name if "/" in name or name in modules else folder + name] = number
    assert rows.keys() - {"launch.py"} == {
        name for name in modules if not name.endswith("__init__.py")
    }
    wrong = []
    for module in rows.keys() - {"launch.py"}:
        for node in ast.parse((package / module).read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kd_jax"):
                parts = node.module.split(".")[1:]
                found = ["/".join([*parts, alias.name]) + ".py" for alias in node.names] + [
                    "/".join(parts) + ".py"
                ]
                wrong += [
                    (module, one) for one in found if rows.get(one, len(table)) < rows[module]
                ]
    assert not wrong
