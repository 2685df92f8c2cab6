"""Each criterion is the formula of its source, found here by another way: removal, prediction, autograd."""

import itertools

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.methods.columns import cheapest_columns, refit, unit_costs
from minprune.patterns import Lines
from minprune.structured import criteria
from minprune.structured.units import heads, neurons

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(200, 8, generator=RANDOM, dtype=torch.float64) @ torch.randn(8, 8, generator=RANDOM).double() + 1
W = torch.randn(5, 8, generator=RANDOM, dtype=torch.float64)


def lost(keep, bias=0.0, new=None):
    """What the output loses when W, or `new`, has only the inputs of `keep`."""
    return float((X @ (W - (W * keep if new is None else new)).T - bias).square().sum())


def test_a_score_is_what_removing_one_input_costs():
    stats = mp.Statistics(8, dtype=torch.float64).update(X)
    flap = criteria.flap(W, stats.sq_norm, stats.mean, stats.tokens)
    obd = criteria.l2((W * stats.sq_norm.sqrt()).T)
    inverse = torch.linalg.inv(stats.gram)
    for j in range(8):
        keep = torch.arange(8) != j
        assert lost(keep) == pytest.approx(float(obd[j]))
        bias = criteria.missing_mean(W, stats.mean, keep)
        assert lost(keep, bias) == pytest.approx(float(flap[j]))
        fitted = torch.zeros_like(W)
        fitted[:, keep] = torch.linalg.lstsq(X[:, keep], X @ W.T).solution.T
        assert lost(keep, new=fitted) == pytest.approx(float(unit_costs(W, inverse, 1)[j]))


@pytest.mark.parametrize("size", [1, 2])
def test_the_cost_of_a_set_is_the_same_by_formula_and_by_refitting(size):
    gram = X.T @ X
    costs = unit_costs(W, torch.linalg.inv(gram), size)
    for unit in range(8 // size):
        keep = torch.arange(8) // size != unit
        assert lost(keep, new=refit(W, gram, keep, 0.0)) == pytest.approx(float(costs[unit]))


def test_greedy_is_near_the_best_of_all_sets_and_never_better():
    gram = X.T @ X
    new, _, _ = cheapest_columns(W, gram, Lines("columns", 3 / 8), 0.0)
    every = []
    for gone in itertools.combinations(range(8), 3):
        keep = torch.ones(8, dtype=torch.bool)
        keep[list(gone)] = False
        every.append(lost(keep, new=refit(W, gram, keep, 0.0)))
    found = lost(None, new=new)
    assert min(every) <= found * (1 + 1e-9) and found <= sorted(every)[2]


def test_a_taylor_score_is_the_slope_of_the_loss_along_the_removal():
    """The loss with unit j scaled by 1 - t falls, at t = 0, by the signed sum."""
    w = torch.randn(6, 4, generator=RANDOM, dtype=torch.float64, requires_grad=True)

    def loss(v):
        return (v @ torch.arange(4.0).double()).tanh().sum() + v.square().sum().sqrt()

    (g,) = torch.autograd.grad(loss(w), w)
    signed = criteria.taylor(w, g, "signed").detach()
    for j in range(6):
        t = torch.zeros(6, 1, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(w.detach() * (1 - t)), t)
        assert float(slope[j]) == pytest.approx(float(signed[j]))
    assert torch.equal(criteria.taylor(w, g, "vector"), criteria.taylor(w, g, "signed").abs())
    assert bool((criteria.taylor(w, g, "element") >= criteria.taylor(w, g, "vector") - 1e-12).all())
    with pytest.raises(mp.PruneError, match="sideways"):
        criteria.taylor(w, g, "sideways")


def test_gradients_are_those_of_a_plain_backward_pass_and_leave_nothing_behind():
    model, tokens = tiny_model("llama"), tiny_tokens(3)
    units = neurons(model)[2]
    layers = [unit.reader for unit in units]
    first, squares = criteria.gradients(model, tokens, layers)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    twin, total = tiny_model("llama"), {}
    for window in tokens:
        twin.zero_grad()
        twin(input_ids=window[None], labels=window[None]).loss.backward()
        for layer in layers:
            g = twin.get_submodule(layer.name).weight.grad
            total[layer.name] = total.get(layer.name, 0) + torch.stack([g / len(tokens), g.square()])
    for layer in layers:
        torch.testing.assert_close(torch.stack([first[layer.name], squares[layer.name]]), total[layer.name])


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_a_group_holds_every_weight_that_goes_with_a_neuron(family):
    model = tiny_model(family)
    unit = neurons(model)[2][0]
    values = {layer.name: layer.weight for layer in (unit.reader, *(maker for maker, _ in unit.makers))}
    w = criteria.group_of(unit, values, 1)
    for j in (0, 17):
        mine = [unit.reader.weight[:, j], *(maker.weight[j] for maker, _ in unit.makers)]
        assert torch.equal(w[j].sort().values, torch.cat(mine).sort().values)
    shared = criteria.group_of(heads(tiny_model("llama"))[1][0], _values(heads(tiny_model("llama"))[1][0]), 8)
    assert shared.shape == (4, 2 * 8 * 32)  # a query head's rows of q and columns of o


def _values(unit):
    return {layer.name: layer.weight for layer in (unit.reader, *(maker for maker, _ in unit.makers))}
