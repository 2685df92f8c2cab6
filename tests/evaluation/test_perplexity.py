"""perplexity.py against the loss that transformers itself computes, and against models whose answer is known."""

import math

import numpy as np
import pytest
import torch
from test_checkpoint import write_tokenizer
from tiny import FAMILIES, HANDING_ON, ROUTED, SHARED, UNSUPPORTED_EXPERTS, VOCABULARY, tiny_model, tiny_tokens
from transformers import AutoTokenizer

import minprune as mp
from minprune.allocation.sensitivity import sensitivity
from minprune.evaluation.perplexity import token_nll
from minprune.models.modes import eval_mode


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_perplexity_is_exp_of_the_loss_that_transformers_computes(family):
    model, tokens = tiny_model(family), tiny_tokens()
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss
    assert mp.perplexity(model, tokens) == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *HANDING_ON, *ROUTED, *SHARED, *UNSUPPORTED_EXPERTS])
def test_a_family_has_the_same_perplexity_in_every_dtype_but_for_rounding(family):
    tokens, expected = tiny_tokens(2, 12), mp.perplexity(tiny_model(family, torch.float64), tiny_tokens(2, 12))
    for dtype, near in ((torch.float32, 2e-3), (torch.float16, 0.1), (torch.bfloat16, 0.3)):  # near ties choose experts
        assert mp.perplexity(tiny_model(family, dtype), tokens) == pytest.approx(expected, rel=near)


def test_a_float64_mixture_is_read_pruned_and_generates_and_keeps_its_experts_implementation(tmp_path):
    model, tokens = tiny_model("mixtral", torch.float64), tiny_tokens()
    usual = model.config._experts_implementation
    mp.prune(model, tokens, "wanda", exclude=["*.experts.*"])
    sensitivity(model, tokens, "50%", exclude=["*.experts.*"])
    assert mp.generate(model, AutoTokenizer.from_pretrained(write_tokenizer(tmp_path)), "w5", tokens=2)
    assert model.config._experts_implementation == usual


def test_perplexity_is_exp_of_the_mean_over_tokens_written_out():
    model, tokens = tiny_model("llama", torch.float64), tiny_tokens(3, 7)
    with torch.no_grad():
        logits = model(tokens).logits
    nats = []
    for window, scores in zip(tokens.tolist(), logits.tolist(), strict=True):
        for position in range(1, len(window)):
            row = scores[position - 1]
            largest = max(row)
            log_total = largest + math.log(sum(math.exp(value - largest) for value in row))
            nats.append(log_total - row[window[position]])
    assert mp.perplexity(model, tokens) == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-9)


def test_the_batch_size_changes_nothing_but_rounding():
    model, tokens = tiny_model("llama", torch.float64), tiny_tokens(7)
    expected = mp.perplexity(model, tokens, batch_size=7)
    for batch_size in (1, 2, 3, 100):
        assert mp.perplexity(model, tokens, batch_size=batch_size) == pytest.approx(expected, rel=1e-9)


def test_equal_logits_give_the_size_of_the_vocabulary():
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    assert mp.perplexity(model, tiny_tokens()) == pytest.approx(VOCABULARY, rel=1e-5)


def test_a_model_that_knows_the_answer_has_perplexity_1_and_one_that_denies_it_none_that_is_finite():
    model = tiny_model("llama", tie_word_embeddings=False)
    tokens = torch.full((2, 8), 5)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[5] = 1000 * model.model.embed_tokens.weight[5].sign()
    assert mp.perplexity(model, tokens) == pytest.approx(1)
    model.lm_head.weight.data.neg_()
    assert mp.perplexity(model, tokens) == math.inf


def test_dropout_is_off_while_evaluating_and_the_mode_is_restored():
    model = tiny_model("gpt2")
    expected = mp.perplexity(model, tiny_tokens())
    model.train()
    assert mp.perplexity(model, tiny_tokens()) == expected
    assert model.training


