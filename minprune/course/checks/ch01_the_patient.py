"""The exercises of chapter 01: windows of a text, the size of a model, perplexity, counting zeros, a revealing test."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import complement, negated, scaled
from minprune.course.checks.values import normal


# cut_windows(ids, length): consecutive windows of one length, without overlap or padding
def _cut_windows(ids: Tensor, length: int) -> Tensor:
    return ids[: len(ids) // length * length].view(-1, length)


def _strided(ids: Tensor, length: int, stride: int) -> Tensor:
    return torch.stack([ids[i : i + length] for i in range(0, len(ids) - length + 1, stride)])


cut_windows = Exercise(
    name="cut_windows",
    chapter=1,
    title="a text's tokens as windows of one length, without overlap or padding",
    reference=_cut_windows,
    difficulty=1,
    wrong=mistakes(
        {
            "padded": lambda ids, length: torch.cat([ids, ids.new_zeros(-len(ids) % length)]).view(-1, length),
            "left-over window kept": [
                lambda ids, length: ids.split(length),
                lambda ids, length: list(ids.split(length)),
            ],
            "overlapping": lambda ids, length: _strided(ids, length, 1),
            "windows share a token": lambda ids, length: _strided(ids, length, max(length - 1, 1)),
            "last full window lost": lambda ids, length: ids[: (len(ids) - 1) // length * length].view(-1, length),
            "cut from the end": lambda ids, length: ids[len(ids) % length :].view(-1, length),
            "read down the columns": lambda ids, length: ids[: len(ids) // length * length].view(length, -1).T,
        },
        """
        padded: The rest of the text was filled up with made-up tokens. The perplexity of padding is that of something
          nobody wrote: a window is full or it does not exist.
        left-over window kept: Your windows are not all of one length, so they are no tensor (windows, length). What is
          left over at the end of the text makes no window.
        overlapping: Each window starts one token after the one before, so most tokens are in several windows and count
          often.
        windows share a token: The last token of each window is also the first of the next. Where should the next window
          start?
        last full window lost: When the text divides evenly, the last window is full and belongs to the result. Look at
          the end of your range.
        cut from the end: The tokens that are left over were dropped at the beginning of the text; drop them at its end.
        read down the columns: Neighbouring tokens ended up in different windows. Each window is a stretch of text:
          which way does a tensor lie in memory, and what does a transpose do to it?
        """,
    ),
    cases=lambda: [
        Case("a text with one token left over", (torch.arange(10, 23), 4)),
        Case("a text that divides evenly", (torch.arange(5, 17), 3)),
        Case("a text of one window", (torch.tensor([7, 7, 3, 9, 2]), 5)),
        Case("windows of one token", (torch.tensor([4, 8, 15]), 1)),
        Case("windows of two tokens", (torch.tensor([4, 8, 15, 16, 23, 42, 4]), 2)),
        Case("tokens of a large vocabulary", (torch.tensor([151935, 300, 128, 40000, 65536, 255, 70000]), 3)),
    ],
)


# count_parameters(config): the size of a Llama-like model from the numbers in its config.json
def _count_parameters(
    config: dict,
    *,
    kv: str = "num_key_value_heads",
    guess_head: bool = False,
    matrices: int = 3,
    norms: int = 2,
    final_norm: int = 1,
    head: Callable[[dict], bool] = lambda config: not config["tie_word_embeddings"],
) -> int:
    d, d_ff = config["hidden_size"], config["intermediate_size"]
    head_dim = d // config["num_attention_heads"] if guess_head else config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config[kv] * head_dim
    block = 2 * d * queries + 2 * d * keys + matrices * d * d_ff + norms * d
    return (1 + head(config)) * config["vocab_size"] * d + config["num_hidden_layers"] * block + final_norm * d


def _config(*values: int) -> dict:
    names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    return dict(zip([*names.split(), "head_dim", "tie_word_embeddings"], values, strict=True))


count_parameters = Exercise(
    name="count_parameters",
    chapter=1,
    title="the number of parameters of a Llama-like model, from its config",
    reference=_count_parameters,
    difficulty=3,
    wrong=mistakes(
        {
            "tied head counted": partial(_count_parameters, head=lambda config: True),
            "untied head forgotten": partial(_count_parameters, head=lambda config: False),
            "tying read the wrong way round": partial(_count_parameters, head=lambda c: c["tie_word_embeddings"]),
            "keys and values as wide as the queries": partial(_count_parameters, kv="num_attention_heads"),
            "head size guessed": partial(_count_parameters, guess_head=True),
            "two matrices in the MLP": partial(_count_parameters, matrices=2),
            "norms forgotten": partial(_count_parameters, norms=0, final_norm=0),
            "final norm forgotten": partial(_count_parameters, final_norm=0),
            "one norm a block": partial(_count_parameters, norms=1),
            "one block only": lambda config: _count_parameters(config | {"num_hidden_layers": 1}),
        },
        """
        tied head counted: The output head was counted although it is tied. A tied head is the embedding matrix, used a
          second time.
        untied head forgotten: A model whose head is not tied to the embeddings has a second matrix of their size.
        tying read the wrong way round: The head was counted where it is tied and left out where it is not.
        keys and values as wide as the queries: With grouped-query attention, several query heads share one key head and
          one value head: `k_proj` and `v_proj` have fewer outputs than `q_proj`.
        head size guessed: The size of a head was taken to be `hidden_size / num_attention_heads`. That is usual, not
          necessary: the config says it.
        two matrices in the MLP: A Llama-like MLP has a gate besides the way up and the way down.
        norms forgotten: The matrices are right; the gains of the norms are missing. They are few, but they are
          parameters.
        final norm forgotten: One vector is missing: what stands between the last block and the head?
        one norm a block: Each block has a norm before its attention and another before its MLP.
        one block only: Only one block was counted. How many has the model?
        """,
    ),
    cases=lambda: [
        Case("a tiny tied model", (_config(11, 8, 20, 2, 4, 2, 2, True),)),
        Case("a tiny model with a head of its own", (_config(11, 8, 20, 2, 4, 2, 2, False),)),
        Case("SmolLM2-135M", (_config(49152, 576, 1536, 30, 9, 3, 64, True),)),
        Case("Llama-2-7B", (_config(32000, 4096, 11008, 32, 32, 32, 128, False),)),
        Case("heads wider than d / heads", (_config(100, 32, 64, 3, 4, 1, 16, True),)),
        Case("a model of one block", (_config(50, 16, 40, 1, 2, 1, 8, False),)),
    ],
)


# perplexity(nlls): of windows that may differ in length, every prediction weighing the same
def _mean_nll(nlls: list[Tensor]) -> Tensor:
    return torch.cat(nlls).mean()


perplexity = Exercise(
    name="perplexity",
    chapter=1,
    title="perplexity from the negative log-likelihoods of windows of different lengths",
    reference=lambda nlls: _mean_nll(nlls).exp(),
    difficulty=2,
    wrong=mistakes(
        {
            "mean of the windows' perplexities": lambda nlls: torch.stack([nll.mean().exp() for nll in nlls]).mean(),
            "windows weighed alike": lambda nlls: torch.stack([nll.mean() for nll in nlls]).mean().exp(),
            "power of two": lambda nlls: 2 ** _mean_nll(nlls),
            "no exponential": _mean_nll,
            "sum instead of mean": lambda nlls: torch.cat(nlls).sum().exp(),
            "first tokens counted": lambda nlls: (torch.cat(nlls).sum() / (len(torch.cat(nlls)) + len(nlls))).exp(),
            "probability instead of its inverse": lambda nlls: (-_mean_nll(nlls)).exp(),
        },
        """
        mean of the windows' perplexities: Each window's perplexity was computed and these were averaged. exp is convex,
          so this is always too large unless all windows are equally hard: average first, exponentiate once.
        windows weighed alike: A window of three tokens counted as much as a window of a hundred. Every *token* is to
          weigh the same.
        power of two: The likelihoods are in nats, so the base is e. A base of 2 goes with bits.
        no exponential: This is the cross-entropy, the mean negative log-likelihood. One step is missing.
        sum instead of mean: This is one over the probability of the whole text, which grows with its length. Perplexity
          is per token.
        first tokens counted: The sum was divided by one token more for each window. The first token of a window is
          never predicted: count predictions, not tokens.
        probability instead of its inverse: This is the (geometric) mean probability of a token. Perplexity is one over
          it: mind the sign.
        """,
    ),
    cases=lambda: [
        Case("windows of different lengths", ([normal(n, seed=n).abs() * 2 for n in (3, 17, 8)],)),
        Case("an easy window and a hard one", ([normal(6, seed=40).abs() * 0.2, normal(6, seed=41).abs() + 3],)),
        Case("a model that guesses among eight tokens", ([torch.full((4,), 8.0).log(), torch.full((9,), 8.0).log()],)),
        Case("a model that is always right", ([torch.zeros(5), torch.zeros(2)],)),
        Case("one window of one prediction", ([torch.tensor([1.25])],)),
        Case("texts so long that their probability is no number", ([normal(n, seed=n).abs() + 3 for n in (400, 900)],)),
        Case("a prediction that was next to impossible", ([torch.tensor([0.5, 200, 0.25]), torch.full((9,), 1.5)],)),
    ],
)


# zero_shares(weights): the share of zeros of each matrix and, last, of all together
def _shares(is_zero: list[Tensor], together: Callable[[list[Tensor]], Tensor] | None = None) -> Tensor:
    together = together or (lambda flags: torch.cat([flag.flatten() for flag in flags]).float().mean())
    return torch.stack([*(flag.float().mean() for flag in is_zero), together(is_zero)])


def _zero_shares(weights: list[Tensor]) -> Tensor:
    return _shares([W == 0 for W in weights])


zero_shares = Exercise(
    name="zero_shares",
    chapter=1,
    title="the share of zeros of each matrix and, as the last entry, of all matrices together",
    reference=_zero_shares,
    difficulty=2,
    wrong=mistakes(
        {
            "mean over the matrices": lambda weights: _shares(
                [W == 0 for W in weights], lambda z: torch.stack([f.float().mean() for f in z]).mean()
            ),
            "counts the kept ones": complement(_zero_shares),
            "near zeros counted": [
                lambda weights: _shares([W.abs() < 1e-3 for W in weights]),
                lambda weights: _shares([W.abs() < 1e-8 for W in weights]),
            ],
            "negative weights counted": lambda weights: _shares([W <= 0 for W in weights]),
            "rows of zeros counted": lambda weights: _shares([(W == 0).all(1) for W in weights]),
            "all together first": lambda weights: _zero_shares(weights).roll(1),
            "percent": scaled(_zero_shares, 100),
        },
        """
        mean over the matrices: The shares of the matrices are right, but the last entry is their plain average. A large
          matrix holds more of the weights than a small one.
        counts the kept ones: This is the density, the share of weights that are *not* zero. Sparsity is the share of
          zeros.
        near zeros counted: Small weights were counted as zeros. A weight of a millionth is stored and multiplied like
          any other: exactly 0.
        negative weights counted: Negative weights were counted, too.
        rows of zeros counted: Only rows that are zero from end to end were counted. Here a zero may stand anywhere.
        all together first: The numbers are right, but the share of all matrices together is to be the *last* entry.
        percent: These are per cent; fractions between 0 and 1 are asked for.
        """,
    ),
    cases=lambda: [
        Case("matrices of different size", ([_sparse(4, 5, zeros=7, seed=50), _sparse(2, 3, zeros=4, seed=51)],)),
        Case("a dense matrix and an empty one", ([normal(3, 4, seed=52), torch.zeros(2, 4)],)),
        Case("tiny weights", ([normal(3, 3, seed=53) * 5e-4 / 3, torch.tensor([[1e-9, 0.0], [-1e-30, 2.0]])],)),
        Case("one matrix with a row of zeros", ([_sparse(3, 4, zeros=4, seed=54)],)),
    ],
)


def _sparse(rows: int, columns: int, *, zeros: int, seed: int) -> Tensor:
    """The first `zeros` entries in row-major order are 0, one of them written -0.0."""
    W = normal(rows, columns, seed=seed)
    W.view(-1)[:zeros] = 0.0
    W.view(-1)[0] = -0.0
    return W


# exposing_nats(factors): how hard the second of two windows must be for the mean of perplexities to be so much too high
def _exposing_nats(factors: Tensor) -> Tensor:
    return 2 * torch.acosh(factors)


exposing_nats = Exercise(
    name="exposing_nats",
    chapter=1,
    title="the nats of the second window at which the mean of two perplexities is a given factor too high",
    reference=_exposing_nats,
    difficulty=3,
    wrong=mistakes(
        {
            "half of it": lambda factors: torch.acosh(factors),
            "second window alone": lambda factors: (2 * factors - 1).log(),
            "its own perplexity compared": lambda factors: 2 * (2 * factors).log(),
            "sum of the perplexities": lambda factors: 2 * torch.acosh((factors / 2).clamp(min=1)),
            "negative nats": negated(_exposing_nats),
            "perplexity instead of nats": lambda factors: _exposing_nats(factors).exp(),
            "logarithm of the factor": [lambda factors: factors.log(), lambda factors: 2 * factors.log()],
            "bits": lambda factors: _exposing_nats(factors) / math.log(2),
        },
        """
        half of it: With these nats the mean of the two is too high by less than that. The right perplexity is that of
          half of them, the mean over both windows.
        second window alone: The mean of the two perplexities is the factor here, but it is to be the factor *times the
          right perplexity*, and that rises with the nats as well.
        its own perplexity compared: The perplexity of the perfect window is 1, not 0. For large factors it hardly
          counts, for a factor of 1 it does.
        sum of the perplexities: The two perplexities were added up. The bug takes their mean.
        negative nats: A window cannot be predicted better than perfectly: of the two solutions, take the one that is
          not negative.
        perplexity instead of nats: This is the perplexity of the second window; asked for are its nats.
        logarithm of the factor: Then the mean of the two would be the factor times something else. Write down both
          numbers for two windows, one of which has 0 nats.
        bits: These are bits. Perplexity is e to the mean of the nats.
        """,
    ),
    cases=lambda: [
        Case("a factor of 2", (torch.tensor([2.0]),)),
        Case("windows that are equally hard", (torch.tensor([1.0]),)),
        Case("factors near 1", (torch.tensor([1.01, 1.1, 1.22]),)),
        Case("large factors", (torch.tensor([5.0, 40.0, 1000.0]),)),
        Case("in any order", (torch.tensor([3.0, 1.0, 1.5]),)),
    ],
)


EXERCISES = [cut_windows, count_parameters, perplexity, zero_shares, exposing_nats]
