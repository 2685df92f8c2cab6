"""Memory that a model larger than memory needs: a random Llama of 3 B parameters, pruned from disk to disk.

The model is written block by block, in bfloat16, and never in memory as a whole. Wanda and SparseGPT then prune it with
`prune_checkpoint`, each in a process of its own, which notes what it occupies (resident, from the operating system)
when a block is finished, the highest value since the block before (sampled every 20 ms), and its peak at the end.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--blocks 58] [--width 2048] [--folder SCRATCH] [--output FILE]

Random weights prune as fast as trained ones and need the same memory; nothing else about them would be of interest.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from record import load_cells, save
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast

from minprune.pipeline.checkpoint import prune_checkpoint
from minprune.pipeline.journal import Journal

VOCABULARY, SEED = 32000, 0
GIGA = 1e9


def configuration(blocks: int, width: int) -> LlamaConfig:
    """That of a Llama of the usual proportions."""
    heads, inner = max(1, width // 128), width * 8 // 3 // 64 * 64
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def write_model(folder: Path, blocks: int, width: int) -> int:
    """A Llama with random weights in bfloat16, one file a block; returns the number of its parameters."""
    config = configuration(blocks, width)
    config.save_pretrained(folder)
    inner = config.intermediate_size
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    square, wide = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj")
    shapes = {f"self_attn.{name}.weight": (width, width) for name in square}
    shapes |= {f"mlp.{name}.weight": (inner, width) for name in wide} | {"mlp.down_proj.weight": (width, inner)}
    shapes |= {f"{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    outside = {"model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,)}
    parts = [outside | {"lm_head.weight": (VOCABULARY, width)}]
    parts += [{f"model.layers.{block}.{name}": shape for name, shape in shapes.items()} for block in range(blocks)]
    generator, weight_map, parameters = torch.Generator().manual_seed(SEED), {}, 0
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {}
        for name, shape in part.items():
            value = torch.randn(shape, generator=generator).mul_(width**-0.5) if len(shape) == 2 else torch.ones(shape)
            tensors[name] = value.bfloat16()
            parameters += value.numel()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return parameters


def measure(src: str, dst: str, method: str, samples: int, length: int, batch_size: int | None, results) -> None:
    """Prune in this process and put what it occupied into the queue, in GB."""
    process, highest, at_blocks, peaks = psutil.Process(), [0], [], []
    stop = threading.Event()

    def watch():
        while not stop.wait(0.02):
            highest[0] = max(highest[0], process.memory_info().rss)

    add = Journal.add

    def noted(journal, *arguments):
        add(journal, *arguments)
        at_blocks.append(process.memory_info().rss / GIGA)
        peaks.append(highest[0] / GIGA)
        highest[0] = 0

    Journal.add = noted
    calib = torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(SEED + 1))
    before = process.memory_info().rss / GIGA
    start, wall = time.process_time(), time.perf_counter()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    report = prune_checkpoint(src, dst, calib, method, "50%", batch_size=batch_size)
    stop.set()
    results.put(
        {
            "sparsity": report.sparsity,
            "imports_gb": before,
            "after_block_gb": at_blocks,
            "peak_in_block_gb": peaks,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA,
            "processor_seconds": time.process_time() - start,
            "seconds": time.perf_counter() - wall,
        }
    )


def draw(cells: list[dict], path: Path) -> None:
    """Draw the highest resident memory from block to block, beside the size of the whole model."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from minprune.plots import LOOKS, use_style

    use_style()
    figure, axes = plt.subplots(figsize=(7.6, 3.4))
    whole = 2 * cells[0]["parameters"] / GIGA  # bfloat16
    axes.axhline(whole, color=LOOKS["dense"].color, linestyle="--", linewidth=1.2)
    axes.annotate("the weights of the whole model", (1, whole), (0, -13), textcoords="offset points")
    for cell in cells:
        look, peaks = LOOKS[cell["method"]], cell["peak_in_block_gb"]
        style = {"color": look.color, "marker": look.marker, "markersize": 4, "linewidth": 1.2}
        axes.plot(range(1, len(peaks) + 1), peaks, label=cell["method"], **style)
    axes.set_ylim(0, whole * 1.08)
    axes.set_xlabel("block")
    axes.set_ylabel("highest resident memory (GB)")
    axes.legend(loc="center right")
    highest = max(cell["peak_gb"] for cell in cells)
    axes.set_title(f"{cells[0]['parameters'] / GIGA:.1f} B parameters in at most {highest:.1f} GB, at every depth")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure what is not in the file yet, one line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=58)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, help="windows in one forward pass (default: all)")
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--folder", help="where to put the models, which need twice their size (a temporary folder)")
    parser.add_argument("--output", type=Path, default=Path("book/results/memory.json"))
    parser.add_argument("--figure", type=Path, help="where to draw the memory over depth, as a picture")
    args = parser.parse_args()
    protocol = {
        "model": f"Llama with random weights, {args.blocks} blocks of width {args.width}, bfloat16",
        "calibration": f"{args.samples} x {args.length} random tokens, batch size {args.batch_size or args.samples}",
        "memory": "resident memory of the process in GB (10^9 bytes); the peak as the operating system reports it",
        "seed": str(SEED),
    }
    cells = load_cells(args.output)
    wanted = {method: {"method": method, "blocks": args.blocks, "width": args.width} for method in args.methods}
    missing = [m for m, cell in wanted.items() if not any(cell.items() <= done.items() for done in cells)]
    spawn = multiprocessing.get_context("spawn")  # a process of its own each: ru_maxrss never goes down
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        src, dst = Path(folder) / "dense", Path(folder) / "pruned"
        src.mkdir()
        parameters = write_model(src, args.blocks, args.width) if missing else 0
        for method in missing:
            results = spawn.Queue()
            given = (str(src), str(dst), method, args.samples, args.length, args.batch_size, results)
            process = spawn.Process(target=measure, args=given)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{method} failed")
            cells.append({**wanted[method], "parameters": parameters, **results.get()})
            shutil.rmtree(dst)
            command = f"OMP_NUM_THREADS=1 python benchmarks/memory.py --blocks {args.blocks} --width {args.width}"
            save(args.output, command, protocol, cells)
            print(f"{method}: {parameters / GIGA:.2f} B parameters, peak {cells[-1]['peak_gb']:.2f} GB", flush=True)
    if args.figure:
        draw(cells, args.figure)


if __name__ == "__main__":
    main()
