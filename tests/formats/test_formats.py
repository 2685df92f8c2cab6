"""Every format gives back the bits it was given, multiplies like the dense matrix, and has the bytes of its formula.

Compared with scipy.sparse, torch.sparse, NumPy's packbits, torch's own layout for sparse tensor cores, and brute force.
"""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minprune import NM, PruneError
from minprune.formats import BSR, CSC, CSR, FORMATS, Bitmask, NMPacked, predicted_bytes, sizes, store
from minprune.formats.stored import pack, packed_bytes, unpack

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8]
WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(W):
    """The bits of a tensor as whole numbers, so that NaN equals NaN and 0.0 is not -0.0."""
    return W.contiguous().view(WIDTH[W.element_size()])


def sparse(d_out, d_in, density, seed=0, dtype=torch.float32):
    """A matrix of random bits (NaN, infinity and subnormals among the floats) with random zeros, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (d_out * d_in * width,), generator=generator, dtype=torch.uint8)
    W = raw.view(dtype).view(d_out, d_in)
    keep = torch.rand(d_out, d_in, generator=generator) < density
    W[~keep] = 0
    return W, keep


def normal(d_out, d_in, density=0.5, seed=0, dtype=torch.float32):
    """A matrix of normal numbers with random zeros."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(d_out, d_in, generator=generator) < density
    return (torch.randn(d_out, d_in, generator=generator) * keep).to(dtype)


def every_format(W, keep=None):
    """W in every format that takes it, under the settings that suit it."""
    for (name, options), size in predicted_bytes((W != 0) if keep is None else keep, W.element_size()).items():
        yield FORMATS[name].from_dense(W, keep, **dict(options)), size


matrices = st.builds(
    sparse,
    d_out=st.sampled_from([0, 1, 3, 8, 16, 40]),
    d_in=st.sampled_from([0, 1, 4, 9, 16, 32, 300]),
    density=st.sampled_from([0, 0.05, 0.5, 1]),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
)


@given(matrices)
@settings(max_examples=150, deadline=None)
def test_round_trip_is_bit_exact_and_the_bytes_are_those_predicted(made):
    W, _ = made
    positive = torch.where(W == 0, torch.zeros_like(W), W)  # -0.0 among the random bits counts as a zero
    seen = 0
    for stored, size in every_format(W):
        expected = W if stored.name in ("dense", "block", "nm") else positive
        dense = stored.to_dense()
        assert dense.shape == W.shape and dense.dtype == W.dtype
        if stored.name in ("block", "nm"):  # store zeros of their own choice, with their sign
            assert torch.equal(bits(dense)[W != 0], bits(W)[W != 0]) and bool((dense[W == 0] == 0).all())
        else:
            assert torch.equal(bits(dense), bits(expected))
        assert stored.nbytes == size == sum(a.numel() * a.element_size() for a in stored.arrays().values())
        again = type(stored)(**stored.arrays(), **stored.settings())
        assert torch.equal(bits(again.to_dense()), bits(dense))
        seen += 1
    assert seen >= 4


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_with_a_mask_kept_zeros_are_stored_with_their_sign(made):
    W, keep = made
    W[:, ::3] = torch.where(keep, -torch.zeros_like(W), torch.zeros_like(W))[:, ::3]  # -0.0 that the mask keeps
    for stored, _ in every_format(W, keep):
        assert torch.equal(bits(stored.to_dense()), bits(W)), stored.name
    assert len(Bitmask.from_dense(W, keep).values) == int(keep.sum())
    assert torch.equal(Bitmask.from_dense(W, keep).mask(), keep)


def test_negative_zero_is_not_stored_and_comes_back_positive():
    """A mask applied by a product leaves -0.0, which would otherwise double the bytes of a pruned matrix."""
    W = torch.tensor([[-1.0, 2.0, -3.0, 4.0]])
    pruned = W * torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert bits(pruned)[0, 0] != 0  # it is -0.0
    for form in (CSR, CSC, Bitmask):
        stored = form.from_dense(pruned)
        assert stored.values.tolist() == [-3, 4]
        assert stored.to_dense().signbit().tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e39])
