"""The kernel's products are those of the dense matrix, whatever the format, type, size, tokens and instructions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minprune.errors import PruneError
from minprune.formats.bitmask import Bitmask
from minprune.formats.csr import CSR
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense
from minprune.kernels import build, product
from minprune.kernels.product import Packed, pack_for_kernel

LEVELS = build.LEVELS[: (build.kernel()[0].library.minprune_best_level() + 1) if build.kernel()[0] else 0]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    found, _ = build.kernel()
    monkeypatch.setattr(product, "kernel", lambda: (build.Kernel(found.library, LEVELS.index(request.param)), ""))
    return request.param


def test_there_is_a_kernel_here_since_there_is_a_compiler():
    assert build.compiler_path() and build.kernel()[0] is not None


def rounding(X, W, integers):
    """What sums in float32 may be off by; beside integers also inputs rounded to 2^-30 of the largest of 64 columns."""
    X, W = X.double().abs(), W.double().abs()
    bound = 1e-6 * (X @ W.T) + 1e-12
    for x, w in zip(X.split(64, 1), W.split(64, 1), strict=True):
        bound += 2.0**-30 * integers * x.amax(1, keepdim=True) * w.sum(1)
    return bound


def weights(rows, columns, share, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(rows, columns, generator=draw) >= share
    if dtype == torch.int8:
        W = torch.randint(-128, 128, (rows, columns), generator=draw).to(dtype)
    else:
        W = torch.randn(rows, columns, generator=draw).to(dtype)
    return W * keep, keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 200),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.integers(1, 19),
    st.integers(0, 99),
)
def test_bitmask_and_dense_products_are_exact_up_to_rounding(dtype, rows, columns, share, tokens, seed):
    W, keep = weights(rows, columns, share, dtype, seed)
    X = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed + 1))
    expected = X.double() @ W.double().T
    bound = rounding(X, W, dtype == torch.int8)
    found, _ = build.kernel()
    for level in range(len(LEVELS)):
        product.kernel = lambda level=level: (build.Kernel(found.library, level), "")
        try:
            for stored in (Bitmask.from_dense(W, keep), Dense.from_dense(W)):
                got = pack_for_kernel(stored).matmul(X)
                assert ((got.double() - expected).abs() <= bound).all(), (LEVELS[level], stored.name)
        finally:
            product.kernel = build.kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_two_of_four(level, dtype, tokens):
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(33, 136, generator=draw)
    W *= (torch.rand(33, 34, 4, generator=draw).argsort(2).argsort(2) < 2).flatten(1)  # two of each four
    W = W.to(dtype)
    X = torch.randn(tokens, 136, generator=draw)
    got = pack_for_kernel(NMPacked.from_dense(W)).matmul(X)
    assert torch.allclose(got, (X.double() @ W.double().T).float(), atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("columns", [64, 96, 128, 200])
def test_four_bits_with_scales_for_groups(level, tokens, columns):
    draw = torch.Generator().manual_seed(columns)
    rows, group = 9, 32
    codes = torch.randint(-8, 8, (rows, columns), generator=draw)
    keep = torch.rand(rows, columns, generator=draw) < 0.5
    scales = torch.rand(rows, -(-columns // group), generator=draw)
    parts, starts = [], [0]
    for row in range(rows):
        kept = codes[row][keep[row]].tolist()
        kept += [0] * (len(kept) % 2)
        parts += [(low & 15) | (high & 15) << 4 for low, high in zip(kept[::2], kept[1::2], strict=True)]
        starts.append(starts[-1] + len(kept))
    bits = Bitmask.from_dense(keep.float(), keep).bits
    packed = Packed(
        (rows, columns), torch.tensor(parts, dtype=torch.uint8), bits, torch.tensor(starts), scales, group, kind=3
    )
    W = codes * keep * scales.repeat_interleave(group, 1)[:, :columns]
    X = torch.randn(tokens, columns, generator=draw)
    assert torch.allclose(packed.matmul(X), X @ W.T, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 30),
    st.integers(1, 6),
    st.sampled_from([8, 24, 64]),
    st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_stored_integers_are_multiplied_as_they_are(bits, rows, groups, width, share, symmetric, tokens, seed):
    """Against the dense product in float64, in every layout that turns out to be the smallest."""
    draw = torch.Generator().manual_seed(seed)
    most = 2 ** (bits - 1) - 1
    low, high = (-most, most) if symmetric or bits == 8 else (-(2 ** (bits - 1)), most)
    whole = torch.randint(low, high + 1, (rows, groups * width), generator=draw)
    whole *= torch.rand(whole.shape, generator=draw) >= share
    scales = 2.0 ** torch.randint(-8, 2, (rows, groups), generator=draw)
    W = whole * scales.repeat_interleave(width, 1)
    stored = Integers.from_dense(W, bits=bits, group=width)
    X = torch.randn(tokens, groups * width, generator=draw)
    expected = X.double() @ W.double().T
    bound = 2 * rounding(X, W, integers=True)
    packed, (found, _) = pack_for_kernel(stored), build.kernel()
    assert packed.kind == (3 if bits <= 4 else packed.kind) and torch.equal(packed.to_dense(), W)
    for level in range(len(LEVELS)):
        product.kernel = lambda level=level: (build.Kernel(found.library, level), "")
        try:
            assert ((packed.matmul(X).double() - expected).abs() <= bound).all(), (LEVELS[level], stored.label)
        finally:
            product.kernel = build.kernel


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_scale_with_their_inputs_and_pass_on_what_is_no_number(level, bits):
    draw = torch.Generator().manual_seed(bits)
    W = torch.randint(-7, 8, (6, 128), generator=draw) * (torch.rand(6, 128, generator=draw) < 0.5).float()
    packed = pack_for_kernel(Integers.from_dense(W * 2 ** (bits - 4), bits=bits, group=32))
    X = torch.randn(3, 128, generator=draw)
    plain = packed.matmul(X)
    for power in (-80, -3, 60, 100):
        assert torch.equal(packed.matmul(X * 2.0**power), plain * 2.0**power)
    X[1, 5], X[2, 100] = float("nan"), float("inf")
    got = packed.matmul(X)
    touched = packed.to_dense()[:, [5, 100]] != 0
    assert torch.equal(got[0], plain[0])  # tokens do not meet
    assert got[1][touched[:, 0]].isnan().all() and not got[2][touched[:, 1]].isfinite().any()


def test_integers_that_fit_no_kind_are_refused():
    W = torch.arange(256.0)[None]  # 0..255 are 8 bits without a sign
    with pytest.raises(PruneError, match="from 0 to 255 in groups of 256"):
        pack_for_kernel(Integers.from_dense(W, bits=8, group=256))
    with pytest.raises(PruneError, match="groups of 4 inputs"):
        pack_for_kernel(Integers.from_dense(torch.ones(2, 8), bits=4, group=4))


def test_the_dtype_and_leading_shape_of_the_inputs_come_back(level):
    W, keep = weights(8, 24, 0.5, torch.bfloat16, 0)
    packed = pack_for_kernel(Bitmask.from_dense(W, keep))
    X = torch.randn(2, 3, 24).bfloat16()
    assert packed.matmul(X).dtype == torch.bfloat16 and packed.matmul(X).shape == (2, 3, 8)
    assert packed.matmul(X[:0]).shape == (0, 3, 8)


def test_what_the_kernel_cannot_read_is_refused():
    W = torch.eye(8)
    with pytest.raises(PruneError, match="bitmask, nm 2:4 or dense"):
        pack_for_kernel(CSR.from_dense(W))
    with pytest.raises(PruneError, match="float64"):
        pack_for_kernel(Dense.from_dense(W.double()))
    with pytest.raises(PruneError, match=r"\(\.\.\., 8\)"):
        pack_for_kernel(Dense.from_dense(W)).matmul(torch.ones(2, 9))


def test_without_a_compiler_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "nothing"))
    build.kernel.cache_clear()
    try:
        found, why = build.kernel()
        assert found is None and "no C compiler" in why
    finally:
        build.kernel.cache_clear()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'x.c:1: error: no' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(PruneError, match="error: no"):
        build.build(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
