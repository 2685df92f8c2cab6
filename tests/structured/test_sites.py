"""Slicing as published: a basis for each site, found behind the ones before it, and adapters where two of them meet."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.structured.sites import at_sites, projected_sites, site_bases, slice_sites


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_with_all_axes_kept_the_adapters_undo_the_rotations(family):
    model, tokens = tiny_model(family), tiny_tokens()
    turned = copy.deepcopy(model)
    bases = slice_sites(turned, tokens, 32)
    with torch.no_grad():
        torch.testing.assert_close(turned(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert len(bases) == 5 and not torch.allclose(bases[0], bases[1])  # two a block and one behind the embeddings


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_model_with_adapters_is_the_dense_one_with_its_stream_projected_at_each_site(family):
    model, tokens = tiny_model(family), tiny_tokens()
    sliced = copy.deepcopy(model)
    bases = slice_sites(sliced, tokens, 24)
    with torch.no_grad(), projected_sites(model, bases):
        torch.testing.assert_close(sliced(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-3)


def test_a_tied_model_of_two_blocks_pays_for_its_head_and_four_adapters():
    model = tiny_model("llama", tie_word_embeddings=True)
    d, kept, embeddings = 32, 24, 96 * 32
    before = model.num_parameters()
    slice_sites(model, tiny_tokens(), kept)
    assert model.num_parameters() == (before - embeddings) * kept / d + 2 * embeddings * kept / d + 4 * kept**2


def test_each_basis_is_the_best_for_the_stream_that_the_ones_before_it_leave():
    """By singular values of that stream itself: no other 24 axes lose less of it."""
    model, tokens = tiny_model("llama"), tiny_tokens()
    bases, lost = site_bases(model, tokens, 24), []

    def look(site, h):
        x = h.double().flatten(0, 1)
        best = torch.linalg.svdvals(x)[24:].square().sum()
        lost.append((float((x - x @ bases[site] @ bases[site].T).square().sum()), float(best)))
        return (h.double() @ bases[site] @ bases[site].T).to(h.dtype)

    with torch.no_grad(), at_sites(model, look):
        model(tokens)
    for found, best in lost:
        assert found == pytest.approx(best, rel=1e-3)


def test_a_sliced_model_writes_text_with_and_without_a_cache():
    model, tokens = tiny_model("llama"), tiny_tokens()
    slice_sites(model, tokens, 24)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(tokens[:1, :4], use_cache=True, **options),
        model.generate(tokens[:1, :4], use_cache=False, **options),
    )


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "phi", "olmo2", "cohere"])
def test_a_family_that_does_something_else_with_its_stream_is_refused_by_name(family):
    model = tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match=type(model).__name__):
        slice_sites(model, tiny_tokens(), 24)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_slicing_twice_is_refused():
    model, tokens = tiny_model("llama"), tiny_tokens()
    slice_sites(model, tokens, 24)
    with pytest.raises(mp.PruneError, match="LlamaForCausalLM"):
        slice_sites(model, tokens, 16)
