"""statistics.py against sums written out in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune import statistics

SETTINGS = settings(derandomize=True, max_examples=30, deadline=None)


def reference(X):
    """(Gram matrix, squared norms, mean) of X (tokens, d_in) in float64, one token at a time."""
    X = X.double()
    gram = sum(torch.outer(x, x) for x in X)
    return gram, torch.stack([sum(x * x for x in column) for column in X.T]), sum(X) / len(X)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("d_in", [1, 7, 64])
def test_sums_equal_a_float64_reference(d_in, dtype, tolerance, generator):
    X = torch.randn(50, d_in, generator=generator).double()
    gram, sq_norm, mean = reference(X)
    stats = mp.Statistics(d_in, dtype=dtype).update(X)
    norms_only = mp.Statistics(d_in, gram=False, dtype=dtype).update(X)
    assert stats.tokens == norms_only.tokens == 50
    assert stats.gram.dtype == dtype
    torch.testing.assert_close(stats.gram.double(), gram, rtol=tolerance, atol=50 * tolerance)
    for found in (stats, norms_only):
        torch.testing.assert_close(found.sq_norm.double(), sq_norm, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found.mean.double(), mean, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("d_in", [statistics.PANEL, statistics.PANEL + 1, 2 * statistics.PANEL + 37])
def test_the_symmetric_product_by_panels_is_the_whole_product(d_in, generator):
    X, more = torch.randn(2, 40, d_in, generator=generator, dtype=torch.float64).unbind()
    stats = mp.Statistics(d_in, dtype=torch.float64)
    for part in (X, more):  # asking for the matrix in between must not disturb the sums
        stats.update(part)
        assert torch.equal(stats.gram, stats.gram.T)
    both = torch.cat([X, more])
    torch.testing.assert_close(stats.gram, torch.einsum("ti,tj->ij", both, both), rtol=1e-12, atol=1e-12)


@given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 6), st.integers(0, 2**32 - 1))
@SETTINGS
def test_any_leading_shape_counts_every_token(leading, d_in, seed):
    X = torch.randn(*leading, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flat = X.reshape(-1, d_in)
    stats = mp.Statistics(d_in, dtype=torch.float64).update(X)
    gram, sq_norm, mean = reference(flat)
    assert stats.tokens == len(flat)
    torch.testing.assert_close((stats.gram, stats.sq_norm, stats.mean), (gram, sq_norm, mean))


@given(st.integers(1, 20), st.lists(st.integers(0, 20), max_size=4), st.booleans(), st.integers(0, 2**32 - 1))
@SETTINGS
def test_batches_of_any_size_and_merging_in_any_order_give_the_same_sums(tokens, cuts, gram, seed):
    X = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole, batched, merged = (mp.Statistics(5, gram=gram, dtype=torch.float64) for _ in range(3))
    whole.update(X)
    for part in X.tensor_split(sorted(min(cut, tokens) for cut in cuts)):  # some parts are empty
        batched.update(part)
        merged = mp.Statistics(5, gram=gram, dtype=torch.float64).update(part).merge(merged)
    for other in (batched, merged):
        assert other.tokens == tokens
        torch.testing.assert_close((other.sq_norm, other.mean), (whole.sq_norm, whole.mean))
        if gram:
            torch.testing.assert_close(other.gram, whole.gram)


def test_merging_keeps_both_symmetric_halves_whichever_was_asked_for(generator):
    X = torch.randn(2, 30, 9, generator=generator, dtype=torch.float64)
    for asked in ([], [0], [1], [0, 1]):
        parts = [mp.Statistics(9, dtype=torch.float64).update(part) for part in X]
        for index in asked:
            parts[index].gram  # noqa: B018  (it fills in the other half)
        merged = parts[0].merge(parts[1])
        torch.testing.assert_close(merged.gram, reference(X.reshape(-1, 9))[0])


def test_statistics_of_norms_hold_nothing_of_the_size_of_a_gram_matrix():
    stats = mp.Statistics(1000, gram=False).update(torch.ones(3, 1000))
    assert sum(value.numel() for value in vars(stats).values() if isinstance(value, torch.Tensor)) <= 2 * 1000
    with pytest.raises(mp.PruneError, match="gram=True"):
        stats.gram  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32(dtype, generator):
    X = torch.randn(3000, 4, generator=generator).to(dtype)  # 3000 ones in bfloat16 stop counting at 256
    stats = mp.Statistics(4).update(X)
    gram, sq_norm, mean = reference(X)
    torch.testing.assert_close(stats.gram.double(), gram, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(stats.sq_norm.double(), sq_norm, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(stats.mean.double(), mean, rtol=1e-4, atol=1e-5)


def test_inputs_are_not_changed_and_no_graph_is_kept(generator):
    X = torch.randn(6, 4, generator=generator, requires_grad=True)
    before = X.detach().clone()
    stats = mp.Statistics(4).update(X)
    assert torch.equal(X.detach(), before)
    assert not stats.gram.requires_grad and not stats.mean.requires_grad


@pytest.mark.parametrize("gram", [True, False])
def test_permuted_statistics_are_those_of_permuted_inputs_and_can_go_on(gram, generator):
    X, more = (torch.randn(20, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    order = torch.randperm(6, generator=generator)
    plain = mp.Statistics(6, gram, dtype=torch.float64).update(X)
    permuted = plain.permuted(order).update(more[:, order])
    expected = mp.Statistics(6, gram, dtype=torch.float64).update(X[:, order]).update(more[:, order])
    torch.testing.assert_close(permuted.sq_norm, expected.sq_norm)
    torch.testing.assert_close(permuted.mean, expected.mean)
    assert permuted.tokens == 40 and plain.tokens == 20
    torch.testing.assert_close(plain.sq_norm, X.square().sum(0))  # nothing was shared
    if gram:
        torch.testing.assert_close(permuted.gram, expected.gram)


def test_no_token_seen_means_zero_sums():
    stats = mp.Statistics(3)
    assert stats.tokens == 0
    assert not stats.gram.any() and not stats.sq_norm.any() and not stats.mean.any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(mp.PruneError, match=r"5 features.* 4"):
        mp.Statistics(4).update(torch.ones(2, 5))
    with pytest.raises(mp.PruneError, match="merged"):
        mp.Statistics(4).merge(mp.Statistics(5))
    with pytest.raises(mp.PruneError, match="merged"):
        mp.Statistics(4).merge(mp.Statistics(4, gram=False))
    sparse, nowhere, imaginary = torch.eye(4).to_sparse(), torch.eye(4, device="meta"), torch.eye(4) * 1j
    for X in (sparse, nowhere, imaginary, torch.tensor(1.0), [1.0, 2.0, 3.0, 4.0], None):
        with pytest.raises(mp.PruneError, match=r"the inputs are .*dense tensor"):
            mp.Statistics(4).update(X)


def test_layer_error_is_the_share_of_the_outputs_energy_that_is_lost(generator):
    X = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    W = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    W_pruned = W * (torch.rand(7, 12, generator=generator) < 0.5)
    gram = mp.Statistics(12, dtype=torch.float64).update(X).gram
    expected = float((X @ (W - W_pruned).T).norm() ** 2 / (X @ W.T).norm() ** 2)
    assert mp.layer_error(W, W_pruned, gram) == pytest.approx(expected, rel=1e-12)
    assert mp.layer_error(W.float(), W_pruned.float(), gram.float()) == pytest.approx(expected, rel=1e-5)


def test_layer_error_is_0_unpruned_1_emptied_and_0_where_nothing_can_be_lost():
    W, gram = torch.ones(2, 3), torch.eye(3)
    assert mp.layer_error(W, W, gram) == 0
    assert mp.layer_error(W, torch.zeros(2, 3), gram) == 1
    assert mp.layer_error(torch.zeros(2, 3), torch.zeros(2, 3), gram) == 0
    assert mp.layer_error(torch.zeros(2, 3), W, gram) == 1


@pytest.mark.parametrize("gram", [True, False])
def test_statistics_of_equal_inputs_are_those_of_the_identity(gram):
    stats = mp.Statistics(7, gram, torch.float64).update(torch.randn(5, 7)).of_equal_inputs()
    assert torch.equal(stats.sq_norm, torch.ones(7, dtype=torch.float64)) and stats.tokens == 7
    assert not gram or torch.equal(stats.gram, torch.eye(7, dtype=torch.float64))


_RANGES = [(torch.float32, -149, 100), (torch.float64, -1074, 950)]  # of powers of two: 1e-45 to 1e30, and wider


@pytest.mark.parametrize("dtype, least, most", _RANGES)
@given(st.data())
@SETTINGS
def test_the_layer_error_is_that_of_the_weights_times_any_power_of_two(dtype, least, most, data):
    power = 2.0 ** data.draw(st.integers(least, most))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    X = torch.randn(40, 9, generator=generator, dtype=dtype)
    W = torch.randint(-8, 9, (5, 9), generator=generator).to(dtype)
    W_pruned = torch.randint(-8, 9, (5, 9), generator=generator).to(dtype)
    gram, expected = X.T @ X, mp.layer_error(W, W_pruned, X.T @ X)
    assert expected > 0.1
    scaled = [(M.double() * power).to(dtype) for M in (W, W_pruned)]
    assert torch.equal(scaled[0].double() / power, W.double())  # nothing was rounded
    assert mp.layer_error(*scaled, gram) == expected


@given(st.integers(-42, 30), st.integers(-36, 34), st.integers(0, 2**32 - 1))
@SETTINGS
def test_the_layer_error_of_any_magnitude_is_that_of_float64(weights, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    X, W = torch.randn(40, 300, generator=generator), torch.randn(5, 300, generator=generator).double()
    W = (W * 10.0**weights).float()
    W_pruned = W * (torch.rand(W.shape, generator=generator) < 0.5)
    gram = (X.T.double() @ X.double() * 10.0**inputs).float()
    D, whole = W.double() - W_pruned.double(), W.double()
    expected = float(((D @ gram.double()) * D).sum() / ((whole @ gram.double()) * whole).sum())
    assert mp.layer_error(W, W_pruned, gram) == pytest.approx(expected, rel=1e-4)


def test_an_error_that_was_too_large_for_float32_or_too_small_is_measured():
    for size in (1e30, 1e-30, 1e-42):
        W = torch.full((2, 3), size)
        assert mp.layer_error(W, W / 2, torch.eye(3)) == pytest.approx(0.25, rel=0.01)
        assert mp.layer_error(torch.zeros(2, 3), W, torch.eye(3)) == 1


def test_a_matrix_of_subnormal_weights_is_reported_with_the_error_that_it_has():
    errors = {}
    for power in (0, 140):
        model = tiny_model("llama")
        with torch.no_grad():
            weight = model.model.layers[0].self_attn.q_proj.weight
            weight.copy_((weight * 2**8).round() * 2.0**-8 * 2.0**-power)
        rows = mp.prune(model, tiny_tokens(), "magnitude", include=["*.0.self_attn.q_proj"]).layers
        errors[power] = rows[0].error
    assert errors[140] == errors[0] > 0


@pytest.mark.parametrize(
    "W, other, gram",
    [
        ((4, 6), (1, 6), (6, 6)),
        ((4, 6), (6,), (6, 6)),
        ((4, 6), (4, 6), (5, 5)),
        ((4, 6), (4, 6), (6,)),
        ((6,), (6,), (6, 6)),
    ],
)
def test_the_error_of_what_is_not_of_one_layer_is_refused_and_not_stretched_to_fit(W, other, gram):
    with pytest.raises(mp.PruneError, match="not of one layer"):
        mp.layer_error(torch.ones(W), torch.ones(other), torch.ones(gram))


@pytest.mark.parametrize("other", [None, 3, torch.ones(2)])
def test_only_statistics_are_merged(other):
    with pytest.raises(mp.PruneError, match="cannot be merged"):
        mp.Statistics(2).merge(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_sums_are_in_float32_or_wider_and_nothing_else(dtype):
    with pytest.raises(mp.PruneError, match="in float32 or float64"):
        mp.Statistics(4, dtype=dtype)
    with pytest.raises(mp.PruneError, match=r"float32 or float64\).* Tensor \(4, 4\)"):
        mp.layer_error(torch.ones(2, 4), torch.zeros(2, 4), torch.eye(4).to(dtype))


NO_ORDERS = [
    *([0, 1, 2], None, "021", torch.tensor(0), torch.tensor([[0, 1, 2]]), torch.tensor([0.0, 1.0, 2.0])),
    *map(torch.tensor, ([0, 1], [0, 1, 1], [1, 2, 3], [0, 1, -1])),
    torch.empty(3, dtype=torch.long, device="meta"),
]


@pytest.mark.parametrize("order", NO_ORDERS, ids=str)
def test_an_order_that_does_not_name_each_input_once_is_refused(order):
    with pytest.raises(mp.PruneError, match="it must name each of the 3 inputs once"):
        mp.Statistics(3).permuted(order)


@pytest.mark.parametrize("device", ["nowhere", 3.5, "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(device):
    stats = mp.Statistics(3)
    for use in (stats.to, lambda device: mp.Statistics(3, device=device)):
        with pytest.raises(mp.PruneError, match=r"^device .* (is not available here|must be)"):
            use(device)
    assert stats.to("cpu") is stats
