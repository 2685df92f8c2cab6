"""Zeros that survive training: three ways, bit for bit the same, and what the usual shortcut does not keep."""

import copy
import itertools
import logging
import re

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch.nn.utils import clip_grad_norm_
from torch.testing import assert_close

import minprune as mp
from minprune.training import callback
from minprune.training.adapters import add_adapters
from minprune.training.callback import KeepZeros
from minprune.training.distill import language_loss
from minprune.training.masks import (
    linear_layers,
    magnitude_masks,
    maintain_sparsity,
    masks_of,
    original,
    set_zeros,
    sparsity_of,
    stored_masks,
)
from minprune.training.parametrized import parametrise, remove_parametrizations

STEPS, LR, DECAY, CLIP = 4, 0.01, 0.1, 0.1  # the norm of the gradients is above 1: every step is clipped
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=LR, weight_decay=DECAY),
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=DECAY),
}


def pruned(family="llama", pattern="60%"):
    """A tiny model, magnitude pruned, and its masks."""
    model = tiny_model(family)
    mp.prune(model, None, method="magnitude", pattern=pattern)
    return model, masks_of(mp.find_layers(model))


def parameters(model):
    """In the order of their names: a parametrisation changes the model's order, in which the norm would be summed."""
    named = [(re.sub(r"parametrizations\.(\w+)\.original", r"\1", name), p) for name, p in model.named_parameters()]
    return [parameter for _, parameter in sorted(named, key=lambda pair: pair[0])]


