"""Which way to make a model smaller fits a budget, best first. The page "What to do with a budget".

The losses are those of one model on one protocol: the atlas (book/results/atlas.json), whose comparison lies beside
this module. The bytes are counted for the user's own matrices, with the formats' arithmetic (chapters 19 and 21):

    matrices of the blocks    the fewest bits of dense, bitmask and N:M, with scales and zero points if quantised
    all else                  16 bits a number: embeddings, head, norms

A way is a list of steps, as the atlas names them: "prune sparsegpt 50%", "quantize gptq 4", "quantize gptq 4 50%" for
both in one sweep, "shrink neurons:25%". A number of blocks is turned into the same share of the user's.

Left out: whether another model loses as much (larger ones may lose less), and the time of what was not measured.
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from minprune.arguments import checked
from minprune.errors import PruneError, amount
from minprune.files import parse_json
from minprune.formats.sizes import bitmask_bits, nm_bits
from minprune.formats.stored import packed_bytes
from minprune.models.layers import block_layers, decoder_blocks, find_layers, unsupported_experts
from minprune.patterns import NM, Pattern, pattern
from minprune.pipeline.plan import check_model
from minprune.structured.cut import Cut, check_cut, empty_model
from minprune.structured.removals import Removal, removal
from minprune.structured.slicing import parts_of_stream
from minprune.structured.units import heads
from minprune.structured.width import Width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 64  # of the atlas's grids
VALUE_BITS = 16
_DEPTH = 30  # blocks of the atlas's model
_NO_COMMAND = "low-rank"  # measured, and no command of minprune does it


@dataclass(frozen=True)
class Choice:
    """One way to make a model smaller, with what it takes there and what it cost in the atlas.

    Parameters
    ----------
    steps : tuple of str
        One after the other; none for the dense model.
    bytes : int
        Of the exported model, weights alone.
    loss : float
        Nats a token more than the dense model, measured in the atlas.
    error : float
        The standard error of `loss` over windows of the test.
    faster : float or None
        Tokens a second, times the dense model's; None if that was not measured.

    Examples
    --------
    >>> from minprune.compress.advice import Choice
    >>> round(Choice(("quantize gptq 4",), 114_000_000, 0.27, 0.02, None).times, 2)
    1.31
    """

    steps: tuple[str, ...]
    bytes: int
    loss: float
    error: float
    faster: float | None

    @property
    def times(self) -> float:
        """Of the dense model's perplexity."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Advice:
    """What `advise` found.

    Parameters
    ----------
    fits : tuple of Choice
        What fits the budget, the lowest loss first; at least one.
    beyond : tuple of Choice
        What does not, the fewest bytes first.
    dense : Choice
        The model as it is, in 16 bits a number.
    left_out : tuple of str
        Ways that this model's shapes do not allow, each with the reason.

    Examples
    --------
    >>> from minprune.compress.advice import Advice, Choice
    >>> Advice((), (), Choice((), 269_030_016, 0.0, 0.0, 1.0), ()).dense.faster
    1.0
    """

    fits: tuple[Choice, ...]
    beyond: tuple[Choice, ...]
    dense: Choice
    left_out: tuple[str, ...]


@checked()
def advise(model: "PreTrainedModel", size: float | None = None, faster: float | None = None) -> Advice:
    """The measured ways that fit a budget of bytes, of time, or of both, the one with the lowest loss first.

    Nothing is measured and no weight is read: the model may be on the meta device.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model, dense.
    size : float, optional
        The most bytes that its weights may take on disk.
    faster : float, optional
        How many times the dense model's tokens a second are wanted.

    Returns
    -------
    Advice

    Raises
    ------
    PruneError
        If there is no budget or it is not positive, if the dense model is within it, or if nothing is.

    Examples
    --------
    >>> from minprune.compress.advice import advise
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2}
    >>> model = LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=10))
    >>> found = advise(model, size=5e6)
    >>> found.dense.bytes, found.fits[0].bytes <= 5e6, found.fits[0].loss <= found.fits[-1].loss
    (13169152, True, True)
    """
    check_model(model)
    if size is None and faster is None:
        raise PruneError("a budget is missing: give a number of bytes, or how many times faster it is to be")
    for budget in (size, faster):
        if budget is not None and not 0 < budget < math.inf:
            raise PruneError(f"a budget of {budget:g} is not positive and finite: give a number of bytes, or of times")
    choices, left_out = _choices(model)
    dense = next(choice for choice in choices if not choice.steps)
    if (size is None or dense.bytes <= size) and (faster is None or faster <= 1):
        has = f"takes {amount(dense.bytes)} in 16 bits a number" if size else "is fast enough"
        raise PruneError(f"the dense model {has}, which is within the budget: keep it dense")
    fits = [choice for choice in choices if _within(choice, size, faster)]
    if not fits:
        raise PruneError(_nothing(choices, size, faster))
    beyond = [choice for choice in choices if choice.steps and choice not in fits]
    return Advice(
        tuple(sorted(fits, key=lambda choice: choice.loss)),
        tuple(sorted(beyond, key=lambda choice: choice.bytes)),
        dense,
        tuple(left_out),
    )


def _within(choice: Choice, size: float | None, faster: float | None) -> bool:
    fast = faster is None or (choice.faster is not None and choice.faster >= faster)
    return fast and (size is None or choice.bytes <= size)


