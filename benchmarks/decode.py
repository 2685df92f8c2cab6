"""Tokens a second: a model that generates with its matrices dense, by transformers, and without their zeros.

The models take turns, so that other work on the machine meets them all. One thread is timed by its processor time,
several by the clock.

    python benchmarks/decode.py [book/results/decode.json] [--rounds 5] [--large]

--large: also a Llama of 1.2 billion random weights in bfloat16, which takes up to 7 GB of memory. A file that holds
some of the models and thread counts already gets the others.
"""

import argparse
import contextlib
import copy
import gc
import statistics
import time
from pathlib import Path

import torch
from record import load_cells, save, short

import minprune as mp
from minprune.kernels.build import kernel
from minprune.kernels.linear import SparseLinear

PATTERNS = ("50%", "70%", "2:4")
TOKENS = 24
PROTOCOL = {
    "task": f"a prompt of 8 tokens, then {TOKENS} tokens by `model.generate` without sampling, batch 1",
    "zeros": "magnitude pruning; where the zeros are does not change the time",
    "time": "the second half of a round minus the first: a round of 1 token is subtracted, so that the prompt costs "
    "nothing; a thread's processor time if there is one thread, else the clock; medians of rounds",
    "without products": "the same model whose stored matrices answer zeros at once: Python, attention, norms, cache",
    "machine": "a virtual one with two cores, nothing else running but probes for some seconds",
}


def large_llama() -> torch.nn.Module:
    """1.2 billion weights, an eighth of them in the head, which shares the embeddings' matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
    torch.set_default_dtype(torch.bfloat16)
    try:
        config = LlamaConfig(vocab_size=64_000, num_hidden_layers=16, tie_word_embeddings=True, **sizes)
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def seconds_a_token(model: torch.nn.Module, clock) -> float:
    """Seconds of one token after the first."""
    prompt = torch.arange(10, 18)[None]
    spent = []
    for tokens in (1, TOKENS + 1):
        start = clock()
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens,
                             min_new_tokens=tokens, do_sample=False, pad_token_id=0)  # fmt: skip
        spent.append(clock() - start)
        assert out.shape[1] == 8 + tokens
    return (spent[1] - spent[0]) / TOKENS


LARGE = "Llama of 1.2 billion random weights, bfloat16"
MODELS = {
    "SmolLM2, float32": lambda: mp.load_model("smollm2", "float32")[0],
    "SmolLM2, bfloat16": lambda: mp.load_model("smollm2", "bfloat16")[0],
    LARGE: large_llama,
}


def measure(name: str, model: torch.nn.Module, pattern: str, rounds: int) -> dict:
    """The model with the matrices of its blocks, and its head, dense and stored; `x dense` is the ratio of the two.

    Both have the same zeros and share all else. Beside them what a token costs that is no product with a matrix.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    mp.prune(model, None, "magnitude", pattern)
    dense_bytes = sum(p.nbytes for p in model.parameters())
    sparse = copy.deepcopy(model)
    held = mp.sparsify(sparse, "nm" if pattern == "2:4" else "bitmask")
    gc.collect()
    embeddings = sparse.get_input_embeddings().weight.nbytes
    ways = {"dense": model, "sparse": sparse}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way, one in ways.items():
            spent = seconds_a_token(one, clock)
            if round_:
                times[way].append(spent)
    ratios = [them / mine for them, mine in zip(times["dense"], times["sparse"], strict=True)]
    rates = {f"{way} tokens a second": short(1 / statistics.median(spent)) for way, spent in times.items()}
    cell = {"model": name, "pattern": pattern, "threads": torch.get_num_threads(), **rates}
    cell |= {"x dense": short(statistics.median(ratios)), "x dense, lowest": short(min(ratios))}
    cell |= {"dense MB": short(dense_bytes / 1e6), "sparse MB": short((held + embeddings) / 1e6)}
    with no_products():
        cell["ms a token without products"] = short(1000 * seconds_a_token(sparse, clock))
    return cell


@contextlib.contextmanager
def no_products():
    """Within it a stored matrix answers zeros at once: what is left of a token is torch's, Python's and attention's."""
    forward = SparseLinear.forward
    SparseLinear.forward = lambda self, X: X.new_zeros(*X.shape[:-1], self.out_features)
    try:
        yield
    finally:
        SparseLinear.forward = forward


def main() -> None:
    """Measure the models, print the cells, and write the file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    if kernel()[0] is None:
        parser.exit(2, f"no kernel to measure: {kernel()[1]}\n")
    models = {name: make for name, make in MODELS.items() if args.large or name != LARGE}
    cells = load_cells(args.output) if args.output else []
    options = f" --rounds {args.rounds}{' --large' if args.large else ''}"
    for threads in (1, 2):
        for name, make in models.items():
            for pattern in PATTERNS:
                done = {(cell["model"], cell["threads"], cell["pattern"]) for cell in cells}
                if (name, threads, pattern) in done:
                    continue
                torch.set_num_threads(threads)
                cells.append(measure(name, make(), pattern, args.rounds))
                print(cells[-1], flush=True)
                gc.collect()
                if args.output:
                    save(args.output, f"python benchmarks/decode.py {args.output.as_posix()}{options}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
