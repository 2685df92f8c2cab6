"""The docstrings of the public names: every parameter is described, and every example gives what it shows."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

import pytest
import torch

import minprune as mp

PACKAGE = Path(mp.__file__).parent
PUBLIC = {  # besides minprune.__all__: what each part of the book teaches to call
    "methods": "Method Result get_method magnitude.magnitude wanda.wanda ria.ria obd.obd obs.obs sparsegpt.sparsegpt "
    "least_squares.exact admm.admm alps.alps swaps.swaps channel_permutation.channel_permutation",
    "formats": "Bitmask BSR CSC CSR Dense Integers NMPacked SparseMatrix predicted_bytes save_model store",
    "kernels": "linear.SparseLinear",
    "allocation": "allocate.allocate sensitivity.Sensitivity sensitivity.sensitivity",
    "course": "checks.core.Exercise checks.core.Verdict checks.quizzes.Quiz checks.quizzes.quiz",
    "pipeline": "recipes.Recipe recipes.get_recipe recipes.resolve_recipe recipes.Reconstruction",
    "structured": "removals.Removal removals.removal",
    "compress": "advice.Advice advice.Choice advice.advise gptq.gptq gptq.rtn grids.Grid grids.make_grid",
    "training": "activations.pruned_activations adapters.add_adapters callback.KeepZeros distill.Distillation "
    "lottery.Ticket lottery.find_tickets lottery.shares masks.linear_layers masks.magnitude_masks "
    "masks.maintain_sparsity masks.masks_of parametrized.parametrise parametrized.remove_parametrizations "
    "recipe.Recipe recipe.Recovery recover.recover schedule.Gradual schedule.Schedule",
}


@cache
def public() -> dict:
    """Every public function and class by name; names outside of minprune.__all__ with the room they are in."""
    values = {name: getattr(mp, name) for name in mp.__all__}
    for room, names in PUBLIC.items():
        for name in names.split():
            module, _, member = f"minprune.{room}.{name}".rpartition(".")
            values[f"{room}.{name}"] = getattr(importlib.import_module(module), member)
    return {name: value for name, value in values.items() if callable(value)}  # no module, and no table


def _sections(doc: str) -> dict[str, str]:
    """The sections of a NumPy-style docstring: title -> text."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(doc), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _described(section: str) -> set[str]:
    """The names before the colons of a section's first column."""
    heads = re.findall(r"^(\S[^:\n]*?)(?: :|$)", section, flags=re.M)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


@pytest.mark.parametrize("value", public().values(), ids=public())
def test_a_public_docstring_describes_every_parameter_and_the_result_and_has_an_example(value):
    sections = _sections(value.__doc__)
    signature = inspect.Signature() if value is mp.PruneError else inspect.signature(value)  # as any exception's
    assert _described(sections.get("Parameters", "")) == set(signature.parameters)
    if not inspect.isclass(value) and signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert sections.get("Returns", sections.get("Yields", "")).strip()
    assert ">>>" in sections["Examples"]


@pytest.mark.parametrize("value", public().values(), ids=public())
def test_a_default_is_told_as_it_is(value):
    """`default X`, or `optional` where what is taken then has no short name; as for another function: `As for`."""
    parameters = {} if value is mp.PruneError else inspect.signature(value).parameters
    for names, kind in re.findall(r"^(\S[^:\n]*?) : (.*)$", _sections(value.__doc__).get("Parameters", ""), re.M):
        said = re.search(r"default (.*)$", kind)
        for name in names.split(", "):
            default = parameters[name].default
            if said:
                told = ast.literal_eval(said[1]) if said[1] != "torch.float32" else torch.float32
                assert (told, type(told)) == (default, type(default)), name
            else:
                nameless = default is None or callable(default) or "factory" in repr(default)
                assert nameless if "optional" in kind else default is inspect.Parameter.empty, name


@pytest.mark.parametrize("value", public().values(), ids=public())
def test_who_refuses_something_says_so(value):
    """Besides arguments of another kind, of which the book says that everything refuses them."""
    made = "__init__" if not dataclasses.is_dataclass(value) else "__post_init__"
    parts = [vars(value).get(made)] if inspect.isclass(value) else [value]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(part)))) for part in parts if part]
    calls = [ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.Call)]
    if value is not mp.PruneError and any(
        re.match(r"raise PruneError|_?check_(?!kind|fields)\w+\(", one) for one in calls
    ):
        assert "Raises" in _sections(value.__doc__) or "raises `PruneError`" in value.__doc__


def _examples():
    """Every docstring of the package that holds an example: one test each."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            doc = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
            if doc and ">>> " in doc:
                name = f"{path.relative_to(PACKAGE).as_posix()}::{getattr(node, 'name', '')}"
                yield pytest.param(doc, name, path, getattr(node, "lineno", 1), id=name)


@pytest.mark.parametrize(("doc", "name", "path", "line"), _examples())
def test_an_example_gives_what_it_shows(doc, name, path, line, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(mp, "load_model", _load_once)
    monkeypatch.chdir(tmp_path)
    example = doctest.DocTestParser().get_doctest(doc, {}, name, str(path), line)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report = []
    results = runner.run(example, out=report.append)
    assert results.attempted and not results.failed, "".join(report)


@cache
def _load_once(name):
    """The bundled model is loaded once for all examples, none of which changes it."""
    return _LOAD(name)


_LOAD = mp.load_model


def test_what_is_not_described_is_found():
    doc = "One.\n\nParameters\n----------\na, b : int\n    Two: three.\n\nReturns\n-------\nint\n"
    assert _described(_sections(doc)["Parameters"]) == {"a", "b"}
    assert _sections(doc)["Returns"].strip() == "int"
