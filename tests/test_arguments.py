"""What public functions are given: each argument in turn is something else, and that is used or refused in a line."""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docstrings import public
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

import minprune as mp
from minprune import formats
from minprune.allocation import rules
from minprune.arguments import LanguageModel, checked, conforms, words
from minprune.compress.grids import make_grid
from minprune.compress.low_rank import low_rank
from minprune.compress.sharing import shared_values
from minprune.course.checks.quizzes import quiz
from minprune.evaluation.measurement import Protocol
from minprune.evaluation.minimal_pairs import Pair
from minprune.methods import channel_permutation, least_squares, ria, sparsegpt
from minprune.structured.removals import Removal
from minprune.training import recipe, schedule
from minprune.training.distill import Distillation
from minprune.training.masks import linear_layers, masks_of


class Odd:
    """Nothing that anybody asks for."""


FOREIGN = {
    "None": None,
    "text": "zzz",
    "number": 2.5,
    "nan": math.nan,
    "negative": -1,
    "zero": 0,
    "huge": 10**30,
    "True": True,
    "list": [],
    "list of texts": ["zzz"],
    "table": {"zzz": 1},
    "bytes": b"zzz",
    "object": Odd(),
    "class": int,
    "array": np.zeros((4, 4)),
    "third": Fraction(1, 3),
    "half": torch.rand(8, 16).half(),
    "of no numbers": torch.zeros(8, 16, device="meta"),
    "sparse": torch.rand(8, 16).to_sparse(),
    "complex": torch.rand(8, 16).to(torch.complex64),
    "one row": torch.rand(16),
    "empty": torch.zeros(0, 0),
    "module": nn.Linear(4, 4),
    "long": "z" * 5000,
    "two lines": "z\nz",
}
MODEL = tiny_model("llama")


def matrix():
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def seen():
    return mp.Statistics(16).update(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))


def of_model(**more):
    return {"model": copy.deepcopy(MODEL), **more}


def of_layers(**more):
    return {"layers": mp.find_layers(MODEL), "model": MODEL, "calib": tiny_tokens(2), "pattern": "50%", **more}


def of_masks(**more):
    network = nn.Linear(8, 4)
    return {"masks": masks_of(linear_layers(network)), **more}, network


def tickets():
    network = nn.Linear(8, 4)
    steps = {"steps": 1, "sparsities": [0.5], "scope": "layer", "rewind": 0}
    return {
        "network": network,
        "layers": linear_layers(network),
        "train": lambda *_: None,
        "measure": lambda _: 0.5,
    } | steps