def test_windows_that_predict_nothing_or_are_too_long_are_refused():
    model = tiny_model("llama")
    with pytest.raises(mp.PruneError, match="1 token"):
        mp.perplexity(model, tiny_tokens(2, 1))
    with pytest.raises(mp.PruneError, match=r"65 tokens.*64 positions"):
        mp.perplexity(model, tiny_tokens(2, 65))


@pytest.mark.parametrize("tokens", [tiny_tokens().tolist(), tiny_tokens().numpy(), None, "the moon"])
def test_what_is_no_tensor_is_refused_as_what_it_is(tokens):
    model = tiny_model("llama")
    for measure in (mp.perplexity, lambda model, tokens: mp.divergence(model, model, tokens)):
        with pytest.raises(mp.PruneError, match=f"tokens are a {type(tokens).__name__}: .*load_tokens"):
            measure(model, tokens)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", None])
def test_a_batch_size_that_is_not_positive_is_refused(batch_size):
    with pytest.raises(mp.PruneError, match=f"batch size {batch_size!r} is not a positive whole number"):
        mp.perplexity(tiny_model("llama"), tiny_tokens(), batch_size=batch_size)


def test_a_model_whose_output_is_nan_is_refused():
    model = tiny_model("llama")
    model.model.norm.weight.data[3] = math.nan
    with pytest.raises(mp.PruneError, match="NaN"):
        mp.perplexity(model, tiny_tokens())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_logits_are_evaluated_in_float32(family):
    model, tokens = tiny_model(family, torch.bfloat16), tiny_tokens()
    with torch.no_grad(), eval_mode(model):  # which takes products as this processor does best
        logits = model(tokens).logits[:, :-1].double()
    nats = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
    assert mp.perplexity(model, tokens, batch_size=5) == pytest.approx(math.exp(nats), rel=1e-5)


def test_token_nats_are_the_losses_that_transformers_gives_for_each_target_alone():
    model, tokens = tiny_model("llama"), tiny_tokens(2, 6)
    nats = token_nll(model, tokens)
    assert nats.shape == (2, 5)
    for window in range(2):
        for position in range(1, 6):
            labels = torch.full_like(tokens[:1], -100)
            labels[0, position] = tokens[window, position]
            with torch.no_grad():
                loss = model(input_ids=tokens[window : window + 1], labels=labels).loss
            assert nats[window, position - 1] == pytest.approx(float(loss), rel=1e-5)


def test_divergence_is_the_sum_over_the_vocabulary_written_out():
    dense, pruned, tokens = tiny_model("llama", seed=0), tiny_model("llama", seed=3), tiny_tokens(3, 7)
    with torch.no_grad():
        p, q = (model(tokens).logits.double().softmax(-1).flatten(0, 1).tolist() for model in (dense, pruned))
    total = agree = 0
    for row_p, row_q in zip(p, q, strict=True):
        total += sum(a * math.log(a / b) for a, b in zip(row_p, row_q, strict=True))
        agree += row_p.index(max(row_p)) == row_q.index(max(row_q))
    found = mp.divergence(pruned, dense, tokens, batch_size=2)
    assert found.tokens == len(p) == 21
    assert found.kl == pytest.approx(total / 21, rel=1e-5)
    assert found.agreement == agree / 21
    assert mp.divergence(dense, pruned, tokens).kl != pytest.approx(found.kl, rel=1e-2)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_divergence_from_equal_logits_is_the_missing_entropy_whatever_the_batch_size(batch_size):
    dense, knows_nothing = tiny_model("llama", torch.float64), tiny_model("llama", torch.float64)
    knows_nothing.model.norm.weight.data.zero_()
    tokens = tiny_tokens()
    with torch.no_grad():
        entropy = torch.distributions.Categorical(logits=dense(tokens).logits).entropy().mean()
    found = mp.divergence(knows_nothing, dense, tokens, batch_size)
    assert found.kl == pytest.approx(math.log(VOCABULARY) - float(entropy), rel=1e-9)


