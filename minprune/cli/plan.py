"""`minprune plan`: what a run would take, before anything runs."""

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import MODEL, command, console, say_on_terminal, source_of, table_of, whole
from minprune.errors import PruneError, amount, decimal, read_amount

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from minprune.pipeline.estimate import Run, Sizes
    from minprune.pipeline.rates import Rates

_SHARE = 0.8  # of the free memory, if nobody says how much a run may take
_WORTH = 0.75  # of the seconds: twice as many ranks are worth it if they leave no more
_FASTER = 1.3  # times as fast products are worth another precision
_MOST_RANKS = 64


def add(commands) -> None:
    """The arguments of `minprune plan`."""
    parser = command(
        commands,
        "plan",
        run,
        "say what pruning a model would take: memory, disk, seconds by part",
        "From the model's configuration alone, of which no weight is read, and from ten seconds of calibration of this "
        "machine, as busy as it is now. Recommends a batch size, a precision and a number of ranks.",
        "minprune plan --config config.json --memory 24GB --ranks 4",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=f"{MODEL}; only its config.json is read")
    parser.add_argument("--config", metavar="FILE", help="the config.json of a model, instead of MODEL")
    parser.add_argument("--method", metavar="M", default="sparsegpt", help="as for minprune prune (sparsegpt)")
    parser.add_argument("--pattern", metavar="P", default="50%", help="as for minprune prune (50%%)")
    parser.add_argument("--samples", metavar="N", type=whole(1), default=64, help="calibration windows (64)")
    parser.add_argument("--length", metavar="L", type=whole(1), default=512, help="tokens in a window (512)")
    parser.add_argument("--test", metavar="N", type=whole(0), default=8, help="windows of the test; 0: none (8)")
    parser.add_argument("--batch-size", metavar="B", type=whole(1), help="windows at a time (default: what fits)")
    parser.add_argument("--dtype", metavar="T", default="auto", help="as for minprune prune (the model's own)")
    parser.add_argument(
        "--memory",
        metavar="GB",
        type=amount_type(),
        help="what one process may take, such as 24GB (default: what is free)",
    )
    parser.add_argument("--ranks", metavar="N", type=whole(1), help="machines like this one that share the work (1)")
    parser.add_argument(
        "--bandwidth", metavar="B", type=amount_type("/s"), default=1e8, help="between ranks, such as 1GB/s (100MB/s)"
    )


def amount_type(per: str = "") -> Callable[[str], float]:
    """A type for argparse: bytes, or bytes a second, with their unit."""

    def read(text: str) -> float:
        try:
            return read_amount(text, bool(per))
        except PruneError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def run(arguments: Namespace) -> None:
    """Read the configuration, calibrate, and print the tables."""
    import psutil
    import torch

    from minprune.load import read_dtype
    from minprune.methods import get_method
    from minprune.models.memory import free_memory
    from minprune.patterns import pattern as read_pattern
    from minprune.pipeline.estimate import Run
    from minprune.pipeline.rates import calibrate

    method, pattern = get_method(arguments.method), read_pattern(arguments.pattern)
    wanted: Any = read_dtype(arguments.dtype)
    sizes, dtype = _sizes(arguments, wanted, pattern)
    windows = 0 if method.needs == "nothing" else arguments.samples
    process = psutil.Process().memory_info().rss  # with all libraries that a run has, too
    memory = arguments.memory or _SHARE * free_memory(torch.device("cpu"))
    asked = Run(
        arguments.method, windows, arguments.length, min(arguments.batch_size or windows, windows) or 1, arguments.test
    )
    asked, fits = _with_batch_size(sizes, asked, arguments.batch_size, arguments.ranks or 1, memory - process)
    say_on_terminal("calibrating this machine, which takes about ten seconds")
    rates = calibrate(arguments.method, pattern, dtype, arguments.length)
    _show(arguments, sizes, asked, rates, process, memory, fits)
    _advise(arguments, sizes, asked, rates, dtype)


def _sizes(arguments: Namespace, wanted: Any, pattern: Any) -> tuple["Sizes", Any]:
    """The sizes of the model, and the dtype of its weights."""
    import torch

    from minprune.models.layers import block_layers, find_layers, unsupported_experts
    from minprune.models.skeleton import describe_or_refuse
    from minprune.pipeline.estimate import sizes_of
    from minprune.pipeline.plan import check_model
    from minprune.pipeline.streaming import is_plain

    path, config = _config(arguments)
    dtype: Any = wanted if isinstance(wanted, torch.dtype) else config.dtype or torch.float32
    model = describe_or_refuse(path.parent, config, dtype)
    check_model(model)
    layers = find_layers(model, exclude=unsupported_experts(block_layers(model)))
    for layer in layers:
        pattern.check(*layer.weight.shape)
    return sizes_of(model, layers, is_plain(model)), dtype


