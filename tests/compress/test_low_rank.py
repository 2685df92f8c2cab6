"""Low rank against the SVD of the outputs themselves, and against descent from many starts."""

import pytest
import torch

from minprune import PruneError
from minprune.compress.low_rank import low_rank


def layer(d_out=6, d_in=9, tokens=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(tokens, d_in, generator=random).double() @ torch.randn(d_in, d_in, generator=random).double()
    return torch.randn(d_out, d_in, generator=random).double(), X


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("tokens", [40, 5])  # with 5 the Gram matrix is singular
def test_the_loss_is_what_the_singular_values_of_the_outputs_leave(rank, tokens):
    W, X = layer(tokens=tokens)
    left, right = low_rank(W, X.T @ X, rank)
    assert left.shape == (6, rank) and right.shape == (rank, 9)
    dropped = torch.linalg.svdvals(X @ W.T)[rank:]
    loss = ((X @ (W - left @ right).T) ** 2).sum()
    torch.testing.assert_close(loss, (dropped**2).sum(), rtol=1e-9, atol=1e-9)


def test_alternating_least_squares_from_other_starts_finds_nothing_better():
    W, X = layer(seed=1)
    left, right = low_rank(W, X.T @ X, 2)
    ours = float(((X @ (W - left @ right).T) ** 2).sum())
    for seed in range(5):
        A = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed)).double()
        for _ in range(200):
            B = torch.linalg.lstsq(A, W).solution  # the best for any inputs, given A = a projection of outputs
            A = torch.linalg.lstsq(X @ B.T, X @ W.T).solution.T
        assert ours <= float(((X @ (W - A @ B).T) ** 2).sum()) * (1 + 1e-9)


def test_without_inputs_it_is_the_plain_svd():
    W, _ = layer(seed=2)
    left, right = low_rank(W, torch.eye(9), 2)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(left @ right, U[:, :2] * S[:2] @ Vh[:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 7, True, 2.0])
def test_an_impossible_rank_is_refused_with_its_value(rank):
    W, X = layer()
    with pytest.raises(PruneError, match=f"rank {rank}"):
        low_rank(W, X.T @ X, rank)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_has_no_eigenvectors_is_refused_in_a_line(bad):
    W, X = layer()
    with pytest.raises(PruneError, match="the weights contain NaN or infinity"):
        low_rank(torch.where(W[0, 0] == W, bad, W), X.T @ X, 2)
    with pytest.raises(PruneError, match="the Gram matrix contains NaN or infinity"):
        low_rank(W, bad * torch.eye(9), 2)
    with pytest.raises(PruneError, match=r"Gram matrix \(5, 5\) does not fit 9 inputs"):
        low_rank(W, torch.eye(5), 2)
