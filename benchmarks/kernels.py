"""A product with one token by the kernel, against torch's and the kernel's own dense product, as ratios in one run.

Each round visits every form in turn, and each form is a row of matrices, so that a matrix comes from memory: between
two visits to it the others are read, a gigabyte of float32. One thread is timed by its processor time, since others may
use the machine; several by the clock. Ratios are medians over the rounds of times measured one after the other.

    python benchmarks/kernels.py [book/results/speed.json] [--rounds 15]

A file that holds some of the types and thread counts already gets the others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import load_cells, save, short
from torch.nn.functional import linear

import minprune as mp
from minprune.formats.bitmask import Bitmask
from minprune.formats.integers import Integers
from minprune.formats.nm import NMPacked
from minprune.formats.stored import Dense
from minprune.kernels import product
from minprune.kernels.build import LEVELS, Kernel, kernel
from minprune.kernels.product import Packed, pack_for_kernel

ROWS, COLUMNS, LAYERS = 2048, 4096, 4
PATTERNS = ("10%", "30%", "50%", "70%", "90%", "2:4")
FEWER = ("50%", "70%", "2:4")  # with more than one thread
THREADS = (1, 2)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "int4": torch.float32}
GROUP = 64  # columns with one scale, of int4; int8 has none
CSR = ("50%", "70%", "90%")
TOKENS = (16,)
PROTOCOL = {
    "matrices": f"{LAYERS} of {ROWS} x {COLUMNS} for each form, random weights, zeros at random places",
    "product": "one token unless said otherwise; inputs float32 (torch: of the weights' type); int4 with a scale for "
    f"every {GROUP} columns",
    "time": "a thread's processor time if there is one thread, else the clock; milliseconds a matrix, median of rounds",
    "ratios": "medians over rounds of times in one round: x torch, x own of the dense products' time over this one",
    "bandwidth": "GB/s are the bytes that are stored over the fastest round; share: of the fastest plain read's GB/s",
    "machine": "a virtual one with two cores, nothing else running",
}
Form = tuple[dict, list[Callable], int]  # what it is, one product for each matrix, the bytes that one round reads


def matrices(name: str, pattern: str) -> list[Packed]:
    """The matrices with random zeros of that pattern ("0%": none), as the kernel reads them."""
    draw, dtype = torch.Generator().manual_seed(0), DTYPES[name]
    made = []
    for _ in range(LAYERS):
        W = torch.randn(ROWS, COLUMNS, generator=draw)
        if most := {"int8": 127, "int4": 7}.get(name):
            W = (most * W / 4).round().clamp(-most, most)
        W = W.to(dtype)
        W += W == 0  # a stored zero would be left out
        if pattern != "0%":
            score = torch.rand(ROWS, COLUMNS, generator=draw)
            W *= mp.pattern(pattern).keep(score) if ":" in pattern else score >= float(pattern.rstrip("%")) / 100
        if name == "int4":
            scales = 2.0 ** torch.randint(-4, 4, (ROWS, COLUMNS // GROUP), generator=draw)
            made.append(
                pack_for_kernel(Integers.from_dense(W * scales.repeat_interleave(GROUP, 1), bits=4, group=GROUP))
            )
            continue
        form = {"0%": Dense, "2:4": NMPacked}.get(pattern, Bitmask)
        made.append(pack_for_kernel(form.from_dense(W)))
    return made


def forms(name: str, threads: int) -> list[Form]:
    """Everything that is timed with weights of that type."""
    dtype, patterns = DTYPES[name], PATTERNS if threads == 1 else FEWER
    if name == "int4":  # stored as a bitmask, which 2:4 is as large as
        patterns = tuple(pattern for pattern in patterns if pattern != "2:4")
    draw = torch.Generator().manual_seed(1)
    read = kernel()[0].library.minprune_read
    dense = matrices(name, "0%")
    size = dense[0].values.nbytes
    found: list[Form] = [
        ({"form": "read"}, [lambda W=W: read(W.values.data_ptr(), size // 8, threads) for W in dense], size * LAYERS)
    ]
    for tokens in (1, *TOKENS):
        x = torch.randn(tokens, COLUMNS, generator=draw)
        label = {"tokens": tokens}
        if not name.startswith("int"):
            narrow = x.to(dtype)
            products = [lambda W=W, x=narrow: linear(x, W.values.view(ROWS, COLUMNS)) for W in dense]
            found.append(({"form": "torch", **label}, products, size * LAYERS))
        found.append(({"form": "own", **label}, _products(dense, x), sum(W.nbytes for W in dense)))
        for pattern in patterns if tokens == 1 else [pattern for pattern in ("50%", "2:4") if pattern in patterns]:
            packed = matrices(name, pattern)
            stored = sum(W.nbytes for W in packed)
            found.append(({"form": "sparse", "pattern": pattern, **label}, _products(packed, x), stored))
            if tokens == 1 and pattern == "50%":
                found += [
                    ({"form": way, "pattern": pattern, **label}, _products(packed, x, level), stored)
                    for level, way in enumerate(LEVELS[: kernel()[0].level])
                ]
            if name == "float32" and pattern in CSR and tokens == 1:
                csr = [_csr(Wp) for Wp in packed]
                stored = sum(2 * W.values().nbytes for W in csr)
                found.append(
                    ({"form": "csr", "pattern": pattern, **label}, [lambda W=W, x=x: W @ x.T for W in csr], stored)
                )
    return found


def _products(packed: list[Packed], x: torch.Tensor, level: int | None = None) -> list[Callable]:
    def multiply(W: Packed) -> None:
        if level is not None:
            product.kernel = lambda: (Kernel(kernel()[0].library, level), "")
        W.matmul(x)
        product.kernel = kernel

    return [lambda W=W: multiply(W) for W in packed] if level is not None else [lambda W=W: W.matmul(x) for W in packed]


def _csr(W: Packed) -> torch.Tensor:
    dense = W.to_dense().to_sparse_csr()
    parts = dense.crow_indices().int(), dense.col_indices().int(), dense.values()
    return torch.sparse_csr_tensor(*parts, dense.shape)


def measure(name: str, threads: int, rounds: int) -> list[dict]:
    """The cells of one type."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    todo = forms(name, threads)
    times: list[list[float]] = [[] for _ in todo]
    for round_ in range(rounds + 1):
        for place, (_, products, _) in enumerate(todo):
            start = clock()
            for one in products:
                one()
            if round_:  # the first warms up
                times[place].append((clock() - start) / LAYERS)
    cells = []
    best_read = todo[0][2] / LAYERS / min(times[0])
    for (what, _, size), seconds in zip(todo, times, strict=True):
        cell = {"dtype": name, "threads": threads, **what, "ms": short(1000 * statistics.median(seconds))}
        rate = size / LAYERS / min(seconds)
        cell |= {"MB": short(size / LAYERS / 1e6), "GB/s": short(rate / 1e9), "share": short(rate / best_read)}
        for base in ("torch", "own"):
            for (other, _, _), theirs in zip(todo, times, strict=True):
                if other["form"] == base and other["tokens"] == what.get("tokens"):
                    ratios = [them / mine for them, mine in zip(theirs, seconds, strict=True)]
                    cell[f"x {base}"] = short(statistics.median(ratios))
        cells.append(cell)
        print(cell, flush=True)
    return cells


def main() -> None:
    """Measure all types, print the cells, and write the file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if kernel()[0] is None:
        parser.exit(2, f"no kernel to measure: {kernel()[1]}\n")
    cells = load_cells(args.output) if args.output else []
    for threads in THREADS:
        torch.set_num_threads(threads)
        for name in DTYPES:
            if (name, threads) not in {(cell["dtype"], cell["threads"]) for cell in cells}:
                cells += measure(name, threads, args.rounds)
                if args.output:
                    command = f"python benchmarks/kernels.py {args.output.as_posix()} --rounds {args.rounds}"
                    save(args.output, command, PROTOCOL, cells)


if __name__ == "__main__":
    main()
