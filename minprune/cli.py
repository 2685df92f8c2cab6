"""The `minprune` command: prune a model, measure it, look at it.

Results go to stdout; what is going on, and a user's mistake in one line, to stderr. Exit codes: 0, 2 for a mistake
or a full disk, 130 for Ctrl-C. torch and transformers are imported inside the commands, so that help is immediate.
"""

import argparse
import inspect
import json
import os
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune import __version__
from minprune.errors import PruneError

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

    from minprune.methods import Method
    from minprune.report import LayerRow, Report

_MODEL = "an embedded model (smollm2), a folder, or a Hugging Face id"
_TEXT = "an embedded text (wikipedia, news), a hub data set (wikitext2, c4), or a .txt, .jsonl or .parquet file"
_LARGEST_SEED = 2**63 - 1


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name; None: the process's own) and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except PruneError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted: nothing half-written is left", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `minprune info smollm2 | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
            return _fail("out of memory: use a smaller --batch-size, fewer --samples or a shorter --length", 2)
        raise


def _fail(message: str, code: int) -> int:
    _say(f"minprune: {' '.join(message.split())}")
    return code


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def _say_on_terminal(message: str) -> None:
    """For a wait that is short or comes before a check: a person should know, a log need not."""
    if sys.stderr.isatty():
        _say(message)


# --- what can be said on the command line


