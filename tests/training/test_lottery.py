"""Tickets, their controls, schedules, and what a mask of activations does to weights."""

import copy
import itertools
from fractions import Fraction

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch.testing import assert_close

import minprune as mp
from minprune.training.activations import pruned_activations, thresholds
from minprune.training.lottery import find_tickets, random_ticket, reinitialise, shares, state_of
from minprune.training.masks import linear_layers, maintain_sparsity, sparsity_of
from minprune.training.schedule import Gradual, Schedule

STEPS = 8


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 11), torch.nn.Tanh(), torch.nn.Linear(11, 3))


class Recorder:
    """A `train` that writes down where each stretch began and learns a fixed task, each step its own batch."""

    def __init__(self):
        self.calls, self.starts = [], []

    def __call__(self, network, masks, start, stop):
        self.calls.append((start, stop))
        self.starts.append(state_of(network))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        with maintain_sparsity(masks, optimizer):
            for step in range(start, stop):
                generator = torch.Generator().manual_seed(step)
                X = torch.randn(16, 6, generator=generator)
                optimizer.zero_grad()
                (network(X) - X[:, :3] * X[:, 3:]).square().mean().backward()
                optimizer.step()


def norm(network):
    return float(sum(parameter.detach().norm() for parameter in network.parameters()))


def survivors(sizes, sparsities, scope):
    """How many weights are left after each round, in exact arithmetic."""
    if scope == "global":
        return [sum(sizes) - round(Fraction(s) * sum(sizes)) for s in sparsities]
    return [sum(n - round(Fraction(s) * n) for n in sizes) for s in sparsities]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rewind", [0, 3])
def test_each_round_starts_from_the_same_numbers_under_a_smaller_mask(scope, rewind):
    network, train = net(), Recorder()
    initial, layers = state_of(network), linear_layers(network)
    sparsities = shares(0.3, 4)
    tickets = find_tickets(network, layers, train, norm, steps=STEPS, sparsities=sparsities, scope=scope, rewind=rewind)
    stretches = [(0, 3)] * bool(rewind) + [(rewind, STEPS)] * 5
    assert train.calls == stretches and [ticket.round for ticket in tickets] == [0, 1, 2, 3, 4]
    starts = train.starts[bool(rewind) :]
    assert all(torch.equal(starts[0][name], initial[name]) for name in initial) == (rewind == 0)
    for ticket, start in zip(tickets, starts, strict=True):
        masked = {f"{layer.name}.weight": keep for layer, keep in ticket.masks.items()}
        for name, value in starts[0].items():  # weights under the mask and biases as they are
            assert torch.equal(start[name], value * masked[name] if name in masked else value)
    left = [sum(int(keep.sum()) for keep in ticket.masks.values()) for ticket in tickets]
    assert left == [99, *survivors([66, 33], sparsities, scope)]
    assert [ticket.sparsity for ticket in tickets] == pytest.approx([1 - n / 99 for n in left])
    for one, other in itertools.pairwise(tickets):
        assert all(bool((one.masks[layer] | ~keep).all()) for layer, keep in other.masks.items())
    assert [ticket.cost for ticket in tickets] == [STEPS + (STEPS - rewind) * n for n in range(5)]
    assert tickets[-1].score == norm(network)


def test_a_mask_is_that_of_the_smallest_trained_weights():
    """One round by hand: train a copy, sort with Python, compare."""
    network, trained = net(), net()
    Recorder()(trained, {}, 0, STEPS)
    layers = linear_layers(network)
    ticket = find_tickets(network, layers, Recorder(), norm, steps=STEPS, sparsities=[0.4])[1]
    for (layer, keep), module in zip(ticket.masks.items(), (trained[0], trained[2]), strict=True):
        sizes = sorted(module.weight.detach().abs().flatten().tolist())
        threshold = sizes[round(0.4 * len(sizes))]
        assert torch.equal(keep, module.weight.abs() >= threshold), layer.name


def test_without_rewinding_weights_go_on_from_where_they_are():
    network, train = net(), Recorder()
    tickets = find_tickets(
        network, linear_layers(network), train, norm, steps=STEPS, sparsities=[0.1, 0.2], rewind=None
    )
    assert train.calls == [(0, 8), (8, 16), (16, 24)] and [ticket.cost for ticket in tickets] == [8, 16, 24]
    by_hand = net()
    Recorder()(by_hand, {}, 0, 8)
    for (name, value), start in zip(by_hand.state_dict().items(), train.starts[1].values(), strict=True):
        masked = value * (start != 0) if name.endswith("weight") else value
        assert torch.equal(start, masked)


