"""What the options of `minprune prune` say that argparse cannot read: the method's own, and allocations."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.cli.common import load, say_on_terminal
from minprune.errors import PruneError
from minprune.files import check_regular, parse_json

if TYPE_CHECKING:
    from minprune.methods import Method


def read_options(name: str, method: "Method", given: list[str]) -> dict[str, Any]:
    """The method's own options out of NAME=VALUE texts, as the types that its signature says."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise PruneError(f"--option {text!r} is not NAME=VALUE, as in --option damp=0.05")
        method.check_names(name, [key])
        kind = method.options[key]
        if kind not in (int, float, str):
            raise PruneError(f"the option {key!r} of {name} cannot be set on the command line, only from Python")
        try:
            if not value.isascii() and kind is not str:  # digits of another script
                raise ValueError
            options[key] = kind(value)
        except ValueError:
            raise PruneError(f"the option {key}={value} of {name} is not of type {kind.__name__}") from None
    return options


def table_by_rule(
    arguments: Namespace, target: Path, name: str, calib, pattern
) -> Callable[[Any], Mapping[str, float]]:
    """What a rule makes of the model, which it must see as a whole, as a function of the rule's name.

    With --resume it is what the rule made for the run that goes on at `target`.
    """
    from minprune.allocation.allocate import as_made_by
    from minprune.allocation.rules import get_rule, require_variable_sparsity
    from minprune.models.layers import find_layers
    from minprune.pipeline.journal import table_of

    require_variable_sparsity(pattern)
    if arguments.resume and (table := table_of(target, name)):
        return as_made_by(name, table)
    model, _ = load(arguments.model, arguments.dtype, arguments.device)
    say_on_terminal(f"choosing sparsities: {name}")
    found = get_rule(name)(model, find_layers(model, arguments.include, arguments.exclude), calib, pattern)
    return as_made_by(name, found)


def read_allocation(path: str) -> dict[str, float] | str:
    """The name of a rule as it is, or the table in a JSON file: globs over layer names -> sparsity in 0..1."""
    from minprune.allocation.rules import RULES

    if path in RULES:
        return path
    check_regular(Path(path))
    try:
        table = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PruneError(
            f"cannot read the allocation {path} ({error.strerror}): name a JSON file, or one of {', '.join(RULES)}"
        ) from None
    except ValueError:
        raise PruneError(f'the allocation {path} is not JSON: write a table like {{"*.mlp.*": 0.6}}') from None
    if not isinstance(table, dict):
        raise PruneError(f'the allocation {path} is not a table: write one like {{"*.mlp.*": 0.6}}')
    return table
