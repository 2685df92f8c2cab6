"""What each command of the command line does; cli.py says what can be asked of them.

torch and transformers are imported inside the commands, so that help is immediate.
"""

import json
import re
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from transformers import PreTrainedModel

    from minprune.methods import Method
    from minprune.report import LayerRow, Report


def say(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def say_on_terminal(message: str) -> None:
    """For a wait that is short or comes before a check: a person should know, a log need not."""
    if sys.stderr.isatty():
        say(message)


def run_demo(arguments: Namespace) -> None:
    """The demonstration, into arguments.output."""
    from minprune.demo import demo

    _calm_transformers()
    demo(arguments.output, console(), say)


def run_prune(arguments: Namespace) -> None:
    """Prune a model and write it to a folder that appears only when it is complete."""
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
    console().print(f"written to {target}", soft_wrap=True)


def run_eval(arguments: Namespace) -> None:
    """Perplexity of one or more models on the same text."""
    from minprune.data import fingerprint
    from minprune.evaluate import perplexity

    out = console()
    table = _table("model", "perplexity", "x first")
    first: tuple[float, str] | None = None
    for name in arguments.models:
        model, tokenizer = _load(name, arguments.dtype, arguments.device)
        tokens = _tokens(tokenizer, arguments.text, arguments.split, arguments.samples, arguments.length, None)
        value, made_of = perplexity(model, tokens, arguments.batch_size, progress=True), fingerprint(tokens)
        first = first or (value, made_of)
        comparable = made_of == first[1]  # perplexities per token of different tokenizers are not
        table.add_row(name, f"{value:,.2f}", f"{value / first[0]:,.2f}" if comparable else "-")
    out.print(table)
    split = _split_of(arguments.text, arguments.split)
    text = f"{arguments.text} ({split})" if split else arguments.text
    out.print(f"{text}: {arguments.samples} windows of {arguments.length} tokens", soft_wrap=True)


def run_generate(arguments: Namespace) -> None:
    """A prompt and its continuation."""
    from minprune.evaluate import generate

    model, tokenizer = _load(arguments.model, arguments.dtype, arguments.device)
    text = generate(model, tokenizer, arguments.prompt, arguments.tokens, arguments.temperature, arguments.seed)
    sys.stdout.write(f"{arguments.prompt}{text}\n")


def run_info(arguments: Namespace) -> None:
    """A table of the layers: shapes, zeros, and the pattern of the zeros."""
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
    out = console()
    out.print(table)
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
        kind = method.options[key]
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
    say_on_terminal(f"loading {name}")
    model, tokenizer = load_model(name, dtype, device, say)
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

    say_on_terminal(f"cutting {source} into windows")
    return load_tokens(tokenizer, source, split, samples, length, seed, say)


def _split_of(source: str, split: str) -> str | None:
    return None if Path(source).is_file() else split


def console() -> "Console":
    """Where results are printed: stdout, without markup."""
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
    out = console()
    out.print(table)
    seconds = report.seconds["total"]
    out.print(f"{report.method} {report.pattern}: {report.sparsity:.2%} zeros in {seconds:.1f} s")
    notes = [f"{row.name}: {row.note}" for row in report.layers if row.note]
    for note in notes[:5]:
        out.print(note)
    if len(notes) > 5:
        out.print(f"and {len(notes) - 5} more notes in minprune.json")