def test_controls_change_one_thing_each():
    network = net()
    layers, before = linear_layers(network), state_of(network)
    masks = find_tickets(network, layers, Recorder(), norm, steps=STEPS, sparsities=[0.7])[1].masks
    moved = random_ticket(masks, seed=1)
    assert [int(keep.sum()) for keep in moved.values()] == [int(keep.sum()) for keep in masks.values()]
    assert all(not torch.equal(moved[layer], masks[layer]) for layer in layers)
    assert all(torch.equal(random_ticket(masks, 1)[layer], moved[layer]) for layer in layers)
    assert sparsity_of(moved) == sparsity_of(masks)
    torch.manual_seed(5)
    expected = [torch.nn.Linear(6, 11).weight, torch.nn.Linear(11, 3).weight]
    state = torch.get_rng_state()
    reinitialise(network, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    for layer, W in zip(layers, expected, strict=True):
        assert torch.equal(layer.weight, W) and not torch.equal(W, before[f"{layer.name}.weight"])


def test_every_place_is_as_likely_in_a_random_ticket():
    layer = linear_layers(net())[0]
    keep = torch.zeros(11, 6, dtype=torch.bool)
    keep[0] = True
    often = torch.stack([random_ticket({layer: keep}, seed)[layer] for seed in range(2000)]).float().mean(0)
    assert_close(often, torch.full((11, 6), 6 / 66), atol=0.035, rtol=0)  # 5 standard deviations of the mean


def test_lottery_mistakes_are_told():
    network = net()
    arguments = (network, linear_layers(network), Recorder(), norm)
    for changes, message in [
        ({"sparsities": [0.5, 0.5]}, "must rise"),
        ({"sparsities": [0.0, 0.5]}, "must rise"),
        ({"sparsities": [0.5], "rewind": STEPS}, "rewind 8"),
        ({"sparsities": [0.5], "scope": "row"}, "unknown scope"),
    ]:
        with pytest.raises(mp.PruneError, match=message):
            find_tickets(*arguments, **({"steps": STEPS} | changes))
    with pytest.raises(mp.PruneError, match="no layer to prune"):
        find_tickets(network, [], Recorder(), norm, steps=STEPS, sparsities=[0.5])
    with pytest.raises(mp.PruneError, match="rate 1"):
        shares(1, 3)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(mp.PruneError, match=r"0 \(Own\) cannot be drawn anew"):
        reinitialise(torch.nn.Sequential(Own()), 0)


# --- schedules


def test_the_cubic_schedule_is_zhu_and_guptas_formula():
    schedule = Schedule("cubic", 0.875, begin=100, end=300, every=50, initial=0.5)
    n, delta = 4, 50  # their notation: t = t0 + i * delta, i = 0 ... n
    for i in range(n + 1):
        expected = Fraction(7, 8) + (Fraction(1, 2) - Fraction(7, 8)) * (1 - Fraction(i * delta, n * delta)) ** 3
        assert schedule.sparsity(100 + i * delta) == pytest.approx(float(expected))
    assert [step for step in range(400) if schedule.due(step)] == [100, 150, 200, 250, 300]
    assert schedule.sparsity(99) == 0 and schedule.sparsity(10_000) == 0.875


def test_the_others():
    linear = Schedule("linear", 0.8, begin=0, end=10, every=4)
    assert [linear.sparsity(step) for step in (0, 5, 10)] == pytest.approx([0, 0.4, 0.8])
    assert [step for step in range(12) if linear.due(step)] == [0, 4, 8, 10]
    at_once = Schedule("one-shot", 0.8, begin=3)
    assert [at_once.sparsity(step) for step in (2, 3, 4)] == [0, 0.8, 0.8]
    assert [step for step in range(9) if at_once.due(step)] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("square", 0.5), "unknown schedule 'square'"),
        (("linear", 1.5, 0, 5), "from 0 to 1.5"),
        (("linear", 0.5, 0, 5, 1, 0.7), "from 0.7 to 0.5"),
        (("cubic", 0.5, 5, 5), "must come"),
        (("cubic", 0.5, 0, 5, 0), "must come"),
    ],
)
def test_schedules_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(mp.PruneError, match=message):
        Schedule(*arguments)


