"""The pattern of zeros in a weight matrix, found again from the weights alone."""

import pytest
import torch

import minprune as mp
from minprune.models.detect import detect_pattern


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("2:4", "2:4"), ("4:8", "4:8"), ("1:4", "1:4"), ("1:2", "1:2"), ("3:16", "3:16"), ("5:6", "5:6"),
        ("50%:row", "per row"), ("70%:layer", "unstructured"), ("block16:50%", "block16"), ("block4:25%", "block4"),
        ("0%", "dense"), ("100%", "all zero"), ("0.5%", "dense"),
    ],
)  # fmt: skip
def test_each_pattern_is_found_again(pattern, name, generator):
    W = torch.randn(96, 192, generator=generator)
    assert detect_pattern(mp.METHODS["magnitude"](W, None, mp.pattern(pattern)).weight) == name


def test_a_kept_weight_may_be_zero(generator):
    W = mp.METHODS["magnitude"](torch.randn(96, 192, generator=generator), None, mp.pattern("2:4")).weight
    kept = W.nonzero()[torch.arange(0, 90, 2)]  # 45 of 9216 kept weights
    W[kept[:, 0], kept[:, 1]] = 0
    assert detect_pattern(W) == "2:4"


def test_one_group_with_too_many_weights_is_not_2_of_4(generator):
    W = mp.METHODS["magnitude"](torch.randn(96, 192, generator=generator), None, mp.pattern("2:4")).weight
    W[50, :4] = 1
    assert detect_pattern(W) == "unstructured"
