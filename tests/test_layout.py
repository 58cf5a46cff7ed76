"""The layout that the README promises: who imports whom, which files are free of torch, and what is never committed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import rl

ROOT = Path(__file__).resolve().parent.parent
STREET = ("recipes", "distill", "eval", "rl", "rewards")  # a package imports only what stands to its right
TORCH_FREE = ("rewards/", "rl/records.py", "rl/data.py", "rl/advantage.py")
MAX_LINES, MAX_FUNCTION_LINES, MAX_MB = 400, 80, 20


@cache
def python_files(*packages: str) -> tuple[Path, ...]:
    """The Python files of these packages, relative to the checkout."""
    return tuple(path.relative_to(ROOT) for package in packages for path in sorted((ROOT / package).rglob("*.py")))


@cache
def tracked() -> tuple[Path, ...]:
    """Every tracked file, relative to the checkout; skips the test where this is no git checkout."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("not a git checkout: what is tracked is not known")
    return tuple(Path(name) for name in git.stdout.split("\0") if name and (ROOT / name).is_file())


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but those that only a type checker sees (`if TYPE_CHECKING:`)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield child
        yield from runtime_nodes(child)


def imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[str, int]]:
    """The top-level package of each import with its line; "." for a relative import, which the house does not use."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield ("." if node.level else str(node.module).split(".")[0]), node.lineno


def test_package_is_this_checkout() -> None:
    assert Path(str(rl.__file__)).resolve().parent == ROOT / "rl", "another package named rl shadows this checkout"
    assert {Path("rl/records.py"), Path("rewards/score.py")} <= set(python_files(*STREET))  # the tests below see files


def test_imports_go_one_way() -> None:
    for package in STREET:
        left = STREET[: STREET.index(package)]
        for path in python_files(package):
            for name, line in imports(ast.walk(parse(path))):
                assert name != ".", f"{path}:{line}: relative import; write the path from the root"
                assert name not in left, f"{path}:{line}: {package} imports {name}, against the street {' -> '.join(STREET)}"
                assert name not in ("tests", "bench"), f"{path}:{line}: {package} imports {name}"


def test_no_torch_where_there_are_no_tensors() -> None:
    for path in python_files("rewards", "rl"):
        if path.as_posix().startswith(TORCH_FREE):
            lines = [line for name, line in imports(runtime_nodes(parse(path))) if name == "torch"]
            assert not lines, f"{path}:{lines[0]}: imports torch"


def test_no_module_shadows_the_standard_library() -> None:
    for path in python_files(*STREET):
        name = path.parent.name if path.stem == "__init__" else path.stem
        assert name not in sys.stdlib_module_names, f"{path}: carries a standard-library name"


def test_files_and_functions_stay_short() -> None:
    for path in python_files(*STREET):
        length = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        assert length <= MAX_LINES, f"{path}: {length} lines; it has two jobs"
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines; it has two jobs"


def test_no_large_file_is_tracked() -> None:
    for path in tracked():
        size = (ROOT / path).stat().st_size / 1e6
        assert size <= MAX_MB, f"{path}: {size:.0f} MB"


def test_no_place_of_one_machine_and_no_registry_is_named() -> None:
    # In pieces, so that this file does not contain what it forbids.
    folders = [f"/{top}/" for top in ("home", "root", "work", "Users", "workspace")]
    registries = ["pypi." + "org", "pythonhosted." + "org", "deb.debian." + "org", "archive.ubuntu." + "com"]
    registries += ["registry.npmjs." + "org", "download.pytorch." + "org", "conda.anaconda." + "org", "--extra-" + "index-url"]
    forbidden = re.compile(
        "|".join([rf"(?<![\w.*)}}$-]){folder}\w" for folder in folders] + [re.escape(r) for r in registries])
    )
    for path in tracked():
        data = (ROOT / path).read_bytes()
        if b"\0" in data[:8192]:
            continue  # weights, pictures
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            found = forbidden.search(line)
            assert not found, f"{path}:{number}: {found and found.group()!r} is of one machine or a registry"


def test_readme_tree_names_every_file() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md is not written yet")
    text = readme.read_text(encoding="utf-8")
    files = [path for path in python_files(*STREET, "bench") if path.stem != "__init__"]
    for name, expected in Counter(path.name for path in files).items():
        named = len(re.findall(rf"(?<![\w-]){re.escape(name)}\b", text))
        places = [path.as_posix() for path in files if path.name == name]
        assert named >= expected, f"README.md's tree names {name} {named} times; there are {places}"


def test_docs_name_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9][a-z0-9-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"setup", "r1-zero", "test", "check"} <= targets
    for path in [p for p in tracked() if p.suffix in (".md", ".toml", ".yaml", ".yml") or p.parent.name == ".ci"]:
        text = (ROOT / path).read_text(encoding="utf-8")
        quoted = re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z0-9][a-z0-9-]*)", text)  # in backticks, or a line of its own
        quoted += re.findall(r"^\s*(?:\$ |exec )?make ([a-z0-9][a-z0-9-]*)(?= *$| +[A-Z]+=| +#)", text, re.M)
        for name in quoted:
            assert name in targets, f"{path}: `make {name}` is no target of the Makefile"
