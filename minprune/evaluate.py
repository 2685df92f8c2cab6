"""How good a model is after pruning. Chapters 01 and 09."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from minprune.errors import PruneError
from minprune.model import check_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def perplexity(model: "PreTrainedModel", tokens: Tensor, batch_size: int = 2, progress: bool = False) -> float:
    """exp of the mean negative log-likelihood, in nats, of every token but the first of its window.

    tokens: (windows, length) int64, length at least 2; windows are independent of each other and each prediction
    weighs the same. batch_size changes time and memory, never the result beyond rounding. Raises `PruneError` for
    windows that the model cannot read and for a model whose output is NaN.
    """
    check_windows(model, tokens)
    if tokens.shape[1] < 2:
        raise PruneError("windows of 1 token predict nothing: use length 2 or more")
    device, total, was_training = next(model.parameters()).device, 0.0, model.training
    model.eval()  # dropout would make the result random
    try:
        for batch in tqdm(
            tokens.split(batch_size), desc="perplexity", unit="batch", disable=None if progress else True, leave=False
        ):
            batch = batch.to(device)  # (batch, length)
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]  # (batch, length - 1, vocabulary)
            for window, target in zip(logits, batch[:, 1:], strict=True):  # one at a time: float32 logits are large
                wide = window.to(torch.promote_types(window.dtype, torch.float32))
                total += float(cross_entropy(wide, target, reduction="sum"))
    finally:
        model.train(was_training)
    if math.isnan(total):
        raise PruneError("the model's output is NaN: its weights are damaged, or its dtype is too narrow")
    nats = total / tokens[:, 1:].numel()
    return math.exp(nats) if nats < 700 else math.inf


@torch.no_grad()
def generate(
    model: "PreTrainedModel", tokenizer, prompt: str, tokens: int = 40, temperature: float = 0.0, seed: int = 0
) -> str:
    """The continuation of a prompt by at most `tokens` tokens: the likeliest ones, or sampled if temperature > 0."""
    if not prompt:
        raise PruneError("the prompt is empty: write the beginning of a text")
    if tokens < 1 or not temperature >= 0:
        raise PruneError(f"asked for {tokens} tokens at temperature {temperature:g}: at least 1 token and 0 are needed")
    inputs = tokenizer(prompt, return_tensors="pt").to(next(model.parameters()).device)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and (length := inputs["input_ids"].shape[1]) + tokens > longest:
        raise PruneError(
            f"a prompt of {length} tokens and {tokens} more exceed the model's {longest} positions: shorten either"
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=tokens, **sampling
        )
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
