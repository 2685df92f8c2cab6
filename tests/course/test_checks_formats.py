"""The checks of chapter 19 beyond what test_checks.py asks of every exercise: the package agrees, two bugs at once."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from variants import both, cases, pairs

from minprune import checks
from minprune.formats import CSR, NMPacked


@pytest.mark.parametrize("case", cases(checks.to_csr))
def test_to_csr_is_the_package(case):
    W, keep = case.args
    values, columns, pointers = checks.to_csr.reference(W, keep)
    stored = CSR.from_dense(W * keep, keep)
    assert torch.equal(values, stored.values)
    assert torch.equal(columns, stored.indices.long()) and torch.equal(pointers, stored.pointers.long())


@pytest.mark.parametrize("case", cases(checks.pack_2_4))
def test_pack_2_4_is_the_package(case):
    W, keep = case.args
    values, codes = checks.pack_2_4.reference(W, keep)
    stored = NMPacked.from_dense(W * keep, keep)
    assert torch.equal(values, stored.values) and torch.equal(codes, stored.codes)


@pytest.mark.parametrize("case", cases(checks.csr_matmul))
def test_csr_matmul_is_the_package(case):
    values, columns, pointers, X = case.args
    stored = CSR((len(pointers) - 1, X.shape[1]), values, columns, pointers)
    if bool(X.isfinite().all()):
        assert_close(checks.csr_matmul.reference(*case.args), stored.matmul(X))
    read = X.where(stored.to_dense().any(0), 0)  # zero times infinity is not zero
    assert_close(checks.csr_matmul.reference(*case.args), read @ stored.to_dense().T)


@pytest.mark.parametrize(("one", "other"), pairs(checks.pack_2_4.wrong, 20, seed=18))
def test_two_bugs_at_once_never_get_the_name_of_a_third(one, other):
    verdict = checks.pack_2_4(both(one, other))
    assert not verdict.passed and verdict.bug in (None, one.name, other.name, "all bits reversed"), str(verdict)


def test_a_loop_that_goes_one_weight_too_far_is_named():
    def one_too_far(values, columns, pointers, X):
        rows = []
        for begin, end in zip(pointers[:-1].tolist(), pointers[1:].tolist(), strict=True):
            rows.append(X[:, columns[begin : end + 1]] @ values[begin : end + 1])
        return torch.stack(rows, 1)

    assert checks.csr_matmul(one_too_far).bug == "row pointer off by one"


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_mask_in_place_of_places_is_named_whichever_end_its_bits_begin_at(order):
    def masks(W, keep):
        values, _ = checks.pack_2_4.reference(W, keep)
        return values, np.packbits(keep.numpy(), axis=1, bitorder=order)

    assert checks.pack_2_4(masks).bug == "mask bits"


def test_no_message_gives_the_solution_away():
    for exercise in (checks.to_csr, checks.csr_matmul, checks.pack_2_4):
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("cumsum", "nonzero", "argsort", "gather", "<<", "index_add", "repeat_interleave", "torch."):
                assert code not in text, (wrong.name, code)
