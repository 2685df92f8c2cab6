"""Two processes of one thread against one process of two threads: SmolLM2 from disk to disk, and what they send.

The two take turns; each starts anew, and only `prune_checkpoint` is timed, by the clock: run it on a quiet machine.

    python benchmarks/ranks.py [book/results/ranks.json] [--rounds 3]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from record import load_cells, save, short

import minprune as mp
from minprune.load import model_folder
from minprune.pipeline.shared_pruner import SharedPruner

WAYS = {"one process of two threads": (1, 2), "two processes of one thread": (2, 1)}
METHODS = ("wanda", "sparsegpt")
PROTOCOL = {
    "model": "smollm2 (SmolLM2-135M-Instruct) in float32, from disk to disk, 50 %",
    "calibration": "wikipedia train, 32 x 512 tokens, seed 0",
    "seconds": "of prune_checkpoint, by the clock, median of rounds in which both ways take turns",
    "sent MB": "sums and weights that one process gives or takes, 10^6 bytes",
    "differing zeros": "positions that are zero in the model of one way and not in that of the other",
}


def work(rank: int, size: int, threads: int, method: str, folder: str, results) -> None:
    """Prune in this process, one of `size`; rank 0 puts (seconds, bytes sent) into the queue."""
    torch.set_num_threads(threads)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=size)
    _, tokenizer = mp.load_model("smollm2")
    calib = mp.load_tokens(tokenizer, "wikipedia", split="train", samples=32, length=512, seed=0)
    sent = [0]
    original = SharedPruner._send_from

    def counting(pruner, *given):
        original(pruner, *given)
        sent[0] = pruner.sent

    SharedPruner._send_from = counting
    start = time.perf_counter()
    mp.prune_checkpoint(model_folder("smollm2"), folder, calib, method, "50%", dtype="float32")
    if rank == 0:
        results.put((time.perf_counter() - start, sent[0]))
    if size > 1:
        dist.destroy_process_group()


def run(way: str, method: str, folder: Path) -> tuple[float, int]:
    """(seconds, bytes sent) of one run, in processes of its own."""
    size, threads = WAYS[way]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    running = [
        context.Process(target=work, args=(rank, size, threads, method, str(folder), results)) for rank in range(size)
    ]
    for process in running:
        process.start()
    found = results.get()
    for process in running:
        process.join()
    return found


def differing(one: Path, other: Path) -> tuple[int, int]:
    """(positions that are zero in one of the two models alone, weights)."""
    ours, theirs = (mp.load_model(str(folder))[0] for folder in (one, other))
    pairs = list(zip(mp.find_layers(ours), mp.find_layers(theirs), strict=True))
    return (
        sum(int(((a.weight == 0) != (b.weight == 0)).sum()) for a, b in pairs),
        sum(a.weight.numel() for a, _ in pairs),
    )


def measure(method: str, rounds: int) -> dict:
    """The cell of a method."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for way in WAYS:
                spent, sent = run(way, method, Path(scratch) / f"{way} {number}")
                seconds[way].append(spent)
        one, two = WAYS
        flipped, weights = differing(*(Path(scratch) / f"{way} 0" for way in WAYS))
    ratios = [b / a for a, b in zip(seconds[one], seconds[two], strict=True)]
    found = {f"seconds, {way}": short(statistics.median(spent)) for way, spent in seconds.items()}
    found |= {"ratio": short(statistics.median(ratios)), "ratios": [short(ratio) for ratio in ratios]}
    return {"method": method, **found, "sent MB": short(sent / 1e6), "differing zeros": flipped, "weights": weights}


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cells = load_cells(args.output) if args.output else []
    for method in METHODS:
        if method not in {cell["method"] for cell in cells}:
            cells.append(measure(method, args.rounds))
            print(cells[-1], flush=True)
            if args.output:
                save(args.output, f"python benchmarks/ranks.py {args.output} --rounds {args.rounds}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
