"""A sparsified model says what the dense one says, holds the stored bytes, and generates."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens

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
