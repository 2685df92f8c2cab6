"""Everything that follows from the repository's address, `repository` in _config.yml: python book/launch.py [ROOT].

With an address: badges and pip's and git's lines where pages have a marked block, and in each notebook a cell, hidden
on the page, that installs what a fresh runtime lacks. As an extension of Sphinx: launch buttons on the chapters' pages.
Without one all of that goes, and every file is byte for byte what it was.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

BINDER, COLAB = "https://mybinder.org", "https://colab.research.google.com"
FIRST = "notebooks/01-the-patient.ipynb"
TAG = "install"
ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+(?:/[\w.-]+)+|file:///[\w./-]+")
BLOCK = re.compile(r"^(<!--|#) launch: (\w+).*\n(?:.*\n)*?\1 launch: end.*\n", re.M)


@dataclass(frozen=True)
class Repository:
    """Where the repository can be cloned from, without a slash or .git at its end, and its branch; "" is nowhere."""

    url: str
    branch: str

    @property
    def binder(self) -> str:
        """Binder's address for it, "" if there is none."""
        host, _, path = self.url.removeprefix("https://").partition("/")
        kinds = {"github.com": "gh/" + path, "gitlab.com": "gl/" + path.replace("/", "%2F")}
        return f"{BINDER}/v2/{kinds[host]}/{self.branch}" if host in kinds else ""

    @property
    def colab(self) -> str:
        """Colab's address for its folder, "" if there is none: Colab opens GitHub's repositories only."""
        prefix = "https://github.com/"
        path = self.url.removeprefix(prefix)
        return f"{COLAB}/github/{path}/blob/{self.branch}" if self.url.startswith(prefix) else ""


def read_setting(root: Path) -> Repository:
    """The one setting. Raises ValueError if it is no address that git and pip understand."""
    setting = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")).get("repository") or {}
    url, branch = str(setting.get("url") or "").strip(), str(setting.get("branch") or "main").strip()
    url = url.rstrip("/").removesuffix(".git")
    if url and not ADDRESS.fullmatch(url):
        raise ValueError(f"repository.url in _config.yml is {url!r}: say https://HOST/OWNER/NAME, or leave it empty")
    if not re.fullmatch(r"[\w./-]+", branch):
        raise ValueError(f"repository.branch in _config.yml is {branch!r}: say a branch's name, as main")
    return Repository(url, branch)


def badges(repository: Repository) -> str:
    """A badge for each service that can open the notebooks."""
    colab = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({repository.colab}/{FIRST})"
    binder = f"[![Open in Binder]({BINDER}/badge_logo.svg)]({repository.binder}?urlpath=lab/tree/{FIRST})"
    return "\n".join([*([colab] if repository.colab else []), *([binder] if repository.binder else [])])


def clone(repository: Repository) -> str:
    """How the repository is fetched."""
    if not repository.url:
        return ""
    name = repository.url.rpartition("/")[2]
    return f"```sh\ngit clone --branch {repository.branch} {repository.url}\ncd {name}\n```"


def pip(repository: Repository) -> str:
    """How the package is installed without a clone."""
    if not repository.url:
        return "* With pip, from a clone: `pip install .` installs the package and the `minprune` command."
    git = f"git+{repository.url}@{repository.branch}"
    return (
        f"* With pip: `pip install {git}` installs the package and the `minprune`\n"
        f'  command, `pip install "minprune[course] @ {git}"` an extra with it.'
    )


def hosted(repository: Repository) -> str:
    """What the page of set-ups says of notebooks in a browser."""
    where = [name for name, link in (("Colab", repository.colab), ("Binder", repository.binder)) if link]
    if not where:
        return "**No hosted notebooks.** The course needs no Colab, no GPU and no account."
    return (
        f"**Without installing anything:** the rocket on a chapter's page opens it in {' or '.join(where)}. Its first\n"
        "cell of code fetches what is missing there, which takes some minutes. Nothing needs a GPU."
    )


def citation(repository: Repository) -> str:
    """The line of CITATION.cff."""
    return f"repository-code: {repository.url}" if repository.url.startswith("https") else ""


BLOCKS = {"badges": badges, "clone": clone, "pip": pip, "hosted": hosted, "citation": citation}
PAGES = ("README.md", "book/using.md", "CITATION.cff")


