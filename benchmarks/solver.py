"""SparseGPT's solve against its arithmetic floor, as ratios within one run.

The floor is what cannot be avoided: the factorisation (reversed Cholesky and one triangular inverse) and the
products that carry the errors of each block of 128 columns to the columns after it. Each round times all of them one
after the other; the medians over the rounds are compared.

    python benchmarks/solver.py [--rounds 15] [--threads 2]
"""

import argparse
import statistics
import time

import plain
import torch

import minprune as mp
from minprune.methods.sparsegpt import inverse_factor

SHAPES = [(576, 576), (1536, 576), (576, 1536), (2048, 2048)]  # (d_out, d_in)


def published_chain(gram, damp=0.01):
    """Cholesky, inverse, Cholesky: the same factor as `inverse_factor`, at twice the operations."""
    H = gram + damp * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)


def block_products(U, E, w, block_size=128):
    """What blocks send to later columns: U (d_in, d_in), E and w (d_in, d_out)."""
    for start in range(block_size, len(U), block_size):
        cols = slice(start, start + block_size)
        w[cols].addmm_(U[:start, cols].T, E[:start], alpha=-1)


def seconds(work) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(d_out: int, d_in: int, rounds: int) -> dict[str, float]:
    """Median seconds of each piece of work on one layer."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(d_out, d_in, generator=generator)
    mixing = torch.randn(d_in, d_in, generator=generator) / d_in**0.5
    stats = mp.Statistics(d_in).update(torch.randn(4 * d_in, d_in, generator=generator) @ mixing)
    U, _ = inverse_factor(stats.gram, 0.01)
    E, w = torch.zeros(d_in, d_out), torch.zeros(d_in, d_out)
    method, half, two_four = mp.METHODS["sparsegpt"], mp.pattern("50%"), mp.pattern("2:4")
    works = {
        "factor": lambda: inverse_factor(stats.gram, 0.01),
        "chain": lambda: published_chain(stats.gram),
        "products": lambda: block_products(U, E, w),
        "50%": lambda: method(W, stats, half),
        "2:4": lambda: method(W, stats, two_four),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 2):
        for name, work in works.items():
            elapsed = seconds(work)
            if round_ >= 2:  # the first rounds warm up
                times[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"plain": min(seconds(lambda: plain.sparsegpt(W, stats.gram)) for _ in range(3))}


def main() -> None:
    """Print one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"SparseGPT's solve, {args.threads} threads, median of {args.rounds} rounds, milliseconds")
    head = ("floor", "(factor, chain)", "50%", "ratio", "2:4", "ratio", "plain")
    widths = (7, 16, 7, 6, 7, 6, 7)
    print(f"{'d_out x d_in':>12} " + " ".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True)))
    for d_out, d_in in SHAPES:
        t = {name: 1000 * value for name, value in measure(d_out, d_in, args.rounds).items()}
        floor = t["factor"] + t["products"]
        factors = f"({t['factor']:.1f}, {t['chain']:.1f})"
        print(
            f"{f'{d_out} x {d_in}':>12} {floor:7.1f} {factors:>16} {t['50%']:7.1f} {t['50%'] / floor:6.2f} "
            f"{t['2:4']:7.1f} {t['2:4'] / floor:6.2f} {t['plain']:7.1f}"
        )


if __name__ == "__main__":
    main()
