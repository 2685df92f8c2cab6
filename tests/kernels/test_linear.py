"""A sparsified model says what the dense one says, holds the stored bytes, and generates."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch.nn.utils import prune as torch_prune

import minprune as mp
from minprune.kernels.linear import SparseLinear, sparsify


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["50%", "2:4", "0%"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi", "opt", "gpt_neox"])
def test_logits_are_those_of_the_dense_model(family, pattern, dtype):
    model, tokens = tiny_model(family, dtype), tiny_tokens(2, 12)
    mp.prune(model, None, "magnitude", pattern)
    sparse = copy.deepcopy(model)
    sparsify(sparse)
    assert any(isinstance(module, SparseLinear) for module in sparse.modules())
    close = {"atol": 1e-4} if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    with torch.no_grad():
        assert torch.allclose(sparse(tokens).logits, model(tokens).logits, **close)
        assert torch.allclose(sparse(tokens[:1, :4]).logits, model(tokens[:1, :4]).logits, **close)


def test_generation_gives_the_same_tokens():
    model, tokens = tiny_model("llama"), tiny_tokens(1, 8)
    mp.prune(model, None, "magnitude", "50%")
    expected = model.generate(tokens, max_new_tokens=12, do_sample=False)
    sparsify(model)
    assert torch.equal(model.generate(tokens, max_new_tokens=12, do_sample=False), expected)


def test_the_smallest_format_is_taken_for_each_matrix():
    model = tiny_model("llama")
    mp.prune(model, None, "magnitude", "2:4", include=["*q_proj"])
    mp.prune(model, None, "magnitude", "50%", include=["*k_proj"])
    sparsify(model)
    attention = model.model.layers[0].self_attn
    assert [getattr(attention, f"{key}_proj").format for key in "qkv"] == ["nm", "bitmask", "dense"]


def test_an_unknown_format_is_refused():
    with pytest.raises(mp.PruneError, match="auto, bitmask"):
        sparsify(tiny_model("llama"), "zip")


@pytest.mark.parametrize("tokens", [1, 4, 24])
def test_gradients_go_through_a_stored_matrix_whatever_the_number_of_tokens(tokens):
    """Up to 64 tokens are multiplied by the kernel, of which autograd knows nothing."""
    model, ids = tiny_model("llama"), tiny_tokens(4, tokens)
    mp.prune(model, None, "magnitude", "2:4")
    sparse, found = copy.deepcopy(model), []
    sparsify(sparse)
    for one in (model, sparse):
        one(ids, use_cache=False).logits.square().mean().backward()
        found.append([parameter.grad for name, parameter in one.named_parameters() if "norm" in name])
    for dense, stored in zip(*found, strict=True):
        torch.testing.assert_close(stored, dense, rtol=1e-4, atol=1e-6)


def test_a_format_that_does_not_fit_all_matrices_changes_none():
    model = tiny_model("llama")
    mp.prune(model, None, "magnitude", "2:4", exclude=["*.layers.1.mlp.down_proj"])
    with pytest.raises(mp.PruneError):
        sparsify(model, "nm")
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


def test_a_model_of_stored_matrices_is_not_pruned_again_and_the_line_says_why():
    model = tiny_model("llama")
    mp.prune(model, None, "magnitude", "2:4")
    sparsify(model)
    for again in (mp.prune, mp.quantize):
        with pytest.raises(mp.PruneError, match="stored in another form is loaded anew"):
            again(model, tiny_tokens())


def test_modes_and_hooks_stay_and_handles_remove_hooks():
    model, called = tiny_model("llama").train(), []
    model.model.layers[0].mlp.eval()
    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda module, args, out: called.append(module))
    before = {name: module.training for name, module in model.named_modules()}
    sparsify(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    model(tiny_tokens())
    assert called == [model.model.layers[1].mlp.up_proj] and isinstance(called[0], SparseLinear)
    handle.remove()
    model(tiny_tokens())
    assert len(called) == 1


def with_own_forward(layer):
    layer.forward = torch.nn.Linear(32, 32).forward


UNFIT = {
    "on no device": (lambda layer: layer.to("meta"), "elsewhere"),
    "another type": (lambda layer: layer.double(), "float32 and bfloat16, not torch.float64: bring the whole model"),
    "a mask": (lambda layer: torch_prune.random_unstructured(layer, "weight", 0.5), "a mask, a norm"),
    "an old weight norm": (torch.nn.utils.weight_norm, "a mask, a norm"),
    "a forward of its own": (with_own_forward, "offloading hook"),
}


@pytest.mark.parametrize("what", UNFIT)
@pytest.mark.parametrize("format", ["auto", "bitmask"])
def test_a_layer_that_is_more_than_a_matrix_is_refused_by_name_and_none_is_replaced(what, format):
    change, said = UNFIT[what]
    model = tiny_model("llama")
    change(model.model.layers[1].self_attn.q_proj)
    with pytest.raises(mp.PruneError, match=rf"layers\.1\.self_attn\.q_proj: .*{said}"):
        sparsify(model, format)
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


def test_a_linear_layer_of_another_class_stays_and_the_log_says_so(caplog):
    class Own(torch.nn.Linear):
        pass

    model = tiny_model("llama")
    for layer in (model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.up_proj):
        layer.__class__ = Own
    sparsify(model)
    assert type(model.model.layers[1].mlp.up_proj) is Own
    assert "layers.0.mlp.up_proj (Own) and 1 more of another class" in caplog.text
