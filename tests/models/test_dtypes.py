"""dtypes.py: a model that its own dtypes keep from running is refused by name; one that runs with several is not."""

import re

import pytest
import torch
from tiny import _GROUPED, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, Ernie4_5_MoeConfig

import minprune as mp
from minprune.training.recipe import Recipe
from minprune.training.recover import recover

NAME = "model.layers.1.mlp.down_proj"
ENTRIES = {
    "prune": lambda model: mp.prune(model, tiny_tokens(), "wanda"),
    "prune in parts": lambda model: mp.prune(model, tiny_tokens(), "wanda", batch_size=2),
    "quantize": lambda model: mp.quantize(model, tiny_tokens(), group=8),
    "shrink neurons": lambda model: mp.shrink(model, tiny_tokens(), "neurons:25%"),
    "shrink heads without tokens": lambda model: mp.shrink(model, None, "groups:1/2", "magnitude", repair="none"),
    "shrink blocks": lambda model: mp.shrink(model, tiny_tokens(), "blocks:1"),
    "recover": lambda model: recover(model, tiny_tokens(), Recipe(steps=1)),
    "perplexity": lambda model: mp.perplexity(model, tiny_tokens()),
}


def mixed():
    """A Llama in float32 with one matrix in bfloat16, which does not run."""
    model = tiny_model("llama")
    model.get_submodule(NAME).to(torch.bfloat16)
    return model


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_layer_in_another_dtype_is_named_and_nothing_is_changed(entry):
    model = mixed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = rf"dtypes \(.*\): float32 is the usual one, but not of {re.escape(NAME)}\.weight \(bfloat16\)"
    with pytest.raises(mp.PruneError, match=said):
        ENTRIES[entry](model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_changed_since_the_model_was_last_looked_at_is_seen():
    model = tiny_model("llama")
    mp.perplexity(model, tiny_tokens())
    model.model.layers[0].to(torch.float16)
    some = r"model\.layers\.0\.self_attn\.q_proj\.weight, .*k_proj\.weight, .*v_proj\.weight and 6 more \(float16\)"
    with pytest.raises(mp.PruneError, match=some):
        mp.perplexity(model, tiny_tokens())


def test_autocast_makes_it_run_unless_float32_products_are_asked_for_inside():
    with torch.autocast("cpu", torch.bfloat16):
        assert mp.perplexity(mixed(), tiny_tokens()) > 1
        assert mp.prune(mixed(), tiny_tokens(), "wanda").sparsity == 0.5
        with pytest.raises(mp.PruneError, match=NAME):
            mp.prune(mixed(), tiny_tokens(), "wanda", precision="float32")
    assert recover(mixed(), tiny_tokens(), Recipe(steps=1, bfloat16=True)).rows


def test_a_model_that_is_not_run_is_not_asked():
    assert mp.prune(mixed(), None, "magnitude").sparsity == 0.5


def float32_norms():
    model = tiny_model("gemma2", torch.bfloat16)
    for name, module in model.named_modules():
        if "norm" in name:
            module.float()
    return model


def float32_routers():
    sizes = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 0}
    model = AutoModelForCausalLM.from_config(Ernie4_5_MoeConfig(**_GROUPED, **sizes), dtype=torch.bfloat16).eval()
    for name, module in model.named_modules():
        if name.endswith("gate"):
            module.float()
    return model


@pytest.mark.parametrize("make", [float32_norms, float32_routers])
def test_a_model_that_runs_with_several_dtypes_is_taken(make):
    assert {parameter.dtype for parameter in make().parameters()} == {torch.float32, torch.bfloat16}
    model = make()
    report = mp.prune(model, tiny_tokens(), "wanda")
    assert report.sparsity == 0.5 and mp.perplexity(model, tiny_tokens()) > 1
    assert mp.quantize(make(), tiny_tokens(), group=8).layers
    if make is float32_norms:
        assert mp.shrink(make(), tiny_tokens(), "neurons:25%").sparsity == 0.25
