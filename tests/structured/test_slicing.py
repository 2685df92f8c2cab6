"""A narrower stream: a rotation changes nothing, a cut loses what a projection does, and other families are refused."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM

import minprune as mp
from minprune.structured.cut import apply_cut
from minprune.structured.slicing import principal_axes, projected, rotated


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_a_full_rotation_changes_nothing(family):
    model, tokens = tiny_model(family), tiny_tokens()
    turned = copy.deepcopy(model)
    apply_cut(turned, rotated(turned, principal_axes(turned, tokens)))
    with torch.no_grad():
        torch.testing.assert_close(turned(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", ["slicegpt", "channels"])
def test_a_sliced_model_is_the_projected_one_loads_and_keeps_the_tie_where_it_can(how, tied, tmp_path):
    model, tokens = tiny_model("llama", tie_word_embeddings=tied), tiny_tokens()
    dense = copy.deepcopy(model)
    mp.shrink(model, tokens, "hidden:25%", how)
    assert model.config.hidden_size == 24 and model.config.tie_word_embeddings == (tied and how == "channels")
    assert model.config.head_dim == 8 and model.config.rms_norm_eps == pytest.approx(
        dense.config.rms_norm_eps * 32 / 24
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    Q = principal_axes(dense, tokens)[:, :24]
    if how == "slicegpt":
        with torch.no_grad(), projected(dense, Q):
            torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=1e-3, atol=1e-3)


def test_channels_are_kept_as_they_are_and_equal_a_model_with_zeros():
    model, tokens = tiny_model("llama"), tiny_tokens()
    twin = copy.deepcopy(model)
    mp.shrink(model, tokens, "hidden:25%", "channels")
    left = model.get_input_embeddings().weight
    index = [int((twin.get_input_embeddings().weight.T == column[:, None].T).all(1).nonzero()) for column in left.T]
    gone = [channel for channel in range(32) if channel not in index]
    with torch.no_grad():
        twin.get_input_embeddings().weight[:, gone] = 0
        for name, parameter in twin.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[gone] = 0
        torch.testing.assert_close(model(tokens).logits, twin(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["slicegpt", "channels"])
def test_an_axis_without_variance_costs_nothing(how):
    """A stream that lives in 24 dimensions of 32, or in 24 channels, is the same after the cut."""
    model, tokens = tiny_model("llama", tie_word_embeddings=False), tiny_tokens()
    drawn = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    Q = torch.eye(32)[:, drawn[0].argsort()[:24]] if how == "channels" else torch.linalg.qr(drawn)[0][:, :24]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.copy_(Q @ Q.T @ parameter)
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(embeddings @ Q @ Q.T)
        expected = model(tokens).logits
        mp.shrink(model, tokens, "hidden:8", how)
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-3, atol=1e-3)


def _gemma():
    config = GemmaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return GemmaForCausalLM(config)


@pytest.mark.parametrize("family", ["gemma", "gemma3", "opt", "gpt2", "phi", "olmo2", "cohere", "starcoder2", "bloom"])
def test_a_family_that_does_something_else_with_its_stream_is_refused_by_name(family):
    """Gemma has the form of Llama, but its norms multiply by one plus their weights, and it scales embeddings."""
    model = _gemma() if family == "gemma" else tiny_model(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match=type(model).__name__):
        mp.shrink(model, tiny_tokens(), "hidden:25%")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_width_that_the_configuration_refuses_is_refused_in_a_line():
    model = tiny_model("llama")
    with pytest.raises(mp.PruneError, match="LlamaForCausalLM cannot be cut like this"):
        mp.shrink(model, tiny_tokens(), "hidden:1")  # 31 channels, which 4 heads do not divide
    assert model.config.hidden_size == 32