def test_zero_times_infinity_is_nan_in_every_format_as_in_the_sum_over_all_inputs(name, bad):
    """Input 0 is read by no stored weight, input 5 by some; the other tokens are as they are without that one."""
    W = normal(16, 32)
    W = W * NM(2, 4).keep(W.abs().double())
    W[:, 0] = 0
    W[:8, :8] = 0
    X = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    X[1, 0] = X[2, 5] = bad
    options = {"block": {"size": 8}, "nm": {"n": 2, "m": 4}}.get(name, {})
    stored = FORMATS[name].from_dense(W, **options)
    X = X.float()  # in which 1e39 is infinity
    found, expected = stored.matmul(X), (X[:, None, :] * W.float()).sum(2)  # (tokens, d_out)
    assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert found[1].isnan().all() and found[0].isfinite().all()
    assert_close(
        found[[0, 3]], stored.matmul(X[[0, 3]]), rtol=1e-5, atol=1e-6
    )  # two rows may be summed in another order


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [(1,), (0,), (2, 3), ()])
def test_matmul_is_the_dense_product(name, dtype, tokens):
    W = normal(48, 64, dtype=dtype)
    W = W * NM(2, 4).keep(W.abs().double()).to(dtype)
    W[:16, :32] = 0
    options = {"block": {"size": 8}, "nm": {"n": 2, "m": 4}}.get(name, {})
    X = torch.randn(*tokens, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = FORMATS[name].from_dense(W, **options).matmul(X)
    assert got.dtype == dtype
    assert_close(got.double(), X.double() @ W.double().T, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    if dtype == torch.float64:
        assert_close(got, X @ W.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool])
def test_small_values_are_multiplied_in_float32(name, dtype):
    """torch promotes no 8-bit floats."""
    W = (3 * normal(8, 16, density=0.9) * torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat(4)).to(dtype)
    X = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    stored = FORMATS[name].from_dense(W, **({"size": 4} if name == "block" else {}))
    assert torch.equal(stored.to_dense().float(), W.float())
    assert_close(stored.matmul(X), X @ W.float().T)
    assert stored.matmul(X.half()).dtype == torch.float16


@pytest.mark.parametrize("tokens", [(3,), (2, 3), ()])
def test_a_layer_without_inputs_gives_zeros(tokens):
    for stored, _ in every_format(torch.zeros(8, 0)):
        assert torch.equal(stored.matmul(torch.ones(*tokens, 0)), torch.zeros(*tokens, 8)), stored.name


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_tiles_are_the_rows_in_order(rows):
    W = normal(40, 32)
    for stored, _ in every_format(W):
        tiles = list(stored.tiles(rows))
        assert torch.equal(torch.cat(tiles), W), stored.name
        assert max(len(tile) for tile in tiles) == min(rows, 40)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("form", "theirs"), [(CSR, scipy.sparse.csr_array), (CSC, scipy.sparse.csc_array)])