def fill(text: str, repository: Repository) -> str:
    """The page with what stands between its markers made anew. Raises ValueError for a name that no block has."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(f"no block is called {found[2]!r}: {', '.join(BLOCKS)}")
        lines = found[0].splitlines()
        inside = BLOCKS[found[2]](repository)
        space = [] if found[1] == "#" else [""]  # Markdown after a comment begins behind an empty line
        return "\n".join([lines[0], *([*space, inside, *space] if inside else []), lines[-1], ""])

    return BLOCK.sub(block, text)


def install_cell(repository: Repository) -> dict[str, Any]:
    """The cell, as nbformat 4.5 has it. It does nothing where minprune can be imported."""
    source = f'''\
# Where minprune is missing, as on Colab: clone the repository, install what it pins.
import importlib.util
import os
import sys

if importlib.util.find_spec("minprune") is None:
    from importlib.metadata import version
    from subprocess import run

    url = "{repository.url}"
    git = ["git", "clone", "--quiet", "--depth=1", "--branch={repository.branch}", url]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if not os.path.isdir("minprune-course"):
        run([*git, "minprune-course"], check=True)
    run([*pip, "-r", "binder/requirements.txt"], cwd="minprune-course", check=True)
    sys.path.insert(0, os.path.abspath("minprune-course"))
    loaded = getattr(sys.modules.get("numpy"), "__version__", None)
    if loaded not in (None, version("numpy")):
        raise SystemExit("Installed. Restart the runtime, then run this cell again.")
if os.path.isdir("minprune-course"):
    os.chdir("minprune-course/notebooks")'''
    return {
        "cell_type": "code",
        "execution_count": 1,
        "id": TAG,
        "metadata": {"tags": ["remove-cell", TAG]},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def with_cell(text: str, repository: Repository) -> str:
    """A notebook's file with the cell in front of its first code, or without it; the others are counted on.

    Raises ValueError if the text is no notebook as Jupyter writes it, which could not be restored byte for byte.
    """
    notebook = json.loads(text)
    if _dump(notebook) != text:
        raise ValueError("not written as Jupyter writes it: open it in JupyterLab and save it")
    cells = [cell for cell in notebook["cells"] if TAG not in cell["metadata"].get("tags", [])]
    counts = bool(repository.url) - (len(notebook["cells"]) - len(cells))
    for cell in cells if counts else []:
        for counted in (cell, *cell.get("outputs", [])):
            if counted.get("execution_count") is not None:
                counted["execution_count"] += counts
    if repository.url:
        first = next(place for place, cell in enumerate(cells) if cell["cell_type"] == "code")
        cells.insert(first, install_cell(repository))
    return _dump(notebook | {"cells": cells})


def _dump(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def update(root: Path) -> list[Path]:
    """Bring all files to the setting; the files that changed. Nothing is written if one of them cannot be."""
    repository = read_setting(root)
    new = {}
    for path in [*(root / name for name in PAGES), *sorted(root.glob("notebooks/*.ipynb"))]:
        old = path.read_bytes().decode("utf-8")
        try:
            text = (with_cell if path.suffix == ".ipynb" else fill)(old, repository)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(root)}: {error}") from None
        if text != old:
            new[path] = text
    for path, text in new.items():
        path.write_bytes(text.encode("utf-8"))
    return list(new)


def theme_options(repository: Repository) -> dict[str, Any]:
    """The theme's options: buttons for the services that can open a chapter, nothing without one."""
    if not repository.binder:
        return {}
    buttons = {"notebook_interface": "jupyterlab", "binderhub_url": BINDER} | (
        {"colab_url": COLAB} if repository.colab else {}
    )
    return {"repository_url": repository.url, "repository_branch": repository.branch, "launch_buttons": buttons}


def setup(app: Any) -> dict:
    """Sphinx calls this."""

    def options(app: Any, config: Any) -> None:
        config.html_theme_options.update(theme_options(read_setting(Path(app.srcdir))))

    app.connect("config-inited", options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main(root: Path) -> None:
    """Say which files changed."""
    changed = update(root)
    address = read_setting(root).url or "empty"
    lines = [
        f"repository.url is {address}: {len(changed)} files changed",
        *(f"  {p.relative_to(root)}" for p in changed),
    ]
    sys.stdout.write("\n".join(lines) + "\n")  # at once: the reader may be `head`


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent)
    except ValueError as mistake:
        sys.exit(f"launch: {mistake}")
