"""`minprune shrink`: make a model smaller, with fewer neurons, heads, blocks or channels, and write it to a folder."""

import argparse
import math
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import (
    MODEL,
    add_calibration,
    add_output,
    add_place,
    add_test,
    command,
    console,
    load,
    number,
    repeating,
    say_on_terminal,
    split_of,
    tokens_of,
    warn_of_grid,
)
from minprune.cli.prune import TEST_WINDOWS, show_report
from minprune.cli.samples import add_samples

if TYPE_CHECKING:
    from minprune.pipeline.ranks import Ranks

DAMP = 0.01  # as in minprune.methods


def add(commands) -> None:
    """The arguments of `minprune shrink`."""
    parser = command(
        commands,
        "shrink",
        run,
        "make a model smaller, with fewer neurons, heads, blocks or channels",
        "Nothing sparse is left: AutoModelForCausalLM.from_pretrained loads the folder as a smaller model of the same "
        "family, which needs less memory and time on any machine. minprune.json in it says how the model was made.",
        "minprune shrink smollm2 --remove neurons:25% --remove blocks:3",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--remove",
        metavar="WHAT",
        action="append",
        required=True,
        help="what goes, repeatable, a share or a number:\n"
        "neurons:25%%: of the MLP of every block\n"
        "heads:1/3: query heads, as many of each group that shares keys and values\n"
        "groups:1: key and value heads with all their query heads\n"
        "blocks:4: whole decoder blocks\n"
        "hidden:25%%: channels of the stream between blocks",
    )
    parser.add_argument(
        "--method",
        metavar="M",
        help="how to choose (of several removals, those that know it take it):\n"
        "obs (default), obd, wanda, activation, flap, magnitude, l2, taylor, fisher: neurons, heads, groups\n"
        "influence (default), attention, angle, taylor, loss, greedy: blocks\n"
        "slicegpt (default), outputs, channels: hidden; only channels keeps embeddings tied",
    )
    parser.add_argument(
        "--repair",
        metavar="R",
        default="refit",
        help="what the rest does about it:\n"
        "refit: least squares for what is left of each matrix (default)\n"
        "reconstruct: that, and then each block is trained to do what the dense one did\n"
        "bias: biases take over the means of what is missing (flap)\n"
        "none: nothing",
    )
    parser.add_argument(
        "--damp",
        metavar="X",
        type=_damping,
        default=DAMP,
        help=f"damping of least squares, a share of the mean of the Gram matrix's diagonal ({DAMP:g})",
    )
    add_calibration(parser, "wikipedia, its train split", 32, 256)
    add_test(parser)
    add_place(parser)
    add_output(parser, "MODEL-REMOVED")


def run(arguments: Namespace) -> None:
    """Make a model smaller and write it to a folder that appears only when it is complete."""
    from minprune.errors import PruneError
    from minprune.output.folder import OutputFolder, default_name
    from minprune.output.target import check_target
    from minprune.pipeline.ranks import Ranks
    from minprune.structured.progress import started
    from minprune.structured.removals import REPAIRS, removals

    plan = removals(arguments.remove, arguments.method)
    if arguments.repair not in REPAIRS:
        raise PruneError(f"unknown repair {arguments.repair!r}: choose one of {', '.join(REPAIRS)}")
    target = Path(arguments.output or default_name(arguments.model, *(str(one) for one, _ in plan)))
    check_target(target, arguments.model, arguments.calibration, arguments.test)
    output = OutputFolder(target, "shrink", arguments.overwrite, arguments.resume)

    ranks = Ranks.current()

    def kept() -> str:
        return f"what is finished is kept in {output.partial}: continue with --resume" if started(output.work) else ""

    with ranks.until_failure(), output.open(kept) if ranks.first else nullcontext(output.partial) as folder:
        tokenizer, test = _shrink(arguments, plan, folder, ranks)
    if not ranks.first:
        return
    if test is not None:
        add_samples(arguments, output.path, tokenizer, test)
    console().print(f"written to {target}", soft_wrap=True)


