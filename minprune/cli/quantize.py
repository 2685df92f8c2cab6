"""`minprune quantize`: round a model's weights to a few bits, and write it to a new folder."""

from argparse import Namespace
from pathlib import Path

from minprune.cli.common import MODEL, add_calibration, add_output, add_place, add_test, command, whole
from minprune.cli.prune import add_layers, add_verify, prune_to_disk
from minprune.cli.ranks import reserved


def add(commands) -> None:
    """The arguments of `minprune quantize`."""
    parser = command(
        commands,
        "quantize",
        run,
        "round a model's weights to a few bits and write it to a new folder",
        "Zeros stay zero. The folder holds ordinary floating-point numbers, each on a level of its grid, and "
        "AutoModelForCausalLM.from_pretrained loads it.",
        "minprune quantize smollm2-sparsegpt-50pct --bits 4 --group 64",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--bits", metavar="B", type=whole(2, 8), default=4, help="of a weight, 2 to 8 (4)")
    parser.add_argument(
        "--group",
        metavar="G",
        type=whole(0),
        default=64,
        help="neighbouring inputs that share a scale, 0 for a whole row (64)",
    )
    parser.add_argument(
        "--method",
        metavar="M",
        default="gptq",
        help="gptq: the weights still to come make up for each that is rounded (default)\n"
        "rtn: the nearest level; it needs no text",
    )
    parser.add_argument(
        "--grid",
        metavar="K",
        default="asymmetric",
        help="asymmetric: with a whole zero point (default)\n"
        "symmetric: around 0\n"
        "minimum: from the smallest weight of each group on, with no level at 0",
    )
    parser.add_argument(
        "--order",
        metavar="O",
        help="in which order gptq goes through the columns:\n"
        "stored: from the left (default)\n"
        "activation: those with the largest inputs first",
    )
    parser.add_argument(
        "--pattern",
        metavar="P",
        default="0%",
        help="zeros that gptq chooses in the same sweep, such as 50%% or 2:4 (default: none but those that are there)",
    )
    add_calibration(parser, "wikipedia, its train split; rtn needs no text", 64, 512)
    add_layers(parser, "round")
    add_test(parser)
    add_place(parser)
    add_output(parser, "MODEL-METHOD-BITSbit")
    add_verify(parser)
    parser.set_defaults(recipe=None, allocation=None, two_pass=False)


def run(arguments: Namespace) -> None:
    """Round a model, block by block, to a folder that appears only when it is complete."""
    from minprune.compress.grids import check_grid
    from minprune.compress.quantize import quantizer
    from minprune.output.folder import default_name
    from minprune.output.target import check_target
    from minprune.patterns import pattern as read_pattern
    from minprune.pipeline.recipes import get_recipe

    method, pattern = quantizer(arguments.method), read_pattern(arguments.pattern)
    check_grid(arguments.bits, arguments.group, arguments.grid)
    options = {"bits": arguments.bits, "group": arguments.group, "grid": arguments.grid}
    options |= {"order": arguments.order} if arguments.order else {}
    method.check_options(arguments.method, options)
    zeros = [str(pattern)] if pattern.sparsity else []
    target = Path(arguments.output or default_name(arguments.model, arguments.method, f"{arguments.bits}bit", *zeros))
    place = check_target(target, arguments.model, arguments.calibration, arguments.test)
    with reserved(place, arguments.overwrite):
        prune_to_disk(arguments, target, method, get_recipe(None), pattern, None, options)
