"""What a notebook is made of: its exercises and solutions, and which names its statements bind and use."""

import ast
import re
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minprune.errors import PruneError, from_extra
from minprune.files import check_regular

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

    code: what of the source is Python, its statements' origin, line by line; error: why none of it is.
    """

    number: int
    source: str
    region: str
    code: str = ""
    statements: tuple[Statement, ...] = ()
    error: str | None = None


def read_notebook(path: str | Path) -> "NotebookNode":
    """A notebook as a version 4 tree. Raises `PruneError` if the file cannot be read or is no notebook."""
    with from_extra("course", "a notebook"):
        import nbformat

    check_regular(Path(path))
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
            return Cell(number, source, region, text, statements)
        except SyntaxError as mistake:
            error = error or f"{mistake.msg} in line {mistake.lineno}"
        except (RecursionError, MemoryError):
            error = error or "an expression in it is nested too deeply"
        except ValueError as mistake:  # a null byte
            error = error or str(mistake)
    return Cell(number, source, region, error=error)


def uses(expression: ast.expr) -> frozenset[str]:
    """The global names that an expression uses: not the parameters of its lambdas, nor a comprehension's own."""
    return _statement(ast.Expr(expression)).uses


def calls_of_checks(cells: Iterable[Cell]) -> Iterator[tuple[Cell, str, ast.Call]]:
    """Each call of a check that stands in a cell and outside a definition: the cell, NAME, and the call.

    `checks.NAME(f)`, also where the module or the check has been given another name before.
    """
    meaning = {"checks": ""}  # a variable -> the check that it is; "" is the module
    for cell in cells:
        for statement in cell.statements:
            if statement.defines:
                continue
            for part in ast.walk(statement.node):
                if isinstance(part, ast.Call) and (name := _meant(part.func, meaning)):
                    yield cell, name, part
            meaning |= _renamed(statement.node, meaning)


def _meant(node: ast.expr, meaning: dict[str, str]) -> str | None:
    """The name of the check that an expression is, "" for the module of checks, None for anything else."""
    if isinstance(node, ast.Name):
        return meaning.get(node.id)
    if isinstance(node, ast.Attribute):
        return node.attr if _meant(node.value, meaning) == "" else "" if node.attr == "checks" else None
    if isinstance(node, ast.Subscript) and _meant(node.value, meaning) == "EXERCISES":
        return _constant(node.slice)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        return _constant(node.args[1]) if len(node.args) == 2 and _meant(node.args[0], meaning) == "" else None
    return None


def _constant(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _renamed(node: ast.stmt, meaning: dict[str, str]) -> dict[str, str]:
    """The variables that a statement makes to mean the module of checks or one of them."""
    if isinstance(node, ast.Import):
        return {name.asname: "" for name in node.names if name.asname and name.name == "minprune.course.checks"}
    if isinstance(node, ast.ImportFrom) and node.module in ("minprune", "minprune.course", "minprune.course.checks"):
        found = {name.asname or name.name: name.name for name in node.names}
        from_inside = node.module == "minprune.course.checks"
        return found if from_inside else {k: "" for k, name in found.items() if name == "checks"}
    if isinstance(node, ast.Assign) and (meant := _meant(node.value, meaning)) is not None:
        return {target.id: meant for target in node.targets if isinstance(target, ast.Name)}
    return {}


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
