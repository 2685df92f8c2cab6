"""The exercise of chapter 05 on calibration: the norm of each input over all tokens of padded batches."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong
from minprune.course.checks.values import normal

# input_norms(batches, real): the L2 norm of each input over all tokens that are no padding

_Batches = list[Tensor]


def _tokens(batches: _Batches, real: _Batches) -> Tensor:
    """The real tokens of all batches, (tokens, d_in)."""
    return torch.cat([X[mask] for X, mask in zip(batches, real, strict=True)])


def _texts(batches: _Batches, real: _Batches) -> _Batches:
    """The real tokens of each text, (its tokens, d_in)."""
    pairs = [pair for X, mask in zip(batches, real, strict=True) for pair in zip(X, mask, strict=True)]
    return [X[mask] for X, mask in pairs]


def _of_batches(parts: Callable[[_Batches, _Batches], _Batches], gather: Callable[[Tensor], Tensor]) -> Callable:
    """The norms of each part (a batch or a text), stacked and gathered into one."""

    def norms(batches: _Batches, real: _Batches) -> Tensor:
        return gather(torch.stack([X.norm(dim=0) for X in parts(batches, real)]))

    return norms


def _each_batch(batches: _Batches, real: _Batches) -> _Batches:
    return [X[mask] for X, mask in zip(batches, real, strict=True)]


def _running_mean(batches: _Batches, real: _Batches) -> Tensor:
    """The root of the mean over batches of each batch's mean square: long and short batches count alike."""
    return torch.stack([X.square().mean(0) for X in _each_batch(batches, real)]).mean(0).sqrt()


def _over_sequences(batches: _Batches, real: _Batches) -> Tensor:
    """The root of the mean over the batch axis, averaged over positions: what `x.pow(2).mean(0)` of a 3-D x gives."""
    means = [(X * mask[..., None]).square().mean(0).sqrt() for X, mask in zip(batches, real, strict=True)]
    return torch.cat(means).mean(0)


_PADDED = (
    "Padding was counted: it is not part of any text, yet it has inputs like every token. Which positions are real?"
)
_L2 = "A norm squares each input before adding up and takes the root at the end."