ONE = {"W": matrix, "stats": seen, "pattern": lambda: mp.pattern("50%:row")}
CALLS = {  # function -> its arguments as they should be, made anew for each call
    "Unstructured": lambda: {"sparsity": 0.5, "group": "row"},
    "NM": lambda: {"n": 2, "m": 4},
    "Block": lambda: {"size": 4, "sparsity": 0.5},
    "pattern": lambda: {"text": "50%"},
    "Statistics": lambda: {"d_in": 16, "gram": True, "dtype": torch.float32, "device": "cpu"},
    "layer_error": lambda: {"W": matrix(), "W_pruned": matrix(), "gram": seen().gram},
    "find_layers": lambda: {"model": MODEL, "include": ["*"], "exclude": []},
    "load_model": lambda: {"name": "zzz", "dtype": "auto", "device": "cpu", "sparse": False},
    "load_text": lambda: {"source": "zzz", "split": "test", "tokenizer": None},
    "prune": lambda: of_model(
        calib=tiny_tokens(2), method="wanda", pattern="50%", recipe=None, allocation=None, include=["*.q_proj"],
        exclude=[], batch_size=1, sequential=True, precision="auto", progress=False,
    ),
    "quantize": lambda: of_model(
        calib=None, bits=4, group=16, method="rtn", pattern="0%", grid="asymmetric", include=["*.q_proj"], exclude=[],
        batch_size=1, sequential=True, progress=False,
    ),
    "perplexity": lambda: {"model": MODEL, "tokens": tiny_tokens(2), "batch_size": 2, "progress": False},
    "divergence": lambda: {"model": MODEL, "reference": MODEL, "tokens": tiny_tokens(2), "batch_size": 2},
    "methods.get_method": lambda: {"name": "wanda"},
    "pipeline.recipes.Recipe": lambda: {"method": "wanda", "options": {}, "reconstruction": None, "name": "x"},
    "pipeline.recipes.get_recipe": lambda: {"recipe": "best"},
    "pipeline.recipes.Reconstruction": lambda: {"epochs": 2, "lr": 0.1, "seed": 0, "bfloat16": None},
    "shrink": lambda: of_model(calib=tiny_tokens(2), remove=["neurons:25%"], method="magnitude", repair="none"),
    "structured.removals.removal": lambda: {"text": "blocks:1"},
    "structured.removals.Removal": lambda: {"what": "blocks", "share": 0.5, "count": None},
    "compress.grids.make_grid": lambda: {"W": matrix(), "bits": 4, "group": 8, "kind": "symmetric"},
    "allocation.allocate.allocate": lambda: of_layers(pattern=mp.pattern("50%"), allocation={"*.q_proj": 0.3}),
    "formats.store": lambda: {"W": matrix(), "form": "auto", "keep": None, "grid": None},
    "formats.predicted_bytes": lambda: {"keep": matrix() > 0, "value_bytes": 4},
    "training.masks.linear_layers": lambda: {"network": nn.Linear(4, 4)},
    "training.masks.masks_of": lambda: {"layers": linear_layers(nn.Linear(4, 4))},
    "training.masks.magnitude_masks": lambda: {"weights": {}, "pattern": "50%", "scope": "layer", "alive": None},
    "training.masks.maintain_sparsity": lambda: of_masks(optimizer=torch.optim.SGD([torch.zeros(1)]))[0],
    "training.parametrized.parametrise": lambda: of_masks(straight_through=False)[0],
    "training.callback.KeepZeros": lambda: of_masks()[0],
    "training.adapters.add_adapters": lambda: {"model": nn.Linear(8, 4)} | of_masks(rank=2, alpha=1.0, seed=0)[0],
    "training.lottery.find_tickets": tickets,
    "training.lottery.shares": lambda: {"rate": 0.2, "rounds": 3},
    "training.schedule.Schedule": lambda: {"kind": "cubic", "final": 0.5, "begin": 0, "end": 9, "every": 1},
    "training.schedule.Gradual": lambda: {
        "layers": linear_layers(nn.Linear(8, 4)), "schedule": schedule.Schedule("cubic", 0.5, 0, 9), "scope": "layer"
    },
    "training.recipe.Recipe": lambda: {"steps": 1, "lr": 0.1, "mode": "full", "rank": 8, "alpha": 1.0, "seed": 0},
    "training.distill.Distillation": lambda: {"teacher": MODEL, "share": 0.5, "temperature": 1.0, "hidden": 0.0},
    "training.recover.recover": lambda: of_model(
        tokens=tiny_tokens(4), recipe=recipe.Recipe(1), masks=None, test=None, teacher=Distillation(MODEL), state=None,
        save_every=1, progress=False,
    ),
    "training.activations.pruned_activations": lambda: {"layers": linear_layers(nn.Linear(4, 4)), "threshold": 0.1},
}  # fmt: skip
for _name in mp.METHODS:
    module = "least_squares.exact" if _name == "exact" else f"{_name}.{_name}"
    CALLS[f"methods.{module}"] = CALLS[f"METHODS {_name}"] = lambda: {key: make() for key, make in ONE.items()}
OTHERS = {  # functions that stand in the reference beside those of `public`
    rules.owl: lambda: of_layers(outlier=5.0, spread=0.1),
    rules.ramp: lambda: of_layers(slopes=[0.1]),
    rules.one_threshold: of_layers,
    rules.inverse: lambda: of_layers(by="block", spread=0.1),
    rules.optimal: lambda: of_layers(by="block", spread=0.1, steps=1, alone=False),
    ria.ria_scores: lambda: {"W": matrix(), "stats": seen(), "power": 0.5},
    sparsegpt.inverse_factor: lambda: {"gram": seen().gram, "damp": 0.01},
    least_squares.least_squares: lambda: {"W": matrix(), "stats": seen(), "keep": matrix() > 0, "damp": 0.01},
    channel_permutation.channel_permutation: lambda: {
        "scores": matrix().abs(),
        "pattern": mp.pattern("2:4"),
        "passes": 1,
    },
    channel_permutation.fold_permutation: lambda: {
        "producers": [matrix()],
        "readers": [matrix().T],
        "order": torch.arange(8),
    },
    shared_values: lambda: {"w": torch.rand(8), "importance": torch.rand(8), "count": 3, "zero": True},
    low_rank: lambda: {"W": matrix(), "gram": seen().gram, "rank": 2},
}

# Shapes and dtypes are checked where these are called through METHODS.
BARE = {name for name in CALLS if name.startswith("methods.")} | {"ria_scores", "inverse_factor", "least_squares"}


def functions():
    known = public() | {f"METHODS {name}": method for name, method in mp.METHODS.items()}
    return {name: (known[name], make) for name, make in CALLS.items()} | {
        function.__name__: (function, make) for function, make in OTHERS.items()
    }


