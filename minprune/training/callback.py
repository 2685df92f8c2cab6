"""Keep the zeros in a `transformers.Trainer` run of your own. Chapter 18.

Trainer(model=model, args=arguments, train_dataset=data, callbacks=[KeepZeros(masks)]).train()
"""

import torch
from torch import Tensor
from transformers import TrainerCallback

from minprune.arguments import checked
from minprune.training.masks import Handles, Masks, check_owned, mask_gradients, stored_masks


class KeepZeros(TrainerCallback):
    """Keep the zeros in a `transformers.Trainer` run.

    Gradients are masked as they arrive, before the Trainer clips them, and weights after each optimizer step.

    Parameters
    ----------
    masks : mapping of Layer to Tensor (d_out, d_in), bool
        Of the layers of the model that is trained, as from `masks_of(minprune.find_layers(model))`.

    Examples
    --------
    >>> import minprune as mp
    >>> from minprune.training.callback import KeepZeros
    >>> from minprune.training.masks import masks_of
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1))
    >>> callbacks = [KeepZeros(masks_of(mp.find_layers(model)))]  # Trainer(model=model, ..., callbacks=callbacks)
    """

    @checked()
    def __init__(self, masks: Masks):
        self.masks = masks
        self._gradients: Handles | None = None
        self._places: list[tuple[Tensor, Tensor]] = []  # each weight, and what is zero of it, on its device

    def on_train_begin(self, args, state, control, **kwargs):
        """Set the zeros, and mask all gradients from here on. Raises `PruneError` for the masks of another model."""
        check_owned(self.masks, kwargs["model"].parameters(), "the model has not got")
        self.on_train_end(args, state, control)  # a run that was interrupted has not removed its hooks
        stored = stored_masks(self.masks).items()
        self._places = [(getattr(owner, name), pruned_mask) for (owner, name), pruned_mask in stored]
        self.on_optimizer_step(args, state, control)
        self._gradients = mask_gradients(self.masks)

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, **kwargs):
        """Set the zeros again: the optimizer has moved the weights."""
        for weight, pruned_mask in self._places:
            weight.masked_fill_(pruned_mask, 0)
        torch.clear_autocast_cache()

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the model without hooks."""
        if self._gradients:
            self._gradients.remove()
