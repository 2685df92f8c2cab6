"""Chapters 08, 10 and 12, beyond what test_checks.py asks: PyTorch and the package agree, two bugs at once."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from variants import both, cases, pairs

import minprune as mp
from minprune import checks

OURS = [e for e in checks.EXERCISES.values() if e.chapter in (8, 10, 12)]


@pytest.mark.parametrize("case", cases(checks.prune_chain))
def test_prune_chain_is_one_pass_with_pre_hooks(case):
    """All batches at once through layers that are pruned right before they are applied."""
    weights, batches, prune = case.args
    chain = nn.Sequential()

    def prune_it(layer, args):
        layer.weight.data.copy_(prune(layer.weight, args[0].T @ args[0]))

    for W in weights:
        layer = nn.Linear(*W.shape, bias=False)
        layer.weight.data = W.clone()
        layer.register_forward_pre_hook(prune_it)
        chain.extend([layer, nn.ReLU()])
    with torch.no_grad():
        chain(torch.cat(batches))
    assert_close(checks.prune_chain.reference(*case.args), torch.stack([layer.weight.data for layer in chain[::2]]))


@pytest.mark.parametrize(("one", "other"), pairs(checks.prune_chain.wrong, 20, seed=8))
def test_two_bugs_at_once_never_get_the_name_of_a_third(one, other):
    verdict = checks.prune_chain(both(one, other))
    assert not verdict.passed and verdict.bug in (None, one.name, other.name), str(verdict)


@pytest.mark.parametrize("case", cases(checks.towards_dense))
def test_towards_dense_is_a_minimum(case):
    """No other weights have a lower error plus damping."""
    W, X_hat, X, damp = (a.double() if isinstance(a, torch.Tensor) else a for a in case.args)
    mu = damp * X_hat.square().sum(0).mean()

    def loss(V):
        return (X_hat @ V.T - X @ W.T).square().sum() + mu * (V - W).square().sum()

    best = checks.towards_dense.reference(W, X_hat, X, damp)
    for seed in range(50):
        step = 1e-3 * torch.randn(W.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert loss(best + step) > loss(best)


@pytest.mark.parametrize(
    "answer",
    [
        lambda W, X_hat, X, damp: torch.linalg.lstsq(X_hat, X @ W.T).solution.T,
        lambda W, X_hat, X, damp: (torch.linalg.pinv(X_hat) @ X @ W.T).T,
        lambda W, X_hat, X, damp: W @ X.T @ X_hat @ torch.linalg.inv(X_hat.T @ X_hat),
        lambda W, X_hat, X, damp: torch.linalg.solve(X_hat.T @ X_hat, X_hat.T @ X @ W.T).T,
        lambda W, X_hat, X, damp: W + W @ torch.linalg.solve(X_hat.T @ X_hat, X_hat.T @ (X - X_hat)).T,
    ],
)
def test_missing_damping_is_named_however_the_equations_are_solved(answer):
    """On every case they have one solution that rounding leaves alone."""
    assert checks.towards_dense(answer).bug == "no damping"


@pytest.mark.parametrize(
    ("change", "bug"),
    [
        (lambda layer, W: setattr(layer, "weight", nn.Parameter(W, requires_grad=False)), "a new tensor in its place"),
        (lambda layer, W: setattr(layer.weight, "data", W), None),
        (lambda layer, W: layer.weight.data.copy_(W), None),
    ],
)
def test_a_weight_is_changed_in_place_as_whoever_shares_it_sees(change, bug):
    def one_pass(windows, model, observe, prune):
        seen = [None, None]

        def hook(layer, args):
            if args[0] is not seen[0]:
                seen[:] = args[0], observe(args[0])
            change(layer, prune(layer.weight, seen[1]))

        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        handles = [layer.register_forward_pre_hook(hook) for layer in layers]
        model(windows)
        for handle in handles:
            handle.remove()
        return [layer.weight for layer in layers]

    verdict = checks.prune_in_one_pass(one_pass)
    assert (verdict.passed, verdict.bug) == (bug is None, bug)


@pytest.mark.parametrize("case", cases(checks.repair_gradient))
def test_repair_gradient_is_the_slope_of_the_kept_weights_and_no_slope_of_the_others(case):
    W, keep, X_hat, Y = (a.double() if a.is_floating_point() else a for a in case.args)

    def loss(V):
        return ((X_hat @ V.T - Y).square().sum(1) / Y.square().sum(1)).mean()

    found = checks.repair_gradient.reference(W, keep, X_hat, Y)
    for place in ((i, j) for i in range(len(W)) for j in range(W.shape[1])):
        step = torch.zeros_like(W)
        step[place] = 1e-5
        slope = (loss(W + step) - loss(W - step)) / 2e-5
        assert_close(found[place], slope if keep[place] else torch.tensor(0.0).double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", cases(checks.mix_grams))
def test_a_mixture_is_what_repeated_texts_would_give(case):
    """Text k read so often that its tokens are its share: the same as the Gram matrix of that, up to a factor."""
    grams, tokens, shares = case.args
    times = [share / n for share, n in zip(shares, tokens, strict=True)]
    repeated = sum(t * G for t, G in zip(times, grams, strict=True))
    mixed = checks.mix_grams.reference(*case.args)
    assert_close(mixed / mixed.trace(), repeated / repeated.trace())
    assert_close(checks.mix_grams.reference([G * 0 + n for G, n in zip(grams, tokens, strict=True)], tokens, shares),
                 torch.full_like(grams[0], sum(tokens)))  # inputs that are all 1: G counts the tokens  # fmt: skip


@pytest.mark.parametrize("case", cases(checks.cut_with_bos))
def test_cut_with_bos_is_what_the_package_cuts(case):
    from minprune.data.tokens import cut, window_starts

    ids, length, bos = case.args
    windows = cut(ids, window_starts(len(ids), length - 1, None), length, [bos])
    assert torch.equal(checks.cut_with_bos.reference(*case.args), windows)


def test_damping_is_chosen_where_dampings_differ():
    """In every case the best damping is better than the second best by a margin that rounding cannot close."""
    for case in checks.damping_from_one_text.cases():
        W, grams, damps, prune = case.args
        pieces = [(sum(grams) - piece, piece) for piece in grams]
        losses = sorted(
            sum(
                mp.layer_error(W, prune(W, others, damp), piece) * float((W @ piece * W).sum())
                for others, piece in pieces
            )
            for damp in damps
        )
        assert losses[1] > 1.02 * losses[0], (case.label, losses)


def test_no_message_gives_the_solution_away():
    for exercise in OURS:
        for wrong in exercise.wrong:
            text = str(exercise(wrong.function))
            for code in ("torch.", "dim=", ".T @", "solve(", "setdefault", "id(", "tuple(", "stack("):
                assert code not in text, (wrong.name, code)
    assert len(OURS) > 10


def test_hooks_that_are_left_on_a_model_are_told():
    """Beside a known mistake, too, which has no name then: the hooks come first, and nobody is told to copy a model."""

    def answer(windows, model, observe, prune):
        for module in model.modules():
            module.register_forward_hook(lambda *of_the_call: None)
        return [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]

    verdict = checks.prune_in_one_pass(answer)
    assert verdict.bug is None and "your function left hooks on the model" in verdict.message