def parameters():
    return [(name, parameter) for name, (_, make) in functions().items() for parameter in make()]


@pytest.mark.parametrize("name, parameter", parameters(), ids=lambda value: value)
def test_each_argument_in_turn_is_something_else_and_is_used_or_refused_in_a_line(name, parameter, in_an_empty_folder):
    function, make = functions()[name]
    for kind, foreign in FOREIGN.items():
        if name in BARE and isinstance(foreign, Tensor):
            continue
        if callable(foreign) and parameter in ("train", "measure", "allocation"):  # it is called, and fails as it does
            continue
        try:
            function(**make() | {parameter: foreign})
        except mp.PruneError as error:
            assert "\n" not in str(error) and 10 < len(str(error)) <= 1100, (kind, str(error))
        except Exception as error:
            raise AssertionError(f"{parameter} is {kind}: {type(error).__name__}: {error}") from error


def measured():
    protocol = {field.name: "x" for field in fields(Protocol)} | {"window": 8, "stride": 8, "tokens": 9, "bytes": 9}
    return mp.Measurement(1.5, Protocol(**protocol))


def grid():
    return make_grid(matrix(), bits=4, group=8, kind="asymmetric")


METHODS = {  # a method of a public class -> an object that has it, and its arguments as they should be
    "Statistics.update": lambda: (seen(), {"X": matrix()}),
    "Statistics.merge": lambda: (seen(), {"other": seen()}),
    "Report.to_json": lambda: (mp.Report("magnitude", "50%", {}, {}), {"path": "report.json"}),
    "Measurement.ratio": lambda: (measured(), {"other": measured(), "per": "token"}),
    "course.checks.quizzes.Quiz.answer": lambda: (quiz("05"), {"question": 1, "letter": "a"}),
    "structured.removals.Removal.of": lambda: (Removal("blocks", count=1), {"total": 4}),
    "compress.grids.Grid.codes": lambda: (grid(), {"W": matrix()}),
    "compress.grids.Grid.values": lambda: (grid(), {"codes": grid().codes(matrix())}),
    "compress.grids.Grid.round": lambda: (grid(), {"W": matrix()}),
    "formats.Dense.from_dense": lambda: (formats.Dense, {"W": matrix(), "keep": None}),
    "formats.Bitmask.from_dense": lambda: (formats.Bitmask, {"W": matrix(), "keep": matrix() != 0}),
    "formats.CSR.from_dense": lambda: (formats.CSR, {"W": matrix(), "keep": None, "index": torch.int64}),
    "formats.CSC.from_dense": lambda: (formats.CSC, {"W": matrix(), "keep": None, "pointer": torch.int64}),
    "formats.BSR.from_dense": lambda: (formats.BSR, {"W": matrix(), "keep": None, "size": 4}),
    "formats.NMPacked.from_dense": lambda: (formats.NMPacked, {"W": matrix(), "keep": None, "n": 4, "m": 4}),
    "formats.Integers.from_dense": lambda: (
        formats.Integers, {"W": grid().round(matrix()), "keep": None, "bits": 4, "group": 8}
    ),
    "formats.Integers.astype": lambda: (
        formats.Integers.from_dense(torch.ones(2, 4), group=4), {"dtype": torch.float16}
    ),
    "formats.SparseMatrix.matmul": lambda: (formats.Bitmask.from_dense(matrix()), {"X": torch.rand(3, 16)}),
    "formats.SparseMatrix.astype": lambda: (formats.Bitmask.from_dense(matrix()), {"dtype": torch.float64}),
    "training.recipe.Recipe.rate": lambda: (recipe.Recipe(5), {"step": 1}),
    "training.recipe.Recipe.windows": lambda: (recipe.Recipe(5), {"step": 1, "available": 10}),
    "training.schedule.Schedule.sparsity": lambda: (schedule.Schedule("cubic", 0.5, 0, 9), {"step": 1}),
    "training.schedule.Schedule.due": lambda: (schedule.Schedule("cubic", 0.5, 0, 9), {"step": 1}),
    "training.schedule.Gradual.update": lambda: (
        schedule.Gradual(linear_layers(nn.Linear(8, 4)), schedule.Schedule("cubic", 0.5, 0, 9)), {"step": 1}
    ),
}  # fmt: skip
NOT_FOR_USERS = {  # the package, torch or transformers calls these, not the reader of the course
    *(f"{kind}.{name}" for kind in ("Unstructured", "NM", "Block") for name in ("check", "with_default", "keep")),
    *(f"methods.Method.{name}" for name in ("after", "check_values", "check_options", "check_names")),
    *(f"training.callback.KeepZeros.on_{moment}" for moment in ("train_begin", "optimizer_step", "train_end")),
    "NM.keep_places",
    *(f"Statistics.{name}" for name in ("unpacked", "permuted", "to")),
    "kernels.linear.SparseLinear.forward",
    "compress.grids.Grid.codes_at",
    "compress.grids.Grid.columns",
    "course.checks.core.Exercise.judge",
    "course.checks.core.Exercise.agree",
}