class _Help(argparse.HelpFormatter):
    """Wraps each line of a text on its own, so that examples and lists keep their lines."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [part for line in text.splitlines() for part in textwrap.wrap(line, width, subsequent_indent="  ")]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise PruneError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minprune",
        description="Prune large language models: set weights to zero and lose as little as possible.",
        epilog="minprune COMMAND --help explains a command. Start with: minprune demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minprune {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_prune, _add_eval, _add_generate, _add_info):
        add(commands)
    return parser


def _command(commands, name: str, run: Callable, summary: str, more: str, example: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}. {more}",
        epilog=f"example:\n  {example}",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_demo(commands) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "prune SmolLM2-135M in five ways and compare them",
        "Takes a few minutes on two cores. Prints a table and a continuation by each model; writes a figure and a "
        "pruned model.",
        "minprune demo",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="demo-output", help="folder to write to, or write again (demo-output)"
    )


def _add_prune(commands) -> None:
    parser = _command(
        commands,
        "prune",
        _prune,
        "prune a model and write it to a new folder",
        "AutoModelForCausalLM.from_pretrained loads the folder; minprune.json in it says how the model was made.",
        "minprune prune smollm2 --method wanda --pattern 2:4 --exclude '*.layers.0.*'",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--method", metavar="M", default="sparsegpt", help="magnitude, wanda or sparsegpt (default: sparsegpt)"
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
        "--calibration",
        metavar="TEXT",
        help=f"{_TEXT} (default: wikipedia, its train split; magnitude needs no text)",
    )
    parser.add_argument("--samples", metavar="N", type=_whole(1), default=64, help="calibration windows (64)")
    parser.add_argument("--length", metavar="L", type=_whole(1), default=512, help="tokens in a window (512)")
    parser.add_argument(
        "--seed", metavar="S", type=_whole(0, _LARGEST_SEED), default=0, help="which windows are drawn (0)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="B",
        type=_whole(1),
        help="windows in one forward pass (default: all); fewer take less memory and more time, the result is the same",
    )
    parser.add_argument(
        "--include",
        metavar="GLOB",
        action="append",
        help="prune only layers whose name matches, repeatable (default: all linear layers of the blocks)",
    )
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", default=[], help="leave these layers dense, repeatable"
    )
    parser.add_argument(
        "--allocation",
        metavar="TABLE",
        help='a JSON file from globs to sparsities, the last match counts:\n{"*.mlp.*": 0.6, "*.layers.0.*": 0.3}',
    )
    parser.add_argument(
        "--two-pass",
        action="store_true",
        help="the published loop: calibrate all layers of a block while it is still dense (kept to compare)",
    )
    _add_place(parser)
    parser.add_argument("--output", metavar="DIR", help="folder to write (default: MODEL-METHOD-PATTERN here)")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that minprune wrote before")


def _add_eval(commands) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "measure the perplexity of models on a text",
        "Windows do not overlap; every token but the first of its window counts once.",
        "minprune eval smollm2 smollm2-sparsegpt-50pct --samples 16",
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{_MODEL}; several are compared with the first")
    parser.add_argument("--text", metavar="TEXT", default="wikipedia", help=f"{_TEXT} (default: wikipedia)")
    parser.add_argument(
        "--split", metavar="NAME", default="test", help="train, validation or test (test); files have no splits"
    )
    parser.add_argument("--samples", metavar="N", type=_whole(1), default=32, help="windows, evenly spread (32)")
    parser.add_argument("--length", metavar="L", type=_whole(2), default=512, help="tokens in a window (512)")
    parser.add_argument("--batch-size", metavar="B", type=_whole(1), default=2, help="windows in a forward pass (2)")
    _add_place(parser)


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "let a model continue a prompt",
        "Prints the prompt and the continuation.",
        "minprune generate smollm2 --prompt 'The largest planet is'",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the beginning of the text")
    parser.add_argument("--tokens", metavar="N", type=_whole(1), default=40, help="tokens to add at most (40)")
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest token (0), 1 samples freely"
    )
    parser.add_argument(
        "--seed", metavar="S", type=_whole(0, _LARGEST_SEED), default=0, help="for a temperature above 0 (0)"
    )
    _add_place(parser)


def _add_info(commands) -> None:
    parser = _command(
        commands,
        "info",
        _info,
        "list a model's linear layers, their zeros and the pattern of these",
        "Layers that differ only in their numbers are one row. The pattern is found in the weights themselves.",
        "minprune info smollm2",
    )
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("--all", action="store_true", help="one row for each layer")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", default="cpu", help="where to compute: cpu, cuda, cuda:1, mps (cpu)")
    parser.add_argument(
        "--dtype", metavar="T", default="auto", help="float32, bfloat16, float16, or the checkpoint's own (auto)"
    )


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text) or not least <= int(text) <= (most or sys.maxsize):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


# --- the commands


def _demo(arguments: argparse.Namespace) -> None:
    from minprune.demo import demo

    _calm_transformers()
    demo(arguments.output, _console(), _say)


def _prune(arguments: argparse.Namespace) -> None:
    from minprune.driver import prune
    from minprune.methods import get_method
    from minprune.output import check_space, default_name, output_folder, write_model
    from minprune.patterns import pattern as read_pattern

    method, pattern = get_method(arguments.method), read_pattern(arguments.pattern)
    options = read_options(arguments.method, method, arguments.option)
    allocation = read_allocation(arguments.allocation) if arguments.allocation else None
    target = Path(arguments.output or default_name(arguments.model, arguments.method, str(pattern)))
    if target.resolve() == Path(arguments.model).resolve():
        raise PruneError(f"{target} is the model itself, which would be lost: choose another --output")
    with output_folder(target, arguments.overwrite) as folder:
        model, tokenizer = _load(arguments.model, arguments.dtype, arguments.device)
        check_space(folder, model)
        calib, source = None, arguments.calibration or "wikipedia"
        if arguments.calibration or method.needs != "nothing":
            calib = _tokens(tokenizer, source, "train", arguments.samples, arguments.length, arguments.seed)
        report = prune(
            model,
            calib,
            arguments.method,
            pattern,
            allocation=allocation,
            include=arguments.include,
            exclude=arguments.exclude,
            batch_size=arguments.batch_size,
            sequential=not arguments.two_pass,
            progress=True,
            **options,
        )
        if calib is not None:
            report.calibration |= {"source": source, "split": _split_of(source, "train"), "seed": arguments.seed}
        recipe = {
            "model": arguments.model,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": arguments.device,
            "allocation": allocation,
            "include": arguments.include,
            "exclude": arguments.exclude,
            "batch_size": arguments.batch_size,
            "sequential": not arguments.two_pass,
        }
        write_model(folder, model, tokenizer, recipe | report.as_dict())
    _show_report(report)
    _console().print(f"written to {target}", soft_wrap=True)


def _eval(arguments: argparse.Namespace) -> None:
    from minprune.data import fingerprint
    from minprune.evaluate import perplexity

    console = _console()
    table = _table("model", "perplexity", "x first")
    first: tuple[float, str] | None = None
    for name in arguments.models:
        model, tokenizer = _load(name, arguments.dtype, arguments.device)
        tokens = _tokens(tokenizer, arguments.text, arguments.split, arguments.samples, arguments.length, None)
        value, made_of = perplexity(model, tokens, arguments.batch_size, progress=True), fingerprint(tokens)
        first = first or (value, made_of)
        comparable = made_of == first[1]  # perplexities per token of different tokenizers are not
        table.add_row(name, f"{value:,.2f}", f"{value / first[0]:,.2f}" if comparable else "-")
    console.print(table)
    split = _split_of(arguments.text, arguments.split)
    text = f"{arguments.text} ({split})" if split else arguments.text
    console.print(f"{text}: {arguments.samples} windows of {arguments.length} tokens", soft_wrap=True)


def _generate(arguments: argparse.Namespace) -> None:
    from minprune.evaluate import generate

    model, tokenizer = _load(arguments.model, arguments.dtype, arguments.device)
    text = generate(model, tokenizer, arguments.prompt, arguments.tokens, arguments.temperature, arguments.seed)
    sys.stdout.write(f"{arguments.prompt}{text}\n")


def _info(arguments: argparse.Namespace) -> None:
    from minprune.model import decoder_blocks, find_layers
    from minprune.recognise import recognise

    model, _ = _load(arguments.model, "auto", "cpu")
    layers = find_layers(model)
    config = model.config.get_text_config()
    groups: dict[tuple, list[tuple[int, str]]] = defaultdict(list)
    for layer in layers:
        W = layer.weight
        name = layer.name if arguments.all else kind_of(layer.name)
        groups[name, tuple(W.shape)].append((W.numel() - int(W.count_nonzero()), recognise(W)))
    table = _table("layers", "count", "shape", "zeros", "pattern")
    for (name, shape), found in groups.items():
        share = sum(zeros for zeros, _ in found) / (len(found) * shape[0] * shape[1])
        patterns = sorted({pattern for _, pattern in found})
        table.add_row(name, str(len(found)), f"{shape[0]} x {shape[1]}", f"{share:.1%}", ", ".join(patterns))
    console = _console()
    console.print(table)
    inside = sum(layer.weight.numel() for layer in layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    positions = getattr(config, "max_position_embeddings", None)
    facts = [
        f"{type(model).__name__}, {str(model.dtype).removeprefix('torch.')}",
        f"{len(decoder_blocks(model)[1])} blocks",
        f"vocabulary {config.vocab_size:,}",
        *([f"{positions:,} positions"] if positions else []),
    ]
    console.print(", ".join(facts))
    console.print(
        f"{total:,} parameters, {inside:,} of them ({inside / total:.0%}) in these {len(layers)} layers",
        highlight=False,
    )


# --- what the commands share


def kind_of(name: str) -> str:
    """A layer's name with every number in it replaced by *: a glob for all layers of its kind."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def read_options(name: str, method: "Method", given: list[str]) -> dict[str, Any]:
    """The method's own options out of NAME=VALUE texts, as the types that its signature says."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise PruneError(f"--option {text!r} is not NAME=VALUE, as in --option damp=0.05")
        method.check_options(name, {key: value})
        kind = inspect.signature(method.function).parameters[key].annotation
        if kind not in (int, float, str):
            raise PruneError(f"the option {key!r} of {name} cannot be set on the command line, only from Python")
        try:
            options[key] = kind(value)
        except ValueError:
            raise PruneError(f"the option {key}={value} of {name} is not of type {kind.__name__}") from None
    return options


def read_allocation(path: str) -> dict[str, float]:
    """The table in a JSON file: globs over layer names -> sparsity in 0..1."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PruneError(f"cannot read the allocation {path} ({error.strerror}): name a JSON file") from None
    except ValueError:
        raise PruneError(f'the allocation {path} is not JSON: write a table like {{"*.mlp.*": 0.6}}') from None
    if not isinstance(table, dict):
        raise PruneError(f'the allocation {path} is not a table: write one like {{"*.mlp.*": 0.6}}')
    return table


