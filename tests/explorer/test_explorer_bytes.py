"""The bytes page counts as the package does, and its predicted times follow the two limits that it states."""

import itertools

import pytest
import torch
from javascript import call, script

from minprune.formats import CSR, Bitmask, NMPacked, sizes

SPARSITIES = (0.0, 0.1, 0.5, 0.63, 0.9, 0.99)


@pytest.fixture(scope="module")
def engine():
    return script("bytes.js")


def test_bits_and_break_even_points_are_those_of_the_package(engine):
    for s, b, i, length in itertools.product(SPARSITIES, (4, 8, 16, 32), (8, 16, 32, 64), (256, 4096)):
        found = call(engine, "formatsAt", s, {"b": b, "i": i, "length": length, "work": 3})
        expected = {
            "dense": sizes.dense_bits(b),
            "bitmask": sizes.bitmask_bits(s, b),
            "csr": sizes.csr_bits(s, b, i, length),
            "nm24": sizes.nm_bits(2, 4, b),
            "nm14": sizes.nm_bits(1, 4, b),
        }
        assert {name: form["bits"] for name, form in found.items()} == pytest.approx(expected)
        assert call(engine, "entropyBits", s, b) == pytest.approx(sizes.entropy_bits(s, b))
        assert call(engine, "csrBreakEven", b, i, length) == pytest.approx(sizes.csr_break_even(b, i, length))
        assert call(engine, "bitmaskBreakEven", b) == pytest.approx(sizes.bitmask_break_even(b))


def test_the_bytes_are_those_of_stored_matrices(engine):
    side = 256
    scores = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    for zeros in (0.25, 0.5, 0.9):
        W = torch.where(scores < zeros, 0, 1).half()
        share = float((W == 0).double().mean())
        found = call(engine, "formatsAt", share, {"b": 16, "i": 16, "length": side, "work": 0})
        csr = CSR.from_dense(W, index=torch.uint16, pointer=torch.uint32).nbytes
        assert found["bitmask"]["bits"] * side**2 / 8 == pytest.approx(Bitmask.from_dense(W).nbytes)
        assert found["csr"]["bits"] * side**2 / 8 == pytest.approx(csr, abs=4)  # the one pointer more than lines
    W = torch.tensor([1.0, 0, 0, 1]).repeat(side, side // 4).half()
    assert found["nm24"]["bits"] * side**2 / 8 == pytest.approx(NMPacked.from_dense(W).nbytes)


def test_a_product_limited_by_reading_takes_time_in_proportion_to_its_bits(engine):
    machine = {"bandwidth": 1e6, "rate": 1e15, "tokens": 4}
    for s, b in itertools.product(SPARSITIES, (4, 16)):
        times = call(engine, "timesDense", s, {"b": b, "i": 16, "length": 1024, "work": 5}, machine)
        assert {form["bound"] for form in times.values()} == {"reading"}
        assert times["bitmask"]["ratio"] == pytest.approx(sizes.bitmask_bits(s, b) / b)
        assert times["csr"]["ratio"] == pytest.approx(sizes.csr_bits(s, b, 16, 1024) / b)
        assert times["nm24"]["ratio"] == pytest.approx(sizes.nm_bits(2, 4, b) / b)


def test_a_product_limited_by_arithmetic_takes_time_in_proportion_to_its_operations(engine):
    machine = {"bandwidth": 1e15, "rate": 1e6, "tokens": 4}
    times = call(engine, "timesDense", 0.75, {"b": 16, "i": 16, "length": 1024, "work": 6}, machine)
    assert {form["bound"] for form in times.values()} == {"arithmetic"}
    assert times["bitmask"]["ratio"] == pytest.approx((8 * 0.25 + 6) / 8)  # the mask's bits are all looked at
    assert times["csr"]["ratio"] == times["nm14"]["ratio"] == pytest.approx((8 + 6) * 0.25 / 8)


def test_from_where_a_format_is_faster_is_where_its_ratio_falls_below_one(engine):
    setting = {"b": 16, "i": 32, "length": 4096, "work": 4}
    for machine in (
        {"bandwidth": 2e10, "rate": 1e11, "tokens": 1},
        {"bandwidth": 2e10, "rate": 2e9, "tokens": 1},
        {"bandwidth": 2e12, "rate": 1e14, "tokens": 64},
    ):
        for name in ("bitmask", "csr"):
            start = call(engine, "fasterFrom", name, setting, machine)
            ratio = {s: call(engine, "timesDense", s, setting, machine)[name]["ratio"] for s in (0.0, 0.3, 0.6, 0.999)}
            for s, value in ratio.items():
                assert (value < 1) == (start is not None and s >= start), (name, s)


def test_what_the_page_says_to_try(engine):
    """25 % and 80 % at 4 bits; the advantage first shrinks with the tokens; bandwidth changes no ratio of readings."""
    assert sizes.bitmask_break_even(4) == 0.25 and sizes.csr_break_even(4, 16) == 0.8
    start = call(engine, "bytes.prepare", call(engine, "(() => bytes.start)"))

    def ratio(**changes):
        setting, machine = call(engine, "settingOf", {**start, **changes})
        return call(engine, "timesDense", start["sparsity"] / 100, setting, machine)["bitmask"]["ratio"]

    by_tokens = [ratio(tokens=exponent) for exponent in range(10)]
    worst = by_tokens.index(max(by_tokens))
    assert 0 < worst < 9 and by_tokens[0] < by_tokens[worst] > by_tokens[9]
    assert by_tokens[9] == pytest.approx(1 - start["sparsity"] / 100, rel=0.02)
    assert ratio(bandwidth=start["bandwidth"] - 0.3) == pytest.approx(ratio())
