"""Channel permutation: what it retains against every way of grouping, and that a folded model computes the same."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.methods.channel_permutation import (
    assign_place,
    channel_permutation,
    fold_permutation,
    permuted,
    retained,
    snake_deal,
)

SETTINGS = settings(derandomize=True, max_examples=40, deadline=None)


def scores_of(d_out, d_in, seed=0, spread=1.0):
    """Scores whose columns differ in size, the more the larger `spread` is."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (spread * torch.randn(d_in, generator=generator, dtype=torch.float64)).exp()
    return torch.randn(d_out, d_in, generator=generator, dtype=torch.float64).abs() * sizes


def kept_by_loop(scores, order, n, m):
    """The sum of the n largest of every m scores, by sorting each group."""
    total = 0.0
    for row in scores[:, order].tolist():
        for start in range(0, len(row), m):
            total += sum(sorted(row[start : start + m])[m - n :])
    return total


def is_an_order(order, d_in):
    return order.dtype == torch.int64 and order.sort().values.tolist() == list(range(d_in))


# --- the search


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:4"])
def test_it_lies_between_the_order_as_it_is_and_the_best_of_all_groupings_nearer_to_the_best(text):
    pattern, gained, possible = mp.pattern(text), 0.0, 0.0
    for seed in range(30):
        scores = scores_of(5, 8, seed)
        found = retained(scores[:, channel_permutation(scores, pattern)], pattern)
        best = 0.0
        for rest in itertools.combinations(range(1, 8), 3):  # channel 0 is in one group with three of the others
            first = [0, *rest]
            order = first + [c for c in range(8) if c not in first]
            best = max(best, kept_by_loop(scores, order, pattern.n, 4))
        as_it_is = kept_by_loop(scores, range(8), pattern.n, 4)
        assert retained(scores, pattern) == pytest.approx(as_it_is)
        assert as_it_is - 1e-9 <= found <= best + 1e-9
        gained, possible = gained + found - as_it_is, possible + best - as_it_is
    assert gained > 0.75 * possible


@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 5), st.integers(0, 2), st.integers(0, 999)
)
@SETTINGS
def test_it_is_an_order_and_never_retains_less_for_any_n_m(d_out, groups, m, n, passes, seed):
    pattern, scores = mp.NM(min(n, m), m), scores_of(d_out, m * groups, seed)
    order = channel_permutation(scores, pattern, passes=passes)
    assert is_an_order(order, m * groups)
    assert retained(scores[:, order], pattern) >= retained(scores, pattern)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 5), st.integers(1, 4), st.integers(0, 999))
@SETTINGS
def test_no_assignment_retains_less_and_none_of_its_place_retains_more(d_out, groups, m, n, seed):
    pattern, scores = mp.NM(min(n, m - 1), m), scores_of(d_out, m * groups, seed)
    order = torch.randperm(m * groups, generator=torch.Generator().manual_seed(seed))
    for place in range(m):
        before, start = retained(scores[:, order], pattern), order
        order = assign_place(scores, order, pattern, place)
        after = retained(scores[:, order], pattern)
        assert is_an_order(order, m * groups) and after >= before - 1e-9 * before
        others = [p for p in range(m) if p != place]
        assert torch.equal(order.view(-1, m)[:, others], start.view(-1, m)[:, others])
        if groups <= 4:
            for columns in itertools.permutations(range(groups)):
                rival = start.view(-1, m).clone()
                rival[:, place] = rival[list(columns), place]
                assert retained(scores[:, rival.view(-1)], pattern) <= after * (1 + 1e-9)


def test_the_snake_goes_back_and_forth_through_the_bands():
    totals = torch.tensor([[1.0, 8.0, 7.0, 2.0, 6.0, 3.0, 4.0, 5.0, 0.5, 0.4, 0.3, 0.2]])
    dealt = totals[0, snake_deal(totals, 4)].view(3, 4)
    expected = torch.tensor([[8.0, 3.0, 2.0, 0.2], [7.0, 4.0, 1.0, 0.3], [6.0, 5.0, 0.5, 0.4]])
    assert torch.equal(dealt, expected)