def test_a_model_does_not_diverge_from_itself_and_keeps_its_mode():
    dense, copy = tiny_model("gpt2"), tiny_model("gpt2")
    dense.train()
    found = mp.divergence(copy, dense, tiny_tokens())
    assert found.kl == 0 and found.agreement == 1
    assert dense.training and not copy.training


def test_models_that_cannot_be_compared_are_refused():
    with pytest.raises(mp.PruneError, match="96 and 128 tokens"):
        mp.divergence(tiny_model("llama"), tiny_model("llama", vocab_size=128), tiny_tokens())
    broken = tiny_model("llama")
    broken.model.norm.weight.data[3] = math.nan
    with pytest.raises(mp.PruneError, match="NaN"):
        mp.divergence(broken, tiny_model("llama"), tiny_tokens())


def test_greedy_generation_is_the_argmax_token_by_token(tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    ids = tokenizer("the moon goes", return_tensors="pt")["input_ids"]
    prompt = ids.shape[1]
    with torch.no_grad():
        for _ in range(12):
            following = model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, following.view(1, 1)], dim=1)
            if following == tokenizer.eos_token_id:
                break
    expected = tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)
    assert mp.generate(model, tokenizer, "the moon goes", tokens=12) == expected
    library = model.generate(**tokenizer("the moon goes", return_tensors="pt"), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(library[0, prompt:], skip_special_tokens=True) == expected


def test_sampling_depends_on_its_seed_alone_and_leaves_the_global_generator(tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    texts = [mp.generate(model, tokenizer, "the sun", tokens=20, temperature=1.0, seed=seed) for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": ""},
        {"prompt": "a", "tokens": 0},
        *({"prompt": "a", "temperature": value} for value in (-1.0, 1e-40, 9e-5, 1e39, math.inf, math.nan)),
    ],
)
def test_a_generation_that_cannot_be_is_refused(tiny_folder, options):
    with pytest.raises(mp.PruneError):
        mp.generate(*mp.load_model(tiny_folder), **options)


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_the_ends_of_the_temperatures_are_the_likeliest_token_and_any_token(tiny_folder, temperature):
    model, tokenizer = mp.load_model(tiny_folder)
    texts = {mp.generate(model, tokenizer, "the sun", tokens=4, temperature=temperature, seed=s) for s in range(5)}
    assert texts == {mp.generate(model, tokenizer, "the sun", tokens=4)} if temperature < 1 else len(texts) > 1


def test_half_characters_of_a_prompt_become_replacement_characters(tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    assert mp.generate(model, tokenizer, "a\udcff", 3) == mp.generate(model, tokenizer, "a\ufffd", 3)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"tokens": 2.5}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"seed": 0.5}, "seed"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_what_generate_cannot_take_is_refused_by_name(tiny_folder, changes, name):
    model, tokenizer = mp.load_model(tiny_folder)
    with pytest.raises(mp.PruneError, match=f"{name} is "):
        mp.generate(model, tokenizer, **({"prompt": "the moon"} | changes))


def test_numbers_of_numpy_are_numbers(tiny_folder, text_file):
    model, tokenizer = mp.load_model(tiny_folder)
    tokens = mp.load_tokens(tokenizer, text_file, samples=4, length=16, seed=3)
    assert torch.equal(
        mp.load_tokens(tokenizer, text_file, samples=np.int64(4), length=np.int32(16), seed=np.int64(3)), tokens
    )
    assert mp.perplexity(model, tokens, batch_size=np.int64(3)) == mp.perplexity(model, tokens, batch_size=3)
    expected = mp.generate(model, tokenizer, "the moon", tokens=3, temperature=1.0, seed=5)
    given = {"tokens": np.int64(3), "temperature": np.float32(1), "seed": np.int64(5)}
    assert mp.generate(model, tokenizer, "the moon", **given) == expected
