"""`minprune info`."""

from argparse import Namespace
from collections import defaultdict
from typing import TYPE_CHECKING

from minprune.cli.common import MODEL, LayerName, command, console, load, table_of
from minprune.errors import kind_of_layer

if TYPE_CHECKING:
    pass


def add(commands) -> None:
    """The arguments of `minprune info`."""
    parser = command(
        commands,
        "info",
        run,
        "list a model's linear layers, their zeros and the pattern of these",
        "Layers that differ only in their numbers are one row. The pattern is found in the weights themselves. "
        "An output head of its own is listed if it was pruned.",
        "minprune info smollm2",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--all", action="store_true", help="one row for each layer")


def run(arguments: Namespace) -> None:
    """A table of the layers: shapes, zeros, and the pattern of the zeros."""
    from minprune.models.detect import detect_pattern
    from minprune.models.layers import block_layers, decoder_blocks, head_layers, is_tied, matches, unsupported_experts

    model, _ = load(arguments.model, "auto", "cpu")
    unfit = unsupported_experts(block_layers(model))
    layers = [layer for layer in block_layers(model) if not matches(layer, unfit)]
    layers += [
        layer for layer in head_layers(model) if not is_tied(model, layer) and detect_pattern(layer.weight) != "dense"
    ]
    config = model.config.get_text_config()
    groups: dict[tuple, list[tuple[int, str]]] = defaultdict(list)
    for layer in layers:
        W = layer.weight
        name = layer.name if arguments.all else kind_of_layer(layer.name)
        groups[name, tuple(W.shape)].append((W.numel() - int(W.count_nonzero()), detect_pattern(W)))
    table = table_of("layers", "count", "shape", "zeros", "pattern")
    for (name, shape), found in groups.items():
        share = sum(zeros for zeros, _ in found) / (len(found) * shape[0] * shape[1])
        patterns = sorted({pattern for _, pattern in found})
        table.add_row(LayerName(name), str(len(found)), f"{shape[0]} x {shape[1]}", f"{share:.1%}", ", ".join(patterns))
    out = console()
    out.print(table)
    if unfit:
        out.print(f"not listed: experts in a layout that minprune cannot prune, {', '.join(unfit)}", soft_wrap=True)
    inside = sum(layer.weight.numel() for layer in layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    positions = getattr(config, "max_position_embeddings", None)
    facts = [
        f"{type(model).__name__}, {str(model.dtype).removeprefix('torch.')}",
        f"{len(decoder_blocks(model)[1])} blocks",
        f"vocabulary {config.vocab_size:,}",
        *([f"{positions:,} positions"] if positions else []),
    ]
    out.print(", ".join(facts))
    out.print(
        f"{total:,} parameters, {inside:,} of them ({inside / total:.0%}) in these {len(layers)} layers",
        highlight=False,
    )