def test_important_neighbours_are_parted():
    scores = torch.ones(3, 16)
    scores[:, :4] = 100  # all in the first group: two of them would be lost in each row
    pattern = mp.pattern("2:4")
    order = channel_permutation(scores, pattern)
    assert retained(scores, pattern) == 3 * (2 * 100 + 6 * 1)
    assert retained(scores[:, order], pattern) == 3 * (4 * 100 + 4 * 1)


def test_where_nothing_is_gained_the_order_stays_as_it_is():
    scores = torch.ones(3, 16)
    assert channel_permutation(scores, mp.pattern("2:4")).tolist() == list(range(16))
    best = torch.tensor([[9.0, 8, 1, 0, 9, 8, 1, 0]])
    assert channel_permutation(best, mp.pattern("2:4")).tolist() == list(range(8))


def test_each_further_pass_retains_as_much_or_more():
    pattern, scores = mp.pattern("2:4"), scores_of(20, 64)
    kept = [retained(scores[:, channel_permutation(scores, pattern, passes=p)], pattern) for p in range(4)]
    assert kept == sorted(kept) and kept[0] > retained(scores, pattern) and kept[1] > kept[0]


def test_what_cannot_be_permuted_is_refused():
    scores = scores_of(3, 8)
    for text in ("50%", "block4:50%"):
        with pytest.raises(mp.PruneError, match="not to"):
            channel_permutation(scores, mp.pattern(text))
    with pytest.raises(mp.PruneError, match="8"):
        channel_permutation(scores, mp.pattern("2:5"))
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(mp.PruneError, match="negative numbers, NaN or infinity"):
            channel_permutation(scores.index_fill(1, torch.tensor([2]), bad), mp.pattern("2:4"))
    with pytest.raises(mp.PruneError, match="passes -1"):
        channel_permutation(scores, mp.pattern("2:4"), passes=-1)


# --- a method on permuted columns


@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria", "sparsegpt", "obs"])
def test_a_method_on_permuted_inputs_equals_pruning_the_permuted_layer(method, generator):
    X = (
        torch.randn(60, 16, generator=generator, dtype=torch.float64)
        @ torch.randn(16, 16, generator=generator).double()
    )
    W = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    order = torch.randperm(16, generator=generator)
    stats = mp.Statistics(16, dtype=torch.float64)
    result = permuted(mp.METHODS[method], W, stats.update(X), mp.pattern("2:4"), order)
    there = mp.Statistics(16, dtype=torch.float64).update(X[:, order])
    expected = mp.METHODS[method](W[:, order], there, mp.pattern("2:4"))
    assert torch.equal(result.keep[:, order], expected.keep)
    torch.testing.assert_close(result.weight[:, order], expected.weight)
    assert (result.keep[:, order].reshape(-1, 4).sum(1) == 2).all()
    assert not (result.keep.reshape(-1, 4).sum(1) == 2).all()


def test_options_and_a_given_mask_reach_the_method_in_the_right_order(generator):
    W, X = torch.randn(6, 16, generator=generator), torch.randn(60, 16, generator=generator)
    stats, order = mp.Statistics(16).update(X), torch.randperm(16, generator=generator)
    keep = torch.rand(6, 16, generator=generator) < 0.5
    result = permuted(mp.METHODS["obs"], W, stats, mp.pattern("2:4"), order, keep=keep, damp=0.1)
    expected = mp.METHODS["obs"](W, stats, mp.pattern("2:4"), keep=keep, damp=0.1)  # exact: the order is no matter
    assert torch.equal(result.keep, keep)
    torch.testing.assert_close(result.weight, expected.weight, rtol=1e-4, atol=1e-5)
    assert permuted(mp.METHODS["magnitude"], W, None, mp.pattern("2:4"), order).keep.sum() == 48