def _nothing(choices: list[Choice], size: float | None, faster: float | None) -> str:
    """What to say if nothing fits: the ends of what was measured."""
    smallest = min(choices, key=lambda choice: choice.bytes)
    fastest = max(choices, key=lambda choice: choice.faster or 0.0)
    if size is not None and smallest.bytes > size:
        wanted = amount(size)
        end = f"the smallest is {describe(smallest.steps)}, {amount(smallest.bytes)}"
    elif faster is not None and (fastest.faster or 0.0) < faster:
        wanted = f"{faster:.2f} times the dense speed"
        end = f"the fastest is {describe(fastest.steps)}, {fastest.faster:.2f} times"
    else:
        wanted, end = "both budgets", "what is small enough was not measured to be that fast"
    return f"nothing that was measured fits {wanted}: {end}; ask for more, or take a smaller model"


def describe(steps: tuple[str, ...]) -> str:
    """The steps in one line."""
    return ", then ".join(steps) or "dense"


def _choices(model: "PreTrainedModel") -> tuple[list[Choice], list[str]]:
    """Every way of the atlas for this model, and those that it cannot go."""
    found, left_out = [], []
    sizes: dict[str, tuple[list[tuple[int, int]], int]] = {}  # by the removal that comes first
    for cell in atlas():
        steps = tuple(_for_depth(step, len(decoder_blocks(model)[1])) for step in cell["steps"])
        first = steps[0] if steps and steps[0].startswith("shrink") else ""
        try:
            if first not in sizes:
                sizes[first] = _shapes(_smaller(model, first.split()[1]) if first else model)
            shapes, others = sizes[first]
            _check(steps, shapes)
        except PruneError as error:
            left_out.append(f"{describe(steps)}: {error}")
            continue
        total = stored_bytes(steps, shapes, cell["zeros"]) + others * VALUE_BITS / 8
        found.append(Choice(steps, round(total), cell["loss"], cell["error"], cell["faster"]))
    return found, left_out


@cache
def atlas() -> list[dict[str, Any]]:
    """The cells of the atlas that a command of minprune makes."""
    cells = parse_json(files("minprune").joinpath("compress", "atlas.json").read_text(encoding="utf-8"))
    made = [cell for cell in cells if cell["dtype"] == "bfloat16"]
    return [cell for cell in made if not any(step.startswith(_NO_COMMAND) for step in cell["steps"])]


def stored_bytes(steps: tuple[str, ...], shapes: list[tuple[int, int]], zeros: float) -> float:
    """Of all these matrices (d_out, d_in) after the steps, with this share of zeros, in the smallest format."""
    quantised = [step.split() for step in steps if step.startswith("quantize")]
    bits = int(quantised[-1][2]) if quantised else VALUE_BITS
    patterns = [one for one in map(_pattern, steps) if isinstance(one, NM)]
    weight_bits = min(bits, bitmask_bits(zeros, bits), *(nm_bits(one.n, one.m, bits) for one in patterns))
    total = sum(d_out * d_in for d_out, d_in in shapes) * weight_bits / 8
    groups = [(d_out, d_in // GROUP) for d_out, d_in in shapes if quantised]  # a scale and a zero point for each
    return total + sum(d_out * (2 * count + packed_bytes(count, bits)) for d_out, count in groups)


def _pattern(step: str) -> Pattern | None:
    """Of the zeros that a step makes, None if it makes none."""
    verb, *rest = step.split()
    zeros = {"prune": rest[1:2], "quantize": rest[2:3]}.get(verb, [])
    return pattern(zeros[0]) if zeros else None


def _check(steps: tuple[str, ...], shapes: list[tuple[int, int]]) -> None:
    """Raise `PruneError` if a matrix does not fit a pattern or the groups."""
    for d_out, d_in in set(shapes):
        for step in steps:
            if one := _pattern(step):
                one.check(d_out, d_in)
            if step.startswith("quantize") and d_in % GROUP:
                raise PruneError(f"{d_in} inputs are no whole number of groups of {GROUP}")


def _for_depth(step: str, depth: int) -> str:
    """A step with a number of blocks of the atlas's model, for a model of another depth."""
    if not step.startswith("shrink blocks"):
        return step
    share = int(step.split(":")[1]) / _DEPTH
    return f"shrink {Removal('blocks', count=round(share * depth))}"


def _smaller(model: "PreTrainedModel", what: str) -> "PreTrainedModel":
    """The model that a removal leaves, without weights. Raises `PruneError` for a family that cannot be cut so."""
    one = removal(what)
    if one.what == "hidden":  # by SliceGPT, whose head has a matrix of its own
        parts_of_stream(model)
        width = model.config.get_text_config().hidden_size
        changes = {"hidden_size": width - one.of(width), "head_dim": heads(model)[0].width}
        smaller = empty_model(model, Cut({**changes, "tie_word_embeddings": False}))
    elif one.what == "blocks":
        depth = len(decoder_blocks(model)[1])
        smaller, _ = check_cut(model, Cut(blocks=list(range(depth - one.of(depth)))))
    else:
        smaller, _ = check_cut(model, Width(model, one.what, one.of).example("refit"))
    smaller.tie_weights()
    return smaller


def _shapes(model: "PreTrainedModel") -> tuple[list[tuple[int, int]], int]:
    """The shapes of the matrices that are pruned, and how many other numbers there are; what is tied counts once."""
    layers = find_layers(model, exclude=unsupported_experts(block_layers(model)))
    shapes = [(layer.weight.shape[0], layer.weight.shape[1]) for layer in layers]
    return shapes, sum(p.numel() for p in model.parameters()) - sum(d_out * d_in for d_out, d_in in shapes)
