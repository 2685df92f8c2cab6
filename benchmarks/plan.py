"""What `minprune plan` says of a run against what the run takes: random Llamas of several sizes, from disk to disk.

Each cell is written, planned and pruned in processes of their own. Seconds are processor seconds of one thread, so
that what else the machine does disturbs little; memory is the most that was resident. Cells that are in the file are
not measured again.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--folder SCRATCH] [--output FILE]
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil
import torch
from memory import SEED, VOCABULARY, write_model
from record import load_cells, save, short

import minprune as mp
from minprune.models.layers import find_layers
from minprune.models.skeleton import describe, read_config
from minprune.pipeline import layer_pruner, rates
from minprune.pipeline.checkpoint import prune_checkpoint
from minprune.pipeline.estimate import Run, disk_bytes, memory_bytes, sizes_of
from minprune.pipeline.journal import Journal
from minprune.pipeline.sources import StreamedCheckpoint

PATTERN, GIGA = "50%", 1e9
CELLS = [  # blocks, width, windows of 512 tokens, of which so many at a time, method
    (3, 512, 16, 16, "sparsegpt"),
    (2, 1024, 8, 8, "sparsegpt"),
    (2, 2048, 8, 8, "wanda"),
    (2, 1536, 8, 8, "sparsegpt"),
    (2, 1024, 8, 2, "sparsegpt"),
    (2, 1024, 8, 8, "admm"),
    (8, 2048, 8, 4, "wanda"),
    (2, 2560, 8, 8, "sparsegpt"),
    (58, 2048, 4, 4, "wanda"),
]
LENGTH = 512
NAMES = ("blocks", "width", "windows", "batch_size", "method")


def predict(src: str, run: Run, results) -> None:
    """Plan the run in this process, as the command does, and put what it says into the queue."""
    model = describe(read_config(Path(src)), torch.bfloat16)
    sizes = sizes_of(model, find_layers(model))
    process = psutil.Process().memory_info().rss
    found = rates.calibrate(
        run.method, mp.pattern(PATTERN), torch.bfloat16, LENGTH, Path(src).parent, time.process_time
    )
    parts = {"process": process, **memory_bytes(sizes, run)}
    results.put(
        {
            "peak_gb": sum(parts.values()) / GIGA,
            "beyond_process_gb": sum(memory_bytes(sizes, run).values()) / GIGA,
            "disk_gb": disk_bytes(sizes, run)["model"] / GIGA,
            "seconds": {part: short(value) for part, value in rates.seconds(sizes, run, found).items()},
            "rates": {name: short(getattr(found, name)) for name in ("forward", "gram", "error", "read", "write")},
            "solve_rates": [short(value) for value in found.solve],
        }
    )


def measure(src: str, dst: str, run: Run, results) -> None:
    """Prune in this process, and put what it took into the queue."""
    spent = {"error": 0.0, "files": 0.0}

    def timed(function, part):
        def call(*arguments, **named):
            start = time.process_time()
            found = function(*arguments, **named)
            spent[part] += time.process_time() - start
            return found

        return call

    layer_pruner.clock = lambda device: time.process_time()
    layer_pruner.layer_error = timed(layer_pruner.layer_error, "error")
    StreamedCheckpoint.load = timed(StreamedCheckpoint.load, "files")
    Journal.add = timed(Journal.add, "files")
    generator = torch.Generator().manual_seed(SEED + 1)
    calib = torch.randint(VOCABULARY, (run.windows, run.length), generator=generator)
    start, wall = time.process_time(), time.perf_counter()
    report = prune_checkpoint(src, dst, calib, run.method, PATTERN, batch_size=run.batch_size)
    total = time.process_time() - start
    spent |= {part: report.seconds[part] for part in ("statistics", "solve")}
    spent["forward"] = total - sum(spent.values())
    results.put(
        {
            "peak_gb": high_water() / GIGA,
            "disk_gb": sum(path.stat().st_size for path in Path(dst).glob("*.safetensors")) / GIGA,
            "seconds": {part: short(value) for part, value in spent.items()},
            "total": total,
            "wall": time.perf_counter() - wall,
        }
    )


def high_water() -> int:
    """The most bytes that this process had resident: its own, where ru_maxrss begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def in_a_process(function, *arguments) -> dict:
    """What a function puts into a queue, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    process = spawn.Process(target=function, args=(*arguments, results))
    process.start()
    found = results.get()
    process.join()
    return found


def main() -> None:
    """Measure what is not in the file yet, one line a cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to put the models (a temporary folder)")
    parser.add_argument("--output", type=Path, default=Path("book/results/plan.json"))
    args = parser.parse_args()
    protocol = {
        "model": f"Llamas with random weights in bfloat16, a vocabulary of {VOCABULARY}; {PATTERN}, no test",
        "calibration": f"windows of {LENGTH} random tokens",
        "seconds": "processor seconds of one thread, on a machine that did other work at the same time; planned from a "
        "calibration right before the run; forward is all that is not in the other parts",
        "memory": "the most that the process had resident, in GB (10^9 bytes); planned with the formulas as they are "
        "now, of which LIBRARIES and KEPT were fitted to these runs",
        "seed": str(SEED),
    }
    cells = load_cells(args.output)
    for blocks, width, windows, batch_size, method in CELLS:
        wanted = dict(zip(NAMES, (blocks, width, windows, batch_size, method), strict=True))
        if any(wanted.items() <= cell.items() for cell in cells):
            continue
        run = Run(method, windows, LENGTH, batch_size)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            src, dst = os.path.join(folder, "dense"), os.path.join(folder, "pruned")
            os.mkdir(src)
            written = {"parameters": write_model(Path(src), blocks, width)}
            planned = in_a_process(predict, src, run)
            taken = in_a_process(measure, src, dst, run)
            shutil.rmtree(src)
        cells.append(json.loads(json.dumps({**wanted, **written, "planned": planned, "measured": taken})))
        save(args.output, "OMP_NUM_THREADS=1 python benchmarks/plan.py", protocol, cells)
        planned_seconds = sum(planned["seconds"].values())
        print(
            f"{wanted}: {planned['peak_gb']:.2f} GB planned, {taken['peak_gb']:.2f} taken; "
            f"{planned_seconds:.1f} s planned, {taken['total']:.1f} taken",
            flush=True,
        )


if __name__ == "__main__":
    main()
