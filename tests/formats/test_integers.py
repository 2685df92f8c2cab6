"""Whole numbers with scales: the weights of a quantised matrix bit for bit, in the bytes of the formula."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokens

import minprune as mp
from minprune.compress.gptq import rtn
from minprune.formats import Integers, store
from minprune.formats.integers import whole_numbers
from minprune.output.record import RunRecord

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_grid(d_out, d_in, bits, group, sparsity, seed, dtype=torch.float32, kind="asymmetric"):
    """A matrix that was rounded, by our own code, with random zeros."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=generator) * 10 ** float(torch.randn(1, generator=generator))
    W *= torch.rand(d_out, d_in, generator=generator) >= sparsity
    stats = mp.Statistics(d_in, gram=False)
    return rtn(W.to(dtype), stats, mp.pattern("0%"), bits=bits, group=group, grid=kind).weight


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 9), st.sampled_from([8, 16, 48]), st.integers(2, 8), st.sampled_from([0, 8, 4]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.integers(0, 10**6), st.sampled_from(DTYPES),
    st.sampled_from(["asymmetric", "symmetric"]),
)  # fmt: skip
def test_a_rounded_matrix_comes_back_bit_for_bit(d_out, d_in, bits, group, sparsity, seed, dtype, kind):
    W = on_grid(d_out, d_in, bits, group, sparsity, seed, dtype, kind)
    stored = Integers.from_dense(W, bits=bits, group=group)
    assert stored.weight_dtype == dtype and torch.equal(stored.to_dense(), W)
    assert torch.equal(torch.cat(list(stored.tiles(2))), W)


def test_the_bytes_are_those_of_the_formula():
    d_out, d_in, bits, group = 64, 256, 4, 64
    W = on_grid(d_out, d_in, bits, group, 0.5, 0)
    stored = Integers.from_dense(W, bits=bits, group=group)
    kept, groups = int((W != 0).sum()), d_out * d_in // group
    assert stored.layout == "bitmask"
    assert stored.nbytes == d_out * d_in // 8 + -(-kept * bits // 8) + 2 * groups + groups * bits // 8
    dense = Integers.from_dense(on_grid(d_out, d_in, bits, group, 0.0, 0), bits=bits, group=group)
    assert dense.layout == "dense" and dense.nbytes == d_out * d_in // 2 + 2 * groups + groups * bits // 8


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_a_pattern_of_groups_is_found(n, m):
    score = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    W = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) * mp.pattern(f"{n}:{m}").keep(score)
    W = rtn(W, mp.Statistics(64, gram=False), mp.pattern("0%"), bits=8, group=32).weight
    stored = Integers.from_dense(W, bits=8, group=32)
    assert torch.equal(stored.to_dense(), W)
    if (n, m) == (1, 4):  # 2.5 bits of places and codes a weight, where a mask takes one and codes two
        assert stored.label == "integers of 8 bits, nm 1:4"


def test_half_the_weights_and_four_bits_take_at_most_3_2_bits():
    model = tiny_model("llama", torch.float32, hidden_size=256, intermediate_size=512)
    mp.prune(model, None, "magnitude", "50%")
    mp.quantize(model, None, bits=4, group=128, method="rtn", grid="symmetric")
    layers = mp.find_layers(model)
    size = sum(store(layer.weight, grid=(4, 128)).nbytes for layer in layers)
    assert 8 * size / sum(layer.weight.numel() for layer in layers) <= 3.2


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_and_codes_agree_with_a_search_over_all_scales(dtype):
    for seed in range(20):
        W = on_grid(1, 8, 3, 0, 0.2, seed, dtype)
        scales, whole = whole_numbers(W, 3, 0)
        assert torch.equal((scales[..., None] * whole).to(dtype).flatten(1), W)
        values = W.float().numpy().astype(np.float64)
        assert values.any() and int(whole.max()) - min(int(whole.min()), 0) < 8
        ratio = values / float(scales)
        assert np.abs(ratio - ratio.round()).max() < 8 * 2.0**-8


def test_weights_on_no_grid_are_refused_with_their_place():
    W = on_grid(4, 64, 4, 32, 0.5, 3)
    W[2, 40] = 0.1234567
    with pytest.raises(mp.PruneError, match=r"1 groups are on no grid of 4 bits.*row 2, inputs 32 to 63"):
        Integers.from_dense(W, bits=4, group=32)
    assert store(W, grid=(4, 32)).name == "bitmask"
    with pytest.raises(mp.PruneError, match="how these weights were quantised"):
        store(W, "integers")
    with pytest.raises(mp.PruneError, match="groups of 48"):
        store(W, "integers", grid=(4, 48))
    minimum = rtn(
        torch.rand(4, 64) + 1, mp.Statistics(64, gram=False), mp.pattern("0%"), bits=4, group=32, grid="minimum"
    )
    with pytest.raises(mp.PruneError, match="a level at 0"):
        Integers.from_dense(minimum.weight, bits=4, group=32)


