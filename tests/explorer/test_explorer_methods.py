"""The arithmetic of the mask lab and of the SparseGPT page is that of the package, on random matrices in float64."""

import pytest
import torch
from javascript import call, script
from torch.testing import assert_close

import minprune as mp
from minprune.patterns import Unstructured

D = 12
PATTERNS = {
    "0%:row": {"group": "row", "sparsity": 0.0},
    "50%:row": {"group": "row", "sparsity": 0.5},
    "37%:row": {"group": "row", "sparsity": 0.37},
    "100%:row": {"group": "row", "sparsity": 1.0},
    "50%:layer": {"group": "layer", "sparsity": 0.5},
    "81%:layer": {"group": "layer", "sparsity": 0.81},
    "100%:layer": {"group": "layer", "sparsity": 1.0},
    "50%:block": {"group": "block", "sparsity": 0.5, "width": 128},
    "2:4": {"group": "nm", "n": 2, "m": 4},
    "1:4": {"group": "nm", "n": 1, "m": 4},
    "0:4": {"group": "nm", "n": 0, "m": 4},
    "4:4": {"group": "nm", "n": 4, "m": 4},
    "block2:50%": {"group": "tiles", "sparsity": 0.5, "size": 2},
    "block2:30%": {"group": "tiles", "sparsity": 0.3, "size": 2},
}


@pytest.fixture(scope="module")
def engine():
    return script("methods.js", "sparsegpt.js")


def _problem(seed, rows=10):
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, D, generator=random, dtype=torch.float64)
    X = torch.randn(40, 5, generator=random, dtype=torch.float64) @ torch.randn(5, D, generator=random).double()
    X = (X + 0.5 * torch.randn(40, D, generator=random)) * torch.logspace(-1, 1, D)[torch.randperm(D, generator=random)]
    return W, mp.Statistics(D, dtype=torch.float64).update(X)


def _both(engine, method, pattern, W, stats, **options):
    mine = call(engine, method, W.tolist(), stats.gram.tolist(), PATTERNS[pattern])
    ours = mp.METHODS[method](W, stats, mp.pattern(pattern), **options)
    return mine, ours


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "obs"])
def test_masks_weights_and_errors_are_the_packages(engine, method, pattern):
    for seed in range(2):
        W, stats = _problem(seed)
        mine, ours = _both(engine, method, pattern, W, stats)
        assert torch.equal(torch.tensor(mine["keep"]), ours.keep)
        weights = torch.tensor(mine["weights"], dtype=torch.float64)
        assert_close(weights, ours.weight, rtol=1e-7, atol=1e-9)
        error = call(engine, "layerError", W.tolist(), mine["weights"], stats.gram.tolist())
        assert error == pytest.approx(mp.layer_error(W, ours.weight, stats.gram), rel=1e-6, abs=1e-12)


def test_a_given_mask_is_repaired_as_by_the_package(engine):
    for seed in range(2):
        W, stats = _problem(seed)
        keep = torch.rand(W.shape, generator=torch.Generator().manual_seed(seed)) > 0.4
        mine = call(engine, "repaired", W.tolist(), stats.gram.tolist(), keep.tolist())
        ours = mp.METHODS["obs"](W, stats, mp.pattern("50%"), keep=keep)
        assert_close(torch.tensor(mine["weights"], dtype=torch.float64), ours.weight, rtol=1e-7, atol=1e-9)


def test_equal_scores_go_by_their_index_and_halves_to_the_even_neighbour(engine):
    scores = torch.ones(6, D, dtype=torch.float64)
    for pattern in PATTERNS:
        ours = mp.pattern(pattern).keep(scores)
        assert call(engine, "keepMask", scores.tolist(), PATTERNS[pattern]) == ours.tolist(), pattern
    for share in (0.5 / 12, 1.5 / 12, 2.5 / 12, 0.29, 0.125, 0.375):
        ours = Unstructured(share, "row").keep(scores)
        mine = call(engine, "keepMask", scores.tolist(), {"group": "row", "sparsity": share})
        assert mine == ours.tolist(), share


