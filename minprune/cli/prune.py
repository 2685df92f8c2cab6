"""`minprune prune`: prune a model and write it to a new folder."""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.catalogue import described_methods
from minprune.cli.common import (
    MODEL,
    LayerName,
    add_calibration,
    add_output,
    add_place,
    add_test,
    command,
    console,
    repeating,
    say_on_terminal,
    source_of,
    split_of,
    table_of,
    tokens_of,
    warn_of_grid,
    whole,
)
from minprune.cli.prune_options import read_allocation, read_options, table_by_rule
from minprune.cli.ranks import is_first, reserved
from minprune.cli.samples import add_samples
from minprune.errors import PruneError, kind_of_layer
from minprune.output.lock import absolute

if TYPE_CHECKING:
    from minprune.methods import Method
    from minprune.output.report import LayerRow, Report
    from minprune.patterns import Pattern
    from minprune.pipeline.recipes import Recipe

TEST_WINDOWS = 8  # for the perplexities that are reported; `minprune eval` measures on more


def add(commands) -> None:
    """The arguments of `minprune prune`."""
    parser = command(
        commands,
        "prune",
        run,
        "prune a model and write it to a new folder",
        "One block is in memory at a time, so the model may be larger than it. AutoModelForCausalLM.from_pretrained "
        "loads the folder; minprune.json in it says how the model was made.",
        "minprune prune smollm2 --method wanda --pattern 2:4 --exclude '*.layers.0.*'",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--method",
        metavar="M",
        help="sparsegpt (default), another one, or several joined by a plus,\n"
        "each on the mask of the one before it (wanda+swaps+exact):\n"
        + "\n".join(f"{name}: {about.replace('%', '%%')}" for name, about in described_methods()),
    )
    parser.add_argument(
        "--recipe",
        metavar="R",
        help="best: admm, and each block trained to do what the dense one did;\n"
        "three to four times as long, worth it from 50%% on (a --method takes\n"
        "the place of admm)",
    )
    parser.add_argument(
        "--pattern",
        metavar="P",
        default="50%",
        help="which zeros are allowed (default: 50%%):\n"
        "50%%: in the comparison group that the method was published with\n"
        "50%%:row: in each output row; also :layer and :block\n"
        "2:4: 2 weights kept of every 4 consecutive inputs\n"
        "block16:50%%: square blocks of 16 x 16 as a whole",
    )
    parser.add_argument(
        "--option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method, repeatable; sparsegpt has damp=0.01 and block_size=128",
    )
    parser.add_argument(
        "--bits",
        metavar="B",
        type=whole(2, 8),
        help="also round what is kept to so many bits, in sparsegpt's own sweep",
    )
    parser.add_argument(
        "--group", metavar="G", type=whole(0), default=64, help="with --bits: inputs that share a scale (64)"
    )
    add_calibration(parser, "wikipedia, its train split; magnitude needs no text", 64, 512)
    add_layers(parser, "prune")
    parser.add_argument(
        "--allocation",
        metavar="TABLE",
        help="how sparse each layer is, if not all alike: owl, ramp, optimal,\n"
        "inverse or global keep the average of the pattern (and need\n"
        "the model in memory); or a JSON file from globs to\n"
        'sparsities, the last match counts:\n{"*.mlp.*": 0.6, "*.layers.0.*": 0.3}',
    )
    parser.add_argument(
        "--two-pass",
        action="store_true",
        help="the published loop: calibrate all layers of a block while it is still dense (kept to compare)",
    )
    add_test(parser)
    add_place(parser)
    add_output(parser, "MODEL-METHOD-PATTERN")
    add_verify(parser)


def add_layers(parser: ArgumentParser, verb: str) -> None:
    """--batch-size, --precision, --include and --exclude. verb: what is done to the layers."""
    parser.add_argument(
        "--batch-size",
        metavar="B",
        type=whole(1),
        help="windows in one forward pass (default: all); fewer take less memory and more time, the result is the same",
    )
    parser.add_argument(
        "--precision",
        metavar="T",
        default="auto",
        help="of products in forward passes: float32,\nbfloat16 (faster where the hardware knows it),\n"
        "or auto: float32, but for a recipe that says otherwise",
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        help=f"{verb} only layers whose name matches, repeatable (default: all linear layers of the blocks but "
        "routers)",
    )
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="leave these layers as they are, repeatable"
    )