@pytest.mark.parametrize(
    "broken",
    [
        {"bits": 9}, {"layout": "else"}, {"dtype": "int8"}, {"values": torch.ones(3, 2)}, {"codes": torch.zeros(3)},
        {"values": -torch.ones(4, 2)}, {"zeros": torch.zeros(4, 5, dtype=torch.uint8)}, {"values": torch.ones(4, 3)},
        {"places": torch.zeros(4, 1, dtype=torch.uint8)}, {"layout": "nm", "n": 2, "m": 4}, {"layout": "dense"},
    ],
)  # fmt: skip
def test_arrays_of_no_matrix_are_refused(broken):
    stored = Integers.from_dense(on_grid(4, 64, 4, 32, 0.6, 5), bits=4, group=32)
    assert stored.layout == "bitmask"
    with pytest.raises(mp.PruneError):
        replace(stored, **broken)


ARRAYS = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 9), max_size=3), st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.int64]),
    st.integers(0, 99),
)  # fmt: skip
NUMBERS = st.one_of(st.integers(-3, 40), st.sampled_from(["4", None, [4], 4.0, True, {}]))
WORDS = st.one_of(st.sampled_from(["dense", "bitmask", "nm", "int8", "float32", "bfloat16"]), NUMBERS)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["values", "codes", "zeros", "places"]), ARRAYS, max_size=2),
    st.dictionaries(st.sampled_from(["bits", "n", "m"]), NUMBERS, max_size=3),
    st.dictionaries(st.sampled_from(["layout", "dtype"]), WORDS, max_size=2),
    st.integers(0, 3),
)
def test_whatever_a_file_says_there_is_a_matrix_or_one_line(arrays, numbers, words, seed):
    stored = Integers.from_dense(on_grid(4, 64, 4, 32, (0.0, 0.5, 0.6, 0.9)[seed], seed), bits=4, group=32)
    try:
        made = replace(stored, **arrays, **numbers, **words)
    except mp.PruneError:
        return
    assert made.to_dense().shape == (4, 64)


def test_the_command_line_stores_a_quantised_model_and_loads_it_again(run, tiny_folder, text_file):
    given = ("--calibration", text_file, "--samples", 4, "--length", 16, "--no-test")
    code, _, err = run("quantize", tiny_folder, "--bits", 4, "--group", 16, "--pattern", "50%", *given, "--output", "q")
    assert code == 0, err
    code, out, err = run("export", "q", "--output", "small")
    assert code == 0 and "integers of 4 bits" in out, err
    matrices = json.loads(Path("small/formats.json").read_text())["matrices"]
    assert {entry["format"] for entry in matrices.values()} == {"integers"}
    quantised, tokens = mp.load_model("q")[0], tiny_tokens()
    stored, sparse = mp.load_model("small")[0], mp.load_model("small", sparse=True)[0]
    with torch.no_grad():
        wanted = quantised(tokens).logits
        assert torch.equal(stored(tokens).logits, wanted)
        torch.testing.assert_close(sparse(tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    assert mp.load_model("small", "bfloat16")[0].dtype == torch.bfloat16
    assert run("export", tiny_folder, "--format", "integers", "--output", "none")[0] == 2
    assert run("export", tiny_folder, "--format", "integers", "--bits", 4, "--output", "none")[0] == 2
    assert not Path("none").exists()


def test_a_grid_in_numbers_of_numpy_is_the_same_grid(tmp_path):
    """As a caller's loop over np.arange gives them, from the rounding to the folder that is loaded again."""
    model, grid = tiny_model("llama"), (np.int64(4), np.int64(16))
    report = mp.quantize(model, tiny_tokens(), bits=grid[0], group=grid[1])
    expected = tiny_model("llama")
    mp.quantize(expected, tiny_tokens(), bits=4, group=16)
    layers = list(zip(mp.find_layers(model), mp.find_layers(expected), strict=True))
    assert all(torch.equal(one.weight, other.weight) for one, other in layers)
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["options"] == {
        "bits": 4,
        "group": 16,
        "grid": "asymmetric",
    }
    assert RunRecord.of(report).grid == (4, 16)
    stored, usual = (store(layers[0][0].weight, "integers", grid=found) for found in (grid, (4, 16)))
    assert stored.settings() == usual.settings() and torch.equal(stored.to_dense(), usual.to_dense())
    assert json.loads(json.dumps(stored.settings()))["bits"] == 4
