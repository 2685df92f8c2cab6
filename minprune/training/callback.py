"""Keep the zeros in a `transformers.Trainer` run of your own. Chapter 18.

Trainer(model=model, args=arguments, train_dataset=data, callbacks=[KeepZeros(masks)]).train()
"""

import torch
from torch import Tensor
from transformers import TrainerCallback

from minprune.training.masks import Handles, Masks, check_owned, mask_gradients, stored_masks


class KeepZeros(TrainerCallback):
    """Masks gradients as they arrive, before the Trainer clips them, and weights after each optimizer step.

    masks: of the layers of the model that is trained, as from `masks_of(minprune.find_layers(model))`.
    """

    def __init__(self, masks: Masks):
        self.masks = masks
        self._gradients: Handles | None = None
        self._places: list[tuple[Tensor, Tensor]] = []  # each weight, and what is zero of it, on its device

    def on_train_begin(self, args, state, control, **kwargs):
        """Set the zeros, and mask all gradients from here on. `PruneError`: the masks are not of this model."""
        check_owned(self.masks, kwargs["model"].parameters(), "the model has not got")
        self.on_train_end(args, state, control)  # a run that was interrupted has not removed its hooks
        stored = stored_masks(self.masks).items()
        self._places = [(getattr(owner, name), pruned_mask) for (owner, name), pruned_mask in stored]
        self.on_optimizer_step(args, state, control)
        self._gradients = mask_gradients(self.masks)

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        """The optimizer has moved the weights, what it remembers included: set the zeros again."""
        for weight, pruned_mask in self._places:
            weight.masked_fill_(pruned_mask, 0)
        torch.clear_autocast_cache()

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the model without hooks."""
        if self._gradients:
            self._gradients.remove()
