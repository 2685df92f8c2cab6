"""Tokens a second: a model that generates with its matrices dense, by transformers, and without their zeros.

The models take turns, so that other work on the machine meets them all. One thread is timed by its processor time,
several by the clock.

    python benchmarks/decode.py [book/results/decode.json] [--threads 1] [--rounds 7] [--large]

--large: also a Llama of 1.2 billion random weights in bfloat16, which takes up to 5 GB of memory.
"""

import argparse
import copy
import gc
import statistics
import time
from pathlib import Path

import torch
from record import save, short

import minprune as mp
from minprune.kernels.build import kernel

PATTERNS = ("50%", "70%", "2:4")
TOKENS = 24
PROTOCOL = {
    "task": f"a prompt of 8 tokens, then {TOKENS} tokens by `model.generate` without sampling, batch 1",
    "zeros": "magnitude pruning; where the zeros are does not change the time",
    "time": "the second half of a round minus the first: a round of 1 token is subtracted, so that the prompt costs "
    "nothing; a thread's processor time if there is one thread, else the clock; medians of rounds",
    "machine": "a virtual one whose two cores other work was using at the same time",
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


def measure(name: str, dense: torch.nn.Module, patterns: tuple[str, ...], rounds: int) -> list[dict]:
    """One cell for each way to hold the model."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    models = {"dense": dense}
    bytes_ = {"dense": sum(p.nbytes for p in dense.parameters())}
    for pattern in patterns:
        pruned = copy.deepcopy(dense)
        mp.prune(pruned, None, "magnitude", pattern)
        held = mp.sparsify(pruned, "nm" if pattern == "2:4" else "bitmask")
        models[pattern], bytes_[pattern] = pruned, held
        gc.collect()
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for round_ in range(rounds + 1):
        for kind, model in models.items():
            spent = seconds_a_token(model, clock)
            if round_:
                times[kind].append(spent)
    cells = []
    for kind, spent in times.items():
        ratios = [them / mine for them, mine in zip(times["dense"], spent, strict=True)]
        cells.append(
            {"model": name, "pattern": kind, "threads": torch.get_num_threads(), "MB": short(bytes_[kind] / 1e6),
             "tokens a second": short(1 / statistics.median(spent)), "x dense": short(statistics.median(ratios))}
        )  # fmt: skip
        print(cells[-1], flush=True)
    return cells


def main() -> None:
    """Measure the models, print the cells, and write the file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if kernel()[0] is None:
        parser.exit(2, f"no kernel to measure: {kernel()[1]}\n")
    cells = measure("smollm2, float32", mp.load_model("smollm2")[0], PATTERNS, args.rounds)
    if args.large:
        gc.collect()
        dense = large_llama()
        for pattern in PATTERNS:  # one at a time, for memory
            cells += measure("Llama of 1.2 billion random weights, bfloat16", dense, (pattern,), args.rounds)
    if args.output:
        options = f" --threads {args.threads} --rounds {args.rounds}{' --large' if args.large else ''}"
        save(args.output, f"python benchmarks/decode.py {args.output.as_posix()}{options}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
