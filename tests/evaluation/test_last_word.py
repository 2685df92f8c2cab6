"""last_word.py against single tokens and greedy decoding; minimal_pairs.py by what its pairs have to be."""

import math
import re
import statistics
from collections import Counter

import pytest
import torch

import minprune as mp
from minprune.evaluation.last_word import grammar, last_word, log_likelihood, passages
from minprune.evaluation.minimal_pairs import PHENOMENA, Pair, minimal_pairs

REQUESTS = [
    ("the moon goes around", " a planet"),
    ("the moon", " and its light comes from the sun while rivers carry water"),
    ("", "rivers carry water"),
    ("the sun", " €"),
]


@pytest.fixture(scope="module")
def pair(tiny_folder):
    return mp.load_model(tiny_folder)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_log_likelihood_is_the_sum_over_tokens_one_at_a_time(pair, batch_size):
    model, tokenizer = pair
    found = log_likelihood(model, tokenizer, REQUESTS, batch_size)
    for (context, rest), (value, greedy) in zip(REQUESTS, found, strict=True):
        before = tokenizer(context)["input_ids"] if context else [tokenizer.bos_token_id]
        after = tokenizer(rest)["input_ids"]
        total, top1 = 0.0, []
        for token in after:
            with torch.no_grad():
                probabilities = model(torch.tensor([before])).logits[0, -1].double().softmax(-1)
            total += math.log(probabilities[token])
            top1.append(int(probabilities.argmax()))
            before = [*before, token]
        assert value == pytest.approx(total, rel=1e-5)
        assert greedy == (top1 == after)


PARAGRAPHS = [
    f"The {noun} was {adjective} and it stood near the old {place} for many years. "
    f"People who came from far away saw the {noun} and wrote long letters about it to their friends at home. "
    f"Nobody in the town could say who had made it or why it had been put there at all, and so they called it {last}."
    for noun, adjective, place, last in [
        ("tower", "tall", "river", "danger"),
        ("statue", "white", "market", "statue"),
        ("bridge", "narrow", "mill", "bridge"),
        ("garden", "green", "castle", "silence"),
        ("wall", "long", "harbour", "wall"),
        ("clock", "broken", "station", "winter"),
    ]
]


def test_passages_are_whole_sentences_that_end_in_their_word():
    text = "\n\n".join(["A heading", *PARAGRAPHS, "Too short to count. It ends here.", "word " * 100 + "end."])
    found = passages(text)
    assert [passage.word for passage in found] == ["danger", "statue", "bridge", "silence", "wall", "winter"]
    assert [passage.used for passage in found] == [False, True, True, False, True, False]
    for passage in found:
        assert f"{passage.context} {passage.word}." in text
        assert 40 <= len(passage.context.split()) + 1 <= 90