def methods():
    """Every method with arguments that a public class has itself, but for tiles(), which are rows of a matrix."""
    for kind, value in public().items():
        if not inspect.isclass(value) or kind in ("Method", "formats.Lines"):
            continue
        for name in vars(value):
            method = getattr(value, name)
            told = name[0] != "_" and name != "tiles" and inspect.isroutine(method)
            if told and set(inspect.signature(method).parameters) - {"self"}:
                yield f"{kind}.{name}"


def test_all_methods_of_public_classes_that_take_arguments_are_tried():
    inherited = {"formats.CSR.from_dense", "formats.CSC.from_dense"}  # of the class of both
    abstract = {"formats.SparseMatrix.from_dense"}
    assert set(methods()) - abstract - NOT_FOR_USERS == METHODS.keys() - inherited


@pytest.mark.parametrize(
    "name, parameter", [(name, key) for name, make in METHODS.items() for key in make()[1]], ids=lambda value: value
)
def test_each_argument_of_a_method_is_something_else_and_is_used_or_refused_in_a_line(
    name, parameter, in_an_empty_folder
):
    for kind, foreign in FOREIGN.items():
        owner, given = METHODS[name]()
        try:
            getattr(owner, name.rpartition(".")[2])(**given | {parameter: foreign})
        except mp.PruneError as error:
            assert "\n" not in str(error) and 10 < len(str(error)) <= 1100, (kind, str(error))
        except OSError as error:  # of a path: what the system says
            assert parameter == "path" and error.filename
        except Exception as error:
            raise AssertionError(f"{parameter} is {kind}: {type(error).__name__}: {error}") from error


# --- what counts as what


@checked()
def asked(count: int, share: float = 0.5, names: Sequence[str] = (), table: Mapping[str, float] | None = None):
    return count, share, names, table


def test_numbers_and_lists_of_other_libraries_become_pythons_own():
    count, share, names, table = asked(np.int64(3), np.float32(0.5), np.array(["a", "b"]), {"a": Fraction(1, 2)})
    assert type(count) is int and type(share) is float and names == ["a", "b"] and table == {"a": 0.5}
    assert asked(3, names=(name for name in "ab"))[2] == ["a", "b"]
    assert asked(3)[1:] == (0.5, (), None)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"count": 3.5}, "count is 3.5: it must be a whole number"),
        ({"count": True}, "count is True"),
        ({"share": "half"}, "share is 'half': it must be a number"),
        ({"names": 5}, "names is 5: it must be a list, each of it a text"),
        ({"names": ["a", 5]}, "each of it a text"),
        ({"table": {"a": "b"}}, "a mapping from a text to a number or None"),
        ({"table": {5: 0.5}}, "a mapping"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_name(given, said):
    with pytest.raises(mp.PruneError, match=said.replace("(", r"\(")):
        asked(**{"count": 3} | given)


def test_an_argument_that_there_is_not_is_pythons_own_mistake():
    with pytest.raises(TypeError, match="unexpected"):
        asked(3, other=1)


def test_models_of_transformers_are_told_from_other_modules_also_if_they_are_wrapped():
    class Wrapped(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inside = model

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inside, name)

    assert conforms(MODEL, LanguageModel) and conforms(Wrapped(MODEL), LanguageModel)
    assert not conforms(nn.Linear(4, 4), LanguageModel) and not conforms("smollm2", LanguageModel)


def test_every_annotation_has_words_and_a_value_that_conforms():
    kinds = {
        int: 3,
        float: 0.5,
        bool: True,
        str: "a",
        Path: Path("a"),
        Tensor: torch.zeros(1),
        Pair: Pair("a", "b", "c"),
    }
    kinds |= {
        list[int]: [3],
        Iterable[str]: "a",
        tuple[int, int]: (1, 2),
        Mapping[str, int]: {"a": 1},
        int | None: None,
    }
    for kind, value in kinds.items():
        assert conforms(value, kind) and len(words(kind)) > 3 and not conforms(Odd(), kind)


def test_a_message_is_one_line_and_not_longer_than_a_person_reads():
    error = mp.PruneError(f"{torch.rand(2000)} is\nmuch: {'x' * 5000}; use less")
    assert "\n" not in str(error) and len(str(error)) < 1100 and str(error).endswith("use less")
