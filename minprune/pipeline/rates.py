"""How fast this machine is, measured in about ten seconds, and the seconds that a run takes on it. Chapter 22.

Each rate is that of the code that a run uses: a block of a Llama for the forward pass, `Statistics.update`, the method
itself on matrices of several shapes, a file that is written, flushed, hashed and read. The best of several tries
counts, so that what else runs on the machine disturbs little. The seconds of a method are fitted to

    a i^3 + b o i^2 + c o i + e       (for exact and obs also o i^3)

with no coefficient below zero, which is what the derivations say that it needs, and hold for wider matrices, too.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from minprune.arithmetic import exact_arithmetic
from minprune.methods import get_method
from minprune.models.modes import eval_mode
from minprune.output.shards import Shards
from minprune.output.target import WORK
from minprune.patterns import Pattern
from minprune.pipeline.estimate import (
    Run,
    Sizes,
    busiest,
    disk_bytes,
    error_operations,
    forward_operations,
    gram_operations,
    of_each_rank,
    sent_bytes,
    statistics_operations,
)
from minprune.statistics import Statistics, layer_error

_SHAPES = ((256, 256), (768, 256), (1024, 512), (256, 1024), (1024, 1024), (128, 1536))  # (d_out, d_in) of the solves
_SMALL_SHAPES = ((32, 64), (64, 64), (32, 128), (64, 128), (64, 192))  # of those whose time grows with o i^3
_ROWWISE = {"exact", "obs", "swaps"}  # one matrix to solve for each output
_TRIES, _TOKENS, _FILE = 3, 2048, 2**26
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rates:
    """forward, gram, error: operations a second. solve: coefficients of `features`. read, write: bytes a second."""

    forward: float
    gram: float
    error: float
    solve: tuple[float, ...]
    read: float
    write: float

    def solve_seconds(self, d_out: int, d_in: int) -> float:
        return float(np.dot(self.solve, features(d_out, d_in)))


def features(d_out: int, d_in: int) -> tuple[float, ...]:
    """What the seconds of a method may grow with."""
    return 1.0, d_out * d_in, d_out * d_in**2, d_in**3, d_out * d_in**3


def calibrate(
    method: str,
    pattern: Pattern,
    dtype: torch.dtype = torch.float32,
    length: int = 512,
    folder: str | Path | None = None,
    clock: Clock = time.perf_counter,
) -> Rates:
    """Measure this machine, as it is now, for a method and a pattern, in about ten seconds on the CPU.

    dtype: of the model. length: of a window. folder: on whose disk a file of 64 MB is written for a moment (None: that
    of temporary files). clock: gives seconds, such as `time.process_time` on a machine that others use, too.
    """
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(_TOKENS, 1024, generator=generator)
    W = torch.randn(1024, 1024, generator=generator)
    stats = Statistics(1024).update(X)
    read, write = _disk(folder, clock)
    return Rates(
        forward_rate(dtype, length, clock),
        gram_operations(_TOKENS, 1024) / _best(lambda: Statistics(1024).update(X), clock),
        error_operations(1024, 1024) / _best(lambda: layer_error(W, 0.9 * W, stats.gram), clock),
        _solve(method, pattern, clock),
        read,
        write,
    )


def seconds(sizes: Sizes, run: Run, rates: Rates, ranks: int = 1, bandwidth: float = float("inf")) -> dict[str, float]:
    """Of a run, by part. ranks: machines such as this one that share the windows and the solves; bandwidth: bytes a
    second between them. The parts follow each other, so a run takes their sum. Where all windows of a rank go through a
    block at once, ranks solve one after the other, and only the windows are shared.
    """
    run = of_each_rank(run, ranks)
    shapes = [group.shapes for groups in sizes.blocks for group in groups]
    at_once = ranks if run.batches > 1 else 1
    solves = sum(busiest((rates.solve_seconds(o, i) for o, i in group), at_once) for group in shapes)
    errors = sum(busiest((error_operations(o, i) / rates.error for o, i in group), at_once) for group in shapes)
    written = sum(disk_bytes(sizes, run).values())
    found = {
        "forward": forward_operations(sizes, run) / rates.forward,
        "statistics": statistics_operations(sizes, run) / rates.gram,
        "solve": solves,
        "error": errors if run.windows else 0.0,
        "files": sizes.total * sizes.itemsize / rates.read + written / rates.write,
    }
    if ranks > 1:
        found["network"] = sent_bytes(sizes) / bandwidth
    return found


def _best(work: Callable[[], object], clock: Clock, tries: int = _TRIES) -> float:
    """The seconds of the fastest of several tries, after one that does not count."""
    work()
    taken = []
    for _ in range(tries):
        start = clock()
        work()
        taken.append(clock() - start)
    return max(min(taken), 1e-7)


@torch.no_grad()
def forward_rate(dtype: torch.dtype, length: int, clock: Clock = time.perf_counter) -> float:
    """Operations a second of two blocks of a Llama of width 512, with all that stands around their products."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, inner = 512, 1408
    size: Any = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 8}
    model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=64, **size))
    model = model.to(dtype)
    windows = max(1, _TOKENS // length)
    tokens = torch.zeros(windows, length, dtype=torch.long)
    with eval_mode(model):  # in which a run takes its products
        taken = _best(lambda: model.model(input_ids=tokens, use_cache=False), clock)
    return 2 * windows * length * (2 * (4 * width**2 + 3 * width * inner) + 4 * length * width) / taken


@exact_arithmetic()
def _solve(method: str, pattern: Pattern, clock: Clock) -> tuple[float, ...]:
    """The coefficients of `features`, fitted to the method on random matrices of several shapes."""
    generator = torch.Generator().manual_seed(0)
    rowwise = bool(_ROWWISE & {*method.split("+")})
    rows, taken = [], []
    for d_out, d_in in _SMALL_SHAPES if rowwise else _SHAPES:
        W = torch.randn(d_out, d_in, generator=generator)
        stats = Statistics(d_in).update(torch.randn(2 * d_in, d_in, generator=generator))
        stats.gram  # noqa: B018  # its upper half, which a run has by then, too
        chosen = get_method(method)
        best = _best(lambda W=W, stats=stats, chosen=chosen: chosen(W, stats, pattern), clock, 2)  # type: ignore[misc]
        rows.append(features(d_out, d_in) if rowwise else (*features(d_out, d_in)[:4], 0.0))
        taken.append(best)
    A, y = np.array(rows), np.array(taken)
    scale = np.maximum(A.max(0), 1e-300)
    found, _ = nnls(A / scale / y[:, None], np.ones(len(y)))  # so that each shape's relative error counts alike
    return tuple(float(value) for value in found / scale)


def _disk(folder: str | Path | None, clock: Clock) -> tuple[float, float]:
    """Bytes a second that are read, and that are written, flushed and hashed, on the disk of a folder."""
    piece = {"x": torch.randn(_FILE // 4)}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        work = Path(place) / WORK
        work.mkdir()
        weights = Shards(work.parent, piece, _FILE)

        def write() -> None:
            for path in work.iterdir():
                path.unlink()
            weights.begin()
            weights.write(piece)

        writing = _best(write, clock, 2)
        return _FILE / _best(lambda: weights.read(piece)["x"].clone(), clock, 2), _FILE / writing
