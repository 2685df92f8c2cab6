"""Does a zero save time? One layer's product with its zeros stored like any number, and stored as CSR.

Seconds of `X @ W.T` relative to the dense W in the same run, on one thread; the fastest of many rounds, in turn, as
others may be using the machine.

    python benchmarks/zeros.py book/results/zeros.json
"""

import argparse
import time
from pathlib import Path

import torch
from record import save

SHAPE = (1536, 576)  # (d_out, d_in): gate_proj of SmolLM2
SPARSITIES = (0.5, 0.9, 0.99)
TOKENS = (1, 512)
ROUNDS = 400
PROTOCOL = {
    "layer": f"{SHAPE[0]} x {SHAPE[1]}, float32, random weights, zeros at random places; one thread",
    "ratio": f"fastest of {ROUNDS} rounds, divided by those of the dense matrix without zeros in the same run",
}


def measure(tokens: int) -> dict[tuple[str, float], float]:
    """The ratio of each (storage, sparsity) at so many tokens."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SHAPE, generator=generator)
    X = torch.randn(tokens, SHAPE[1], generator=generator)  # (tokens, d_in)
    ways: dict[tuple[str, float], torch.Tensor] = {("dense", 0.0): W}
    for sparsity in SPARSITIES:
        pruned = W * (torch.rand(SHAPE, generator=generator) >= sparsity)
        ways["dense", sparsity] = pruned
        ways["csr", sparsity] = pruned.to_sparse_csr()
    X_columns = X.T.contiguous()  # (d_in, tokens): a sparse matrix multiplies from the left
    seconds: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, stored in ways.items():
            start = time.perf_counter()
            stored @ X_columns
            seconds[way].append(time.perf_counter() - start)
    return {way: min(times) / min(seconds["dense", 0.0]) for way, times in seconds.items()}


def main() -> None:
    """Measure everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [
        {"storage": storage, "sparsity": sparsity, "tokens": tokens, "ratio": float(f"{ratio:.3g}")}
        for tokens in TOKENS
        for (storage, sparsity), ratio in measure(tokens).items()
    ]
    save(args.output, f"python benchmarks/zeros.py {args.output.as_posix()}", PROTOCOL, cells)
    for cell in cells:
        print(cell)


if __name__ == "__main__":
    main()