def test_csr_and_csc_are_those_of_scipy_and_torch(form, theirs):
    W = normal(70, 300, 0.3)
    W[5] = 0
    W[:, 9] = 0
    stored, other = form.from_dense(W), theirs(W.numpy())
    in_torch = W.to_sparse_csr() if form is CSR else W.to_sparse_csc()
    pointers = in_torch.crow_indices() if form is CSR else in_torch.ccol_indices()
    places = in_torch.col_indices() if form is CSR else in_torch.row_indices()
    for mine, scipys, torchs in (
        (stored.values, other.data, in_torch.values()),
        (stored.indices.long(), other.indices, places),
        (stored.pointers.long(), other.indptr, pointers),
    ):
        assert np.array_equal(mine.numpy(), scipys) and torch.equal(mine, torchs)
    X = torch.randn(4, 300, generator=torch.Generator().manual_seed(1))
    assert_close(stored.matmul(X).numpy(), (other @ X.numpy().T).T, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_blocks_are_those_of_scipy_and_torch():
    W = normal(48, 64)
    W[:16, 16:48] = 0
    W[32:, :32] = 0
    stored, other = BSR.from_dense(W, size=16), scipy.sparse.bsr_array(W.numpy(), blocksize=(16, 16))
    in_torch = W.to_sparse_bsr((16, 16))
    assert torch.equal(stored.values, in_torch.values()) and np.array_equal(stored.values.numpy(), other.data)
    assert stored.indices.tolist() == in_torch.col_indices().tolist() == other.indices.tolist()
    assert stored.pointers.tolist() == in_torch.crow_indices().tolist() == other.indptr.tolist()


def test_the_bitmask_is_that_of_numpy():
    W = normal(9, 37)
    stored = Bitmask.from_dense(W)
    assert np.array_equal(stored.bits.numpy(), np.packbits(W.numpy() != 0, axis=1, bitorder="little"))


@pytest.mark.parametrize("count", range(1, 9))
def test_packed_codes_are_the_digits_of_one_long_number(count):
    """A row of codes is the number sum_k code_k 2^(k bits), its bytes from the lowest on."""
    codes = torch.randint(0, 2**count, (5, 21), generator=torch.Generator().manual_seed(count))
    packed = pack(codes, count)
    for row, stored in zip(codes.tolist(), packed, strict=True):
        number = sum(code << (k * count) for k, code in enumerate(row))
        assert bytes(stored.tolist()) == number.to_bytes(packed_bytes(21, count), "little")
    assert torch.equal(unpack(packed, count, 21).long(), codes)


def test_2_4_is_the_layout_of_sparse_tensor_cores():
    """Our codes, read as int16 and put in the order of the hardware, are what torch decodes to the same matrix."""
    theirs = pytest.importorskip("torch.sparse._semi_structured_conversions")
    W = normal(64, 128, 1, dtype=torch.float16)
    W = W * NM(2, 4).keep(W.abs().float())
    stored = NMPacked.from_dense(W)
    values, in_order = theirs.sparse_semi_structured_from_dense_cutlass(W)
    assert torch.equal(values, stored.values)
    mine = stored.codes.view(torch.int16)  # (64, 8): four groups in each
    offsets = theirs._calculate_meta_reordering_scatter_offsets(*mine.shape, torch.int16, mine.device)
    reordered = mine.new_empty(mine.numel()).scatter_(0, offsets, mine.flatten()).view(mine.shape)
    assert torch.equal(reordered, in_order)
    assert torch.equal(theirs.sparse_semi_structured_to_dense_cutlass(stored.values, reordered), W)


def test_a_group_that_is_not_full_is_filled_with_zeros_in_ascending_places():
    W = torch.tensor([[0, 0, 0, 5.0], [0, 6.0, 0, 0], [0, 0, 0, 0], [7.0, 0, 8.0, 0]])
    stored = NMPacked.from_dense(W)
    assert stored.places().squeeze(1).tolist() == [[0, 3], [0, 1], [0, 1], [0, 2]]
    assert stored.values.tolist() == [[0, 5], [0, 6], [0, 0], [7, 8]]
    assert stored.codes.flatten().tolist() == [0 | 3 << 2, 0 | 1 << 2, 0 | 1 << 2, 0 | 2 << 2]


@pytest.mark.parametrize("value_bytes", [1, 2, 4, 8])
def test_the_formulas_are_the_bytes(value_bytes):
    dtype = {1: torch.int8, 2: torch.float16, 4: torch.float32, 8: torch.float64}[value_bytes]
    W = torch.ones(64, 1024, dtype=dtype) * NM(3, 8).keep(torch.rand(64, 1024))
    s, b = 1 - 3 / 8, 8 * value_bytes

    def measured(stored):
        return 8 * stored.nbytes / W.numel()

    for index, pointer in ((torch.uint16, torch.uint32), (torch.uint32, torch.uint32), (torch.int64, torch.int64)):
        i, p = 8 * index.itemsize, 8 * pointer.itemsize
        last = p / W.numel()  # one pointer more than lines
        found = measured(CSR.from_dense(W, index=index, pointer=pointer))
        assert found == pytest.approx(sizes.csr_bits(s, b, i, 1024, p) + last, rel=1e-12)
    assert measured(Bitmask.from_dense(W)) == pytest.approx(sizes.bitmask_bits(s, b), rel=1e-12)
    assert measured(NMPacked.from_dense(W, n=3, m=8)) == pytest.approx(sizes.nm_bits(3, 8, b), rel=1e-12)
    assert sizes.entropy_bits(s, b) < sizes.bitmask_bits(s, b)
    half = W.clone()
    half.view(8, 8, 128, 8)[::2] = 0
    blocks = measured(BSR.from_dense(half, size=8))
    assert blocks == pytest.approx(sizes.block_bits(0.5, b, 8, 8, 1024, 16) + 16 / W.numel(), rel=1e-12)


@pytest.mark.parametrize("value_bits", [4, 8, 16, 32])
def test_at_break_even_a_format_is_as_large_as_dense(value_bits):
    for index in (16, 32, 64):
        s = sizes.csr_break_even(value_bits, index, 576)
        assert sizes.csr_bits(s, value_bits, index, 576) == pytest.approx(value_bits)
        assert sizes.csr_bits(s + 0.01, value_bits, index, 576) < value_bits
    s = sizes.bitmask_break_even(value_bits)
    assert sizes.bitmask_bits(s, value_bits) == pytest.approx(value_bits)
    assert sizes.bitmask_bits(s + 0.01, value_bits) < value_bits


@pytest.mark.parametrize(("shape", "index"), [((4, 256), torch.uint8), ((4, 257), torch.uint16)])
def test_indices_are_as_narrow_as_they_can_be(shape, index):
    assert CSR.from_dense(torch.ones(shape)).indices.dtype == index
    assert CSC.from_dense(torch.ones(shape[::-1])).indices.dtype == index
    assert CSR.from_dense(torch.ones(1, 65536)).indices.dtype == torch.uint16
    assert CSR.from_dense(torch.ones(1, 65536)).pointers.dtype == torch.uint32
    assert CSR.from_dense(torch.ones(1, 65537)).indices.dtype == torch.uint32


def test_auto_takes_the_smallest():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(128, 256, generator=generator)
    blocks = torch.rand(8, 16, generator=generator).repeat_interleave(16, 0).repeat_interleave(16, 1)
    for mask, name in (
        (scores >= 0, "dense"),
        (scores > 0.5, "bitmask"),
        (scores > 0.99, "csr"),
        (NM(1, 8).keep(scores), "nm"),
        (blocks > 0.5, "block"),
        (scores.T > 0.995, "csc"),
    ):
        W = torch.randn(mask.shape, generator=generator).half() * mask
        stored = store(W)
        assert stored.name == name
        assert stored.nbytes == min(every[0].nbytes for every in every_format(W))
    # with 2:4, the mask and the indices have the same bits; the bitmask is the simpler one
    assert store(scores.half() * NM(2, 4).keep(scores)).name == "bitmask"
    assert store(scores.half() * NM(2, 4).keep(scores), "nm").settings() == {"shape": (128, 256), "n": 2, "m": 4}


WRONG = {
    "no matrix": (lambda: CSR.from_dense(torch.ones(4)), "not a tensor"),
    "mask of another shape": (lambda: Bitmask.from_dense(torch.ones(2, 4), torch.ones(2, 3).bool()), "keep mask"),
    "weights outside the mask": (lambda: CSR.from_dense(torch.ones(2, 4), torch.zeros(2, 4).bool()), "8 weights"),
    "NaN outside the mask": (
        lambda: Bitmask.from_dense(torch.full((1, 8), torch.nan), torch.zeros(1, 8).bool()),
        "8 weights",
    ),
    "not 2:4": (lambda: NMPacked.from_dense(torch.tensor([[1.0, 1, 0, 0, 1, 1, 1, 0]])), "row 0, inputs 4 to 7"),
    "no groups": (lambda: NMPacked.from_dense(torch.ones(2, 6)), "6 inputs"),
    "no blocks": (lambda: BSR.from_dense(torch.ones(2, 6), size=4), "do not divide 2 x 6"),
    "unknown": (lambda: store(torch.ones(2, 2), "zip"), "unknown format 'zip'"),
    "nm of a dense matrix": (lambda: store(torch.ones(8, 8), "nm"), "use auto"),
    "values that torch does not scatter": (
        lambda: NMPacked.from_dense(torch.ones(2, 4).to(torch.uint16), n=4),
        "stores values of torch.uint16",
    ),
    "complex values": (lambda: store(torch.ones(2, 4) * 1j), "stores values of torch.complex64"),
    "inputs of whole numbers": (lambda: CSR.from_dense(torch.ones(2, 4)).matmul(torch.ones(3, 4).long()), r"X.float"),
    "inputs": (lambda: CSR.from_dense(torch.ones(2, 4)).matmul(torch.ones(3, 5)), "do not fit"),
}


@pytest.mark.parametrize("what", WRONG)
def test_mistakes_are_told_in_one_sentence(what):
    act, message = WRONG[what]
    with pytest.raises(PruneError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_arguments_stay_as_they_were():
    W = normal(16, 32)
    before, keep = W.clone(), W != 0
    for stored, _ in every_format(W, keep):
        X = torch.ones(3, 32)
        stored.matmul(X)
        assert torch.equal(X, torch.ones(3, 32))
    assert torch.equal(W, before) and torch.equal(keep, before != 0)


CRAFTED = {
    "index outside": (CSR, lambda s: {"indices": s.indices.long() + 250}),
    "negative index": (CSR, lambda s: {"indices": s.indices.long() - 1}),
    "indices not sorted": (CSR, lambda s: {"indices": s.indices.flip(0)}),
    "an index twice": (CSR, lambda s: {"indices": s.indices * 0}),
    "pointers not rising": (CSR, lambda s: {"pointers": s.pointers.flip(0)}),
    "last pointer too large": (CSR, lambda s: {"pointers": s.pointers.long() * 2}),
    "pointers whose differences wrap around": (
        CSR,
        lambda s: {"pointers": torch.cat([torch.tensor([0, 2**63 - 1, -2]), s.pointers[3:].long()])},
    ),
    "pointers of floats": (CSR, lambda s: {"pointers": s.pointers.float()}),
    "a pointer less": (CSC, lambda s: {"pointers": s.pointers[:-1]}),
    "values missing": (CSC, lambda s: {"values": s.values[1:]}),
    "another shape": (CSC, lambda s: {"shape": (3, 4)}),
    "no shape": (CSC, lambda s: {"shape": (3, "4")}),
    "negative side": (CSC, lambda s: {"shape": (-3, 4)}),
    "a bit too many": (Bitmask, lambda s: {"bits": s.bits | 16}),
    "a bit behind the end": (Bitmask, lambda s: {"bits": s.bits ^ 128}),
    "values of the mask missing": (Bitmask, lambda s: {"values": s.values[1:]}),
    "bits of another width": (Bitmask, lambda s: {"bits": s.bits.short()}),
    "block outside": (BSR, lambda s: {"indices": s.indices + 9}),
    "blocks of another size": (BSR, lambda s: {"size": 3}),
    "blocks of size 0": (BSR, lambda s: {"size": 0}),
    "blocks of no whole size": (BSR, lambda s: {"size": 4.0}),
    "a place twice": (NMPacked, lambda s: {"codes": s.codes * 0}),
    "places descending": (NMPacked, lambda s: {"codes": s.codes * 0 + 0b0001}),
    "M zero": (NMPacked, lambda s: {"m": 0}),
    "N larger than M": (NMPacked, lambda s: {"n": 5}),
    "N of another kind": (NMPacked, lambda s: {"n": "2"}),
    "another M": (NMPacked, lambda s: {"m": 8}),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_arrays_that_belong_to_no_matrix_are_refused(what):
    form, change = CRAFTED[what]
    W = normal(8, 12, 1) * NM(2, 4).keep(torch.rand(8, 12, generator=torch.Generator().manual_seed(2)))
    stored = form.from_dense(W, **({"size": 4} if form is BSR else {}))
    with pytest.raises(PruneError, match=f"^{form.name}: "):
        replace(stored, **change(stored))


def test_a_place_outside_a_group_of_three_is_refused():
    """Two bits can say 3, and a group of three has places 0 to 2."""
    stored = NMPacked.from_dense(torch.tensor([[0, 1.0, 2.0]]), n=2, m=3)
    with pytest.raises(PruneError, match=r"outside 0\.\.2"):
        replace(stored, codes=pack(torch.tensor([[1, 3]]), 2))


def disturbed(stored, dice):
    """The arrays and settings of a stored matrix with a few changes of the kind that a crafted file can have."""
    made = dict(stored.arrays()) | stored.settings()
    for _ in range(dice.choice([1, 1, 2, 3])):
        name = dice.choice(sorted(made))
        value = made[name]
        if isinstance(value, torch.Tensor):
            value = value.clone()
            what = dice.choice(["byte", "cut", "grow", "dtype", "zero", "extreme", "reshape"])
            if what == "byte" and value.numel():
                raw = value.view(-1).view(torch.uint8)
                raw[dice.randrange(len(raw))] = dice.randrange(256)
            elif what == "cut":
                value = value[: dice.randrange(len(value) + 1)]
            elif what == "grow":
                value = torch.cat([value, value[:1]])
            elif what == "dtype":
                value = value.to(dice.choice([torch.int64, torch.float32, torch.uint8, torch.bool]))
            elif what == "extreme" and value.numel() and not value.is_floating_point():
                value = value.long()  # differences of such numbers wrap around
                for _ in range(dice.choice([1, 2, 3])):
                    value.view(-1)[dice.randrange(value.numel())] = dice.choice([2**63 - 1, -(2**63), 2**62, -2, -1])
            elif what == "zero":
                value = value * 0
            else:
                value = value.reshape(-1)[None]
        elif name == "shape":
            value = (dice.choice([value[0], 0, 7, 2**12]), dice.choice([value[1], 1, 2**16, -4]))
        else:
            value = dice.choice([0, 1, 3, 2**20, -1, None])
        made[name] = value
    return made


def fuzz(rounds, dice):
    """How many disturbed matrices were refused, and how many were other matrices in good order."""
    counts = {"refused": 0, "other": 0}
    forms = [stored for stored, _ in every_format(normal(16, 32, 0.4, dtype=torch.float16))]
    for _ in range(rounds):
        stored = dice.choice(forms)
        try:
            other = type(stored)(**disturbed(stored, dice))
        except PruneError:
            counts["refused"] += 1
            continue
        counts["other"] += 1
        dense = other.to_dense()
        assert tuple(dense.shape) == other.shape
        if dense.is_floating_point() and bool(dense.isfinite().all()):
            X = torch.ones(2, dense.shape[1])
            expected = X.double() @ dense.double().T
            assert_close(other.matmul(X).double(), expected, rtol=1e-3, atol=1e-3 * float(1 + expected.abs().max()))
    return counts


def test_disturbed_arrays_are_refused_or_make_another_matrix():
    counts = fuzz(600, random.Random(0))
    assert counts["refused"] > 200 and counts["other"] > 20, counts


@pytest.mark.slow
def test_many_disturbed_arrays_are_refused_or_make_another_matrix():
    counts = fuzz(40000, random.Random(1))
    assert counts["refused"] > 10000 and counts["other"] > 2000, counts