def train(model, optimizer, steps=range(STEPS)):
    """A training loop that knows nothing of masks; returns the norms that clipping saw."""
    norms = []
    for step in steps:
        optimizer.zero_grad()
        language_loss(model, tiny_tokens(3, seed=10 + step)).backward()
        norms.append(float(clip_grad_norm_(parameters(model), CLIP)))
        optimizer.step()
    return norms


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def by_hand(model, masks, make):
    """The reference: multiply gradients and weights by the masks between the steps, in plain sight."""
    optimizer = make(model.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        language_loss(model, tiny_tokens(3, seed=10 + step)).backward()
        for layer, keep in masks.items():
            layer.view_as_2d(getattr(layer.module, layer.parameter).grad).mul_(keep)
        clip_grad_norm_(parameters(model), CLIP)
        optimizer.step()
        for layer, keep in masks.items():
            layer.weight.mul_(keep)


def hooks(model, masks, make):
    optimizer = make(model.parameters())
    with maintain_sparsity(masks, optimizer):
        train(model, optimizer)


def parametrisation(model, masks, make):
    parametrise(masks)
    train(model, make(model.parameters()))
    remove_parametrizations(masks)


@pytest.mark.parametrize("way", [hooks, parametrisation])
@pytest.mark.parametrize(("optimizer", "family"), [("adamw", "llama"), ("sgd with momentum", "gpt2")])
def test_zeros_stay_and_the_rest_learns_what_masking_by_hand_gives(way, optimizer, family):
    """GPT-2's matrices are stored transposed."""
    make = OPTIMIZERS[optimizer]
    model, masks = pruned(family)
    before, reference = weights(model), copy.deepcopy(model)
    way(model, masks, make)
    names = [layer.name for layer in masks]
    by_hand(reference, masks_of(mp.find_layers(reference, include=names)), make)
    expected, found = weights(reference), weights(model)
    assert found.keys() == expected.keys() == before.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    for layer, keep in masks.items():
        W = layer.weight
        assert not W[~keep].any() and not torch.signbit(W[~keep]).any()  # +0.0, to the bit
        assert bool((W[keep] != layer.view_as_2d(before[f"{layer.name}.weight"])[keep]).float().mean() > 0.99)


def test_every_step_was_clipped():
    model, masks = pruned()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with maintain_sparsity(masks, optimizer):
        assert min(train(model, optimizer)) > CLIP


def test_a_trainer_with_the_callback_learns_what_the_plain_loop_learns(tmp_path):
    from transformers import Trainer, TrainingArguments

    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, masks = pruned()
    other, make = copy.deepcopy(model), OPTIMIZERS["adamw"]
    data = [{"input_ids": row, "labels": row} for step in range(STEPS) for row in tiny_tokens(3, seed=10 + step)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=3, max_grad_norm=CLIP, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", logging_strategy="no",
    )  # fmt: skip

    class InOrder(Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def run(model, masks):
        callbacks = [KeepZeros(masks)] if masks else []
        optimizers = (make(model.parameters()), None)
        InOrder(model, arguments, train_dataset=data, callbacks=callbacks, optimizers=optimizers).train()

    run(model, masks)
    for layer, keep in masks.items():
        assert torch.equal(layer.weight != 0, keep), layer.name
    plain, plain_masks = pruned()
    hooks(plain, plain_masks, make)
    for name, value in weights(plain).items():
        assert_close(weights(model)[name], value, rtol=1e-4, atol=1e-5, msg=name)  # its loss is summed otherwise
    run(other, None)
    assert any(
        bool(layer.weight[~keep].any()) for layer, keep in zip(mp.find_layers(other), masks.values(), strict=True)
    )


def gradients_only(model, masks, optimizer, steps):
    """The shortcut: the gradients of pruned weights are zero, and nothing else is done."""
    for step in steps:
        optimizer.zero_grad()
        language_loss(model, tiny_tokens(3, seed=10 + step)).backward()
        for layer, keep in masks.items():
            getattr(layer.module, layer.parameter).grad.mul_(keep)
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zero_gradients_are_enough_for_a_new_optimizer_and_not_for_one_with_memory(make):
    model, masks = pruned()
    gradients_only(model, masks, make(model.parameters()), range(3))
    assert all(torch.equal(layer.weight != 0, keep) for layer, keep in masks.items())  # 0 times decay is 0

    model = tiny_model("llama")
    optimizer = make(model.parameters())
    gradients_only(model, {}, optimizer, range(3))  # dense training first, and pruned in the middle of it
    layers = mp.find_layers(model)
    masks = magnitude_masks({layer: layer.weight for layer in layers}, "60%")
    set_zeros(masks)
    gradients_only(model, masks, optimizer, range(3, 4))
    alive = sum(int(layer.weight[~keep].count_nonzero()) for layer, keep in masks.items())
    pruned_mask = sum(int((~keep).sum()) for keep in masks.values())
    assert alive > 0.99 * pruned_mask
    with maintain_sparsity(masks, optimizer):
        train(model, optimizer, range(4, 5))
    assert not any(bool(layer.weight[~keep].any()) for layer, keep in masks.items())


def test_experts_that_share_a_parameter_keep_each_their_own_zeros():
    model, masks = pruned("mixtral", "2:4")
    assert any(layer.expert_index is not None for layer in masks)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with maintain_sparsity(masks, optimizer):
        train(model, optimizer, range(2))
    for layer, keep in masks.items():
        assert torch.equal(layer.weight != 0, keep), layer.name
    with pytest.raises(mp.PruneError, match="experts"):
        add_adapters(model, masks)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_hooks_are_gone_afterwards():
    model, masks = pruned()
    hooks(model, masks, OPTIMIZERS["adamw"])
    train(model, OPTIMIZERS["adamw"](model.parameters()), range(1))
    assert all(bool(layer.weight[~keep].any()) for layer, keep in masks.items())


def test_masks_of_another_model_are_refused_before_anything_is_done():
    """Its zeros would be kept in the model that is not trained, and lost in the one that is."""
    model, masks = pruned()
    copied = copy.deepcopy(model)
    before = weights(model)
    with pytest.raises(mp.PruneError, match=r"q_proj: its mask .* the optimizer has not got"):
        hooks(copied, masks, OPTIMIZERS["adamw"])
    with pytest.raises(mp.PruneError, match=r"q_proj: its mask .* the model has not got"):
        KeepZeros(masks).on_train_begin(None, None, None, model=copied)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    model.model.embed_tokens.requires_grad_(False)
    for layer in masks:
        layer.module.requires_grad_(False)
    with maintain_sparsity(masks, OPTIMIZERS["adamw"](p for p in model.parameters() if p.requires_grad)):
        pass  # weights that do not learn need no optimizer


def test_the_callback_looks_for_its_zeros_once_and_not_at_every_step(monkeypatch):
    model, masks = pruned()
    calls = []
    monkeypatch.setattr(callback, "stored_masks", lambda masks: calls.append(0) or stored_masks(masks))
    keeper = KeepZeros(masks)
    keeper.on_train_begin(None, None, None, model=model)
    for _ in range(3):
        for layer in masks:
            layer.weight.add_(1)
        keeper.on_optimizer_step(None, None, None)
        assert all(torch.equal(layer.weight != 0, keep & (layer.weight != 0)) for layer, keep in masks.items())
    keeper.on_train_end(None, None, None)
    assert len(calls) == 1


def test_a_callback_whose_run_was_interrupted_leaves_no_hook_after_the_next():
    model, masks = pruned()
    callback = KeepZeros(masks)
    for _ in range(2):
        callback.on_train_begin(None, None, None, model=model)
    callback.on_train_end(None, None, None)
    language_loss(model, tiny_tokens()).backward()
    assert all(bool(layer.module.weight.grad[~keep].any()) for layer, keep in masks.items())


def test_a_second_mask_on_a_weight_is_refused():
    _, masks = pruned()
    parametrise(masks)
    with pytest.raises(mp.PruneError, match=r"q_proj has a mask already"):
        parametrise(masks)
    remove_parametrizations(masks)
    assert all(torch.equal(layer.weight != 0, keep) for layer, keep in masks.items())


def test_what_stands_behind_a_parametrised_mask_is_the_dense_weight():
    model = tiny_model("llama")
    layer = mp.find_layers(model)[0]
    dense = layer.weight.clone()
    masks = magnitude_masks({layer: dense}, "50%")
    parametrise(masks)
    assert torch.equal(original(layer).data, dense) and torch.equal(layer.weight != 0, masks[layer])
    remove_parametrizations(masks)
    assert torch.equal(original(layer).data, dense * masks[layer])


# --- masks by magnitude


def brute_force(score, zeros):
    """Positions in order of size, ties by index, with Python's own sort."""
    order = sorted(range(score.size), key=lambda i: (score.flat[i], i))
    keep = np.ones(score.size, dtype=bool)
    keep[order[:zeros]] = False
    return keep


def net(*sizes):
    torch.manual_seed(0)
    parts = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return torch.nn.Sequential(*parts)


@pytest.mark.parametrize("sparsity", ["0%", "17%", "50%", "93%", "100%"])
def test_one_threshold_over_all_layers_is_a_sort_of_all_weights(sparsity):
    layers = linear_layers(net(7, 9, 5))
    weights = {layer: (10 * layer.weight).round() for layer in layers}  # many ties
    found = magnitude_masks(weights, sparsity, scope="global")
    flat = np.concatenate([W.abs().numpy().ravel() for W in weights.values()])
    zeros = round(mp.pattern(sparsity).sparsity * flat.size)
    assert np.array_equal(np.concatenate([keep.numpy().ravel() for keep in found.values()]), brute_force(flat, zeros))
    assert sparsity_of(found) == pytest.approx(zeros / flat.size)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_with_masks_given_nothing_comes_back(scope):
    layers = linear_layers(net(12, 20, 8))
    generator = torch.Generator().manual_seed(3)
    weights = {layer: layer.weight.clone() for layer in layers}
    alive = None
    for sparsity in ("20%", "50%", "70%", "90%"):
        masks = magnitude_masks(weights, sparsity, scope, alive)
        if alive:
            assert all(bool((alive[layer] | ~keep).all()) for layer, keep in masks.items())
        alive = masks
        weights = {layer: torch.randn(W.shape, generator=generator) * alive[layer] for layer, W in weights.items()}


def test_mistakes_are_told():
    layers = linear_layers(net(4, 4))
    given = {layer: layer.weight for layer in layers}
    for arguments, message in [
        ((given, "50%", "world"), "unknown scope 'world'"),
        ((given, "2:4", "global"), "plain sparsity"),
        ((given, "50%:row", "global"), "plain sparsity"),
    ]:
        with pytest.raises(mp.PruneError, match=message):
            magnitude_masks(*arguments)
    with pytest.raises(mp.PruneError, match="no layer"):
        masks_of([])
    for wrong in (torch.ones(3, 4, dtype=torch.bool), torch.ones(4, 4)):
        with pytest.raises(mp.PruneError, match="0: its mask is"):
            set_zeros({layers[0]: wrong})


# --- adapters


def test_an_adapter_changes_nothing_at_first_and_is_merged_under_the_mask():
    model, masks = pruned()
    tokens, before, logits = tiny_tokens(), weights(model), model(input_ids=tiny_tokens()).logits
    trained = add_adapters(model, masks, rank=3, alpha=6.0, seed=1)
    assert torch.equal(model(input_ids=tokens).logits, logits)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    train(model, torch.optim.AdamW(trained, lr=LR))
    factors = {layer: layer.module.parametrizations.weight[0] for layer in masks}
    products = {layer: (f.up @ f.down).detach().numpy() for layer, f in factors.items()}
    learnt = model(input_ids=tokens).logits
    remove_parametrizations(masks)
    assert_close(model(input_ids=tokens).logits, learnt)
    assert weights(model).keys() == before.keys()
    for layer, keep in masks.items():
        assert np.linalg.matrix_rank(products[layer]) == 3
        expected = (before[f"{layer.name}.weight"].numpy() + 2.0 * products[layer]) * keep.numpy()
        assert_close(layer.weight, torch.from_numpy(expected))
        assert torch.equal(layer.weight != 0, keep)
    others = [name for name in before if not any(name == f"{layer.name}.weight" for layer in masks)]
    assert others and all(torch.equal(weights(model)[name], before[name]) for name in others)


@pytest.mark.parametrize(("rank", "message"), [(0, "rank 0"), (17, "rank 17 is above the rank 16")])
def test_a_rank_that_no_matrix_has_is_refused(rank, message):
    model, masks = pruned()
    with pytest.raises(mp.PruneError, match=message):
        add_adapters(model, masks, rank=rank)
    assert all(parameter.requires_grad for parameter in model.parameters())
    add_adapters(model, masks, rank=16)  # of the keys of two of four heads


def test_a_callers_autocast_forgets_the_weights_that_were_set_to_zero():
    model = tiny_model("llama")
    masks = magnitude_masks({layer: layer.weight for layer in mp.find_layers(model)}, "60%")
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        dense = model(tiny_tokens()).logits
        set_zeros(masks)
        found = model(tiny_tokens()).logits
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        assert torch.equal(model(tiny_tokens()).logits, found) and not torch.equal(dense, found)


def test_masks_made_in_inference_mode_can_be_learnt_with():
    (model, *_), (outside, *_) = pruned(), pruned()
    with torch.inference_mode():
        masks = masks_of(mp.find_layers(model))
        parametrise(masks)
    parametrise(masks_of(mp.find_layers(outside)))
    for one in (model, outside):
        language_loss(one, tiny_tokens()).backward()
    for one, other in zip(model.parameters(), outside.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad) and not one.is_inference()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "block4:50%", "50%:row", "30%:layer", "columns:25%"])
