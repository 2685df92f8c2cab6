"""Several removals in one run, and what repairs them."""

import copy

import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM

import minprune as mp
from minprune.models.causality import evaluating
from minprune.pipeline.reconstruction import Reconstruction
from minprune.structured.cut import Cut, apply_cut
from minprune.structured.depth import block_scores, stream_of, without
from minprune.structured.repair import reconstruct
from minprune.structured.units import heads, neurons

ALL = ["neurons:25%", "heads:1/2", "blocks:1", "hidden:25%"]
TRAINED = Reconstruction(epochs=3, batch_size=8, lr=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_several_removals_leave_one_model_that_loads(family, tmp_path):
    model, tokens = tiny_model(family, num_hidden_layers=3), tiny_tokens()
    report = mp.shrink(model, tokens, ALL)
    config = model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_hidden_layers) == (36, 2, 2)
    assert config.hidden_size == 24 and report.pattern == "blocks:1 heads:50% neurons:25% hidden:25%"
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("remove", ["neurons:50%", "heads:1/2", "blocks:1", "hidden:25%"])
def test_reconstruction_brings_the_stream_nearer_to_the_dense_one(remove):
    tokens, dense = tiny_tokens(40, 24), tiny_model("llama", num_hidden_layers=3)
    target = stream_of(dense, tokens)[-1]
    errors = {}
    for repair in ("refit", "reconstruct"):
        model = copy.deepcopy(dense)
        method = "channels" if "hidden" in remove else None
        mp.shrink(model, tokens, remove, method, repair, reconstruction=TRAINED)
        out, goal = stream_of(model, tokens)[-1], target
        if "hidden" in remove:
            left = model.get_input_embeddings().weight
            same = [(column == dense.get_input_embeddings().weight.T).all(1).nonzero().item() for column in left.T]
            goal = target[..., same]
        errors[repair] = float((out - goal).square().sum() / goal.square().sum())
    assert errors["reconstruct"] < errors["refit"]


def test_a_pruned_model_that_is_made_smaller_keeps_its_zeros_through_reconstruction():
    model, tokens = tiny_model("llama"), tiny_tokens()
    mp.prune(model, tokens, "wanda", "2:4", include=["*.q_proj", "*.gate_proj"])
    mp.shrink(model, tokens, "neurons:1/3", repair="reconstruct", reconstruction=TRAINED)
    for layer in mp.find_layers(model, ["*.q_proj", "*.gate_proj"]):
        assert float((layer.weight == 0).float().mean()) == 0.5
    report = mp.prune(model, tokens, "wanda", "2:4")  # and the narrower model takes 2:4 as any other does
    assert report.sparsity == pytest.approx(0.5)


