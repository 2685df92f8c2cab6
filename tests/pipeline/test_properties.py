"""What must hold of a pruned model in the dtypes that are used, whatever the batches, threads and order of experts."""

import copy

import pytest
import torch
from tiny import tiny_model, tiny_tokens

import minprune as mp

FAMILIES = ("llama", "gpt2", "mixtral")
SCORES = ("magnitude", "wanda", "ria", "obd")  # methods that change no weight that they keep
WIDTH, DAMPING = 128, 0.01  # of the widest input in these models, and of the methods that solve
ROUNDING = torch.finfo(torch.float32).eps  # statistics, scores and solves are in float32 whatever the model is in


def pruned(family, method, dtype, seed=1, **options):
    """layer -> its error, and layer -> its mask."""
    model = tiny_model(family, dtype)
    report = mp.prune(model, tiny_tokens(8, 32, seed=seed), method, "50%", **options)
    masks = {name: value == 0 for name, value in model.named_parameters() if value.ndim > 1}
    return {row.name: row.error for row in report.layers}, masks


def furthest(found, expected):
    """The largest relative difference of errors, and the share of masks that differ."""
    (errors, masks), (other_errors, other_masks) = found, expected
    apart = max(abs(errors[name] - value) / value for name, value in other_errors.items())
    differ = sum(int((masks[name] != mask).sum()) for name, mask in other_masks.items())
    return apart, differ / sum(mask.numel() for mask in other_masks.values())


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["magnitude", "ria"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_size_moves_errors_by_rounding_and_no_mask(family, method, dtype, batch_size):
    """Sums over tokens in another order: sixteen units in the last place are allowed."""
    apart, differ = furthest(
        pruned(family, method, dtype, batch_size=batch_size), pruned(family, method, dtype, batch_size=8)
    )
    assert apart < 16 * ROUNDING and differ == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_size_moves_a_solve_by_no_more_than_its_condition_makes_of_rounding(family, dtype):
    """A damped Gram matrix has a condition of at most 1 + d / damping; a bfloat16 model rounds hidden states, too."""
    apart, differ = furthest(
        pruned(family, "sparsegpt", dtype, batch_size=3), pruned(family, "sparsegpt", dtype, batch_size=8)
    )
    bound = ROUNDING * (1 + WIDTH / DAMPING) if dtype == torch.float32 else torch.finfo(dtype).eps
    assert apart < bound and differ < bound


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_two_threads_give_what_one_gives_but_for_rounding(method, one_thread):
    expected = pruned("llama", method, torch.float32)
    torch.set_num_threads(2)
    apart, differ = furthest(pruned("llama", method, torch.float32), expected)
    assert apart < ROUNDING * (1 + WIDTH / DAMPING) and differ < 1e-3


@pytest.mark.parametrize("pattern", ["50%", "2:4"])
@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_pruning_again_changes_nothing_where_weights_are_only_scored(family, method, pattern):
    """Zeros have the lowest score; the inputs of later layers are those of the pruned model in both passes."""
    model = tiny_model(family)
    mp.prune(model, tiny_tokens(), method, pattern)
    before = copy.deepcopy(model.state_dict())
    report = mp.prune(model, tiny_tokens(), method, pattern)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(row.error == 0 for row in report.layers)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_permuting_the_experts_permutes_the_result(method):
    """With the router's rows; in float64, since the sum over experts is taken in another order; solves are float32."""
    model = tiny_model("mixtral", torch.float64)
    other = copy.deepcopy(model)
    order = torch.randperm(model.config.num_local_experts, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(order, order.sort().values)

    def permute(model):
        with torch.no_grad():
            for block in model.model.layers:
                for weight in (block.mlp.gate.weight, block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
                    weight.copy_(weight[order].clone())

    permute(other)
    for each in (model, other):
        mp.prune(each, tiny_tokens(), method, "50%")
    permute(model)
    for (name, value), found in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value == 0, found == 0), name
        torch.testing.assert_close(value, found, rtol=1e-5, atol=ROUNDING)