def _load(name: str, dtype: str, device: str):
    from minprune.model import load_model

    _calm_transformers()
    _say_on_terminal(f"loading {name}")
    model, tokenizer = load_model(name, dtype, device, _say)
    _check_finite(name, model)
    return model, tokenizer


def _check_finite(name: str, model: "PreTrainedModel") -> None:
    """Embeddings and norms too, which no method looks at: with NaN in them no number would mean anything."""
    for key, parameter in model.named_parameters():
        if parameter.numel() and not all(extreme.isfinite() for extreme in parameter.aminmax()):
            raise PruneError(f"{key} of {name} holds NaN or infinity: the checkpoint is damaged, copy it again")


def _calm_transformers() -> None:
    """No advice from transformers among our lines, and its progress bars only for a person."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # it reports every retry
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _tokens(tokenizer, source: str, split: str, samples: int, length: int, seed: int | None):
    from minprune.data import load_tokens

    _say_on_terminal(f"cutting {source} into windows")
    return load_tokens(tokenizer, source, split, samples, length, seed, _say)


def _split_of(source: str, split: str) -> str | None:
    return None if Path(source).is_file() else split


def _console():
    from rich.console import Console

    return Console(markup=False, highlight=False)


def _table(first: str, *others: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, header_style="")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _show_report(report: "Report") -> None:
    kinds: dict[str, list[LayerRow]] = defaultdict(list)
    for row in report.layers:
        kinds[kind_of(row.name)].append(row)
    table = _table("layers", "count", "zeros", "mean error", "seconds")
    for name, rows in kinds.items():
        sizes = [row.shape[0] * row.shape[1] for row in rows]
        zeros = sum(row.sparsity * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)
        errors = [row.error for row in rows if row.error is not None]
        error = f"{sum(errors) / len(errors):.4f}" if errors else "-"
        table.add_row(name, str(len(rows)), f"{zeros:.1%}", error, f"{sum(row.seconds for row in rows):.1f}")
    console = _console()
    console.print(table)
    seconds = report.seconds["total"]
    console.print(f"{report.method} {report.pattern}: {report.sparsity:.2%} zeros in {seconds:.1f} s")
    notes = [f"{row.name}: {row.note}" for row in report.layers if row.note]
    for note in notes[:5]:
        console.print(note)
    if len(notes) > 5:
        console.print(f"and {len(notes) - 5} more notes in minprune.json")


if __name__ == "__main__":
    sys.exit(main())
