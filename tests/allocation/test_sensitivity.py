"""sensitivity.py: trial runs against whole models that are pruned and run by hand."""

import copy
import json
from dataclasses import asdict
from functools import partial

import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokens

import minprune as mp
from minprune.allocation.budget import group_layers
from minprune.allocation.sensitivity import HELD_OUT, sensitivity, trial

CALIB = tiny_tokens(8, 16)


@torch.no_grad()
def divergence(dense, pruned, windows):
    """Mean KL(dense || pruned) per token, from its definition, in float64."""
    p = dense(windows).logits.double().softmax(-1)
    q = pruned(windows).logits.double().softmax(-1)
    return float((p * (p / q).log()).sum(-1).mean())


def inputs(model, layers, windows):
    """layer name -> what the layer reads, (tokens, d_in), from plain hooks."""
    seen = {}
    handles = [
        layer.module.register_forward_hook(
            lambda module, args, out, name=layer.name: seen.update(
                {name: args[0].detach().reshape(-1, args[0].shape[-1])}
            )
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(windows)
    for handle in handles:
        handle.remove()
    return seen


def pruned_by_hand(model, table, calib):
    """A copy in which layers (name -> sparsity) lose the lowest |W| ||x|| of each row, by the dense inputs."""
    other = copy.deepcopy(model)
    X = inputs(model, mp.find_layers(model), calib)
    for layer in mp.find_layers(other):
        if layer.name in table:
            W = layer.weight
            order = (W.abs() * X[layer.name].norm(dim=0)).argsort(dim=1)
            W.scatter_(1, order[:, : round(table[layer.name] * W.shape[1])], 0)
    return other


@pytest.mark.parametrize("by", ["block", "type", "layer"])
def test_the_cost_of_a_group_is_the_divergence_of_a_model_pruned_by_hand(by):
    model = tiny_model("llama", torch.float64)
    rows = sensitivity(model, CALIB, "50%", by)
    groups = group_layers(mp.find_layers(model), by)
    assert [row.group for row in rows] == list(groups)
    for row, members in zip(rows, groups.values(), strict=True):
        other = pruned_by_hand(model, {layer.name: 0.5 for layer in members}, CALIB[:-2])
        assert row.cost == pytest.approx(divergence(model, other, CALIB[-2:]), rel=1e-6)
        assert row.layers == len(members)
        assert row.parameters == sum(layer.weight.numel() for layer in members)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mixtral"])
def test_starting_at_the_changed_block_changes_nothing_in_any_family(family):
    model = tiny_model(family, torch.float64)
    layers = mp.find_layers(model)
    last = list(group_layers(layers).values())[-1]
    with trial(model, layers, CALIB) as running:
        found = running.cost(dict.fromkeys(last, mp.pattern("50%")))
    other = pruned_by_hand(model, {layer.name: 0.5 for layer in last}, CALIB[:-2])
    assert found == pytest.approx(divergence(model, other, CALIB[-2:]), rel=1e-6)


def test_a_trial_may_start_from_a_pruned_rest():
    model = tiny_model("llama", torch.float64)
    layers = mp.find_layers(model)
    _, second = group_layers(layers).values()
    with trial(model, layers, CALIB) as running:
        running.set_rest(mp.pattern("50%"))
        found = running.cost(dict.fromkeys(second, mp.pattern("25%")))
        again = running.cost(dict.fromkeys(second, mp.pattern("25%")))
        whole = running.cost({})
    everywhere = {layer.name: 0.5 for layer in layers}
    both = pruned_by_hand(model, everywhere, CALIB[:-2])
    mixed = pruned_by_hand(model, everywhere | {layer.name: 0.25 for layer in second}, CALIB[:-2])
    assert found == again == pytest.approx(divergence(model, mixed, CALIB[-2:]), rel=1e-6)
    assert whole == pytest.approx(divergence(model, both, CALIB[-2:]), rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_the_model_is_what_it_was_even_if_a_trial_fails(family):
    model = tiny_model(family)
    model.train()
    before = [parameter.clone() for parameter in model.parameters()]
    sensitivity(model, CALIB, "60%", "type")
    layers = mp.find_layers(model)
    with pytest.raises(mp.PruneError, match="unknown pattern"), trial(model, layers, CALIB) as running:
        running.set_rest(mp.pattern("50%"))
        running.cost({layers[0]: mp.pattern("nonsense")})
    assert model.training
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_n_m_patterns_and_an_untied_head_have_costs_too():
    model = tiny_model("llama", tie_word_embeddings=False)
    rows = sensitivity(model, CALIB, "2:4", "block", include=["*"])
    assert [row.group for row in rows] == ["model.layers.0", "model.layers.1", "lm_head"]
    assert all(row.cost > 0 for row in rows)


def test_calibration_that_cannot_be_split_is_refused():
    model = tiny_model("llama")
    for calib in (None, CALIB[:1]):
        with pytest.raises(mp.PruneError, match="calibration windows"):
            sensitivity(model, calib)
    assert HELD_OUT == 2
    with pytest.raises(mp.PruneError, match="7"):
        sensitivity(model, CALIB, "3:7")


@pytest.fixture
def costs(run, tiny_folder, text_file):
    """costs(...) -> (exit code, stdout, stderr) of `minprune sensitivity` on the tiny model and text."""
    return partial(run, "sensitivity", tiny_folder, "--calibration", text_file, "--samples", 6, "--length", 32)


def test_the_command_writes_the_costs_and_lists_the_most_sensitive_first(costs, tiny_folder, text_file, tmp_path):
    code, out, err = costs("--pattern", "60%", "--by", "type", "--seed", 3, "--output", "costs.json")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "costs.json").read_text())
    model, tokenizer = mp.load_model(tiny_folder)
    calib = mp.load_tokens(tokenizer, text_file, samples=6, length=32, seed=3)
    assert record["costs"] == [asdict(row) for row in sensitivity(model, calib, "60%", "type")]
    assert (record["pattern"], record["by"], record["seed"], record["split"]) == ("60%", "type", 3, None)
    order = [row["group"] for row in sorted(record["costs"], key=lambda row: -row["cost"])]
    assert [line.split()[0] for line in out.splitlines()[3 : 3 + len(order)]] == order
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize(
    "more, reason",
    [
        (("--by", "depth"), "block, type, layer"),
        (("--pattern", "150%"), "150%"),
        (("--samples", "1"), "at least 2"),
        (("--output", "missing/costs.json"), "the folder of missing/costs.json does not exist"),
        (("--include", "*.w1"), "matches no layer"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(costs, more, reason):
    code, out, err = costs(*more)
    assert (code, out) == (2, "")
    assert reason in err and err.count("\n") == 1


@pytest.mark.parametrize("by", ["block", "layer"])
def test_costs_under_an_autocast_that_remembers_weights_are_those_under_one_that_does_not(by):
    model, rows = tiny_model("llama"), []
    for cache in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache), torch.enable_grad():
            model(CALIB)  # so that there is something in the cache
            rows.append(sensitivity(model, CALIB, "50%", by))
    assert rows[0] == rows[1] and all(row.cost > 0 for row in rows[0])


@pytest.mark.parametrize("rule", ["optimal", "inverse"])
def test_a_rule_that_tries_its_tables_is_not_misled_by_a_callers_autocast(rule):
    dense, tables = tiny_model("llama", num_hidden_layers=3), []
    for cache in (True, False):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            tables.append(mp.prune(copy.deepcopy(dense), CALIB, "magnitude", allocation=rule).allocation["table"])
    assert tables[0] == tables[1] and len(set(tables[0].values())) > 1


def test_sensitivity_in_inference_mode_is_what_it_is_outside():
    model = tiny_model("llama")
    with torch.inference_mode():
        found = sensitivity(model, CALIB, "50%")
    assert found == sensitivity(model, CALIB, "50%")
