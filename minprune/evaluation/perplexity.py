"""How good a model is after pruning: token by token, alone and beside the dense model. Chapters 01 and 09.

What belongs to a perplexity so that it can be compared is in protocol.py, what needs words instead of tokens in
last_word.py and minimal_pairs.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from tqdm.auto import tqdm

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors, random_devices
from minprune.data.tokens import prefix_of
from minprune.errors import PruneError, check_seed
from minprune.files import whole_characters
from minprune.models.causality import check_causal, evaluating, positions
from minprune.models.layers import check_batch_size, check_windows
from minprune.models.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from a reference's, on the same windows.

    Parameters
    ----------
    kl : float
        The mean over positions of KL(reference || model), in nats. It is 0 only if every distribution is the same.
    agreement : float
        The share of positions at which both find the same token the most likely.
    tokens : int
        The number of positions.

    Examples
    --------
    >>> import minprune as mp
    >>> mp.Divergence(kl=0.1, agreement=0.9, tokens=1000).agreement
    0.9
    """

    kl: float
    agreement: float
    tokens: int


@checked("tokens", "batch_size")
def perplexity(model: "PreTrainedModel", tokens: Tensor, batch_size: int = 2, progress: bool = False) -> float:
    """exp of the mean negative log-likelihood, in nats, of every token but the first of its window.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokens : Tensor (windows, length), int64
        At least two tokens in each window. Windows are independent of each other, and each prediction weighs the same.
    batch_size : int, default 2
        Windows in one forward pass. It changes time and memory, never the result beyond rounding.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    float

    Raises
    ------
    PruneError
        For windows of 1 token or that the model cannot read, for a model whose output is NaN, and for one that sees the
        tokens which it should predict (see `minprune.models.causality`).

    Examples
    --------
    A model that has learnt nothing is as uncertain as a die with a side for each of its tokens:

    >>> import torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> round(mp.perplexity(model, torch.randint(50, (4, 8))), -1)
    50.0
    """
    return exp(float(token_nll(model, tokens, batch_size, progress).mean(dtype=torch.float64)))


def token_nll(model: "PreTrainedModel", tokens: Tensor, batch_size: int = 2, progress: bool = False) -> Tensor:
    """-log p(token | the tokens before it in its window), in nats: (windows, length - 1), float32 or wider, on the CPU.

    Column i belongs to token i + 1 of the window: nothing predicts the first. Raises as `perplexity` does.
    """
    check_windows(model, tokens)
    check_causal(model, tokens.shape[1])
    return _read_nll(model, tokens, batch_size, progress)


def read_perplexity(model: "PreTrainedModel", tokens: Tensor, batch_size: int = 2) -> float:
    """`perplexity` of a model that is known to be causal."""
    return exp(float(_read_nll(model, tokens, batch_size, False).mean(dtype=torch.float64)))


def _read_nll(model: "PreTrainedModel", tokens: Tensor, batch_size: int, progress: bool) -> Tensor:
    found = []
    with evaluating(model):
        for batch in _batches(model, tokens, batch_size, progress):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]  # (batch, length - 1, vocabulary)
            for window, target in zip(logits, batch[:, 1:], strict=True):  # one at a time: float32 logits are large
                found.append(cross_entropy(_wide(window), target, reduction="none").cpu())
    nats = torch.stack(found)
    _check_nan(nats)
    return nats