input_norms = Exercise(
    name="input_norms",
    chapter=5,
    title="the norm of each input over all real tokens of several padded batches",
    reference=lambda batches, real: _tokens(batches, real).norm(dim=0),
    difficulty=2,
    wrong=(
        Wrong(
            "padding counted", lambda batches, real: torch.cat([X.flatten(0, 1) for X in batches]).norm(dim=0), _PADDED
        ),
        Wrong(
            "padding taken to be at the end",
            lambda batches, real: _tokens(batches, [mask.sort(dim=1, descending=True).values for mask in real]).norm(
                dim=0
            ),
            "Only how many tokens are real was used, and not which: a batch may be padded at the beginning of its "
            "texts.",
        ),
        Wrong(
            "padding instead of tokens",
            lambda batches, real: _tokens(batches, [~mask for mask in real]).norm(dim=0),
            "These are the norms of the padding. In `real`, True marks the tokens that count.",
        ),
        Wrong(
            "last batch only",
            lambda batches, real: _tokens(batches[-1:], real[-1:]).norm(dim=0),
            "Only the last batch counts: is something set anew in each turn of the loop instead of added to?",
        ),
        Wrong(
            "last batch only",
            lambda batches, real: batches[-1].flatten(0, 1).norm(dim=0),
            "Only the last batch counts, and its padding, too: is something set anew in each turn of the loop "
            "instead of added to?",
        ),
        Wrong(
            "first batch only",
            lambda batches, real: _tokens(batches[:1], real[:1]).norm(dim=0),
            "Only the first batch counts. Does the function return from inside the loop?",
        ),
        Wrong(
            "last text only",
            lambda batches, real: _texts(batches, real)[-1].norm(dim=0),
            "Only the last text of the last batch counts.",
        ),
        Wrong(
            "squared norm",
            lambda batches, real: _tokens(batches, real).square().sum(0),
            "These are the squares of the norms. Wanda multiplies |W| by the norm itself: with the square, loud inputs "
            "would count twice.",
        ),
        Wrong(
            "mean absolute value",
            lambda batches, real: _tokens(batches, real).abs().mean(0),
            f"This is the mean absolute input. {_L2} The two differ most for an input that is rarely but very loud.",
        ),
        Wrong(
            "sum of absolute values",
            lambda batches, real: _tokens(batches, real).abs().sum(0),
            f"Absolute inputs were added up: that is the L1 norm. {_L2}",
        ),
        Wrong(
            "largest value",
            lambda batches, real: _tokens(batches, real).abs().amax(0),
            f"This is the largest absolute input. {_L2}",
        ),
        Wrong(
            "inputs summed before squaring",
            lambda batches, real: _tokens(batches, real).sum(0).abs(),
            "The inputs were added up with their signs, so that positive and negative ones cancelled.",
        ),
        Wrong(
            "mean removed",
            lambda batches, real: _tokens(batches, real).std(0, correction=0) * len(_tokens(batches, real)) ** 0.5,
            "The mean of each input was removed first. An input that always has the same value feeds the layer, too.",
        ),
        Wrong(
            "divided by the number of tokens",
            lambda batches, real: _tokens(batches, real).square().mean(0).sqrt(),
            "This is the root mean square. It ranks the weights of a layer alike, but asked for was the norm of the "
            "whole column, a sum over tokens.",
        ),
        Wrong(
            "divided by the number of texts",
            lambda batches, real: (_tokens(batches, real).square().sum(0) / sum(map(len, batches))).sqrt(),
            "The sum of squares was divided by the number of texts, as Wanda's published code does. That changes no "
            "mask, but asked for was the norm of the whole column, a sum over tokens.",
        ),
        Wrong(
            "mean over batches",
            _running_mean,
            "Each batch was averaged by itself and then the batches were averaged, so that a token of a short batch "
            "counts for more. Add up over tokens.",
        ),
        Wrong(
            "mean of the norms of batches",
            _of_batches(_each_batch, lambda norms: norms.mean(0)),
            "The norms of the batches were averaged. Norms do not add up, their squares do.",
        ),
        Wrong(
            "sum of the norms of batches",
            _of_batches(_each_batch, lambda norms: norms.sum(0)),
            "The norms of the batches were added. Norms do not add up, their squares do.",
        ),
        Wrong(
            "mean of the norms of texts",
            _of_batches(_texts, lambda norms: norms.mean(0)),
            "Each text's norm was taken and these were averaged. The result must not depend on where a text ends: "
            "norms do not add up, their squares do.",
        ),
        Wrong(
            "sum of the norms of texts",
            _of_batches(_texts, lambda norms: norms.sum(0)),
            "Each text's norm was taken and these were added. Norms do not add up, their squares do.",
        ),
        Wrong(
            "mean over the batch axis",
            _over_sequences,
            "The first axis of a batch is its texts. An average over it is an average over what stands at the same "
            "position, padding included. Put all tokens in one line first.",
        ),
        Wrong(
            "norm of each token",
            lambda batches, real: _tokens(batches, real).norm(dim=1),
            "This is the norm of each token over its inputs. Asked for is that of each input over the tokens: which "
            "axis should disappear?",
        ),
        Wrong(
            "one norm for all inputs",
            lambda batches, real: _tokens(batches, real).norm(),
            "This is a single number for the whole of X. Each input has its own norm.",
        ),
    ),
    cases=lambda: _norm_cases(),
)


def _batch(lengths: list[int], d_in: int, seed: int, scale: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """A batch of texts of these lengths, padded on the right with inputs that are not zero, and its mask."""
    longest = max(lengths)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (texts, longest)
    X = (normal(len(lengths), longest, d_in, seed=seed) + 0.4) * scale
    return torch.where(real[..., None], X, 3.0), real


def _left(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same batch with its padding before the texts."""
    return batch[0].flip(1), batch[1].flip(1)


def _norm_case(label: str, batches: list[tuple[Tensor, Tensor]]) -> Case:
    return Case(label, ([X for X, _ in batches], [real for _, real in batches]))


def _norm_cases() -> list[Case]:
    loud = torch.tensor([1.0, 20.0, 0.1, 1.0, 0.0])
    return [
        _norm_case("two padded batches", [_batch([6, 2, 4], 3, 501), _batch([3, 5], 3, 502)]),
        _norm_case("batches of unequal size", [_batch([9, 1], 4, 503), _batch([2], 4, 504), _batch([4, 4, 3], 4, 505)]),
        _norm_case("loud, quiet and dead inputs", [_batch([5, 7], 5, 506, loud), _batch([3, 8, 2], 5, 507, loud)]),
        _norm_case("a batch that is padded on the left", [_left(_batch([6, 2, 4], 3, 510)), _batch([2, 5], 3, 511)]),
        _norm_case("a text of padding only", [_batch([3, 0, 2], 4, 512), _batch([1, 0], 4, 513)]),
        _norm_case("as many tokens as inputs", [_batch([2, 1], 5, 508), _batch([2], 5, 509)]),
    ]


EXERCISES = [input_norms]