def test_passages_of_the_test_split_do_not_overlap_and_tell_if_the_word_was_used():
    text = mp.load_text("wikipedia", "test")
    found = passages(text)
    assert len(found) > 500 and 100 < sum(passage.used for passage in found) < 400
    at = 0
    squeezed = re.sub(r"\s+", " ", text)
    for passage in found:
        at = squeezed.index(f"{passage.context} {passage.word}", at) + len(passage.context)
        again = re.search(rf"(?<![^\W\d_]){passage.word}(?![^\W\d_])", passage.context, re.I)
        assert passage.used == (again is not None)


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_folder):
    """(model, tokenizer, text file): a tiny Llama that has learned four of the six paragraphs by heart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = mp.load_model(tiny_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [torch.tensor(tokenizer(text)["input_ids"]) for text in PARAGRAPHS[:4]]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    for _ in range(120):
        loss = model(input_ids=batch, labels=batch.masked_fill(batch == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("cloze") / "paragraphs.txt"
    path.write_text("\n".join(PARAGRAPHS), encoding="utf-8")
    return model, tokenizer, path


def test_what_generate_writes_is_called_greedy(learned):
    model, tokenizer, _ = learned
    context = " ".join(PARAGRAPHS[0].split()[:12])
    written = mp.generate(model, tokenizer, context, tokens=12)
    assert written and PARAGRAPHS[0].startswith(context + written)
    answers = log_likelihood(model, tokenizer, [(context, written), (context, " water")])
    assert [greedy for _, greedy in answers] == [True, False]


def test_a_last_word_counts_if_generate_writes_exactly_it(learned):
    model, tokenizer, path = learned
    right = {True: [], False: []}
    for passage in passages(path.read_text(encoding="utf-8")):
        written = mp.generate(model, tokenizer, passage.context, tokens=25)
        right[passage.used].append(re.match(r" ([\w'-]*)", written + " ")[1] == passage.word)
    found = last_word(model, tokenizer, path, count=6)
    assert {"used": right[True], "new": right[False]} == {"used": [True, True, False], "new": [True, True, False]}
    assert (found.value, found.count) == (pytest.approx(2 / 3), 6)
    assert found.parts["used"].value == found.parts["new"].value == pytest.approx(2 / 3)


def test_a_word_that_greedy_decoding_goes_on_with_is_not_the_word(learned, tmp_path):
    model, tokenizer, _ = learned
    path = tmp_path / "prefix.txt"  # the model has learned "silence" and "statue": their beginnings are not right
    path.write_text("\n".join([PARAGRAPHS[3].replace("silence.", "silen."), PARAGRAPHS[1]]), encoding="utf-8")
    found = last_word(model, tokenizer, path, count=2)
    assert (found.parts["new"].value, found.parts["used"].value) == (0.0, 1.0)


def test_too_few_passages_are_refused_by_kind(pair, learned):
    for count in (8, 7, 0):
        with pytest.raises(mp.PruneError, match="3 passages whose last word is used before"):
            last_word(*pair, learned[2], count=count)


def test_grammar_is_the_share_of_right_sentences_with_the_smaller_loss(pair):
    model, tokenizer = pair
    pairs = minimal_pairs(4, seed=5)
    right = Counter()
    for one in pairs:
        losses = []
        for text in (one.right, one.wrong):
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
            with torch.no_grad():
                losses.append(float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1))
        right[one.phenomenon] += losses[0] < losses[1]
    found = grammar(model, tokenizer, pairs)
    assert {name: part.value for name, part in found.parts.items()} == {name: right[name] / 4 for name in PHENOMENA}
    assert found.value == pytest.approx(sum(right.values()) / len(pairs))
    turned = grammar(model, tokenizer, [Pair(one.phenomenon, one.wrong, one.right) for one in pairs])
    assert turned.value == pytest.approx(1 - found.value)


def test_the_standard_error_is_that_of_independent_answers(pair):
    pairs = minimal_pairs(12)
    found = grammar(*pair, pairs)
    for part in found.parts.values():
        answers = [1.0] * round(part.value * 12) + [0.0] * (12 - round(part.value * 12))
        assert part.error == pytest.approx(statistics.pstdev(answers) / math.sqrt(12))
    variances = [part.error**2 for part in found.parts.values()]
    assert found.error == pytest.approx(math.sqrt(sum(variances)) / len(variances))


def test_pairs_differ_in_one_word_or_in_the_order_of_two():
    for one in minimal_pairs(100):
        right, wrong = one.right.rstrip(".").split(), one.wrong.rstrip(".").split()
        different = [at for at, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b]
        if one.phenomenon == "adjective order":
            assert len(different) == 2 and sorted(right) == sorted(wrong)
        else:
            assert len(different) == 1


def test_no_sentence_is_right_in_one_pair_and_wrong_in_another():
    pairs = minimal_pairs(200)
    assert not {one.right for one in pairs} & {one.wrong for one in pairs}


def test_no_wrong_order_is_an_object_with_an_adjective_said_of_it():
    """'Painted the hats green' and 'bought the car new' are English, and 'bottle green' is the name of a colour."""
    said = {"bought", "found", "forgot", "kept", "left", "liked", "lost", "made", "painted", "saw", "sold", "wanted"}
    sentences = [one.wrong.rstrip(".").split() for one in minimal_pairs(200) if one.phenomenon == "adjective order"]
    assert not {verb for _, _, verb, *_ in sentences} & said
    assert not {last for *_, last in sentences} & {"red", "blue", "green", "white", "black", "yellow", "brown"}


def test_no_wrong_participle_is_another_form_of_the_right_one():
    """'Has forgot' and 'has hid' are variants of 'has forgotten' and 'has hidden', and so on."""
    also = {"bit", "drank", "forgot", "got", "hid", "proved", "sewed", "shaved", "showed", "sowed", "swelled", "trod"}
    sentences = [one.wrong.split() for one in minimal_pairs(200) if one.phenomenon == "participle"]
    assert len({verb for _, _, _, verb, *_ in sentences}) == 8
    assert not {verb for _, _, _, verb, *_ in sentences} & also


def test_pairs_are_as_many_as_asked_for_all_different_and_the_same_for_a_seed():
    pairs = minimal_pairs(60, seed=3)
    assert Counter(one.phenomenon for one in pairs) == dict.fromkeys(PHENOMENA, 60)
    assert len(PHENOMENA) >= 5 and len(set(pairs)) == len(pairs)
    assert pairs == minimal_pairs(60, seed=3) != minimal_pairs(60, seed=4)
    for count in (0, 2000):
        with pytest.raises(mp.PruneError, match=f"{count} pairs"):
            minimal_pairs(count)


@pytest.mark.slow
def test_smollm2_knows_grammar_and_loses_it_when_every_second_weight_is_zero(smollm2):
    import copy

    model, tokenizer = smollm2
    dense = grammar(model, tokenizer)
    assert dense.value > 0.85 and all(part.value > 0.5 + 2 * part.error for part in dense.parts.values()), dense
    pruned = copy.deepcopy(model)
    mp.prune(pruned, None, method="magnitude", pattern="60%")
    assert grammar(pruned, tokenizer).value < dense.value - 3 * dense.error
