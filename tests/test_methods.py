"""What METHODS refuses for every method, before the method itself looks at its arguments."""

import math

import pytest
import torch

import minprune as mp

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
    from minprune.methods import get_method

    with pytest.raises(ValueError, match="saw no input"):
        get_method("magnitude+exact")(W, mp.Statistics(8), "50%")
