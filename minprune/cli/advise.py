"""`minprune advise`: which way to make a model smaller fits a budget, and the commands that go it."""

import shlex
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import MODEL, command, console, load, number, say_on_terminal, source_of, table_of
from minprune.cli.plan import amount_type
from minprune.errors import PruneError, amount, four_digits

if TYPE_CHECKING:
    from minprune.compress.advice import Advice, Choice

SHOWN, SHOWN_BEYOND = 8, 4  # rows
TOKENS, ROUNDS = 8, 3  # of a timing


def add(commands) -> None:
    """The arguments of `minprune advise`."""
    parser = command(
        commands,
        "advise",
        run,
        "say which way to make a model smaller fits a budget of bytes or time",
        "The losses were measured on SmolLM2 (book/results/atlas.json); the bytes are counted for the matrices of your "
        "model, of which no weight is read. Prints what fits, best first, and the commands for the first.",
        "minprune advise smollm2 --bytes 120MB",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--bytes", metavar="B", type=amount_type(), help="the most that its weights may take: 120MB, 4.5GB"
    )
    parser.add_argument(
        "--tokens-per-second",
        metavar="N",
        type=number,
        help="how fast one conversation is to be on this machine's processor; the dense model is loaded and timed",
    )


def run(arguments: Namespace) -> None:
    """Count the bytes of each way, time the dense model if a speed is asked for, and print a table and commands."""
    import torch

    from minprune.compress.advice import advise
    from minprune.models.layers import block_layers, unsupported_experts
    from minprune.models.skeleton import describe_or_refuse, read_config

    size, wanted = arguments.bytes, arguments.tokens_per_second
    if size is None and wanted is None:
        raise PruneError("advise needs a budget: --bytes 120MB, or --tokens-per-second 30")
    if wanted is not None and not 0 < wanted < float("inf"):
        raise PruneError(f"--tokens-per-second {wanted:g} is no speed: give a number above 0")
    source = Path(source_of(arguments.model))
    model, rate = describe_or_refuse(source, read_config(source), torch.float32), None
    if wanted is not None:
        say_on_terminal("timing the dense model")
        rate = dense_rate(load(arguments.model, "auto", "cpu")[0])
        say_on_terminal(f"{rate:.1f} tokens a second")
    found = advise(model, size, wanted / rate if wanted and rate else None)
    _show(found, rate)
    dense = unsupported_experts(block_layers(model))
    lines = commands_for(found.fits[0].steps, arguments.model, rate is not None, dense)
    console().print("The commands for the first:")
    for line in lines:
        console().print(f"  {shlex.join(line)}", soft_wrap=True, highlight=False, markup=False)


def commands_for(
    steps: tuple[str, ...], model: str, fast: bool = False, exclude: Sequence[str] = ()
) -> list[list[str]]:
    """The command lines that go the steps one after the other, store the result in 16 bits a number, and measure it.

    fast: and write with the kernels that skip the zeros. exclude: globs of layers that are left as they are.
    """
    from minprune.output.folder import default_name

    lines, here = [], model
    for number_, step in enumerate(steps, 1):
        there = default_name(model, f"step{number_}")
        verb, way, *rest = step.split()
        left = [] if verb == "shrink" else [word for glob in exclude for word in ("--exclude", glob)]
        lines.append(["minprune", verb, here, *_words(verb, way, rest), *left, "--output", there])
        here = there
    small = default_name(model, "small")
    lines.append(["minprune", "export", here, "--dtype", "float16", "--output", small])
    lines.append(["minprune", "eval", model, small, "--dtype", "float32"])
    return [*lines, ["minprune", "generate", small, "--sparse", "--prompt", "The moon"]] if fast else lines


def _words(verb: str, way: str, rest: list[str]) -> list[str]:
    """The options of one step. A quantised model is written in float32, so that its scales and codes are had back."""
    if verb == "prune":
        return ["--recipe" if way == "best" else "--method", way, "--pattern", rest[0]]
    if verb == "quantize":
        zeros = ["--pattern", rest[1]] if len(rest) > 1 else []
        return ["--method", way, "--bits", rest[0], "--group", "64", "--dtype", "float32", *zeros]
    how = {"neurons": ["--method", "obd", "--damp", "1"], "blocks": ["--damp", "1"], "hidden": ["--repair", "none"]}
    return ["--remove", way, *how[way.split(":")[0]]]


def dense_rate(model: Any) -> float:
    """Tokens a second that a model writes one after the other, without a prompt to speak of."""
    import torch

    prompt = torch.arange(8)[None]
    mask, seconds = torch.ones_like(prompt), []
    for _ in range(ROUNDS + 1):  # the first is slower, and not counted
        start = time.perf_counter()
        model.generate(
            prompt, attention_mask=mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        seconds.append(time.perf_counter() - start)
    return TOKENS / statistics.median(seconds[1:])


def _show(found: "Advice", rate: float | None) -> None:
    """Two tables, what fits and what does not, and what the numbers mean."""
    out = console()
    out.print(f"dense, 16 bits a number: {amount(found.dense.bytes)}", highlight=False)
    _table("fits, best first", found.fits[:SHOWN], rate)
    untimed = [choice for choice in found.beyond if rate and choice.faster is None]
    better = [choice for choice in found.beyond if choice.loss < found.fits[0].loss and choice not in untimed]
    if better:
        _table("beyond the budget, and better", better[:SHOWN_BEYOND], rate)
    more = max(0, len(found.fits) - SHOWN)
    notes = [f"{more} more fit, which lose more." if more else ""]
    if rate:
        notes.append(
            "Tokens/s: the dense model's on this machine, times what SmolLM2 gained with one thread "
            f"(book/results/decode.json). Not timed, and so not listed: {len(untimed)} ways."
        )
    if found.left_out:
        others = f"; and {len(found.left_out) - 1} more" if found.left_out[1:] else ""
        notes.append(f"Left out: {found.left_out[0]}{others}.")
    notes += [
        "Loss: nats a token more than dense, with its standard error over 8 windows of text, and the perplexity that "
        "this is, times dense. Both are SmolLM2's, a model of 0.1 billion parameters, with one calibration: larger "
        "models lose less, so take the order from here and measure the loss on your own."
    ]
    for note in filter(None, notes):
        out.print(note, soft_wrap=True, highlight=False, markup=False)


def _table(title: str, choices: "tuple[Choice, ...] | list[Choice]", rate: float | None) -> None:
    from minprune.compress.advice import describe

    speed = "tokens/s" if rate else "x speed"
    table = table_of(title, "MB", "loss", "x perplexity", speed)
    for choice in choices:
        fast = "-" if choice.faster is None else f"{choice.faster * (rate or 1):.1f}"
        loss = f"{round(choice.loss, 3) + 0.0:.3f} ± {choice.error:.3f}"  # + 0.0: no -0.000
        size, times = four_digits(choice.bytes / 1e6), f"{choice.times:.2f}"
        table.add_row(describe(choice.steps), size, loss, times, fast)
    console().print(table)
