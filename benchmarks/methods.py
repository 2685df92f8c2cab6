"""Each method's time against its own arithmetic floor, and against its error, as ratios within one run.

The floor of a method is what it cannot do without: its factorisations and its matrix products, on matrices of the
same shapes that lie ready. What is above the floor is choosing, gathering and Python.

    python benchmarks/methods.py [--widths 576 1536 2048] [--rounds 5] [--threads 2] [--pattern 50%]
"""

import argparse
import statistics
import time
from functools import cache
from unittest.mock import Mock, patch

import torch
from solver import block_products

import minprune as mp
from minprune import patterns
from minprune.methods import alps, get_method
from minprune.methods.sparsegpt import inverse_factor
from minprune.patterns import keep_largest
from minprune.statistics import layer_error

SURGEON_ROWS = 64  # obs costs the same for every row: a whole layer would take minutes
_NUMBERS = 2**24  # of the systems that `exact` solves together


def layer(d: int, rows: int) -> tuple[torch.Tensor, mp.Statistics]:
    """Weights (rows, d) and the statistics of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(rows, d, generator=generator)
    mixing = torch.randn(d, d, generator=generator) / d**0.5
    return W, mp.Statistics(d).update(torch.randn(4 * d, d, generator=generator) @ mixing)


def sparsegpt_floor(W, gram):
    """The factor and the products between blocks."""
    U, _ = inverse_factor(gram, 0.01)
    block_products(U, torch.zeros(W.shape[1], len(W)), torch.zeros(W.shape[1], len(W)))


def exact_floor(W, gram):
    """One factorisation for all rows, then one factorisation and solution of half the size for each."""
    H = damped(gram)
    torch.linalg.cholesky(H)
    half = len(gram) // 2
    ready = H[:half, :half].expand(max(1, _NUMBERS // half**2), half, half).contiguous()
    for start in range(0, len(W), len(ready)):
        systems = ready[: len(W) - start]
        torch.cholesky_solve(torch.ones(len(systems), half, 1), torch.linalg.cholesky(systems))


def admm_floor(W, gram, steps=20):
    """One factorisation and inverse, then one product a round."""
    R = torch.cholesky_inverse(torch.linalg.cholesky(damped(gram)))
    B = torch.zeros_like(W)
    for _ in range(steps):
        B.addmm_(W, R)


def obs_floor(W, gram):
    """The factor, the inverse, and for each removal one column of each row's inverse."""
    U, _ = inverse_factor(gram, 0.01)
    inverse, steps = U.T @ U, len(gram) // 2
    u, column = torch.zeros(len(W), steps, len(gram)), inverse[: len(W), None].clone()
    for t in range(steps):
        column.baddbmm_(u[:, t, :t, None].mT, u[:, :t], alpha=-1)


def alps_floor(W, gram):
    """As many factorisations with inverses, and as many products, as ALPS needs on this very layer."""
    rounds, penalties = alps_counts(len(W), len(gram))
    H, B = damped(gram), torch.zeros_like(W)
    for _ in range(penalties):
        R = torch.cholesky_inverse(torch.linalg.cholesky(H))
    for _ in range(rounds + 11):  # the refinement begins with one and has ten steps
        B.addmm_(W, R)


@cache
def alps_counts(rows: int, d: int) -> tuple[int, int]:
    """The rounds of ALPS on `layer(d, rows)` at 50 %, and how many penalties it tried."""
    W, stats = layer(d, rows)
    chosen, inverted = (Mock(wraps=work) for work in (keep_largest, alps._inverse))
    with patch.object(patterns, "keep_largest", chosen), patch.object(alps, "_inverse", inverted):
        alps.alps(W, stats, mp.pattern("50%"))
    return chosen.call_count - 2, inverted.call_count  # a choice before the rounds and one after them


def damped(gram):
    """gram + 1 % of its mean diagonal."""
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))


FLOORS = {"sparsegpt": sparsegpt_floor, "exact": exact_floor, "admm": admm_floor, "alps": alps_floor, "obs": obs_floor}
METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "admm", "exact", "wanda+swaps", "alps", "obs")


def seconds(work) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print one row per width and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 1536, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pattern = mp.pattern(args.pattern)
    print(f"Square layers, {pattern}, {args.threads} threads, median of {args.rounds} rounds")
    print(f"{'d':>5} {'method':<12} {'seconds':>8} {'floor':>8} {'ratio':>6} {'error':>8}")
    for d in args.widths:
        for name in args.methods:
            W, stats = layer(d, SURGEON_ROWS if name == "obs" else d)
            method, floor = get_method(name), FLOORS.get(name)
            times, floors = [], []
            if floor:
                floor(W, stats.gram)  # warm-up; ALPS's counts its rounds
            for _ in range(args.rounds):
                times.append(seconds(lambda: method(W, stats, pattern)))  # noqa: B023, called at once
                if floor:
                    floors.append(seconds(lambda: floor(W, stats.gram)))  # noqa: B023
                if times[-1] > 20:
                    break  # nothing that long needs a median
            median, lowest = statistics.median(times), statistics.median(floors) if floors else float("nan")
            error = layer_error(W, method(W, stats, pattern).weight, stats.gram)
            against = f"{lowest:8.3f} {median / lowest:6.2f}" if floors else f"{'-':>8} {'-':>6}"
            note = f"  ({SURGEON_ROWS} rows)" if name == "obs" else ""
            print(f"{d:>5} {name:<12} {median:8.3f} {against} {error:8.4f}{note}", flush=True)


if __name__ == "__main__":
    main()