def _shrink(arguments: Namespace, plan: list, folder: Path, ranks: "Ranks") -> tuple[Any, Any]:
    """The work of `run`, in the folder of an unfinished output. Returns tokenizer and test windows, if any.

    ranks: the processes that do it together, of which the first one measures and writes.
    """
    from minprune.data.tokens import BUNDLED, fingerprint
    from minprune.evaluation.perplexity import perplexity
    from minprune.evaluation.protocol import windows_of
    from minprune.load import model_folder
    from minprune.models.extras import copy_files
    from minprune.output.model_files import check_space, rehearse, write_errors, write_model
    from minprune.output.page import write_page
    from minprune.output.record import RunRecord, read_record
    from minprune.output.report import Report
    from minprune.output.target import PAGE, WORK
    from minprune.pipeline.sources import identity_of
    from minprune.structured.progress import Progress
    from minprune.structured.repair import resolved
    from minprune.structured.shrink import RECONSTRUCTION, run_removals

    ranks.gather(None)  # the folder is there
    before = read_record(arguments.model)
    if ranks.first:
        warn_of_grid(arguments.model)
    model, tokenizer = load(arguments.model, arguments.dtype, arguments.device)
    source = arguments.calibration or "wikipedia"
    calib = tokens_of(tokenizer, source, "train", arguments.samples, arguments.length, arguments.seed)
    told = {"source": source, "split": split_of(source, "train"), "seed": arguments.seed}
    test: Any = None
    protocol: dict[str, Any] = {}
    measured: dict[str, Any] = {}
    text = arguments.test or (source if source in BUNDLED else None)
    if text and not arguments.no_test and ranks.first:
        test, protocol = windows_of(tokenizer, text, "test", TEST_WINDOWS, max(arguments.length, 2))
    origin = {"model": arguments.model, "dtype": str(model.dtype).removeprefix("torch."), "device": arguments.device}
    origin |= {"command": repeating(arguments)}
    folder_of_model = model_folder(arguments.model)
    trial = Report("trial", "trial", {}, {"windows": 1, "length": 1})
    size = model.num_parameters()
    ahead = RunRecord.of(trial, **origin, parameters={"before": size, "after": size})
    if ranks.first:
        rehearse(folder, model, tokenizer, ahead, write_page, folder_of_model)
        check_space(folder, model)
    if test is not None:
        say_on_terminal("measuring the dense model")
        measured = {"before": perplexity(model, test)}
    recipe = {
        "model": str(folder_of_model),
        "configuration or weights": identity_of(model, sorted(folder_of_model.glob("*.safetensors"))),
        "removal": [[str(one), how] for one, how in plan],
        "repair": arguments.repair,
        "damp": arguments.damp,
        "calibration": fingerprint(calib),
        "dtype": origin["dtype"],
        "device": model.device.type,
    }
    if arguments.repair == "reconstruct":  # else nothing is trained
        recipe["type of products"] = "bfloat16" if resolved(RECONSTRUCTION, model).bfloat16 else origin["dtype"]
    say_on_terminal(f"shrinking {arguments.model}")
    ranks.check_alike(recipe)
    progress = Progress(folder / WORK, _plain(recipe))
    report = run_removals(model, calib, plan, arguments.repair, progress=progress, ranks=ranks, damp=arguments.damp)
    if not ranks.first:
        return tokenizer, test
    report.calibration |= told
    if test is not None:
        measured |= {"after": perplexity(model, test), "protocol": {"sha256": fingerprint(test), **protocol}}
        report.perplexity = measured
    after = model.num_parameters()
    parameters = {"before": size, "after": after}
    record = RunRecord.of(report, **origin, parameters=parameters, earlier=before.as_dict())
    with write_errors(folder):
        copy_files(folder_of_model, folder)
        write_page(folder / PAGE, record)
    write_model(folder, model, tokenizer, record)
    show_report(report)
    console().print(f"{size:,} parameters before, {after:,} after: {1 - after / size:.1%} fewer")
    return tokenizer, test


def _damping(text: str) -> float:
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """As it is when it comes back from a file."""
    from minprune.files import parse_json, to_json

    return parse_json(to_json(recipe))