def test_a_good_order_lowers_the_layer_error_of_wanda(generator):
    X = torch.randn(200, 64, generator=generator) * (1.5 * torch.randn(64, generator=generator)).exp()
    W, stats, pattern = torch.randn(24, 64, generator=generator), mp.Statistics(64).update(X), mp.pattern("2:4")
    order = channel_permutation(W.abs() * stats.sq_norm.sqrt(), pattern)
    plain, better = (
        mp.layer_error(W, result.weight, stats.gram)
        for result in (mp.METHODS["wanda"](W, stats, pattern), permuted(mp.METHODS["wanda"], W, stats, pattern, order))
    )
    assert better < 0.9 * plain


# --- folding


def mlp_channels(mlp):
    return [mlp.gate_proj.weight, mlp.up_proj.weight], [mlp.down_proj.weight]


def shuffled(d, seed=0):
    return torch.randperm(d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_model_with_permuted_mlps_computes_the_same(family):
    model = tiny_model(family, torch.float64)
    plain = model(tiny_tokens()).logits
    for index, block in enumerate(model.model.layers):
        before = block.mlp.down_proj.weight.clone()
        fold_permutation(*mlp_channels(block.mlp), order := shuffled(48, index))
        assert torch.equal(block.mlp.down_proj.weight, before[:, order]) and not torch.equal(order, order.sort().values)
    torch.testing.assert_close(model(tiny_tokens()).logits, plain, rtol=0, atol=1e-9)


def test_biases_move_with_their_rows():
    model = tiny_model("opt", torch.float64)
    plain = model(tiny_tokens()).logits
    for block in model.model.decoder.layers:
        fold_permutation([block.fc1.weight, block.fc1.bias], [block.fc2.weight], shuffled(48))
    torch.testing.assert_close(model(tiny_tokens()).logits, plain, rtol=0, atol=1e-9)
    fold_permutation([block.fc1.weight], [block.fc2.weight], shuffled(48))  # the bias forgotten
    assert (model(tiny_tokens()).logits - plain).abs().max() > 1e-3


def test_folded_and_pruned_a_model_stores_real_n_m_groups_and_computes_what_the_undone_one_does():
    model, pattern = tiny_model("llama", torch.float64), mp.pattern("2:4")
    undone = copy.deepcopy(model)
    for block, other in zip(model.model.layers, undone.model.layers, strict=True):
        W = block.mlp.down_proj.weight.detach().clone()
        order = channel_permutation(W.abs(), pattern)
        assert order.tolist() != list(range(48))
        other.mlp.down_proj.weight.data = permuted(mp.METHODS["magnitude"], W, None, pattern, order).weight
        fold_permutation(*mlp_channels(block.mlp), order)
        block.mlp.down_proj.weight.data = mp.METHODS["magnitude"](block.mlp.down_proj.weight, None, pattern).weight.data
        assert (block.mlp.down_proj.weight.view(-1, 4) != 0).sum(1).eq(2).all()
        assert not (other.mlp.down_proj.weight.view(-1, 4) != 0).sum(1).eq(2).all()
    torch.testing.assert_close(model(tiny_tokens()).logits, undone(tiny_tokens()).logits, rtol=0, atol=1e-9)


def test_orders_and_sizes_that_do_not_fit_are_refused_and_nothing_is_changed(generator):
    W, bias, reader = torch.randn(8, 3, generator=generator), torch.ones(7), torch.randn(5, 8, generator=generator)
    before = W.clone(), reader.clone()
    for producers, readers, order, reason in [
        ([W, bias], [reader], shuffled(8), r"\(7,\) produces 7 channels, not 8"),
        ([W], [reader.T], shuffled(8), r"\(8, 5\) reads 5 channels, not 8"),
        ([W, torch.tensor(1.0)], [reader], shuffled(8), "produces 0 channels, not 8"),
        ([W], [reader], torch.zeros(8, dtype=torch.int64), "each of the 8 channels once"),
        ([W], [reader], shuffled(8).float(), "each of the 8 channels once"),
    ]:
        with pytest.raises(mp.PruneError, match=reason):
            fold_permutation(producers, readers, order)
        assert torch.equal(W, before[0]) and torch.equal(reader, before[1])
    with pytest.raises(mp.PruneError, match="each of the 8 channels once"):
        permuted(mp.METHODS["magnitude"], reader, None, mp.pattern("2:4"), shuffled(4))
