"""What follows from the repository's address appears with it, is what others can read, and goes with it."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from minprune.course.classroom.cells import code_cells
from minprune.course.classroom.student import student_edition

ROOT = Path(__file__).parent.parent
GITHUB, GITLAB, OTHER = (
    "https://github.com/someone/prune",
    "https://gitlab.com/a/b/prune",
    "https://git.example.org/x/y",
)


def _module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launch = _module("launch")


def set_address(root, url, branch="main"):
    config = (root / "_config.yml").read_text(encoding="utf-8")
    config = re.sub(r"^  url: .*$", f'  url: "{url}"', config, flags=re.M)
    config = re.sub(r"^  branch: .*$", f"  branch: {branch}", config, flags=re.M)
    (root / "_config.yml").write_text(config, encoding="utf-8")


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def copy(tmp_path):
    """Files that may change (three of the notebooks), as they are without an address."""
    for name in ("_config.yml", *launch.PAGES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    for path in sorted(ROOT.glob("notebooks/*.ipynb"))[::9]:
        shutil.copy(path, tmp_path / "notebooks" / path.name)
    set_address(tmp_path, "")
    launch.update(tmp_path)
    return tmp_path


def test_the_committed_files_are_those_that_the_setting_makes():
    assert yaml.safe_load((ROOT / "_config.yml").read_text())["repository"].keys() == {"url", "branch"}
    repository = launch.read_setting(ROOT)
    for name in launch.PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert launch.fill(text, repository) == text, "say make launch"
    for path in ROOT.glob("notebooks/*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert launch.with_cell(text, repository) == text, "say make launch"


def test_every_notebook_is_restored_byte_for_byte():
    here, nowhere = launch.Repository(GITHUB, "main"), launch.Repository("", "main")
    for path in ROOT.glob("notebooks/*.ipynb"):
        plain = launch.with_cell(path.read_text(encoding="utf-8"), nowhere)
        opened = launch.with_cell(plain, here)
        assert len(json.loads(opened)["cells"]) == len(json.loads(plain)["cells"]) + 1
        assert launch.with_cell(opened, nowhere) == plain


@pytest.mark.parametrize("url", [GITHUB, GITHUB + ".git", GITLAB, OTHER, "file:///srv/prune"])
def test_an_address_comes_and_goes_without_a_trace(copy, url):
    """Set, set again, changed to another, and taken away: byte for byte the files before."""
    before = contents(copy)
    set_address(copy, url)
    changed = launch.update(copy)
    assert {path.suffix for path in changed} >= {".ipynb", ".md"}
    once = contents(copy)
    assert launch.update(copy) == [] and contents(copy) == once
    set_address(copy, "https://github.com/other/place", "trunk")
    launch.update(copy)
    assert not [path for path, text in contents(copy).items() if url.encode() in text]
    set_address(copy, url)
    launch.update(copy)
    assert contents(copy) == once
    set_address(copy, "")
    launch.update(copy)
    assert contents(copy) == before


def test_without_an_address_no_page_sends_anyone_to_a_service(copy):
    for name in launch.PAGES:
        text = (copy / name).read_text(encoding="utf-8")
        assert not re.search(r"badge\w*\.svg|mybinder|colab\.research|git clone|git\+|repository-code|rocket", text), (
            name
        )
    assert not [path for path in copy.glob("notebooks/*") if "minprune-course" in path.read_text(encoding="utf-8")]
    assert launch.theme_options(launch.read_setting(copy)) == {}


@pytest.mark.parametrize(("url", "services"), [(GITHUB, 2), (GITLAB, 1), (OTHER, 0)])
def test_every_badge_leads_to_a_notebook_on_a_service_that_can_open_it(copy, url, services):
    set_address(copy, url, "trunk")
    launch.update(copy)
    readme = (copy / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((https://(?:mybinder|colab)[^)]*)\)", readme)
    links = [link for link in links if not link.endswith(".svg")]
    assert (
        len(links) == services == len(re.findall(r"badge", readme.split("![The mask lab")[0].split("made by")[1])) / 1
    )
    for link in links:
        parts = urlsplit(link)
        assert "trunk" in parts.path and (ROOT / re.search(r"notebooks/.*\.ipynb", link)[0]).exists()
        assert {"mybinder.org", "colab.research.google.com"} >= {parts.netloc}
        owner = "gh/someone/prune" if url == GITHUB else "gl/a%2Fb%2Fprune"
        assert owner in parts.path or "github/someone/prune/blob/trunk" in parts.path
    options = launch.theme_options(launch.read_setting(copy)).get("launch_buttons", {})
    assert len(set(options) & {"binderhub_url", "colab_url"}) == services


def test_lines_to_be_pasted_are_commands_that_git_and_pip_understand(copy):
    set_address(copy, GITHUB + ".git/", "trunk")
    launch.update(copy)
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert f"git clone --branch trunk {GITHUB}\ncd prune\n" in readme
    requirements = re.findall(r'"(minprune\[.*?)"', readme)
    assert [str(Requirement(text).url) for text in requirements] == [f"git+{GITHUB}@trunk"]
    assert f"pip install git+{GITHUB}@trunk`" in readme
    assert yaml.safe_load((copy / "CITATION.cff").read_text())["repository-code"] == GITHUB


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://github.com", "http://github.com/a/b", "x'; rm -r", 'https://a/b/"+c']
)
def test_what_is_no_address_is_refused_and_nothing_is_written(copy, url):
    (copy / "_config.yml").write_text(yaml.safe_dump({"repository": {"url": url}}))
    before = contents(copy)
    done = subprocess.run([sys.executable, ROOT / "book" / "launch.py", copy], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("launch: repository.url in _config.yml is ")
    assert len(done.stderr.splitlines()) == 1 and contents(copy) == before


def test_a_notebook_that_could_not_be_restored_is_refused_before_anything_is_written(copy):
    path = sorted(copy.glob("notebooks/*.ipynb"))[-1]
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    set_address(copy, GITHUB)
    before = contents(copy)
    with pytest.raises(ValueError, match=f"{path.name}: not written as Jupyter writes it"):
        launch.update(copy)
    assert contents(copy) == before


def test_with_the_cell_a_notebook_is_still_a_chapter(copy):
    """It passes what test_notebooks.py asks for, is valid, hidden, first of the code, and no exercise sees it."""
    from test_notebooks import problems

    plain = {path.name: nbformat.read(path, as_version=4) for path in copy.glob("notebooks/*.ipynb")}
    set_address(copy, GITHUB)
    launch.update(copy)
    for path in copy.glob("notebooks/*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert problems(path.name, notebook) == problems(path.name, plain[path.name])
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert "remove-cell" in code[0].metadata.tags and not code[0].outputs
        assert [cell.source for cell in notebook.cells if cell is not code[0]] == [
            c.source for c in plain[path.name].cells
        ]
        for cell in code:
            shown = {out.execution_count for out in cell.outputs if out.output_type == "execute_result"}
            assert shown <= {cell.execution_count}
        assert code_cells(notebook)[0].error is None
        student_edition(notebook)
        seconds = _module("timing").seconds
        assert seconds(json.loads(path.read_text(encoding="utf-8"))) == seconds(plain[path.name])


def test_the_cell_does_nothing_where_minprune_is(tmp_path):
    cell = "".join(launch.install_cell(launch.Repository(GITHUB, "main"))["source"])
    script = f"{cell}\nprint(os.getcwd(), 'subprocess' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path} False\n" and not list(tmp_path.iterdir())


def test_the_cell_clones_installs_what_binder_installs_and_goes_where_the_notebooks_are(tmp_path):
    """With a git and a pip that only write down how they are called."""
    work, home = tmp_path / "content", tmp_path / "bin"
    for folder in (work, home):
        folder.mkdir()
    (home / "git").write_text('#!/bin/sh\necho git "$@"\nfor last; do :; done\nmkdir -p "$last/notebooks"\n')
    (home / "git").chmod(0o755)
    cell = "".join(launch.install_cell(launch.Repository("file:///srv/prune", "trunk"))["source"])
    script = (
        "import importlib.util, sys, runpy, os\n"
        "importlib.util.find_spec = lambda name: None\n"
        f"sys.executable = {str(home / 'python')!r}\n" + cell + "\nprint(os.getcwd(), sys.path[0])"
    )
    (home / "python").write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    (home / "python").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=work, env={"PATH": f"{home}:/bin:/usr/bin"}, capture_output=True, text=True
    )
    clone = work / "minprune-course"
    assert done.stdout.splitlines() == [
        "git clone --quiet --depth=1 --branch=trunk file:///srv/prune minprune-course",
        f"{clone} -m pip install --quiet -r binder/requirements.txt",
        f"{clone / 'notebooks'} {clone}",
    ], done.stderr


def test_binder_reads_what_is_there_and_every_version_is_the_pinned_one():
    """As repo2docker reads it: runtime.txt, requirements.txt for pip from the root, and an executable postBuild."""
    binder = ROOT / "binder"
    assert {path.name for path in binder.iterdir()} == {"runtime.txt", "requirements.txt", "postBuild"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r"python-(3\.\d+)", (binder / "runtime.txt").read_text().strip())[1]
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{python}.0")
    lines = [line for line in (binder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-c ../constraints.txt", "-e .[course]"]
    assert (binder / "../constraints.txt").resolve() == ROOT / "constraints.txt"
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert all(re.fullmatch(r"==[\w.]+", version) for version in pinned.values())
    wanted = [*project["dependencies"], *project["optional-dependencies"]["course"]]
    assert {canonicalize_name(Requirement(line).name) for line in wanted} - {"pip"} <= pinned.keys()
    script = (binder / "postBuild").read_text()
    assert (binder / "postBuild").stat().st_mode & 0o111 and script.startswith("#!/usr/bin/env bash\n")
    for line in re.findall(r"pip install (.*?)(?:  #.*)?$", script, re.M):
        assert "-c constraints.txt" in line and canonicalize_name(line.split()[-1]) in pinned
    subprocess.run(["bash", "-n", binder / "postBuild"], check=True)
    for module in re.findall(r"-m (minprune[\w.]+)", script):
        assert importlib.util.find_spec(module)


def test_the_chapters_need_no_package_that_binder_lacks():
    """Everything that a notebook imports is the standard library's or comes with minprune and its extra `course`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["course"]]
    there = {Requirement(line).name.replace("-", "_") for line in wanted} | {"minprune", "tokenizers", "IPython"}
    for path in ROOT.glob("notebooks/*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                names = re.findall(r"^\s*(?:from|import) (\w+)", cell.source, re.M)
                assert set(names) <= there | set(sys.stdlib_module_names), path.name
