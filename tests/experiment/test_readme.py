"""The examples in README.md and docs/students.md work as printed; links and names exist."""

import re

import pytest
from ml_collections import ConfigDict

import kd_jax
from configs import common
from helpers.runs import ROOT, config, metrics_of, run
from kd_jax.core import fields
from kd_jax.data.readers import READERS
from kd_jax.models import students
from kd_jax.serving.exporters import EXPORTERS

README = (ROOT / "README.md").read_text()
STUDENTS_PAGE = (ROOT / "docs/students.md").read_text()


@pytest.fixture
def mean_student():
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", STUDENTS_PAGE, re.S)
        if "STUDENTS[" in block
    )
    assert len(code.splitlines()) <= 40
    before = dict(students.STUDENTS)
    exec(compile(code, "docs/students.md", "exec"), {"__name__": "mean"})
    yield
    students.STUDENTS.clear()
    students.STUDENTS.update(before)


@pytest.mark.slow
def test_the_student_of_the_docs_trains_distils_and_recommends(world, tmp_path, mean_student):
    optimizer = {"student.optimizer.steps": 60, "student.optimizer.learning_rate": 0.05}
    stages = ("data", "teacher", "labels", "student", "distilled", "evaluate", "export")
    c = config(world, stages=stages, **{"student.name": "mean"} | optimizer)
    c.student.mean = {"dim": 8}
    run(c, tmp_path / "run")
    rows = {row["name"]: row for row in metrics_of(tmp_path / "run")["models"]}
    assert rows.keys() == {"popularity", "item_knn", "teacher", "student", "distilled"}
    assert rows["student"]["test"]["ndcg@10"] > rows["popularity"]["test"]["ndcg@10"]
    recommender = kd_jax.load(tmp_path / "run")
    titles = recommender.dataset.titles
    one, other = (
        recommender.recommend(history=titles[start:20:4], k=3)["title"].to_list()
        for start in (0, 1)
    )
    assert one != other and not set(one) & set(titles[0:20:4])


def test_links_lead_to_files_and_headings():
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, heading = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name}: {target}"
            assert not heading or heading in headings(path), f"{page.name}: {target}"


def headings(page):
    """The anchors that GitHub makes of a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_files_and_commands_that_the_pages_name_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for name in re.findall(
            r"`((?:configs|examples|docs|benchmarks|cluster|tests|kd_jax)/[\w./]+)`", text
        ):
            assert (ROOT / name).exists(), f"{page.name}: {name}"
        for module in re.findall(r"python -m (kd_jax(?:\.\w+)+)", text):
            path = ROOT / module.replace(".", "/")
            known = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
            assert known, f"{page.name}: {module}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", README, re.M):
        assert f"\n{target}:" in makefile


def test_the_readme_lists_the_folders():
    rows = set(re.findall(r"^\| `(\w+)/` \|", README, re.M))
    assert rows == {path.parent.name for path in (ROOT / "kd_jax").glob("*/__init__.py")}


NAMED = (
    *(f"distill.terms.*.{field}" for field in ["loss", "items", "teacher", "head"]),
    *(
        f"distill.terms.*.{field}{end}"
        for field in ("weight", "temperature")
        for end in ("", ".start", ".end", ".schedule")
    ),
    "distill.terms.*",
    "distill.sources.*",
    "distill.sources.*.path",
    "distill.sources.*.confidence",
)
FILES = ("student.json", "student.safetensors")


def fields_and_sections(section, prefix=""):
    for name, value in section.items():
        yield f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from fields_and_sections(value, f"{prefix}{name}.")


def declared():
    """Fields of the sections that readers, students and exporters declare."""
    for name, reader in READERS.items():
        yield from (f"data.{name}.{field}" for field in fields.defaults(reader))
    for name, kind in students.STUDENTS.items():
        yield from (f"student.{name}.{field}" for field in fields.defaults(kind.spec))
    for name, exporter in EXPORTERS.items():
        yield from (f"export.{name}.{field}" for field in fields.defaults(exporter))


def known(field, existing):
    """Whether there is such a field or section; <name> and * stand for any one."""
    parts = re.sub(r"^tuned\.[^.]+\.", "", field).split(".")
    return any(
        len(parts) == len(other)
        and all(a == b or a[0] == "<" or "*" in (a, b) for a, b in zip(parts, other, strict=True))
        for other in existing
    )


def test_the_fields_that_the_pages_name_exist():
    names = (*fields_and_sections(common.get_config()), *declared(), *NAMED)
    existing = [name.split(".") for name in names]
    pages = [
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
        *(
            path
            for name in ("configs", "benchmarks", "examples", "cluster")
            for path in (ROOT / name).iterdir()
            if path.is_file()
        ),
    ]
    wrong = []
    for page in pages:
        text = page.read_text().partition("## Old names")[0]
        names = re.findall(r"(?:--config\.|--set )([a-z_]\w*(?:\.\w+)*)", text)
        if page.suffix == ".md":
            sections = "data|teacher|student|distill|tuned|eval|export|rate|mesh"
            names += re.findall(rf"`((?:{sections})\.[\w.<>*-]+)", text)
        wrong += [
            f"{page.name}: {name}"
            for name in dict.fromkeys(name.rstrip(".") for name in names)
            if name not in FILES and not known(name, existing)
        ]
    assert not wrong, "\n".join(wrong)
