"""Rules of the code: import order, sizes of files and functions, unique names, line widths.

docs/architecture.md has the map that these tests check.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
from collections.abc import Iterator
from pathlib import Path

from kd_jax import losses
from kd_jax.experiment import roles

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "kd_jax"
MAX_LINES = 400
MAX_FUNCTION = 60
MAX_PARAMETERS = 8
MAX_WIDTH = 100
# A folder imports from the levels before its own. Folders of one level do not import each other.
LEVELS = (
    ("core",),
    ("devices", "runtime"),
    ("data",),
    ("models", "losses"),
    ("distillation",),
    ("training", "evaluation"),
    ("serving", "report"),
    ("experiment",),
    ("commands",),  # kd_jax/*.py
)
LEVEL = {folder: level for level, folders in enumerate(LEVELS) for folder in folders}


def modules() -> dict[str, Path]:
    """'kd_jax.core.files' -> its path; a package stands for its __init__.py."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module of kd_jax) of every import, those inside functions included."""
    known = modules()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "kd_jax":
                continue
            module = name if name in known else name.rpartition(".")[0]
            assert module in known, f"{path}:{node.lineno}: {name}"
            yield node.lineno, module


def folder_of(module: str) -> str:
    """The folder whose level counts; ``__main__`` of a folder is a command."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return "commands"
    nested = len(parts) > 2 or modules()[module].name == "__init__.py"
    return parts[1] if len(parts) > 1 and nested else "commands"


def test_every_folder_has_a_level():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == LEVEL.keys() - {"commands"}


def test_imports_follow_the_order_of_the_folders():
    wrong = []
    for module, path in modules().items():
        here = folder_of(module)
        for line, other in imports(path):
            there = folder_of(other)
            if there != here and LEVEL[there] >= LEVEL[here]:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {here} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    graph = {module: {other for _, other in imports(path)} for module, path in modules().items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError shows the cycle


def test_tensors_are_written_in_one_place():
    """``write_tensors`` makes arrays C-contiguous, which safetensors does not."""
    wrong = [
        module
        for module, path in modules().items()
        if "save_file" in path.read_text() and module != "kd_jax.core.files"
    ]
    assert not wrong


def test_files_are_short():
    lines = {
        path.relative_to(ROOT): len(path.read_text().splitlines()) for path in modules().values()
    }
    assert not {str(path): count for path, count in lines.items() if count > MAX_LINES}


def test_functions_are_short():
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        for path in modules().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno - node.lineno >= MAX_FUNCTION or parameters(node) > MAX_PARAMETERS)
    ]
    assert not long, "\n".join(long)


def parameters(node: ast.FunctionDef) -> int:
    found = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in found if name not in ("self", "cls")])


def texts() -> list[Path]:
    inside = [path for kind in ("md", "html") for path in PACKAGE.rglob(f"*.{kind}")]
    docs = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *docs, *sorted(inside)]


def test_lines_are_narrow():
    """Rows of Markdown tables have no other way to be written."""
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (*modules().values(), *texts())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_WIDTH and not (path.suffix == ".md" and line.startswith("|"))
    ]
    assert not wide, "\n".join(wide)


def constants(names: set[str], allowed: dict[str, set[Path]]) -> list[str]:
    """Where a string constant equals one of ``names``, outside of the files that may hold it."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in modules().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in names
        and path not in allowed[node.value]
    ]


def test_a_role_is_named_in_the_table_of_roles_alone():
    home = {Path(roles.__file__)}
    wrong = constants(set(roles.ROLES), dict.fromkeys(roles.ROLES, home))
    assert not wrong, "\n".join(wrong)


def test_a_loss_is_named_in_its_own_file_and_in_the_dict_alone():
    home = Path(losses.__file__)
    homes = {
        name: {home, Path(importlib.import_module(kind.__module__).__file__)}
        for name, kind in losses.LOSSES.items()
    }
    wrong = constants(set(homes), homes)
    assert not wrong, "\n".join(wrong)