def test_a_bias_says_the_mean_of_what_is_missing(tmp_path):
    """Inputs that never change are wholly replaced by their bias, in a family that had none."""
    model, tokens = tiny_model("llama"), tiny_tokens()
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate_proj.weight[:12] = 0
            block.mlp.gate_proj.weight[12:] *= 5
        expected = model(tokens).logits
    mp.shrink(model, tokens, "neurons:25%", "flap", "bias")
    assert model.config.mlp_bias and model.model.layers[0].mlp.down_proj.bias.shape == (32,)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("what", ["neurons:25%", "heads:1/2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_is_there_when_the_model_is_loaded_again_or_the_family_is_refused_unchanged(family, what, tmp_path):
    """Mistral and others have no place for one; in Qwen2 the queries have biases and what reads them has not."""
    model, tokens = tiny_model(family), tiny_tokens()
    before = copy.deepcopy(model.state_dict())
    try:
        mp.shrink(model, tokens, what, "flap", "bias")
    except mp.PruneError:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for unit in neurons(loaded)[2] if what.startswith("neurons") else heads(loaded)[1]:
        bias, old = unit.reader.module.bias, before.get(f"{unit.reader.name}.bias")
        assert bias.any() and (old is None or not torch.equal(bias, old)), unit.reader.name
        for maker, _ in unit.makers:
            old = before.get(f"{maker.name}.bias")
            assert old is None or set(maker.module.bias.tolist()) <= set(old.tolist()), maker.name
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_whole_groups_of_heads_go_with_their_keys_and_values():
    model, tokens = tiny_model("llama"), tiny_tokens()
    twin = copy.deepcopy(model)
    mp.shrink(model, tokens, "groups:1", "magnitude", "none")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    with torch.no_grad():
        for unit in heads(twin)[1]:
            size = unit.reader.weight.abs().sum(0).view(2, 16).sum(1)
            unit.reader.weight.view(32, 2, 16)[:, int(size.argmin())] = 0
        torch.testing.assert_close(model(tokens).logits, twin(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["obs", "obd", "wanda", "activation", "flap", "magnitude", "l2", "taylor", "fisher"])
@pytest.mark.parametrize("what", ["neurons:25%", "heads:1/2"])
def test_a_neuron_or_head_that_says_nothing_goes_first_by_every_criterion(how, what):
    model, tokens = tiny_model("llama"), tiny_tokens()
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight[5:17] = 0
            block.mlp.gate_proj.weight[5:17] = 0
            block.mlp.down_proj.weight[:, 5:17] = 0
            for start in (0, 24):  # the first query head of one group and the last of the other
                block.self_attn.q_proj.weight[start : start + 8] = 0
                block.self_attn.o_proj.weight[:, start : start + 8] = 0
        expected = model(tokens).logits
    if how == "activation" and what == "heads:1/2":
        return  # a head without queries still averages its values, loudly
    mp.shrink(model, tokens, what, how, "none")
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["attention", "taylor", "loss"])
def test_the_other_scores_of_blocks_are_what_they_are_called(how):
    model, tokens = tiny_model("llama", num_hidden_layers=3), tiny_tokens()
    found = block_scores(model, tokens, how)
    if how == "loss":
        for block in range(3):
            with without(model, {block}):
                assert float(found[block].exp()) == pytest.approx(mp.perplexity(model, tokens), rel=1e-5)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        if how == "taylor":
            for name in ("down_proj", "up_proj", "gate_proj"):
                getattr(model.model.layers[1].mlp, name).weight.zero_()
    if how != "loss":
        assert int(block_scores(model, tokens, how).argmin()) == 1


@pytest.mark.parametrize(
    ("remove", "method", "why"),
    [
        (["neurons:25%", "neurons:50%"], None, "each kind once"),
        ([], None, "at least one"),
        (["neurons:25%", "blocks:1"], "slicegpt", "unknown way"),
        (["heads:1/2", "groups:1"], None, "cut twice"),
        (["neurons:25%", "hidden:1"], None, "cannot be cut"),
    ],
)
def test_a_run_that_cannot_end_well_changes_nothing(remove, method, why):
    model, tokens = tiny_model("llama"), tiny_tokens()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match=why):
        mp.shrink(model, tokens, remove, method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("remove", ["blocks:1", "neurons:50%"])
def test_a_block_that_training_does_not_bring_nearer_on_other_windows_stays_as_it_was(remove):
    """At a rate at which Adam only does harm the result is that of the refit alone, bit for bit."""
    tokens, dense = tiny_tokens(40, 24), tiny_model("llama", num_hidden_layers=3)
    refitted, trained = copy.deepcopy(dense), copy.deepcopy(dense)
    mp.shrink(refitted, tokens, remove, repair="refit")
    harm = Reconstruction(epochs=1, batch_size=8, lr=5.0)
    report = mp.shrink(trained, tokens, remove, repair="reconstruct", reconstruction=harm)
    assert all(before == after for before, after in report.reconstruction["errors"].values())
    for name, value in refitted.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_blocks_before_the_first_cut_have_nothing_to_learn_and_learn_nothing():
    """They give their targets exactly: what is left of a gradient there is rounding, which Adam would follow."""
    tokens, dense = tiny_tokens(40, 24), tiny_model("llama", num_hidden_layers=4)
    model = copy.deepcopy(dense)
    cut = reconstruct_without(model, dense, tokens, gone=2)
    for name, value in model.model.layers[0].state_dict().items():
        assert torch.equal(value, dense.model.layers[0].state_dict()[name]), name
    assert cut["errors"]["model.layers.0"] == [0, 0]


def reconstruct_without(model, dense, tokens, gone: int) -> dict:
    """What the repair says of a model without block `gone`, which it has trained towards the dense one."""
    kept = [block for block in range(len(dense.model.layers)) if block != gone]
    apply_cut(model, Cut(blocks=kept))
    with evaluating(model), evaluating(dense):
        return reconstruct(model, dense, tokens, kept, TRAINED)
