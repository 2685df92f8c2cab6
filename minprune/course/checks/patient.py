"""The exercises of chapter 01 on what goes in: windows of a text, and the size of a model."""

from collections.abc import Callable

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, Wrong

# cut_windows(ids, length): consecutive windows of one length, without overlap or padding


def _cut_windows(ids: Tensor, length: int) -> Tensor:
    return ids[: len(ids) // length * length].view(-1, length)


def _strided(ids: Tensor, length: int, stride: int) -> Tensor:
    return torch.stack([ids[i : i + length] for i in range(0, len(ids) - length + 1, stride)])


def _padded(ids: Tensor, length: int) -> Tensor:
    return torch.cat([ids, ids.new_zeros(-len(ids) % length)]).view(-1, length)


_UNEVEN = (
    "Your windows are not all of one length, so they are no tensor (windows, length). What is left over at the end of "
    "the text makes no window."
)

cut_windows = Exercise(
    name="cut_windows",
    chapter=1,
    title="a text's tokens as windows of one length, without overlap or padding",
    reference=_cut_windows,
    difficulty=1,
    wrong=(
        Wrong(
            "padded",
            _padded,
            "The rest of the text was filled up with made-up tokens. The perplexity of padding is "
            "that of something nobody wrote: a window is full or it does not exist.",
        ),
        Wrong("left-over window kept", lambda ids, length: ids.split(length), _UNEVEN),
        Wrong("left-over window kept", lambda ids, length: list(ids.split(length)), _UNEVEN),
        Wrong(
            "overlapping",
            lambda ids, length: _strided(ids, length, 1),
            "Each window starts one token after the one before, so most tokens are in several windows and count often.",
        ),
        Wrong(
            "windows share a token",
            lambda ids, length: _strided(ids, length, max(length - 1, 1)),
            "The last token of each window is also the first of the next. Where should the next window start?",
        ),
        Wrong(
            "last full window lost",
            lambda ids, length: ids[: (len(ids) - 1) // length * length].view(-1, length),
            "When the text divides evenly, the last window is full and belongs to the result. Look at the end of your "
            "range.",
        ),
        Wrong(
            "cut from the end",
            lambda ids, length: ids[len(ids) % length :].view(-1, length),
            "The tokens that are left over were dropped at the beginning of the text; drop them at its end.",
        ),
        Wrong(
            "read down the columns",
            lambda ids, length: ids[: len(ids) // length * length].view(length, -1).T,
            "Neighbouring tokens ended up in different windows. Each window is a stretch of text: which way does a "
            "tensor lie in memory, and what does a transpose do to it?",
        ),
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


def _config(vocab: int, d: int, d_ff: int, layers: int, heads: int, kv_heads: int, head_dim: int, tied: bool) -> dict:
    return {
        "vocab_size": vocab,
        "hidden_size": d,
        "intermediate_size": d_ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": tied,
    }


count_parameters = Exercise(
    name="count_parameters",
    chapter=1,
    title="the number of parameters of a Llama-like model, from its config",
    reference=_count_parameters,
    difficulty=3,
    wrong=(
        Wrong(
            "tied head counted",
            lambda config: _count_parameters(config, head=lambda config: True),
            "The output head was counted although it is tied. A tied head is the embedding matrix, used a second time.",
        ),
        Wrong(
            "untied head forgotten",
            lambda config: _count_parameters(config, head=lambda config: False),
            "A model whose head is not tied to the embeddings has a second matrix of their size.",
        ),
        Wrong(
            "tying read the wrong way round",
            lambda config: _count_parameters(config, head=lambda config: config["tie_word_embeddings"]),
            "The head was counted where it is tied and left out where it is not.",
        ),
        Wrong(
            "keys and values as wide as the queries",
            lambda config: _count_parameters(config, kv="num_attention_heads"),
            "With grouped-query attention, several query heads share one key head and one value head: `k_proj` and "
            "`v_proj` have fewer outputs than `q_proj`.",
        ),
        Wrong(
            "head size guessed",
            lambda config: _count_parameters(config, guess_head=True),
            "The size of a head was taken to be `hidden_size / num_attention_heads`. That is usual, not necessary: "
            "the config says it.",
        ),
        Wrong(
            "two matrices in the MLP",
            lambda config: _count_parameters(config, matrices=2),
            "A Llama-like MLP has a gate besides the way up and the way down.",
        ),
        Wrong(
            "norms forgotten",
            lambda config: _count_parameters(config, norms=0, final_norm=0),
            "The matrices are right; the gains of the norms are missing. They are few, but they are parameters.",
        ),
        Wrong(
            "final norm forgotten",
            lambda config: _count_parameters(config, final_norm=0),
            "One vector is missing: what stands between the last block and the head?",
        ),
        Wrong(
            "one norm a block",
            lambda config: _count_parameters(config, norms=1),
            "Each block has a norm before its attention and another before its MLP.",
        ),
        Wrong(
            "one block only",
            lambda config: _count_parameters(config | {"num_hidden_layers": 1}),
            "Only one block was counted. How many has the model?",
        ),
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

EXERCISES = [cut_windows, count_parameters]
