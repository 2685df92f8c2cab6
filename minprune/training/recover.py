"""recover(): a pruned language model learns again, and its zeros stay zero. Chapter 18.

A plain loop: draw windows, loss, gradients, clip, AdamW, with the zeros kept by masks.py (all weights are trained) or
adapters.py (only low-rank adapters are). A step depends on its number and on the state that the last one left, and on
nothing else. So a run that was killed and resumed ends with the same bits as an uninterrupted one, on as many threads.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.parametrize import is_parametrized
from tqdm.auto import tqdm

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors, random_devices
from minprune.data.tokens import fingerprint
from minprune.errors import PruneError
from minprune.evaluation.perplexity import perplexity
from minprune.models.checks import check_changeable, check_stored, sparse_layers
from minprune.models.dtypes import check_dtypes
from minprune.models.layers import check_windows
from minprune.models.modes import own_modes
from minprune.models.skeleton import plain_outputs
from minprune.pipeline.precision import narrow_products, widened_checkpoints
from minprune.training.adapters import add_adapters
from minprune.training.distill import Distillation, language_loss
from minprune.training.masks import Masks, check_owned, maintain_sparsity, masks_of
from minprune.training.parametrized import remove_parametrizations
from minprune.training.recipe import Recipe, Recovery
from minprune.training.state import fits, load_state, save_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@checked()
@ordinary_tensors()  # those of inference mode have no gradients
def recover(
    model: "PreTrainedModel",
    tokens: Tensor,
    recipe: Recipe,
    *,
    masks: Masks | None = None,
    test: Mapping[str, Tensor] | None = None,
    teacher: Distillation | None = None,
    state: Path | None = None,
    save_every: int = 50,
    progress: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> Recovery:
    """Train a Hugging Face causal LM in place on windows of text, its zeros kept bit for bit.

    Parameters
    ----------
    model : PreTrainedModel
        In float32 or float64.
    tokens : Tensor (windows, length), int64
        What it learns from.
    recipe : training.recipe.Recipe
        How it is trained.
    masks : mapping of Layer to Tensor (d_out, d_in), bool, optional
        None keeps every zero of the blocks' matrices, {} keeps none.
    test : mapping of str to Tensor (windows, length), int64, optional
        Windows to measure perplexity on, by name.
    teacher : Distillation, optional
        Learn from a dense model.
    state : Path, optional
        A file that holds the run after every `save_every` steps, and from which the same call goes on. The caller
        removes it in the end.
    save_every : int, default 50
        Steps.
    progress : bool, default False
        Whether to show a bar on stderr.
    after_step : callable, optional
        after_step(n) is called when n steps are done and the state is saved.

    Returns
    -------
    Recovery

    Raises
    ------
    PruneError
        For an invalid setting, weights that are computed or cannot change, or if the state belongs to another run.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> from minprune.training.recipe import Recipe
    >>> from minprune.training.recover import recover
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=1))
    >>> report = mp.prune(model, None, "magnitude", "50%")
    >>> recover(model, torch.randint(50, (8, 8)), Recipe(steps=2)).zeros
    0.5
    """
    check_changeable(model)
    check_windows(model, tokens)
    if tokens.shape[1] < 2:
        raise PruneError("windows of 1 token teach nothing: use length 2 or more")
    recipe.windows(0, len(tokens))  # which says if they are too few
    if save_every < 1:
        raise PruneError(f"a state after every {save_every} steps cannot be saved: use 50")
    if state and not state.parent.is_dir():
        raise PruneError(f"there is no folder {state.parent} to keep the state of the run in: make it, or name another")
    if model.dtype in (torch.float16, torch.bfloat16):
        raise PruneError(f"a model in {model.dtype} cannot learn in small steps: call model.float() first")
    with narrow_products(model.device.type, recipe.bfloat16):
        check_dtypes(model)
    masks = masks_of(sparse_layers(model)) if masks is None else masks
    check_stored(masks)
    check_owned(masks, model.parameters(), "the model has not got")
    identity = _identity(model, tokens, recipe, masks, test or {}, teacher)
    saved = load_state(state, identity) if state else None
    learnable = {name: p.requires_grad for name, p in model.named_parameters()}
    with ExitStack() as after:
        after.enter_context(own_modes(model))
        after.callback(_restore, model, learnable)
        after.enter_context(torch.autocast(model.device.type, enabled=False))  # a caller's would round in backward()
        after.enter_context(torch.enable_grad())  # whatever a caller has set
        after.enter_context(plain_outputs(model))
        after.enter_context(widened_checkpoints(model, recipe.bfloat16))
        if recipe.mode == "adapters":
            after.callback(_merge, masks)  # before the first is added: Ctrl-C may come amid them
            trained = add_adapters(model, masks, recipe.rank, recipe.alpha, recipe.seed)
        else:
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise PruneError("nothing can be trained: all weights are frozen, or no mask is there for adapters")
        run = _Run(model, recipe, trained, test or {}, teacher or language_loss)
        if recipe.mode == "full":
            after.enter_context(maintain_sparsity(masks, run.optimizer))
        run.begin(saved)
        for step in tqdm(range(run.step, recipe.steps), "training", disable=None if progress else True, leave=False):
            run.learn(tokens[recipe.windows(step, len(tokens))])
            if state and run.step % save_every == 0:
                save_state(state, identity, run.state())
            after_step(run.step)
    zeros = sum(int(((layer.weight == 0) & ~keep).sum()) for layer, keep in masks.items())
    run.done.zeros = zeros / max(1, sum(keep.numel() for keep in masks.values()))
    return run.done


class _Run:
    """One call of `recover`: the optimizer, the counters, and what is saved of them."""

    def __init__(self, model, recipe: Recipe, trained: list[Tensor], test: Mapping[str, Tensor], loss: Callable):
        self.model, self.recipe, self.trained, self.test, self.loss = model, recipe, trained, test, loss
        matrices, others = ([p for p in trained if (p.ndim > 1) == wide] for wide in (True, False))
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=recipe.lr, fused=True)
        self.step = self.tokens = 0
        self.losses: list[float] = []  # since the last row
        self.done = Recovery(recipe)

    def begin(self, saved: dict[str, Any] | None) -> None:
        """Start anew with a first row, or where the saved state is."""
        if saved is None:
            self.measure()
            return
        moved = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if not fits(saved, self.trained, moved):
            raise PruneError("the state of the run is not what it leaves for this model: delete it to begin anew")
        with torch.no_grad():
            for parameter, value in zip(self.trained, saved["trained"], strict=True):
                parameter.copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]  # the recipe says them, not the file
        self.optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
        self.step, self.tokens, self.losses = saved["step"], saved["tokens"], saved["losses"]
        self.done.rows, self.done.seconds = saved["rows"], saved["seconds"]

    def state(self) -> dict[str, Any]:
        """What `begin` needs to go on from here."""
        return {
            "trained": [parameter.detach() for parameter in self.trained],
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "losses": self.losses,
            "rows": self.done.rows,
            "seconds": self.done.seconds,
        }

    def learn(self, windows: Tensor) -> None:
        """One step on windows (batch_size, length), and a row if it is time for one."""
        start = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        device = self.trained[0].device
        with torch.random.fork_rng(random_devices(device)):  # dropout depends on the number of the step alone
            torch.manual_seed(self.recipe.seed + self.step)
            with self.products():
                loss = self.loss(self.model, windows.to(device))
        if not bool(loss.isfinite()):
            raise PruneError(f"the loss became {loss.item()} at step {self.step}: use a lower lr than {self.recipe.lr}")
        loss.backward()
        clip_grad_norm_(self.trained, self.recipe.clip)
        self.optimizer.step()
        self.losses.append(float(loss.detach()))
        self.step += 1
        self.tokens += windows.numel()
        self.done.seconds += time.process_time() - start
        if self.step % self.recipe.evaluate == 0 or self.step == self.recipe.steps:
            self.measure()

    def products(self) -> AbstractContextManager[Any]:
        """The type of matrix products."""
        return narrow_products(self.trained[0].device.type, self.recipe.bfloat16)

    def measure(self) -> None:
        """Add a row."""
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        try:
            with self.products():
                found = {name: perplexity(self.model, windows) for name, windows in self.test.items()}
        except PruneError as error:
            if self.step == 0:
                raise
            lr = self.recipe.lr  # the weights were not NaN before training
            raise PruneError(f"there is no perplexity after step {self.step}: use a lower lr than {lr}") from error
        self.done.rows.append({"step": self.step, "tokens": self.tokens, "loss": loss, "perplexity": found})
        self.losses = []


def _merge(masks: Masks) -> None:
    """Make the adapters that are there a part of their weights."""
    added = {layer: keep for layer, keep in masks.items() if is_parametrized(layer.module, layer.parameter)}
    remove_parametrizations(added)


def _restore(model: "PreTrainedModel", learnable: dict[str, bool]) -> None:
    model.zero_grad(set_to_none=True)
    torch.clear_autocast_cache()  # a caller's autocast may remember the weights before training
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learnable[name])


def _identity(model, tokens: Tensor, recipe: Recipe, masks: Masks, test, teacher: Distillation | None) -> dict:
    """What a saved state must agree with: recipe, device, hashes of models, masks and texts, and the distillation."""
    zeros = hashlib.sha256()
    for layer, keep in masks.items():
        zeros.update(layer.name.encode() + keep.cpu().contiguous().numpy().tobytes())
    taught = {f"teacher's {name}": getattr(teacher, name, None) for name in ("share", "temperature", "hidden")}
    texts = {f"text {name}": fingerprint(windows) for name, windows in {"trained on": tokens, **test}.items()}
    models = {"model": _hash(model), "teacher": _hash(teacher.teacher) if teacher else None}
    return {**asdict(recipe), **texts, **taught, **models, "masks": zeros.hexdigest(), "device": model.device.type}


def _hash(model: nn.Module) -> str:
    """A sha256 over what decides what a model computes: its configuration, and the names and bytes of its weights."""
    config: Any = getattr(model, "config", None)
    digest = hashlib.sha256(config.to_json_string().encode() if config else b"")
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
