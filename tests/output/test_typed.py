"""State that somebody has written or changed: it does not count, or it is refused in one line; never taken as it is."""

import json
import math

import pytest
import torch
from test_checkpoint import BLOCKS, assert_same_tensors, stopped, write_checkpoint
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.output.shards import Shards
from minprune.pipeline import journal
from minprune.sweep.results import read_runs
from minprune.training.recover import Recipe, recover


def changed(value, path, new):
    """A copy of a value of lists and dicts with something else at one place; of the place's value, if callable."""
    if not path:
        return new(value) if callable(new) else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def without(key):
    return lambda value: {name: inner for name, inner in value.items() if name != key}


LINES = [
    ((), without("block")),
    ((), without("rows")),
    ((), without("sha256")),
    ((), without("seconds")),
    ((), []),
    (("block",), -1),
    (("block",), 10**9),
    (("block",), True),
    (("block",), "0"),
    (("sha256",), None),
    (("hidden",), {"file": "../x", "sha256": "0" * 64}),
    (("hidden",), []),
    (("rows",), None),
    (("rows", 0), {}),
    (("rows", 0, "name"), "model.layers.77.mlp"),
    (("rows", 0, "shape"), [1]),
    (("rows", 0, "sparsity"), 2.0),
    (("rows", 0, "sparsity"), "half"),
    (("rows", 0, "error"), "x"),
    (("rows", 0), lambda row: row | {"more": 1}),
    (("seconds",), {}),
    (("seconds", "total"), -1.0),
    (("seconds", "solve"), "a"),
]


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A checkpoint, its pruned folder, and what a run leaves that was stopped after two blocks."""
    folder = tmp_path_factory.mktemp("half")
    src = write_checkpoint(folder / "src", num_hidden_layers=BLOCKS)
    mp.prune_checkpoint(src, folder / "plain", tiny_tokens(), "wanda")
    with pytest.MonkeyPatch.context() as patch:
        stopped(src, folder / "out", 2, patch, calib=tiny_tokens(), method="wanda")
    return folder


@pytest.mark.parametrize(("path", "new"), LINES)
def test_a_line_of_the_journal_with_a_right_seal_and_nonsense_in_it_does_not_count(half_done, path, new):
    partial = half_done / "out.partial"
    file = partial / "unfinished" / "journal.jsonl"
    before = file.read_text()
    line = json.loads(before.splitlines()[0])
    line.pop("line")
    bad = changed(line, path, new)
    text = json.dumps({**bad, "line": journal._digest(bad)}) if isinstance(bad, dict) else json.dumps(bad)
    file.write_text("\n".join([text, *before.splitlines()[1:]]) + "\n")
    kept = journal.Journal(partial)
    recipe = json.loads((partial / "unfinished" / "recipe.json").read_text())
    kept.begin(recipe, [[] for _ in range(BLOCKS)], Shards(partial, {}, 1))
    assert list(kept.lines) == [1]
    file.write_text(before)
    assert list(kept.read_lines()) == [0, 1]


def test_a_run_goes_on_past_nonsense_to_the_same_tensors(half_done):
    file = half_done / "out.partial" / "unfinished" / "journal.jsonl"
    bad = {"block": 0, "sha256": "0" * 64, "hidden": None}
    with file.open("a") as lines:
        for line in (bad, bad | {"block": -1}, {"rows": []}, {}):
            lines.write(json.dumps({**line, "line": journal._digest(line)}) + "\n")
        lines.write("[" * 100_000 + "\n" + '{"block": 1e999}\n\xff\n')
    mp.prune_checkpoint(half_done / "src", half_done / "out", tiny_tokens(), "wanda", resume=True)
    assert_same_tensors(half_done / "out", half_done / "plain")


STATES = [
    ((), without("trained")),
    ((), {}),
    ((), None),
    (("step",), -1),
    (("step",), 0),
    (("step",), 10**9),
    (("step",), 2.0),
    (("step",), True),
    (("trained",), []),
    (("trained",), lambda tensors: tensors[:-1]),
    (("trained", 0), lambda tensor: tensor[:1]),
    (("trained", 0), "x"),
    (("optimizer",), {}),
    (("optimizer",), {"state": {}, "param_groups": []}),
    (("optimizer", "state"), {99: {}}),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(1)),
    (("optimizer", "state", 0, "exp_avg"), lambda tensor: tensor * math.nan),
    (("rows",), []),
    (("rows", 0), {}),
    (("rows", 0, "step"), 3),
    (("rows", 0, "perplexity"), {"other": 1.0}),
    (("losses",), ["a"]),
    (("losses",), [1.0] * 50),
    (("losses",), [math.nan, math.nan]),
    (("seconds",), -1.0),
    (("seconds",), math.inf),
    (("tokens",), -5),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """train(): a small run with its state in a file, and the state of step 4."""
    path = tmp_path_factory.mktemp("state") / "training.state"

    def train(model=None):
        model, tokens = model or tiny_model("llama"), tiny_tokens(8)
        return recover(model, tokens, Recipe(6, 2, evaluate=3), test={"a": tokens[:2]}, state=path, save_every=4)

    train()
    return path, train, torch.load(path, weights_only=True)


@pytest.mark.parametrize(("where", "new"), STATES)
def test_a_training_state_that_no_run_leaves_is_refused_in_one_line(trained, where, new):
    path, train, saved = trained
    torch.save(saved | {"state": changed(saved["state"], where, new)}, path)
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(mp.PruneError, match="delete it to begin anew") as caught:
        train(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_training_state_that_is_right_is_taken_and_the_recipe_says_how_to_train(trained):
    path, train, saved = trained
    torch.save(saved, path)
    rows = train().rows
    groups = [{**group, "betas": (0.0, 0.0), "eps": 9.0} for group in saved["state"]["optimizer"]["param_groups"]]
    torch.save(saved | {"state": changed(saved["state"], ("optimizer", "param_groups"), groups)}, path)
    assert train().rows == rows


RUNS = [
    ((), without("perplexity")),
    ((), []),
    (("method",), 5),
    (("seed",), "0"),
    (("seed",), -1),
    (("perplexity",), []),
    (("perplexity", "a"), "12"),
    (("relative",), {}),
    (("zeros",), 1.5),
    (("error",), "x"),
    (("seconds",), {}),
    (("seconds",), None),
    (("protocol",), None),
]
RUN = {
    "method": "wanda", "pattern": "50%", "seed": 0, "perplexity": {"a": 20.0}, "dense": {"a": 10.0},
    "relative": {"a": 2.0}, "zeros": 0.5, "error": None, "seconds": {"processor": 1.0, "wall": 1}, "protocol": {},
}  # fmt: skip


@pytest.mark.parametrize(("path", "new"), RUNS)
def test_a_line_that_is_no_run_of_a_sweep_is_named(tmp_path, path, new):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(RUN) + "\n" + json.dumps(changed(RUN, path, new)) + "\n")
    with pytest.raises(mp.PruneError, match=r"line 2 of .* is not a run of a sweep"):
        read_runs(file)
    file.write_text(json.dumps(RUN) + "\n" + "[" * 100_000 + "\n")
    with pytest.raises(mp.PruneError, match="line 2"):
        read_runs(file)


def test_a_perplexity_that_was_infinite_comes_back_as_it_was(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(RUN | {"perplexity": {"a": None}, "relative": {"a": None}}) + "\n")
    assert read_runs(file)[0]["perplexity"] == {"a": math.inf}
