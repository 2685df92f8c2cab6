"""Which matrices of a block are experts of a mixture, and which only choose between experts. Chapter 01.

Nobody publishes a recipe that prunes routers: a router is small, and half a router sends tokens to other experts. The
library stores one as a bare parameter, as an `nn.Linear`, or as a small network, so its class decides nothing. It is
told by its place, beside the experts, and by what it puts out: a number for each expert, or a single one.
"""

from collections.abc import Iterator

from torch import nn


def expert_stacks(name: str, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of what a module stores as (experts, rows, columns), one matrix for each expert.

    name: of the module. Other parameters of three axes, such as a state-space layer's, are no experts.
    """
    stacks = [(key, value) for key, value in module.named_parameters(recurse=False) if value.ndim == 3]
    known = hasattr(module, "is_transposed") or "expert" in f"{name}.{type(module).__name__}".lower()
    return stacks if known else []


def routers(prefix: str, block: nn.Module, width: int) -> set[str]:
    """The names of those linear layers of a block that are routers or gates of a mixture.

    prefix: the block's own name. width: of the hidden states, which is what an expert puts out and a router does not.
    """
    found: set[str] = set()
    for name, module in block.named_modules(prefix=prefix):
        path = name.removeprefix(f"{prefix}.").split(".")
        if isinstance(module, nn.Linear) and (module.out_features == 1 or any(map(_is_called_router, path))):
            found.add(name)
        for child in _beside_experts(name, module, width):
            found |= {inner for inner, part in child if isinstance(part, nn.Linear)}
    return found


def _beside_experts(name: str, module: nn.Module, width: int) -> Iterator[list[tuple[str, nn.Module]]]:
    """The named modules of each child that routes, if some child of the module holds experts."""
    counts = {child: _experts(f"{name}.{child}", part) for child, part in module.named_children()}
    sizes = {1} | {count + more for count in counts.values() if count for more in (0, 1)}  # one more: "no expert"
    if len(sizes) == 1:
        return
    for child, part in module.named_children():
        inside = list(part.named_modules(prefix=f"{name}.{child}"))
        outputs = {layer.out_features for _, layer in inside if isinstance(layer, nn.Linear)}
        gates_experts = child == "gate" or ("expert" in child and child.endswith("_gate"))
        if not counts[child] and (gates_experts or (outputs & sizes and width not in outputs)):
            yield inside


def _experts(name: str, module: nn.Module) -> int:
    """How many experts a module holds by itself: as a stack of matrices, or as a list of modules."""
    if isinstance(module, nn.ModuleList):
        return len(module) if "expert" in name.rpartition(".")[2] else 0
    return max((len(value) for _, value in expert_stacks(name, module)), default=0)


def _is_called_router(part: str) -> bool:
    return part == "router" or part.endswith("_router")
