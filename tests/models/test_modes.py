"""modes.py: whatever looks at a model leaves each of its modules in the mode that it was in."""

import copy

import pytest
from tiny import tiny_model, tiny_tokens
from torch import nn

import minprune as mp
from minprune.allocation.sensitivity import sensitivity
from minprune.models.modes import eval_mode
from minprune.training.activations import thresholds
from minprune.training.recipe import Recipe
from minprune.training.recover import recover

USES = {
    "one pass": lambda model: mp.prune(model, tiny_tokens(), "wanda"),
    "staged": lambda model: mp.prune(model, tiny_tokens(), "sparsegpt", batch_size=2),
    "watched": lambda model: mp.prune(watched(model), tiny_tokens(), "wanda"),
    "trained": lambda model: mp.prune(model, tiny_tokens(), recipe="best", pattern="60%"),
    "refused": lambda model: refused(watched(model, 2.0)),
    "perplexity": lambda model: mp.perplexity(model, tiny_tokens()),
    "divergence": lambda model: mp.divergence(model, copy.deepcopy(model), tiny_tokens()),
    "sensitivity": lambda model: sensitivity(model, tiny_tokens(), "50%"),
    "thresholds": lambda model: thresholds(model, mp.find_layers(model), tiny_tokens(), 0.5),
    "recover": lambda model: recover(model, tiny_tokens(), Recipe(steps=1)),
}


def watched(model, factor=1.0):
    """The model with a hook, so that a check runs it; with a factor other than 1 it is refused."""
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, args, out: factor * out)
    return model


def refused(model):
    with pytest.raises(mp.PruneError, match="remove the hook"):
        mp.prune(model, tiny_tokens(), "wanda")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("use", USES)
def test_each_module_is_in_its_own_mode_afterwards(use, training):
    model = tiny_model("llama").train(training)
    model.model.layers[0].train(not training)
    model.model.norm.train(not training)
    before = [module.training for module in model.modules()]
    USES[use](model)
    assert [module.training for module in model.modules()] == before
    assert set(before) == {True, False}


def test_a_class_that_does_more_when_it_goes_over_to_training_still_does_it():
    """As loralib's layers, which take their adapter out of the weight again."""

    class Merging(nn.Linear):
        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(2, 2), nn.Dropout()).train()
    with eval_mode(model):
        assert model[0].merged and not model[1].training
    assert not model[0].merged and model[1].training
