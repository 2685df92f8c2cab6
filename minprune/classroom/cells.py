"""What a notebook is made of: its exercises and solutions, and which names its statements bind and use."""

import ast
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.errors import PruneError

if TYPE_CHECKING:
    from nbformat import NotebookNode

MARK = "# NBVAL_CHECK_OUTPUT"
_GATE = re.compile(r"\{(exercise|solution)-(start|end)\}")
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.M)
_SIMPLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.AnnAssign)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Statement:
    """One statement at the top of a cell. binds, uses: global names; "*" is bound by a star import."""

    node: ast.stmt
    binds: frozenset[str]
    uses: frozenset[str]

    @property
    def defines(self) -> bool:
        """Whether it is a function or a class."""
        return isinstance(self.node, _DEFINITIONS)

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """The self-checks that it calls: NAME and the call, for each `checks.NAME(...)`."""
        if isinstance(self.node, _SIMPLE):
            for part in ast.walk(self.node):
                if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
                    owner = part.func.value
                    if "checks" in (getattr(owner, "id", None), getattr(owner, "attr", None)):
                        yield part.func.attr, part


@dataclass(frozen=True)
class Cell:
    """A code cell. number: its place in the notebook, from 1; region: "exercise", "solution" or "text".

    error: why it is no Python, if it is none; it then has no statements.
    """

    number: int
    source: str
    region: str
    statements: tuple[Statement, ...] = ()
    error: str | None = None


def read_notebook(path: str | Path) -> "NotebookNode":
    """A notebook as a version 4 tree. Raises `PruneError` if the file cannot be read or is no notebook."""
    import nbformat

    try:
        notebook = nbformat.reads(Path(path).read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise PruneError(f"cannot read {path} ({error.strerror}): name a notebook, a file NAME.ipynb") from None
    except Exception:  # nbformat lets through whatever its JSON reader, converter and validator raise
        raise PruneError(f"{path} is no Jupyter notebook: name a file NAME.ipynb as JupyterLab saves it") from None
    return notebook


def regions(notebook: "NotebookNode") -> list[str]:
    """For each cell "exercise", "solution" or "text"; the cells that open and close a region belong to it."""
    found, inside = [], "text"
    for cell in notebook.cells:
        here = inside
        for gate in _GATE.finditer(cell.source) if cell.cell_type == "markdown" else ():
            inside = gate[1] if gate[2] == "start" else "text"
            here = gate[1]
        found.append(here)
    return found


def code_cells(notebook: "NotebookNode") -> list[Cell]:
    """The code cells in order, taken apart into statements."""
    return [
        _read(number, cell.source, region)
        for number, (cell, region) in enumerate(zip(notebook.cells, regions(notebook), strict=True), 1)
        if cell.cell_type == "code"
    ]


def _read(number: int, source: str, region: str) -> Cell:
    error = None
    for text in (source, _MAGIC.sub(r"\1pass", source)):  # what only IPython understands is left out
        try:
            statements = tuple(_statement(node) for node in ast.parse(text).body)
            return Cell(number, source, region, statements)
        except SyntaxError as mistake:
            error = error or f"{mistake.msg} in line {mistake.lineno}"
        except ValueError as mistake:  # a null byte
            error = error or str(mistake)
    return Cell(number, source, region, error=error)


def _statement(node: ast.stmt) -> Statement:
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        return Statement(node, frozenset("*"), frozenset())
    binds: set[str] = set()
    uses: set[str] = set()
    _scopes(symtable.symtable(ast.unparse(node), "cell", "exec"), binds, uses)
    if not isinstance(node, _DEFINITIONS):
        targets = (part for part in ast.walk(node) if isinstance(getattr(part, "ctx", None), (ast.Store, ast.Del)))
        binds |= {root for target in targets if (root := _root(target))}
    if isinstance(node, (ast.For, ast.With)):  # their targets are bound before the body uses them
        uses -= binds
    return Statement(node, frozenset(binds), frozenset(uses))


def _scopes(table: symtable.SymbolTable, binds: set[str], uses: set[str]) -> None:
    """Global names bound and used in a scope and those inside it."""
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if top or symbol.is_global():
            if symbol.is_assigned() or symbol.is_imported():
                binds.add(symbol.get_name())
            if symbol.is_referenced():
                uses.add(symbol.get_name())
    for child in table.get_children():
        _scopes(child, binds, uses)


def _root(target: ast.AST) -> str | None:
    """The name whose object `a.b[c] = ...` changes: a."""
    while isinstance(target, (ast.Attribute, ast.Subscript, ast.Starred)):
        target = target.value
    return target.id if isinstance(target, ast.Name) else None