def gradual(revive, scope="layer", straight_through=False):
    """Train a net in which input 0 matters only from the second half on; returns it and its `Gradual`."""
    network = net()
    pruner = Gradual(
        linear_layers(network),
        Schedule("cubic", 0.7, 0, 60, 10),
        scope,
        revive=revive,
        straight_through=straight_through,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.03, weight_decay=0.1)
    before = {layer: keep for layer, keep in pruner.masks.items()}
    shrank_only = True
    for step in range(80):
        if pruner.update(step):
            shrank_only &= all(bool((before[layer] | ~keep).all()) for layer, keep in pruner.masks.items())
            before = dict(pruner.masks)
            expected = pruner.schedule.sparsity(step)
            counts = [int((~keep).sum()) for keep in pruner.masks.values()]
            zeros = [round(expected * n) for n in (66, 33)]
            assert counts == zeros if scope == "layer" else sum(counts) == round(expected * 99)
        generator = torch.Generator().manual_seed(step)
        X = torch.randn(16, 6, generator=generator)
        target = X[:, 3:] if step < 35 else X[:, :3]
        optimizer.zero_grad()
        (network(X) - target).square().mean().backward()
        optimizer.step()
    return network, pruner, shrank_only


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("straight_through", [False, True])
def test_a_weight_comes_back_unless_the_zeros_themselves_are_ranked(scope, straight_through):
    network, pruner, shrank_only = gradual(True, scope, straight_through)
    assert pruner.returned > 0 and not shrank_only
    masks = pruner.finish()
    assert all(torch.equal(layer.weight != 0, keep) for layer, keep in masks.items())
    assert sorted(dict(network.named_parameters())) == sorted(dict(net().named_parameters()))
    _, pruner, shrank_only = gradual(False, scope, straight_through)
    assert pruner.returned == 0 and shrank_only


@pytest.mark.parametrize("kind", ["one-shot", "cubic"])
def test_a_schedule_that_did_not_come_to_its_end_is_told(kind):
    """A loop over range(20) never makes the update before step 20."""
    network = net()
    begin, end = (20, 0) if kind == "one-shot" else (4, 20)
    pruner = Gradual(linear_layers(network), Schedule(kind, 0.8, begin, end, 4))
    for step in range(20):
        pruner.update(step)
    with pytest.raises(mp.PruneError, match=r"the schedule ends at 80.0%.*call update\(20\)"):
        pruner.finish()
    pruner.update(20)
    assert sparsity_of(pruner.finish()) == pytest.approx((53 + 26) / 99)