def _config(arguments: Namespace) -> tuple[Path, "PreTrainedConfig"]:
    """Where the configuration is, and what it says."""
    from minprune.cli.common import calm_transformers
    from minprune.files import read_json
    from minprune.models.skeleton import read_config

    if (arguments.model is None) == (arguments.config is None):
        raise PruneError("plan takes a MODEL or --config FILE, one of them: minprune plan smollm2")
    if arguments.config is None:
        source = Path(source_of(arguments.model))
        return source / "config.json", read_config(source)
    calm_transformers()
    path = Path(arguments.config)
    path = path / "config.json" if path.is_dir() else path
    read_json(path)  # which says in one line what is wrong with it
    return path, read_config(path)


def _with_batch_size(sizes: "Sizes", asked: "Run", given: int | None, ranks: int, memory: float) -> tuple["Run", bool]:
    """The run with the batch size that was given, or else with the largest that fits; and whether it does."""
    from dataclasses import replace

    from minprune.pipeline.estimate import fitting_batch, memory_bytes, of_each_rank

    largest = 0
    if asked.windows and not given:
        largest = fitting_batch(sizes, of_each_rank(asked, ranks), memory) * ranks
        asked = replace(asked, batch_size=max(1, min(largest, asked.windows)))
    return asked, largest > 0 or sum(memory_bytes(sizes, of_each_rank(asked, ranks)).values()) <= memory


def _show(arguments, sizes: "Sizes", asked: "Run", rates: "Rates", process: int, memory: float, fits: bool) -> None:
    """Two tables: bytes and seconds."""
    from minprune.pipeline.estimate import disk_bytes, memory_bytes, of_each_rank
    from minprune.pipeline.rates import seconds

    out, ranks = console(), arguments.ranks or 1
    of_memory = {"process": process, **memory_bytes(sizes, of_each_rank(asked, ranks))}
    of_disk = disk_bytes(sizes, asked)
    table = table_of("memory and disk", "GB")
    for name, value in [*of_memory.items(), ("peak memory", sum(of_memory.values()))]:
        table.add_row(name, decimal(value / 1e9))
    table.add_row("disk", decimal(sum(of_disk.values()) / 1e9))
    out.print(table)
    parts = seconds(sizes, asked, rates, ranks, arguments.bandwidth)
    table = table_of("part", "seconds")
    for name, value in [*parts.items(), ("total", sum(parts.values()))]:
        table.add_row(name, f"{value:,.1f}" if value >= 1 else f"{value:.2g}")
    out.print(table)
    how = "" if sizes.streamed else ", whole in memory, since its tensors are renamed when they are loaded"
    out.print(f"{sizes.total / 1e9:.2f} B parameters in {len(sizes.blocks)} blocks{how}", soft_wrap=True)
    if not fits:
        needed = sum(of_memory.values())
        out.print(
            f"it does not fit: {amount(needed)} are needed and {amount(memory)} given: use a smaller "
            "--batch-size, fewer --samples, a shorter --length or more memory",
            soft_wrap=True,
        )


def _advise(arguments: Namespace, sizes: "Sizes", asked: "Run", rates: "Rates", dtype: Any) -> None:
    """Batch size, precision and ranks, each with its reason."""
    import torch

    from minprune.pipeline.rates import forward_rate, seconds

    out = console()
    if asked.windows:
        count = "all windows at once" if asked.batches == 1 else f"{asked.windows} windows in {asked.batches} batches"
        out.print(f"--batch-size {asked.batch_size}: {count}")
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    ratio = forward_rate(other, asked.length) / rates.forward
    best = other if ratio > _FASTER else dtype
    names = {kind: str(kind).removeprefix("torch.") for kind in (dtype, other)}
    out.print(f"--dtype {names[best]}: {names[other]} runs {ratio:.1f} times as fast as {names[dtype]} here")

    def total(ranks: int) -> float:
        return sum(seconds(sizes, asked, rates, ranks, arguments.bandwidth).values())

    ranks, most = 1, arguments.ranks or min(_MOST_RANKS, max(1, asked.windows))
    while 2 * ranks <= most and total(2 * ranks) <= _WORTH * total(ranks):
        ranks *= 2
    out.print(
        f"{ranks} rank(s): {total(ranks):,.0f} s; twice as many would take {total(2 * ranks):,.0f} s, if each were a "
        f"machine like this one, at {amount(arguments.bandwidth)}/s",
        soft_wrap=True,
    )
