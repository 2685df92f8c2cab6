"""Has a change of the code changed a number? A digest a line of what each way of pruning makes of tiny models.

Results files are hours of work, and a module behind them changes more often than its numbers. Print the lines in a tree
of the old commit and in the new one, on one machine; where they are equal, a results file may be confirmed:

    python benchmarks/digests.py > new.txt
    (cd OLD; PYTHONPATH=. python benchmarks/digests.py) > old.txt
    diff old.txt new.txt && python benchmarks/provenance.py --confirm "all lines of digests.py equal those of ..."

Equal lines say nothing of time or memory, and of widths above those of the tiny models only what these share with them.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import minprune as mp
from minprune.structured.removals import METHODS as CRITERIA

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from tiny import tiny_model, tiny_tokens

Way = tuple[str, str, Callable[[Any], Any]]
REMOVALS = ("neurons:25%", "heads:2", "groups:1", "blocks:1", "hidden:25%")


def ways() -> Iterator[Way]:
    """What is done, to which family, and how."""
    T = tiny_tokens()
    for method in mp.METHODS:
        for pattern in ("50%", "70%", "2:4", "1:4"):
            for sequential in (True, False):
                yield _pruned(f"{method} {pattern} {sequential}", method=method, pattern=pattern, sequential=sequential)
        for family in ("opt", "gpt2", "mixtral"):
            yield _pruned(f"{method} 50%", family, method=method, pattern="50%", batch_size=2)
        yield _pruned(f"{method} 50% bfloat16", "llama bfloat16", method=method, pattern="50%")
    for method in ("wanda+sparsegpt", "magnitude+exact", "ria+swaps"):
        yield _pruned(method, method=method, pattern="50%")
    for pattern in ("50%", "2:4"):
        yield _pruned(f"best {pattern}", recipe="best", pattern=pattern, precision="float32")
    for allocation in ("owl", "ramp", "optimal", "inverse", "global"):
        yield _pruned(f"wanda 50% {allocation}", method="wanda", pattern="50%", allocation=allocation)
    for bits in (2, 3, 4, 8):
        yield f"rtn {bits}", "llama", lambda model, bits=bits: mp.quantize(model, None, bits, 16, "rtn")
        yield f"gptq {bits}", "llama", lambda model, bits=bits: mp.quantize(model, T, bits, 16, "gptq")
        yield f"joint {bits}", "llama", lambda model, bits=bits: mp.quantize(model, T, bits, 16, "gptq", pattern="50%")
    for removal in REMOVALS:
        for criterion in CRITERIA[removal.split(":")[0]]:
            for repair in ("none", "refit"):
                yield _shrunk(removal, criterion, repair)
    yield "perplexity", "llama", lambda model: mp.perplexity(model, T)
    yield "divergence", "llama", lambda model: mp.divergence(tiny_model("opt"), model, T)


def _pruned(what: str, family: str = "llama", **options: Any) -> Way:
    return what, family, lambda model: mp.prune(model, tiny_tokens(), **options)


def _shrunk(removal: str, criterion: str, repair: str) -> Way:
    options: dict[str, Any] = {"method": criterion, "repair": repair}
    return f"{removal} {criterion} {repair}", "llama", lambda model: mp.shrink(model, tiny_tokens(), removal, **options)


def digest(model: nn.Module) -> str:
    """Of all names, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def line(what: str, family: str, way: Callable[[Any], Any]) -> str:
    """The digest of the model afterwards, and what was told of it; or the reason why it is refused."""
    name, *narrow = family.split()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny_model(name, torch.bfloat16 if narrow else torch.float32)
        try:
            told = way(model)
        except mp.PruneError as error:
            return f"{what}, {family}: refused: {error}"
    rows = getattr(told, "layers", None)  # of a report; else what was measured is told itself, if anything was
    errors = sum(row.error for row in rows if getattr(row, "error", None) is not None) if rows is not None else told
    return f"{what}, {family}: {digest(model)} {errors}"


def main() -> None:
    """Print the lines."""
    torch.set_num_threads(1)
    for way in ways():
        print(line(*way), flush=True)


if __name__ == "__main__":
    main()
