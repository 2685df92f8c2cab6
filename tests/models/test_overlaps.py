"""overlaps.py: a weight that shares memory with another tensor of the model is refused, one beside it is not."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import nn

import minprune as mp
from minprune.allocation.sensitivity import sensitivity

Q, K = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def parameter(data):
    return nn.Parameter(data)


def first_rows(model):
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight = parameter(attention.q_proj.weight.data[:16])


def every_second_row(model):
    attention = model.model.layers[1].self_attn
    attention.k_proj.weight = parameter(attention.q_proj.weight.data[::2])


def transposed(model):
    attention = model.model.layers[1].self_attn
    attention.o_proj.weight = parameter(attention.q_proj.weight.data.T)


def a_norm(model):
    model.model.norm.weight = parameter(model.model.layers[1].self_attn.q_proj.weight.data[3])


def a_buffer(model):
    model.register_buffer("remembered", model.model.layers[1].self_attn.q_proj.weight.data[:, :5])


def the_embeddings(model):
    model.model.embed_tokens.weight = parameter(torch.cat([model.model.layers[1].self_attn.q_proj.weight.data] * 3))
    model.model.layers[1].self_attn.q_proj.weight = parameter(model.model.embed_tokens.weight.data[32:64])


def an_expert(model):
    stack = model.model.layers[1].mlp.experts.down_proj.data
    model.model.norm.weight = parameter(stack[2, :, 0])


OVERLAPPING = {make.__name__: make for make in (
    first_rows, every_second_row, transposed, a_norm, a_buffer, the_embeddings, an_expert,
)}  # fmt: skip


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("way", OVERLAPPING)
def test_a_weight_in_the_memory_of_another_tensor_is_refused_by_both_names_and_nothing_is_changed(way, batch_size):
    model = tiny_model("mixtral" if way == "an_expert" else "llama")
    OVERLAPPING[way](model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match=r"model\.layers\.1\..*its weights are those of .*, too.*\(clone\)"):
        mp.prune(model, tiny_tokens(), "wanda", batch_size=batch_size)
    with pytest.raises(mp.PruneError, match="in the same memory"):
        sensitivity(model, tiny_tokens(), "50%")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rows", [slice(0, 90), slice(None)])
def test_a_head_that_is_a_part_of_the_embeddings_is_refused_and_they_stay_dense(rows):
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight = parameter(model.model.embed_tokens.weight.data[rows])
    with pytest.raises(mp.PruneError, match=r"lm_head.*embed"):
        mp.prune(model, tiny_tokens() % 90, "wanda", include="lm_head")
    assert model.model.embed_tokens.weight.count_nonzero() == model.model.embed_tokens.weight.numel()


@pytest.mark.parametrize("way", OVERLAPPING)
def test_the_remedies_that_are_named_help(way):
    for remedy in ("clone", "leave out"):
        model = tiny_model("mixtral" if way == "an_expert" else "llama")
        OVERLAPPING[way](model)
        if remedy == "clone":
            model = copy.deepcopy(model)
            for module in model.modules():
                for name, value in [*module._parameters.items()]:
                    if value is not None:
                        module._parameters[name] = parameter(value.data.clone())
                for name, value in [*module._buffers.items()]:
                    if value is not None:
                        module._buffers[name] = value.clone()
        exclude = [] if remedy == "clone" else ["model.layers.1.self_attn.*", "*.experts.*"][: 1 + (way == "an_expert")]
        report = mp.prune(model, tiny_tokens(), "wanda", exclude=exclude)
        assert all(row.sparsity == 0.5 for row in report.layers)


@pytest.mark.parametrize("columns", [False, True])
def test_weights_that_are_parts_of_one_tensor_but_have_no_number_in_common_are_pruned_as_if_apart(columns):
    """Rows of a fused matrix lie one after the other; its columns lie between each other."""
    apart, fused = tiny_model("llama"), tiny_model("llama")
    for block in fused.model.layers:
        parts = [block.mlp.gate_proj, block.mlp.up_proj]
        whole = torch.cat([part.weight.data for part in parts], dim=1 if columns else 0)
        for part, piece in zip(parts, whole.chunk(2, dim=1 if columns else 0), strict=True):
            part.weight = parameter(piece)
    reports = [mp.prune(model, tiny_tokens(), "sparsegpt") for model in (apart, fused)]
    assert [row.error for row in reports[0].layers] == [row.error for row in reports[1].layers]
    for (name, value), other in zip(apart.state_dict().items(), fused.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
