"""What METHODS refuses for every method, before the method itself looks at its arguments."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from peak import Peak
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.methods import Method, Result, get_method
from minprune.methods.wanda import wanda

W = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
METHODS = pytest.mark.parametrize("method", mp.METHODS)
CALIBRATED = pytest.mark.parametrize(
    "method", [name for name, method in mp.METHODS.items() if method.needs != "nothing"]
)


def seen(d_in=8, gram=True):
    return mp.Statistics(d_in, gram).update(torch.randn(64, d_in, generator=torch.Generator().manual_seed(1)))


def with_one(value):
    damaged = W.clone()
    damaged[1, 2] = value
    return damaged


@METHODS
def test_a_pattern_may_be_a_text(method):
    assert torch.equal(
        mp.METHODS[method](W, seen(), "2:4").weight, mp.METHODS[method](W, seen(), mp.pattern("2:4")).weight
    )


@METHODS
@pytest.mark.parametrize(
    "pattern, reason", [("half", "unknown pattern 'half'"), (0.5, "not 0.5"), ("3:5", "divides, not 8")]
)
def test_a_pattern_that_is_none_or_does_not_fit_is_refused(method, pattern, reason):
    with pytest.raises(ValueError, match=reason):
        mp.METHODS[method](W, seen(), pattern)


@METHODS
@pytest.mark.parametrize(
    "weights, reason",
    [
        (W[0], r"\(8,\) of torch.float32: .* matrix"),
        (W[:0], r"\(0, 8\)"),
        (W.long(), "int64"),
        (W.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (W.to_sparse(), "sparse_coo on cpu: .* dense"),
        (W.to("meta"), "strided on meta: .* in memory"),
        (W[:, :0], r"\(4, 0\)"),
        (W.tolist(), "list"),
        (with_one(math.nan), "NaN or infinity"),
        (with_one(math.inf), "NaN or infinity"),
        (with_one(-math.inf), "NaN or infinity"),
    ],
)
def test_what_is_no_finite_matrix_is_refused(method, weights, reason):
    with pytest.raises(ValueError, match=f"the weights .*{reason}"):
        mp.METHODS[method](weights, seen(), "50%")


@CALIBRATED
@pytest.mark.parametrize(
    "stats, reason",
    [
        (None, "needs .*Statistics.*, not NoneType"),
        (torch.eye(8), "needs .*Statistics.*, not Tensor"),
        (seen(6), "of 6 inputs"),
        (mp.Statistics(8), "saw no input"),
        (mp.Statistics(8).update(torch.full((2, 8), math.inf)), "statistics hold NaN or infinity"),
        (mp.Statistics(8).update(torch.full((2, 8), math.nan)), "statistics hold NaN or infinity"),
    ],
)
def test_statistics_that_say_nothing_about_these_inputs_are_refused(method, stats, reason):
    with pytest.raises(ValueError, match=reason):
        mp.METHODS[method](W, stats, "50%")


def test_a_method_behind_a_plus_checks_too():
    with pytest.raises(ValueError, match="saw no input"):
        get_method("magnitude+exact")(W, mp.Statistics(8), "50%")


@METHODS
def test_an_option_of_another_type_is_refused_by_name(method):
    for option, kind in mp.METHODS[method].options.items():
        for value in ("x", [1], True, *((1.5,) if kind is int else ())):
            with pytest.raises(mp.PruneError, match=f"{option} is .*: it must be"):
                mp.METHODS[method](W, seen(), "50%", **{option: value})
    with pytest.raises(mp.PruneError, match="damp is 'x'"):
        get_method("wanda+exact")(W, seen(), "50%", damp="x")


@CALIBRATED
@pytest.mark.parametrize("damp", [0.0, 1e-12])
@pytest.mark.parametrize("pattern", ["50%:row", "25%:row", "2:4"])
def test_singular_statistics_get_more_damping_and_never_an_error_of_linear_algebra(method, damp, pattern):
    """Rank 3, of 60 inputs in pairs that are equal."""
    generator = torch.Generator().manual_seed(0)
    X = (torch.randn(50, 3, generator=generator) @ torch.randn(3, 30, generator=generator)).repeat(1, 2)
    weights, stats = torch.randn(6, 60, generator=generator), mp.Statistics(60).update(X)
    small = {"damp": damp, "rho": 1e-12}
    options = {name: value for name, value in small.items() if name in mp.METHODS[method].options}
    before = stats.gram.clone()
    result = mp.METHODS[method](weights, stats, pattern, **options)
    assert bool(result.weight.isfinite().all()) and torch.equal(stats.gram, before)
    assert int(result.keep.sum()) == round((1 - mp.pattern(pattern).sparsity) * 360)
    if method in ("sparsegpt", "obs", "exact", "admm"):
        assert "raised from" in result.note


def test_the_gram_matrix_is_as_it_was_also_after_an_error():
    stats = seen()
    stats.gram.fill_(-1000.0).diagonal().fill_(1.0)  # no damping makes this one definite
    before = stats.gram.clone()
    for method in ("sparsegpt", "obs", "exact", "admm", "alps"):
        with pytest.raises(mp.PruneError, match="no Cholesky factor"):
            mp.METHODS[method](W, stats, "50%")
        assert torch.equal(stats.gram, before)


@pytest.mark.parametrize("method", ["obs", "exact", "wanda+exact", "magnitude+obs"])
def test_a_layer_that_would_take_days_is_refused_at_once_and_may_be_allowed(method):
    weights, stats = torch.randn(4096, 64), seen(64)
    get_method(method)(weights[:8], stats, "50%:row", hours=1e-2)
    with pytest.raises(mp.PruneError, match=r"would take about .* hours for this layer: .* hours="):
        get_method(method)(weights, stats, "50%:row", hours=1e-8)
    for hours in (0, -1, math.nan):
        with pytest.raises(mp.PruneError, match="hours"):
            get_method(method)(weights, stats, "50%:row", hours=hours)


@pytest.mark.parametrize(
    "method, most", [("wanda", 0.1), ("sparsegpt", 2.3), ("admm", 2.3), ("alps", 3.3), ("exact", 5.2), ("obs", 3.1)]
)
def test_the_memory_of_a_method_in_gram_matrices_besides_the_one_that_it_is_given(method, most):
    """A layer with few outputs, as the Gram matrix is what is large; the solvers' chunks have their own bounds.

    obs works on two rows at least, whose vectors are (2, 512, 1024) numbers here: one of its 3.1.
    """
    d, stats = 1024, mp.Statistics(1024).update(torch.randn(1500, 1024, generator=torch.Generator().manual_seed(0)))
    weights, gram = torch.randn(4, d, generator=torch.Generator().manual_seed(1)), stats.gram
    with Peak() as peak:
        mp.METHODS[method](weights, stats, "50%:row", **({"memory": 1e6} if method == "obs" else {}))
    assert peak.most / (gram.numel() * 4) <= most
    assert method == "wanda" or peak.most / (gram.numel() * 4) > 1.5  # it does see them


@pytest.mark.parametrize("power", [-110, -70, 70, 110])
@pytest.mark.parametrize("pattern", ["50%", "2:4", "37%:row"])
@pytest.mark.parametrize("method", mp.METHODS)
def test_weights_of_any_size_are_pruned_as_those_of_a_usual_size(method, pattern, power, generator):
    """Squares of the smallest and the largest float32 are none, and all that are none are alike."""
    W, X = (torch.randn(rows, 32, generator=generator) for rows in (12, 100))
    stats = mp.Statistics(32).update(X)
    expected = mp.METHODS[method](W, stats, pattern)
    found = mp.METHODS[method](W * 2.0**power, stats, pattern)
    assert torch.equal(found.keep, expected.keep)
    torch.testing.assert_close(found.weight.double() * 2.0**-power, expected.weight.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [Fraction(1, 50), np.float32(0.02), np.float64(0.02), 1, 10**30])
def test_an_option_may_be_a_number_of_any_library(value):
    for method in ("sparsegpt", "obs", "exact", "admm", "alps"):
        found = mp.METHODS[method](W, seen(), "50%", damp=value)
        assert torch.equal(found.weight, mp.METHODS[method](W, seen(), "50%", damp=float(value)).weight)
    by_size = mp.METHODS["sparsegpt"](W, seen(), "50%", block_size=np.int64(4))
    assert torch.equal(by_size.weight, mp.METHODS["sparsegpt"](W, seen(), "50%", block_size=4).weight)


class Halves:
    """A method that is an object, with the threshold that it was made with."""

    def __init__(self, function):
        self.function = function

    def __call__(self, W, stats, pattern):
        return self.function(W, stats, pattern)


@pytest.mark.parametrize(
    "wrapped, name",
    [
        (wanda, "wanda"),
        (partial(wanda), "wanda"),
        (partial(partial(wanda)), "wanda"),
        (Halves(wanda), "Halves"),
        (lambda W, stats, pattern: wanda(W, stats, pattern), "<lambda>"),
    ],
)
def test_a_method_of_ones_own_may_be_whatever_can_be_called(wrapped, name):
    """A partial or an object prunes as the function inside it does, and the report says what it is called."""
    model, twin = tiny_model("llama"), tiny_model("llama")
    method = Method(wrapped, needs="norms")
    report = mp.prune(model, tiny_tokens(), method, "2:4")
    mp.prune(twin, tiny_tokens(), "wanda", "2:4")
    assert method.name == report.method == name
    assert all(torch.equal(value, other) for value, other in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("arguments, reason", [((3, "norms"), "function"), ((wanda, "norm"), "nothing, norms, gram")])
def test_a_method_that_could_not_run_is_refused_when_it_is_made(arguments, reason):
    with pytest.raises(mp.PruneError, match=reason):
        Method(*arguments)


@pytest.mark.parametrize(
    "answer", [lambda W: W * 0, lambda W: None, lambda W: (W * 0, W == 0), lambda W: Result(None, W == 0)]
)
def test_a_method_that_gives_no_result_is_an_error_that_names_it(answer):
    model = tiny_model("llama")
    dense = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(mp.PruneError, match="Result"):
        mp.prune(model, None, Method(lambda W, stats, pattern: answer(W), needs="nothing"), "50%")
    assert all(torch.equal(value, other) for value, other in zip(model.parameters(), dense, strict=True))