@pytest.mark.parametrize("dead", [0.1, 0.6, 1.0])
def test_no_pattern_brings_back_what_is_dead(pattern, dead):
    layers = linear_layers(net(16, 24, 8))
    generator = torch.Generator().manual_seed(5)
    alive = {layer: torch.rand(layer.weight.shape, generator=generator) >= dead for layer in layers}
    found = magnitude_masks({layer: layer.weight for layer in layers}, pattern, alive=alive)
    for layer, keep in found.items():
        assert not bool((keep & ~alive[layer]).any())
        if dead == 1.0:
            assert not bool(keep.any())
    everything = {layer: torch.ones_like(keep) for layer, keep in alive.items()}
    for layer, keep in magnitude_masks({x: x.weight for x in layers}, pattern, alive=everything).items():
        assert torch.equal(keep, magnitude_masks({layer: layer.weight}, pattern)[layer])


def test_one_threshold_for_all_brings_back_nothing_either():
    layers = linear_layers(net(16, 24, 8))
    alive = {layer: torch.zeros_like(layer.weight, dtype=torch.bool) for layer in layers}
    alive[layers[0]][0, 0] = True
    found = magnitude_masks({layer: layer.weight for layer in layers}, "10%", "global", alive=alive)
    assert all(torch.equal(found[layer], alive[layer]) for layer in layers)


def test_masks_of_nothing_and_of_other_layers_are_refused_by_name():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    one, other = linear_layers(network)
    weights = {layer: layer.weight for layer in (one, other)}
    for scope in ("layer", "global"):
        with pytest.raises(mp.PruneError, match="no weight to rank"):
            magnitude_masks({}, "50%", scope)
    for alive in ({one: one.weight != 0}, {one: one.weight != 0, other: one.weight != 0}, {}):
        with pytest.raises(mp.PruneError, match=r"\d has no mask of its shape"):
            magnitude_masks(weights, "50%", alive=alive)
    parametrise({one: one.weight != 0})
    with pytest.raises(mp.PruneError, match="1 has no mask or adapter"):
        remove_parametrizations(masks_of([one, other]))
    assert torch.nn.utils.parametrize.is_parametrized(network[0])  # nothing was changed
    assert sparsity_of({}) == 0
