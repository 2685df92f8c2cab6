"""The repository keeps its own rules: sizes, import direction, docstrings, versions, and nothing of one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import minprune

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minprune"
MODULES = sorted(PACKAGE.rglob("*.py"))
PURE = sorted(
    [
        *(PACKAGE / f"{name}.py" for name in ("arithmetic", "patterns", "selection", "statistics")),
        *(PACKAGE / "methods").glob("*.py"),
    ]
)
FORBIDDEN = {
    "the host of a package index": r"\bpypi\.(?:org|io)|pythonhosted\.org|npmjs\.(?:org|com)|repo\.anaconda\.com",
    "a path of one machine": r"(?<![\w.~-])/(?:work|tmp|root|home|Users)/\w",
}


def test_no_committed_file_names_an_index_or_a_machine():
    found = []
    for path in _committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        found += [f"{path.relative_to(ROOT)}: {what}, {m[0]}..." for what, m in _forbidden(text)]
    assert not found, "\n".join(found)


def test_the_forbidden_is_found():
    for text in ("py" + "pi.org", "see /ho" + "me/me/x", "'/tm" + "p/x'", "files.python" + "hosted.org"):
        assert len(list(_forbidden(text))) == 1, text
    for text in ("a/home/b", "~/work/x", "https://example.org/tmp/x", "and/or", "/work"):
        assert not list(_forbidden(text)), text


def _forbidden(text):
    for what, regex in FORBIDDEN.items():
        if match := re.search(regex, text):
            yield what, match


def _committed():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    assert len(paths) > 20
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short_and_its_public_names_have_docstrings(path):
    text = path.read_text(encoding="utf-8")
    data = path.parent.name == "checks" and path.name.startswith("ch")  # a chapter's cases and messages: one file
    lines, limit = len(text.splitlines()), 160 if path.parent.name == "methods" else 300
    assert data or lines < limit, f"{path.name} has {lines} lines, the limit is {limit}: split it"
    tree = ast.parse(text)
    defined = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    bare = [node.name for node in defined if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not bare, f"{path.name}: no docstring: {', '.join(bare)}"
    assert ast.get_docstring(tree) or not tree.body, f"{path.name} does not say what it is for"


def test_no_package_level_name_shadows_a_module():
    import minprune.methods.sparsegpt as module

    assert isinstance(module, ModuleType) and callable(module.sparsegpt)
    for package in [PACKAGE, *(init.parent for init in PACKAGE.glob("*/__init__.py"))]:
        name = ".".join(package.relative_to(ROOT).parts)
        names = {path.stem for path in package.glob("*.py") if path.stem not in ("__init__", "__main__")}
        script = (
            f"import importlib, types; p = importlib.import_module({name!r})\n"
            f"print([n for n in {sorted(names)!r} if not isinstance(getattr(p, n, types), types.ModuleType)])"
        )
        assert _python(script) == "[]"


def test_methods_patterns_and_statistics_know_nothing_of_transformers():
    script = (
        "import sys, minprune.methods.sparsegpt, minprune.patterns, minprune.statistics\n"
        "print([name for name in ('transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    assert _python(script) == "[]"


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_import_direction(path):
    allowed = {"torch", "numpy", "scipy", *sys.stdlib_module_names}
    ours = {
        f"minprune.{name}"
        for name in ("arguments", "arithmetic", "errors", "patterns", "selection", "statistics", "methods")
    }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            good = name.split(".")[0] in allowed or ".".join(name.split(".")[:2]) in ours
            assert good, f"{path.name} imports {name}: methods, patterns and statistics import torch and each other"


def test_every_module_that_a_page_or_a_docstring_names_is_there():
    committed = _committed()
    there = {path.relative_to(ROOT).as_posix() for path in committed if path.suffix == ".py"}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("book/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    named = {page: re.findall(r"`([a-z_][\w/]*\.py)`", page.read_text(encoding="utf-8")) for page in pages}
    for path in committed:
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            able = [tree, *(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef))]
            docs = " ".join(ast.get_docstring(node) or "" for node in able)
            named[path] = re.findall(r"(?<![\w/.])[a-z_][\w/]*\.py\b", docs)
    assert sum(map(len, named.values())) > 100
    for page, names in named.items():
        for name in names:
            found = any(path == name or path.endswith(f"/{name}") for path in there)
            assert found or "NAME" in name or "NN" in name, f"{page.name} names {name}, which is not there"


def test_versions_and_licence_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == minprune.__version__
    assert project["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    pinned = {_canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {_canonical(line) for line in wanted} - {"pip", "minprune"} <= pinned


def _canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def _python(script: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_torch_and_transformers_are_only_allowed_as_old_as_they_are_tested():
    """No environment with older ones is tested, so none is promised."""
    wanted = dict(
        re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if line.startswith(("torch", "transformers"))
    )
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert wanted == {name: pinned[name] for name in ("torch", "transformers")}


def test_the_dozen_files_that_contributing_names_are_read_in_an_afternoon():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = re.search(r"### The dozen files.*?(?=\n## )", text, re.S)[0]
    files = re.findall(r"^\d+\. `([\w/.]+)`", part, re.M)
    assert len(files) == len(set(files)) == 12
    lines = sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in files)
    assert lines <= 2000, f"{lines} lines: take the less important ones out of the list, or say it in fewer"


def test_contributing_leads_to_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = re.search(r"## Where things are.*?(?=\n### )", text, re.S)[0]
    named = set(re.findall(r"`minprune/(\w+)/`", part))
    assert named == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
