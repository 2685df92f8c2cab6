"""Peak resident memory of the command line, by batch size: `minprune prune` in a process of its own.

The peak is what the operating system reports of the finished process (ru_maxrss; Linux and macOS).

    python benchmarks/peak_memory.py [--samples 64] [--length 512] [--batch-sizes 64 16 8]
"""

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "minprune", "prune", "smollm2", "--method", "sparsegpt", "--pattern", "50%"]
BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


def measure(arguments: list[str], results) -> None:
    """Run the command as this process's only child and put (seconds, peak in GB) into the queue."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", str(Path(folder) / "pruned")]
        subprocess.run([*COMMAND, *arguments, *output], check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * BYTES / 1e9
    results.put((time.perf_counter() - start, peak))


def main() -> None:
    """Print one row per batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 16, 8])
    args = parser.parse_args()
    print(f"SparseGPT 50% of SmolLM2, {args.samples} x {args.length} tokens, start to finish in a process of its own")
    print(f"{'batch size':>10} {'seconds':>8} {'peak GB':>8}")
    spawn = multiprocessing.get_context("spawn")  # a child of its own each: the peak is that of all children so far
    for batch_size in args.batch_sizes:
        results = spawn.Queue()
        given = ["--samples", str(args.samples), "--length", str(args.length), "--batch-size", str(batch_size)]
        process = spawn.Process(target=measure, args=(given, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"the run with batch size {batch_size} failed")
        seconds, peak = results.get()
        print(f"{batch_size:>10} {seconds:8.1f} {peak:8.2f}", flush=True)


if __name__ == "__main__":
    main()