def add_verify(parser: ArgumentParser) -> None:
    """--verify."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="hash all of the model's files, so that --resume sees every change of them,\nnot only of sizes and times",
    )


def run(arguments: Namespace) -> None:
    """Prune a model, block by block, to a folder that appears only when it is complete."""
    from minprune.methods import get_method
    from minprune.output.folder import default_name
    from minprune.output.target import check_target
    from minprune.patterns import pattern as read_pattern
    from minprune.pipeline.recipes import get_recipe

    recipe = get_recipe(arguments.recipe)
    name, pattern = arguments.method or recipe.method, read_pattern(arguments.pattern)
    options = read_options(name, get_method(name), arguments.option)
    method: Any = arguments.method
    if arguments.bits:
        method, rounding = joint(name, arguments)
        options |= rounding
    allocation: Any = read_allocation(arguments.allocation) if arguments.allocation else None
    target = Path(arguments.output or default_name(arguments.model, arguments.recipe or name, str(pattern)))
    place = check_target(target, arguments.model, arguments.calibration, arguments.test, arguments.allocation)
    if is_first() and not arguments.bits and get_method(name).needs == "gram":  # the others only set zeros
        warn_of_grid(arguments.model)
    with reserved(place, arguments.overwrite):
        prune_to_disk(arguments, target, method, recipe, pattern, allocation, options)


def joint(name: str, arguments: Namespace) -> tuple["Method", dict[str, Any]]:
    """What prunes and rounds in one sweep, and its options; `PruneError` for a method that has no such sweep."""
    from minprune.compress.grids import check_grid
    from minprune.compress.quantize import quantizer

    if name != "sparsegpt" or arguments.recipe:
        raise PruneError(
            f"--bits rounds in the sweep of sparsegpt, which {arguments.recipe or name} has not: prune first, and then "
            "minprune quantize"
        )
    options = {"bits": arguments.bits, "group": arguments.group, "grid": "asymmetric"}
    check_grid(arguments.bits, arguments.group, "asymmetric")
    return quantizer("gptq"), options


def prune_to_disk(
    arguments: Namespace,
    target: Path,
    method: "str | Method | None",
    recipe: "Recipe",
    pattern: "Pattern",
    allocation: Any,
    options: dict[str, Any],
) -> None:
    """The work of `run`, while nobody else may write to the target. method: None is the recipe's."""
    from minprune.data.tokens import BUNDLED
    from minprune.evaluation.protocol import windows_of
    from minprune.load import load_tokenizer
    from minprune.methods import get_method
    from minprune.output.target import PAGE
    from minprune.pipeline.checkpoint import prune_checkpoint

    needs = get_method(method or recipe.method).needs
    tokenizer = load_tokenizer(source_of(arguments.model), arguments.model)
    calib, source = None, arguments.calibration or "wikipedia"
    texts: dict[str, Any] = {}
    if arguments.calibration or needs != "nothing" or recipe.reconstruction:
        calib = tokens_of(tokenizer, source, "train", arguments.samples, arguments.length, arguments.seed)
        texts["calibration"] = {"source": source, "split": split_of(source, "train"), "seed": arguments.seed}
    test, text = None, arguments.test or (source if calib is not None and source in BUNDLED else None)
    if text and not arguments.no_test:
        say_on_terminal(f"cutting {text} into windows")
        test, texts["test"] = windows_of(tokenizer, text, "test", TEST_WINDOWS, max(arguments.length, 2))
    if isinstance(allocation, str):
        allocation = table_by_rule(arguments, target, allocation, calib, pattern)
    say_on_terminal(f"working on {arguments.model}, block by block")
    report = prune_checkpoint(
        arguments.model,
        target,
        calib,
        method,
        pattern,
        recipe=recipe,
        allocation=allocation,
        include=arguments.include,
        exclude=arguments.exclude,
        batch_size=arguments.batch_size,
        sequential=not arguments.two_pass,
        precision=arguments.precision,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        dtype=arguments.dtype,
        device=arguments.device,
        progress=True,
        test=test,
        texts=texts,
        command=repeating(arguments),
        verify=arguments.verify,
        **options,
    )
    if not is_first():
        return
    show_report(report)
    if test is not None:
        add_samples(arguments, absolute(target), tokenizer, test)
    console().print(f"written to {target}; {target / PAGE} shows how it went", soft_wrap=True)


def show_report(report: "Report") -> None:
    """The table of a run by kinds of layers, its totals, its perplexities, its notes."""
    from minprune.output.record import RunRecord

    kinds: dict[str, list[LayerRow]] = defaultdict(list)
    for row in report.layers:
        kinds[kind_of_layer(row.name)].append(row)
    table = table_of("layers", "count", "zeros", "mean error", "seconds")
    for name, rows in kinds.items():
        sizes = [row.shape[0] * row.shape[1] for row in rows]
        zeros = sum(row.sparsity * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)
        errors = [row.error for row in rows if row.error is not None]
        error = f"{sum(errors) / len(errors):.4f}" if errors else "-"
        table.add_row(LayerName(name), str(len(rows)), f"{zeros:.1%}", error, f"{sum(row.seconds for row in rows):.1f}")
    out = console()
    out.print(table)
    seconds = report.seconds["total"]
    out.print(f"{RunRecord.of(report).made_by}: {report.sparsity:.2%} zeros in {seconds:.1f} s")
    notes = [*report.notes, *(f"{row.name}: {row.note}" for row in report.layers if row.note)]
    for note in notes if len(notes) < 7 else notes[:5]:
        out.print(note)
    if len(notes) > 6:
        out.print(f"and {len(notes) - 5} more notes in minprune.json")
    if report.perplexity:
        before, after = report.perplexity["before"], report.perplexity["after"]
        out.print(f"perplexity {before:,.2f} before, {after:,.2f} after ({after / before:.2f} times)")
