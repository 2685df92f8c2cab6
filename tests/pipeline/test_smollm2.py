"""The bundled model from end to end."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import minprune as mp


def windows(tokenizer, split, samples, length):
    return mp.load_tokens(tokenizer, "wikipedia", split=split, samples=samples, length=length, seed=0)


def test_it_is_a_clean_float32_model_whose_weights_are_those_of_a_4_bit_checkpoint(smollm2):
    model, tokenizer = smollm2
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    layers = mp.find_layers(model)
    assert len(layers) == 30 * 7 and len(tokenizer) == model.config.vocab_size
    few = 0
    for layer in layers:
        runs = layer.weight.reshape(-1, 32).sort(dim=1).values  # Q4_1 quantises runs of 32 weights to 16 levels
        distinct = 1 + (runs.diff(dim=1) != 0).sum(1)
        few += int((distinct <= 16).all())
    assert few == len(layers)


def test_sparsegpt_beats_wanda_beats_magnitude_at_half_the_weights(smollm2):
    """With the demo's 16 x 512 tokens. SparseGPT needs that many: it fits d_in unknowns per row, up to 1536 here,
    and with a few hundred to about 4000 tokens it fits those tokens rather than the language and loses to Wanda."""
    model, tokenizer = smollm2
    calib, test = windows(tokenizer, "train", 16, 512), windows(tokenizer, "test", 8, 256)
    perplexities = [mp.perplexity(model, test)]
    for method in ("sparsegpt", "wanda", "magnitude"):
        pruned = copy.deepcopy(model)
        report = mp.prune(pruned, None if method == "magnitude" else calib, method, "50%")
        assert report.sparsity == pytest.approx(0.5, abs=0.02)  # the checkpoint has zeros of its own
        perplexities.append(mp.perplexity(pruned, test))
    assert perplexities == sorted(perplexities), perplexities


def test_a_2_4_model_is_exact_everywhere_and_loads_as_saved(smollm2, tmp_path):
    model, test = copy.deepcopy(smollm2[0]), windows(smollm2[1], "test", 1, 128)
    report = mp.prune(model, windows(smollm2[1], "train", 4, 128), "sparsegpt", "2:4", batch_size=3)
    for layer in mp.find_layers(model):
        assert int((layer.weight.reshape(-1, 4) == 0).sum(1).min()) >= 2, layer.name
    assert torch.equal(model.get_input_embeddings().weight, smollm2[0].get_input_embeddings().weight)
    assert all(row.note == "" and 0 < row.error < 1 for row in report.layers)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        same = torch.equal(loaded(test).logits, model(test).logits)
    assert same
