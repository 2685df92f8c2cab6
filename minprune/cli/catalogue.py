"""What the help says of the methods, out of their own source: help must not wait for torch, which they import."""

import ast
from importlib.resources import files


def described_methods() -> list[tuple[str, str]]:
    """(name, the first sentence of its module) of each entry of `minprune.methods.METHODS`, in its order."""
    table = next(
        node.value
        for node in _parsed("__init__").body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "METHODS"
    )
    assert isinstance(table, ast.Dict)
    found = []
    for key, value in zip(table.keys, table.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(value, ast.Call)
        function = value.args[0]
        assert isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
        found.append((str(key.value), _summary(function.value.id)))
    return found


def _summary(module: str) -> str:
    """The first line of a docstring from behind its colon up to the chapter's number."""
    first = (ast.get_docstring(_parsed(module)) or "").splitlines()[0]
    return first.partition(": ")[2].partition(". Chapter")[0].rstrip(".;")


def _parsed(module: str) -> ast.Module:
    return ast.parse(files("minprune").joinpath("methods", f"{module}.py").read_text(encoding="utf-8"))
