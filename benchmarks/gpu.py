"""2:4 on a GPU: torch's semi-structured product against the dense one, batch 1 to 512, and the device tests.

Without a CUDA device it says so and exits with 2. It takes minutes; nothing in the book depends on it.

    python benchmarks/gpu.py [book/results/gpu.json]
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from record import save, short

SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  # (d_out, d_in): the matrices of Llama-2 7B
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ROUNDS = 50
PROTOCOL = {
    "product": "float16, two of every four random weights zero, cuSPARSELt by way of torch.sparse",
    "time": f"CUDA events around 10 products, medians of {ROUNDS} rounds; ratio: dense time over 2:4 time",
}


def milliseconds(work) -> float:
    """Of one call, on the device."""
    spent = []
    for round_ in range(ROUNDS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            work()
        end.record()
        torch.cuda.synchronize()
        if round_ >= 3:  # the first warm up
            spent.append(start.elapsed_time(end) / 10)
    return statistics.median(spent)


def measure(d_out: int, d_in: int, batch: int) -> dict:
    """One shape at one batch size."""
    from torch.sparse import to_sparse_semi_structured

    W = torch.randn(d_out, d_in, device="cuda", dtype=torch.float16)
    W *= torch.tensor([1, 1, 0, 0], device="cuda", dtype=W.dtype).repeat(d_in // 4)
    X = torch.randn(batch, d_in, device="cuda", dtype=torch.float16)
    sparse = to_sparse_semi_structured(W)
    difference = (torch.nn.functional.linear(X, sparse) - X @ W.T).abs().max() / (X @ W.T).abs().max()
    dense_ms = milliseconds(lambda: torch.nn.functional.linear(X, W))
    sparse_ms = milliseconds(lambda: torch.nn.functional.linear(X, sparse))
    cell = {"shape": [d_out, d_in], "batch": batch, "dense ms": short(dense_ms), "2:4 ms": short(sparse_ms)}
    return cell | {"x dense": short(dense_ms / sparse_ms), "difference": short(float(difference))}


def main() -> None:
    """Measure, run the device tests, and write the file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device here: 2:4 on a GPU stays unmeasured\n")
    cells = []
    for d_out, d_in in SHAPES:
        for batch in BATCHES:
            cells.append(measure(d_out, d_in, batch))
            print(cells[-1], flush=True)
    if args.output:
        protocol = PROTOCOL | {"device": torch.cuda.get_device_name()}
        save(args.output, f"python benchmarks/gpu.py {args.output.as_posix()}", protocol, cells)
    tests = sorted(str(path) for path in Path("tests").rglob("test_devices.py"))
    sys.exit(subprocess.run([sys.executable, "-m", "pytest", *tests], timeout=300).returncode)


if __name__ == "__main__":
    main()
