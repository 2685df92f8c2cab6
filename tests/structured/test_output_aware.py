"""Which axes may go by what the loss says: the moments by finite differences, the choice by what it costs."""

import itertools

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch.nn.functional import cross_entropy, normalize

import minprune as mp
from minprune.structured.depth import stream_of
from minprune.structured.output_aware import keep_axes, removal_cost, stream_moments


def _moment(axes: list[float], seed: int) -> torch.Tensor:
    Q = torch.linalg.qr(torch.randn(len(axes), len(axes), dtype=torch.float64, generator=_random(seed)))[0]
    return Q @ torch.diag(torch.tensor(axes, dtype=torch.float64)) @ Q.T


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_cost_is_the_mean_square_of_the_first_order_change_if_stream_and_slope_are_independent():
    """All pairs of 40 streams with 50 slopes."""
    h, g = torch.randn(40, 6, generator=_random(1)).double(), torch.randn(50, 6, generator=_random(2)).double()
    U = torch.linalg.qr(torch.randn(6, 2, generator=_random(3)).double())[0]
    changes = [(g_ @ U @ U.T @ h_) ** 2 for h_, g_ in itertools.product(h, g)]
    torch.testing.assert_close(removal_cost(h.T @ h / 40, g.T @ g / 50, U), torch.stack(changes).mean())


def test_a_loud_axis_that_nobody_reads_goes_before_a_quiet_one_that_matters():
    C = torch.diag(torch.tensor([4.0, 1.0, 0.5, 3.0])).double()
    F = torch.diag(torch.tensor([0.0, 1.0, 2.0, 1.0])).double()
    Q = keep_axes(C, F, 3)
    torch.testing.assert_close(Q @ Q.T, torch.diag(torch.tensor([0.0, 1, 1, 1])).double())


@pytest.mark.parametrize("gone", [1, 3, 6])
def test_no_choice_costs_more_than_principal_axes_or_the_slope_alone(gone):
    C, F = _moment([2.0**-k for k in range(8)], 4), _moment([3.0**-k for k in range(8)], 5)
    Q = keep_axes(C, F, 8 - gone)
    torch.testing.assert_close(Q.T @ Q, torch.eye(8 - gone).double())
    U = torch.linalg.eigh(Q @ Q.T).eigenvectors[:, :gone]
    ours = removal_cost(C, F, U)
    for one in (C, F):
        assert ours <= removal_cost(C, F, torch.linalg.eigh(one).eigenvectors[:, :gone]) * 1.01


def test_the_moments_are_those_of_the_stream_and_of_the_loss_by_finite_differences():
    model, tokens = tiny_model("llama").double(), tiny_tokens()[:1, :3]
    C, F = stream_moments(model, tokens, seed=7)
    streams = [h[0] for h in stream_of(model, tokens)]  # (tokens, d_model) before each block and before the head
    units = torch.cat([normalize(h, dim=-1) for h in streams])
    torch.testing.assert_close(C, units.T @ units)
    with torch.no_grad():
        labels = torch.multinomial(model(tokens).logits[0].float().softmax(-1), 1, generator=_random(7))[:, 0]
    expected = torch.zeros_like(F)
    for h, reader in zip(streams, [*model.model.layers, model.model.norm], strict=True):
        s = torch.stack([_slope(model, tokens, labels, reader, h, place) for place in range(h.numel())]).view(h.shape)
        s *= h.norm(dim=-1, keepdim=True)
        expected += s.T @ s
    assert (F - expected).norm() < 1e-3 * expected.norm()


@torch.no_grad()
def _slope(model, tokens, labels, reader, h, place):
    """Of the loss, if one number of the stream that `reader` gets is moved up and down: norms count in float32."""
    losses = []
    for step in (3e-3, -3e-3):
        moved = h.clone()
        moved.view(-1)[place] += step
        hook = reader.register_forward_pre_hook(lambda _, args, moved=moved: (moved[None], *args[1:]))
        losses.append(cross_entropy(model(tokens).logits[0], labels, reduction="sum"))
        hook.remove()
    return (losses[0] - losses[1]) / 6e-3


def test_shrink_knows_it_and_the_model_is_smaller():
    model, tokens = tiny_model("llama"), tiny_tokens()
    report = mp.shrink(model, tokens, "hidden:25%", "outputs")
    assert model.config.hidden_size == 24 and "8 of 32 channels" in report.notes[0]