@pytest.mark.parametrize("width", [4, 5])
def test_column_blocks_are_cut_as_by_the_package(engine, width):
    scores = _problem(0)[0].abs()
    mine = call(engine, "keepMask", scores.tolist(), {"group": "block", "sparsity": 0.5, "width": width})
    assert mine == mp.pattern("50%:block").keep(scores, block_size=width).tolist()


@pytest.mark.parametrize("pattern", ["50%:block", "50%:row", "62%:layer", "2:4", "1:4"])
def test_sparsegpt_ends_where_the_package_ends(engine, pattern):
    for seed in range(2):
        W, stats = _problem(seed, rows=6)
        described = {**PATTERNS, "50%:block": {"group": "block", "sparsity": 0.5, "width": 4}}
        described["62%:layer"] = {"group": "layer", "sparsity": 0.62}
        last = call(engine, "sparsegptStates", W.tolist(), stats.gram.tolist(), described[pattern])[-1]
        ours = mp.METHODS["sparsegpt"](W, stats, mp.pattern(pattern), block_size=4)
        assert torch.equal(torch.tensor(last["keep"]), ours.keep)
        assert_close(torch.tensor(last["weights"], dtype=torch.float64), ours.weight, rtol=1e-7, atol=1e-9)


def test_each_state_of_sparsegpt_is_the_package_on_the_columns_visited(engine):
    """After q columns: the package's result for the final mask with all later columns kept."""
    W, stats = _problem(7, rows=6)
    states = call(engine, "sparsegptStates", W.tolist(), stats.gram.tolist(), PATTERNS["2:4"])
    final = torch.tensor(states[-1]["keep"])
    assert len(states) == D + 1
    for q, state in enumerate(states):
        keep = final | (torch.arange(D) >= q)
        ours = mp.METHODS["sparsegpt"](W, stats, mp.pattern("50%"), keep=keep)
        assert_close(torch.tensor(state["weights"], dtype=torch.float64), ours.weight, rtol=1e-7, atol=1e-9)


def test_the_bill_adds_up(engine):
    """The costs add up to tr(D H D^T), computed here by torch from the weights of each state alone."""
    W, stats = _problem(3, rows=6)
    H = stats.gram + 0.01 * stats.gram.diagonal().mean() * torch.eye(D, dtype=torch.float64)
    for pattern in ("2:4", "50%:row"):
        total = 0.0
        for state in call(engine, "sparsegptStates", W.tolist(), stats.gram.tolist(), PATTERNS[pattern]):
            lost = W - torch.tensor(state["weights"], dtype=torch.float64)
            total += state["cost"]
            measured = float(torch.trace(lost @ H @ lost.T))
            assert state["billed"] == pytest.approx(total)
            assert state["measured"] == pytest.approx(measured, rel=1e-9, abs=1e-12)
            assert total == pytest.approx(measured, rel=1e-7, abs=1e-10)


def test_the_gram_matrix_has_the_norms_and_the_correlation_that_the_sliders_say(engine):
    norms = [0.5, 1.0, 4.0]
    gram = torch.tensor(call(engine, "gramOf", norms, 0.7), dtype=torch.float64)
    assert_close(gram.diagonal().sqrt(), torch.tensor(norms, dtype=torch.float64))
    scale = gram.diagonal().rsqrt()
    correlations = (scale[:, None] * gram * scale)[~torch.eye(3, dtype=torch.bool)]
    assert_close(correlations, torch.full((6,), 0.7, dtype=torch.float64))


def test_the_random_matrices_look_normal(engine):
    drawn = torch.tensor(call(engine, "normalMatrix", 100, 100, 1), dtype=torch.float64)
    assert abs(float(drawn.mean())) < 0.03 and abs(float(drawn.std()) - 1) < 0.03
    assert float((drawn.abs() < 0.6745).double().mean()) == pytest.approx(0.5, abs=0.02)
    again = torch.tensor(call(engine, "normalMatrix", 100, 100, 2), dtype=torch.float64)
    assert abs(float((drawn * again).mean())) < 0.03