def test_behind_the_mask_weights_wait_or_learn():
    """Without weight decay and momentum a masked weight stays to the bit, or with straight_through moves."""
    for straight_through, moves in ((False, False), (True, True)):
        network = net()
        pruner = Gradual(linear_layers(network), Schedule("one-shot", 0.5), straight_through=straight_through)
        pruner.update(0)
        before = [network[i].parametrizations.weight.original.detach().clone() for i in (0, 2)]
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        network(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
        for i, old, keep in zip((0, 2), before, pruner.masks.values(), strict=True):
            new = network[i].parametrizations.weight.original.detach()
            assert bool((new != old)[~keep].any()) == moves


# --- activations


def test_small_activations_are_zero_for_their_token_only():
    model, tokens = tiny_model("llama"), tiny_tokens()
    layers = [layer for layer in mp.find_layers(model) if "mlp" in layer.name]
    before = state_of(model)
    with torch.no_grad():
        dense = model(input_ids=tokens).logits
        with pruned_activations(layers, 0.5) as activity:
            together = model(input_ids=tokens).logits
            backwards = model(input_ids=tokens.flip(0)).logits.flip(0)
        assert_close(together, backwards)  # no text changes what another one gets
        assert 0.1 < activity.sparsity < 0.9 and not torch.allclose(together, dense)
        with pruned_activations(layers, 0.0):
            assert torch.equal(model(input_ids=tokens).logits, dense)
    assert torch.equal(model(input_ids=tokens).logits, dense)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_with_pruned_activations_multiplies_by_the_masked_input():
    layer = linear_layers(net())[0]
    X = torch.tensor([[0.5, -0.5, 2.0, -3.0, 0.0, 0.4], [1.0, 0.1, 0.1, 0.1, 0.1, -9.0]])
    with pruned_activations([layer], 0.5) as activity:
        found = layer.module(X)
    kept = torch.tensor([[0, 0, 2.0, -3.0, 0, 0], [1.0, 0, 0, 0, 0, -9.0]])
    assert_close(found, kept @ layer.weight.T + layer.module.bias)
    assert (activity.seen, activity.zeroed) == (12, 8)


def test_each_layer_has_its_own_threshold():
    """By brute force: sort what a layer reads, in plain Python; nothing is ever above the share that was asked for."""
    model, tokens = tiny_model("llama"), tiny_tokens()
    layers = mp.find_layers(model, include=["*.o_proj", "*.down_proj"])
    read: dict = {layer: [] for layer in layers}
    hooks = [
        layer.module.register_forward_pre_hook(lambda module, args, layer=layer: read[layer].append(args[0]))
        for layer in layers
    ]
    with torch.no_grad():
        model(input_ids=tokens)
    for hook in hooks:
        hook.remove()

    def nobody(module, args):
        raise AssertionError("nothing of the head is needed: its output is the largest tensor of the model")

    head, was = model.lm_head.register_forward_pre_hook(nobody), model.train()
    found = thresholds(was, layers, tokens, 0.3)
    head.remove()
    assert model.training
    model.eval()
    for layer, inputs in read.items():
        sizes = sorted(inputs[0].abs().flatten().tolist())
        assert found[layer] == sizes[round(0.3 * len(sizes)) - 1]
    first = layers[0]  # nothing before it was pruned
    with torch.no_grad(), pruned_activations(layers, found) as activity:
        model(input_ids=tokens)
    part = activity.by_layer[first.name]
    assert part.zeroed == round(0.3 * part.seen)
    assert activity.zeroed == sum(p.zeroed for p in activity.by_layer.values()) and len(activity.by_layer) == 4
    assert set(thresholds(model, layers, tokens, 0.0).values()) == {0.0}
    with pytest.raises(mp.PruneError, match=r"sparsity 1.2 is not within"):
        thresholds(model, layers, tokens, 1.2)
    assert not any(layer.module._forward_pre_hooks for layer in layers)


def test_a_mask_of_activations_written_into_the_weights_is_what_all_inputs_so_far_had_in_common():
    """The published snippet. After the first input the columns of its small numbers are gone for every other input."""
    layer = linear_layers(net())[0]
    dense = copy.deepcopy(layer.module)
    inputs = torch.tensor([[[2.0, -1, 0.1, 1, -3, 0.2]], [[1.0, 0, 1, 1, 1, 1]], [[-0.5, 3, 1, 0, -1, 1]]])
    columns = torch.ones(6, dtype=torch.bool)

    def snippet(module, args):
        module.weight.data *= (args[0].abs() > 0.9).any(0)

    layer.module.register_forward_pre_hook(snippet)
    left = []
    for x in inputs:
        layer.module(x)
        columns &= x[0].abs() > 0.9
        assert torch.equal(layer.weight != 0, columns.expand(11, 6))
        left.append(int(columns.sum()))
    assert left == [4, 3, 1]
    assert not torch.allclose(layer.module(inputs[0]), dense(inputs[0].masked_fill(inputs[0].abs() <= 0.9, 0)))


def test_activation_mistakes_are_told():
    layers = linear_layers(net())
    with pytest.raises(mp.PruneError, match="threshold -1"), pruned_activations(layers, -1.0):
        pass
    with pytest.raises(mp.PruneError, match="2 has no threshold"), pruned_activations(layers, {layers[0]: 1.0}):
        pass
    experts = [layer for layer in mp.find_layers(tiny_model("mixtral")) if layer.expert_index is not None]
    with pytest.raises(mp.PruneError, match="is an expert"), pruned_activations(experts, 1.0):
        pass


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sparsities": [0.5, 1.5]}, "sparsity 1.5 is outside"),
        ({"sparsities": [0.2, float("nan")]}, "sparsity nan is outside"),
        ({"sparsities": iter([0.5, 0.2])}, "must rise"),
        ({"sparsities": ["half"]}, "'half'.*number"),
        ({"scope": "row"}, "unknown scope 'row'"),
    ],
)
def test_what_cannot_be_is_told_before_the_first_step(changes, message):
    network, train = net(), Recorder()
    with pytest.raises(mp.PruneError, match=message):
        find_tickets(network, linear_layers(network), train, norm, **({"steps": 3, "sparsities": [0.5]} | changes))
    assert train.calls == []


def test_sparsities_may_be_made_one_by_one():
    wanted, found = [0.5, 0.75], []
    for sparsities in (wanted, iter(wanted)):
        network = net()
        found.append(find_tickets(network, linear_layers(network), Recorder(), norm, steps=2, sparsities=sparsities))
    assert [ticket.sparsity for ticket in found[0]] == [ticket.sparsity for ticket in found[1]]
    assert len(found[1]) == 3


def test_a_network_that_cannot_be_drawn_anew_stays_as_it_is():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ParameterList([torch.ones(2)]))
    before = state_of(network)
    with pytest.raises(mp.PruneError, match="cannot be drawn anew"):
        reinitialise(network, 0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "changes", [{"final": "80%"}, {"begin": 0.5}, {"end": None}, {"every": True}, {"initial": "0"}]
)
def test_a_schedule_of_something_else_than_numbers_is_refused_by_name(changes):
    with pytest.raises(mp.PruneError, match=f"{next(iter(changes))} is .*must be a"):
        Schedule(**({"kind": "cubic", "final": 0.5, "end": 3} | changes))


def test_an_unknown_scope_leaves_the_network_without_masks():
    network = net()
    with pytest.raises(mp.PruneError, match="unknown scope 'row'"):
        Gradual(linear_layers(network), Schedule("linear", final=0.5, end=2), "row")
    assert type(network[0]) is torch.nn.Linear
