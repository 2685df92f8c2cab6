"""`minprune recover`: train a pruned model further, its zeros kept, and write it to a new folder."""

import argparse
import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import (
    LARGEST_SEED,
    MODEL,
    TEXT,
    add_place,
    command,
    console,
    listed,
    load,
    number,
    repeating,
    split_of,
    table_of,
    tokens_of,
    warn_of_grid,
    whole,
)
from minprune.errors import PruneError

if TYPE_CHECKING:
    from minprune.output.record import RunRecord
    from minprune.training.distill import Distillation
    from minprune.training.recipe import Recipe, Recovery

TAUGHT = ("share", "temperature", "hidden")


def add(commands) -> None:
    """The arguments of `minprune recover`."""
    parser = command(
        commands,
        "recover",
        run,
        "train a pruned model further, with its zeros kept",
        "Every zero of the blocks' matrices stays zero, bit for bit. The folder is like that of minprune prune, with "
        "the curves of loss and perplexity in report.html.",
        "minprune recover smollm2-wanda-2-4 --teacher smollm2 --output recovered",
    )
    parser.add_argument("model", metavar="MODEL", help=f"{MODEL}; usually one that minprune has pruned")
    parser.add_argument("--data", metavar="TEXT", default="wikipedia", help=f"what to train on: {TEXT} (wikipedia)")
    parser.add_argument("--steps", metavar="N", type=whole(1), default=200, help="optimizer steps (200)")
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: MODEL-recovered here)")
    parser.add_argument("--samples", metavar="N", type=whole(1), help="training windows (default: all of the text)")
    parser.add_argument("--length", metavar="L", type=whole(2), default=256, help="tokens in any window (256)")
    parser.add_argument("--batch-size", metavar="B", type=whole(1), default=4, help="windows in one step (4)")
    parser.add_argument(
        "--lr", metavar="X", type=_positive, help="highest learning rate (0.0003, with --adapters 0.003)"
    )
    parser.add_argument("--warmup", metavar="N", type=whole(0), default=10, help="steps until it is reached (10)")
    parser.add_argument("--weight-decay", metavar="X", type=_share, default=0.0, help="AdamW's, of matrices (0)")
    parser.add_argument("--seed", metavar="S", type=whole(0, LARGEST_SEED // 2), default=0, help="order of windows (0)")
    parser.add_argument(
        "--adapters",
        metavar="RANK",
        type=whole(1),
        help="train low-rank adapters only, merged under the zeros\n(default: all weights that are not zero)",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="learn from this model's predictions: the dense one")
    parser.add_argument(
        "--share",
        metavar="X",
        type=_share,
        help="the teacher's part of the loss, the text has the rest (1)",
    )
    parser.add_argument("--temperature", metavar="X", type=_positive, help="of both models' predictions (1)")
    parser.add_argument("--hidden", metavar="X", type=_share, help="weight of the hidden states' distance, up to 1 (0)")
    parser.add_argument(
        "--test",
        metavar="T,T",
        default="wikipedia,news",
        help="texts to measure perplexity on (wikipedia,news): one that is not\nlike the training text tells learning "
        "from adapting",
    )
    parser.add_argument("--test-samples", metavar="N", type=whole(1), default=8, help="windows of each (8)")
    parser.add_argument("--evaluate", metavar="N", type=whole(1), default=50, help="steps between measurements (50)")
    parser.add_argument("--save-every", metavar="N", type=whole(1), default=50, help="steps between saved states (50)")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="matrix products in bfloat16: about half the time on a processor\nthat knows it; weights stay in float32",
    )
    add_place(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that minprune wrote before")
    parser.add_argument(
        "--resume", action="store_true", help="go on where the same command was stopped;\nits state is in DIR.partial"
    )


def run(arguments: Namespace) -> None:
    """Train a model and write it to a folder that appears only when it is complete."""
    from minprune.data.tokens import fingerprint
    from minprune.evaluation.protocol import windows_of
    from minprune.load import model_folder
    from minprune.output.folder import default_name
    from minprune.output.model_files import check_space, rehearse, write_model
    from minprune.output.record import read_record
    from minprune.output.target import PAGE, check_target
    from minprune.training.distill import Distillation
    from minprune.training.output import STATE, training_folder
    from minprune.training.page import write_curves
    from minprune.training.recipe import ADAPTERS_LR, Recipe, Recovery
    from minprune.training.recover import recover

    recipe = Recipe(
        arguments.steps,
        arguments.batch_size,
        arguments.lr or (ADAPTERS_LR if arguments.adapters else Recipe.lr),
        arguments.warmup,
        arguments.weight_decay,
        seed=arguments.seed,
        mode="adapters" if arguments.adapters else "full",
        rank=arguments.adapters or Recipe.rank,
        evaluate=arguments.evaluate,
        bfloat16=arguments.bfloat16,
    )
    target = Path(arguments.output or default_name(arguments.model, "recovered"))
    texts = listed(arguments.test)
    check_target(target, arguments.model, arguments.teacher, arguments.data, *texts)
    taught = {name: getattr(arguments, name) for name in TAUGHT if getattr(arguments, name) is not None}
    if taught and not arguments.teacher:
        raise PruneError(f"--{next(iter(taught))} says how to learn from a teacher: name the dense model as --teacher")
    pruned = read_record(arguments.model)
    warn_of_grid(arguments.model)
    with training_folder(target, arguments.resume, arguments.overwrite) as folder:
        model, tokenizer = load(arguments.model, arguments.dtype, arguments.device)
        dtype = model.dtype
        model.float()  # a step is smaller than what 16 bits can tell apart
        data = tokens_of(tokenizer, arguments.data, "train", arguments.samples, arguments.length, arguments.seed)
        cut = {
            text: windows_of(tokenizer, text, "test", arguments.test_samples, arguments.length, "float32")
            for text in texts
        }
        test = {text: windows for text, (windows, _) in cut.items()}
        teacher = None
        if arguments.teacher:
            dense, _ = load(arguments.teacher, "float32", arguments.device)
            teacher = Distillation(dense, **taught)
        protocols = {text: {"sha256": fingerprint(windows), **metadata} for text, (windows, metadata) in cut.items()}
        numbers = dict.fromkeys(test, 1.0)
        rows = [{"step": step, "tokens": 0, "loss": 1.0, "perplexity": numbers} for step in (0, recipe.steps)]
        trial = Recovery(recipe, rows=rows)
        ahead = rehearse(
            folder,
            model,
            tokenizer,
            _record(arguments, model, trial, data, protocols, teacher, pruned),
            write_curves,
            model_folder(arguments.model),
        )
        ahead += _state_bytes(model, recipe, arguments.save_every)
        ahead -= sum(parameter.numel() for parameter in model.parameters()) * (4 - dtype.itemsize)
        there = (folder / STATE).stat().st_size if (folder / STATE).exists() else 0
        check_space(folder, model, there - ahead)
        done = recover(
            model,
            data,
            recipe,
            test=test,
            teacher=teacher,
            state=folder / STATE,
            save_every=arguments.save_every,
            progress=True,
        )
        model.to(dtype)
        record = _record(arguments, model, done, data, protocols, teacher, pruned)
        write_curves(folder / PAGE, record)
        write_model(folder, model, tokenizer, record, source=model_folder(arguments.model))
    out = console()
    out.print(_table(done, list(test)))
    out.print(f"{done.zeros:.2%} zeros, all kept; {done.seconds:.0f} processor seconds of training")
    out.print(f"written to {target}; {target / PAGE} shows how it went", soft_wrap=True)


def _state_bytes(model, recipe: "Recipe", save_every: int) -> int:
    """How much disk the states of a run take: what is trained, in float32, and two numbers of AdamW's for each.

    The next state is complete before the last one is removed.
    """
    from minprune.models.checks import sparse_layers

    if recipe.mode == "adapters":
        trained = sum(recipe.rank * sum(layer.weight.shape) for layer in sparse_layers(model))
    else:
        trained = sum(parameter.numel() for parameter in model.parameters())
    return min(2, recipe.steps // save_every) * 12 * trained


def _record(
    arguments: Namespace,
    model,
    done: "Recovery",
    data,
    protocols: dict,
    teacher: "Distillation | None",
    pruned: "RunRecord",
) -> "RunRecord":
    """What minprune.json says of the run, in the words of a pruning run where they mean the same."""
    from minprune.data.tokens import fingerprint
    from minprune.models.checks import sparse_layers
    from minprune.output.record import RunRecord
    from minprune.output.report import Report

    calibration = {
        "windows": data.shape[0],
        "length": data.shape[1],
        "sha256": fingerprint(data),
        "source": arguments.data,
        "split": split_of(arguments.data, "train"),
        "seed": arguments.seed,
    }
    metadata = {"teacher": arguments.teacher, **{name: getattr(teacher, name) for name in TAUGHT}} if teacher else {}
    options = {**done.as_dict()["recipe"], **metadata}
    report = Report("recover", pruned.pattern or f"{done.zeros:.4g} zeros", options, calibration)
    report.layers = [_row(layer) for layer in sparse_layers(model)]
    report.seconds = {"total": done.seconds}
    measured = {}
    for text, protocol in list(protocols.items())[:1]:
        first, last = (row["perplexity"][text] for row in (done.rows[0], done.rows[-1]))
        measured = {"before": first, "after": last, "protocol": protocol}
    more: dict[str, Any] = {
        "model": arguments.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": arguments.device,
    }
    more["command"] = repeating(arguments)
    report.perplexity = measured
    return RunRecord.of(report, **more, rows=done.rows, pruned=pruned.as_dict())


def _row(layer):
    from minprune.output.report import LayerRow

    W = layer.weight
    return LayerRow(layer.name, (W.shape[0], W.shape[1]), 1 - int(W.count_nonzero()) / W.numel(), None, 0.0)


def _table(done: "Recovery", texts: list[str]):
    table = table_of("step", "tokens", "loss", *(f"perplexity {text}" for text in texts))
    for row in done.rows:
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        found = [f"{row['perplexity'][text]:,.2f}" for text in texts]
        table.add_row(f"{row['step']:,}", f"{row['tokens']:,}", loss, *found)
    return table


def _positive(text: str) -> float:
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _share(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
