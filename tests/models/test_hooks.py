"""hooks.py: a layer that is applied several times in one forward pass is pruned on all that it reads, or refused."""

import copy

import pytest
import torch
import transformers as hf
from test_checkpoint import write_tokenizer
from tiny import LENGTH, VOCABULARY, tiny_model, tiny_tokens
from torch import nn

import minprune as mp
from minprune.allocation.sensitivity import dense_norms

FORMS = {"one pass": {}, "staged": {"batch_size": 2}, "two passes": {"sequential": False}, "best": {"recipe": "best"}}


def bert(chunk):
    """A decoder of the BERT family whose feed-forward layers get `chunk` tokens at a time; 0: all at once."""
    config = hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, is_decoder=True, chunk_size_feed_forward=chunk, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def assert_equal(one, two):
    for (name, value), other in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(value, other), name


class InChunks(nn.Module):
    """An MLP that reads its windows a few tokens at a time."""

    def __init__(self, mlp, tokens):
        super().__init__()
        self.mlp, self.tokens = mlp, tokens

    def forward(self, x):
        return torch.cat([self.mlp(part) for part in x.split(self.tokens, dim=1)], dim=1)


def chunked_llama(tokens):
    model = tiny_model("llama", torch.float64)
    for block in model.model.layers:
        block.mlp = InChunks(block.mlp, tokens)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_models_own_chunks_of_the_sequence_change_nothing_and_stay_its_own(form):
    whole, chunked = bert(0), bert(4)
    options = {"method": "wanda"} | FORMS[form]
    mp.prune(whole, tiny_tokens(), **options)
    mp.prune(chunked, tiny_tokens(), **options)
    assert_equal(whole, chunked)
    assert [layer.chunk_size_feed_forward for layer in chunked.bert.encoder.layer] == [4, 4]
    assert chunked.config.chunk_size_feed_forward == 4


def test_a_models_own_chunks_change_nothing_from_disk_to_disk(tmp_path):
    found = []
    for chunk in (0, 4):
        src = write_tokenizer(tmp_path / f"src-{chunk}")
        bert(chunk).save_pretrained(src)
        mp.prune_checkpoint(src, tmp_path / f"out-{chunk}", tiny_tokens(), "wanda", batch_size=2)
        found.append(mp.load_model(tmp_path / f"out-{chunk}")[0])
    assert_equal(*found)
    assert found[1].config.chunk_size_feed_forward == 4


@pytest.mark.parametrize("form", ["one pass", "staged", "best"])
def test_a_layer_that_comes_again_in_one_pass_is_refused_by_name(form):
    model = chunked_llama(LENGTH // 2)
    dense = copy.deepcopy(model)
    with pytest.raises(mp.PruneError, match=r"^model\.layers\.0\.mlp\.mlp\.gate_proj is applied more than once"):
        mp.prune(model, tiny_tokens(), method="wanda", **FORMS[form])
    assert_equal(model.model.layers[1], dense.model.layers[1])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_the_refusal_advises_gives_all_tokens_or_leaves_the_layer_out(batch_size):
    whole, chunked = (chunked_llama(tokens) for tokens in (LENGTH, LENGTH // 2))
    reports = [
        mp.prune(model, tiny_tokens(), "wanda", sequential=False, batch_size=batch_size) for model in (whole, chunked)
    ]
    assert_equal(whole, chunked)
    for a, b in zip(*(report.layers for report in reports), strict=True):
        assert a.error == pytest.approx(b.error, rel=1e-9)
    without = mp.prune(chunked_llama(5), tiny_tokens(), "wanda", exclude=["*.mlp.*"], batch_size=batch_size)
    assert all(row.sparsity == 0.5 and not row.note for row in without.layers)


def test_the_sum_of_squares_of_a_layer_that_comes_again_is_over_all_its_tokens():
    whole, chunked = (chunked_llama(tokens) for tokens in (LENGTH, 5))
    norms = [
        [stats.sq_norm for stats in dense_norms(model, mp.find_layers(model), tiny_tokens()).values()]
        for model in (whole, chunked)
    ]
    for a, b in zip(*norms, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_router_that_is_rightly_applied_twice_is_refused_only_if_it_is_asked_for(batch_size):
    report = mp.prune(tiny_model("gemma3n"), tiny_tokens(), "wanda", batch_size=batch_size)
    assert not any("router" in row.name for row in report.layers)
    options = {"include": ["*.altup.modality_router"], "batch_size": batch_size}
    with pytest.raises(mp.PruneError, match=r"altup\.modality_router is applied more than once"):
        mp.prune(tiny_model("gemma3n"), tiny_tokens(), "wanda", "50%:row", **options)
    mp.prune(tiny_model("gemma3n"), tiny_tokens(), "wanda", "50%:row", sequential=False, **options)