@checked("tokens", "batch_size")
@ordinary_tensors()
def divergence(
    model: "PreTrainedModel", reference: "PreTrainedModel", tokens: Tensor, batch_size: int = 2, progress: bool = False
) -> Divergence:
    """How far a pruned model's predictions are from those of the dense model, on the same windows.

    Every position counts, also the last of a window, whose next token is not needed. KL is taken from the reference to
    the model, KL(p || q) = sum_t p_t (log p_t - log q_t) with p of the reference. So a token that the dense model
    expects and the pruned one excludes costs most. Both models run on each batch, and no logits are stored.

    Parameters
    ----------
    model, reference : PreTrainedModel
        The pruned and the dense model, with one vocabulary.
    tokens : Tensor (windows, length), int64
        At least two tokens in each window.
    batch_size : int, default 2
        Windows in one forward pass.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    Divergence

    Raises
    ------
    PruneError
        If the vocabularies differ in size, or as `perplexity` does.

    Examples
    --------
    >>> import copy, torch, minprune as mp
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2))
    >>> mp.divergence(copy.deepcopy(model), model, torch.randint(50, (4, 8))).agreement
    1.0
    """
    for each in (model, reference):
        check_windows(each, tokens)
        check_causal(each, tokens.shape[1])
    total, same = 0.0, 0
    with evaluating(model), evaluating(reference):
        place = next(reference.parameters()).device
        for batch in _batches(model, tokens, batch_size, progress):
            theirs = reference(input_ids=batch.to(place), use_cache=False).logits  # (batch, length, vocabulary)
            ours = model(input_ids=batch, use_cache=False).logits
            if ours.shape != theirs.shape:
                raise PruneError(
                    f"the models predict {ours.shape[-1]} and {theirs.shape[-1]} tokens: compare a model with the one "
                    "that it was made from"
                )
            for q, p in zip(ours, theirs.to(ours.device), strict=True):  # (length, vocabulary)
                log_q, log_p = log_softmax(_wide(q), dim=-1), log_softmax(_wide(p), dim=-1)
                total += float(kl_div(log_q, log_p, reduction="sum", log_target=True))
                same += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
    _check_nan(torch.tensor(total))
    return Divergence(total / tokens.numel(), same / tokens.numel(), tokens.numel())


def exp(nats: float) -> float:
    """e^nats, infinity instead of an overflow."""
    return math.exp(nats) if nats < 700 else math.inf


def _batches(model: "PreTrainedModel", tokens: Tensor, batch_size: int, progress: bool) -> Iterator[Tensor]:
    check_windows(model, tokens)
    if tokens.shape[1] < 2:
        raise PruneError("windows of 1 token predict nothing: use length 2 or more")
    device = next(model.parameters()).device
    parts = tokens.split(check_batch_size(batch_size))
    for batch in tqdm(parts, desc="evaluating", unit="batch", disable=None if progress else True, leave=False):
        yield batch.to(device)  # (batch, length)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_nan(nats: Tensor) -> None:
    if nats.isnan().any():
        raise PruneError("the model's output is NaN: its weights are damaged, or its dtype is too narrow")


@checked()
@ordinary_tensors()
@torch.no_grad()
def generate(
    model: "PreTrainedModel", tokenizer, prompt: str, tokens: int = 40, temperature: float = 0.0, seed: int = 0
) -> str:
    """The continuation of a prompt.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    prompt : str
        The beginning of a text. Halves of characters become U+FFFD.
    tokens : int, default 40
        How many to write at most.
    temperature : float, default 0.0
        0 takes the most likely token each time. From 1e-4 to 1e4 tokens are drawn: the logits are divided by it.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    str
        Without the prompt.

    Raises
    ------
    PruneError
        For a prompt without tokens or too long for the model, or an option out of range.

    Examples
    --------
    >>> import minprune as mp
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> mp.generate(model, tokenizer, "The moon goes around the", tokens=1)
    ' Earth'
    """
    seed = check_seed(seed)
    if not isinstance(prompt, str):
        raise PruneError(f"the prompt is a {type(prompt).__name__}: write the beginning of a text")
    prompt = whole_characters(prompt)
    if not prompt:
        raise PruneError("the prompt is empty: write the beginning of a text")
    if tokens < 1 or not (temperature == 0 or 1e-4 <= temperature <= 1e4):
        raise PruneError(
            f"asked for {tokens} tokens at temperature {temperature:g}: ask for 1 or more, at 0 or at 0.0001 to 10000"
        )
    told = tokenize(tokenizer, prompt, add_special_tokens=False)  # no EOS at the end
    ids = [*prefix_of(tokenizer), *told["input_ids"]]
    if not ids:
        raise PruneError(f"the prompt {prompt!r} has no token in it: write the beginning of a text")
    inputs = torch.tensor([ids], device=next(model.parameters()).device)  # (1, length)
    longest = positions(model)
    if longest and (length := len(ids)) + tokens > longest:
        raise PruneError(
            f"a prompt of {length} tokens and {tokens} more exceed the model's {longest} positions: shorten either"
        )
    sampling = {"do_sample": True, "temperature": float(temperature)} if temperature else {"do_sample": False}
    with evaluating(model), torch.random.fork_rng(devices=random_devices(inputs.device)):
        torch.manual_seed(seed)
        out = model.generate(  # type: ignore[operator]
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=int(tokens), **sampling
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
