"""write_page(): what a pruning run did, as one HTML file that needs nothing else: no script, no font, no network.

It is read on a phone as on a wide screen, in the light and in the dark, and says all that minprune.json says. The
charts are drawn here as inline SVG, so that they take the page's colours; the template escapes every text.
"""

import math
import re
import shlex
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minprune.errors import four_digits, kind_of_layer, short
from minprune.files import whole_characters, write_text
from minprune.output.record import Perplexity, Reconstruction, RunRecord, as_record
from minprune.output.report import LayerRow

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 160, 104, 34, 6, 88  # of one chart, in its own units
_FEW = 6  # entries of a table that are not folded away
_WORST = 5  # layers that are named
_HASH = re.compile("[0-9a-f]{64}")
_VERDICTS = [
    (1.05, "hardly changed"),
    (1.25, "a little worse"),
    (2, "clearly worse"),
    (5, "much worse"),
    (math.inf, "ruined"),
]
_ELSEWHERE = {
    "version",
    "command",
    "files",
    "layers",
    "seconds",
    "versions",
    "sparsity",
    "perplexity",
    "reconstruction",
    "notes",
    "parameters",
    "pruned",
    "earlier",
}  # of the record; the rest is the recipe


def write_page(path: str | Path, record: RunRecord | Mapping[str, Any], samples: dict[str, str] | None = None) -> None:
    """Write the page of one run to `path`.

    record: what minprune.json says, or a dict with its keys, such as `Report.as_dict()`. samples: a text's beginning
    and its continuation by the dense and by the pruned model, as {"prompt": ..., "before": ..., "after": ...}.
    Raises `OSError` if the file cannot be written.
    """
    write_text(Path(path), whole_characters(render(record, samples)))


def render(found: RunRecord | Mapping[str, Any], samples: dict[str, str] | None = None) -> str:
    """The page as one string of HTML; see `write_page`."""
    record = as_record(found)
    layers = record.layers
    return template("page.html").render(
        title=f"{record.model or 'a model'}, {record.made_by}",
        verdict=_verdict(record),
        command=shlex.join(record.command),
        facts=_facts(record),
        worst=_worst(record),
        figures=_figures(layers, _when(record)),
        notes=[*record.notes, *(f"{row.name}: {row.note}" for row in layers if row.note)],
        samples=samples,
        lists=[
            ("Recipe", _recipe(record)),
            ("Reconstruction of the blocks", _reconstruction(record.reconstruction)),
            ("Perplexity was measured on", _protocol(record.perplexity)),
            ("Seconds", [(key, four_digits(value)) for key, value in record.seconds.items()]),
            ("Versions", list(record.versions.items())),
            ("Hashes", _hashes(record)),
        ],
        layers=[
            {
                **asdict(row),
                "zeros": f"{row.sparsity:.2%}",
                "lost": "-" if row.error is None else f"{row.error:.3g}",
                "took": f"{row.seconds:.2f}",
            }
            for row in layers
        ],
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        bottom=_BOTTOM,
    )


def template(name: str):
    """A page's template in this package; it escapes every text, and others can extend it."""
    from jinja2 import Environment, PackageLoader

    return Environment(autoescape=True, loader=PackageLoader("minprune.output")).get_template(name)


def _facts(record: RunRecord) -> list[tuple[str, str, str]]:
    """The few numbers at the top: name, value, unit."""
    facts = [("zeros", f"{record.sparsity:.2%}", "of the weights in these layers")]
    if size := record.parameters:
        facts = [("parameters", f"{size.after / 1e6:,.1f} M", f"of {size.before / 1e6:,.1f} M")]
    before, after = record.perplexity.before, record.perplexity.after
    if before is not None and after is not None:
        facts.append(("perplexity before", four_digits(before), "dense"))
        facts.append(("perplexity after", four_digits(after), f"{four_digits(after / before)} times dense"))
    errors = sorted(row.error for row in record.layers if row.error is not None)
    if errors:
        facts.append(
            (
                "layer error",
                four_digits(errors[len(errors) // 2]),
                f"the median layer's, {errors[-1]:.3g} at most{_when(record)}",
            )
        )
    if "total" in record.seconds:
        facts.append(("time", four_digits(record.seconds["total"]), "seconds of pruning"))
    return facts


def _verdict(record: RunRecord) -> str:
    """In words, what the perplexities say; without both of them, how to get them."""
    before, after = record.perplexity.before, record.perplexity.after
    if before is None or after is None or not 0 < before < math.inf:
        return "What it lost was not measured: minprune eval gives perplexities, of this folder and of the dense model."
    times = after / before
    words = next((words for most, words in _VERDICTS if times <= most), "ruined")
    return (
        f"By perplexity it is {words}: {four_digits(times)} times the dense model's. minprune eval asks "
        "what else it can still do."
    )


def _worst(record: RunRecord) -> list[tuple[str, str]]:
    """The layers of the largest errors, largest first."""
    known = sorted((row for row in record.layers if row.error is not None), key=lambda row: -(row.error or 0.0))
    return [(row.name, f"{row.error:.3g}") for row in known[:_WORST]]


def _hashes(record: RunRecord) -> list[tuple[str, Any]]:
    """All sha256 of the record in full, folded away; elsewhere they are cut short."""

    def inside(value: Any, path: str) -> list[tuple[str, str]]:
        if isinstance(value, Mapping):
            return [found for key, part in value.items() for found in inside(part, f"{path} {key}".strip())]
        return [(path, value)] if isinstance(value, str) and _HASH.fullmatch(value) else []

    found = inside(record.as_dict(), "")
    return [("sha256", {"summary": f"{len(found)} of texts, tokens and files", "rows": found})] if found else []


def _when(record: RunRecord) -> str:
    return ", before the blocks were reconstructed" if record.reconstruction.errors else ""


def _figures(layers: list[LayerRow], when: str) -> list[tuple[str, str, list[dict]]]:
    """Heading, explanation and charts of layer error and of zeros, one chart for each type of layer."""
    known = [row.error for row in layers if row.error is not None]
    positive = [error for error in known if 0 < error < math.inf]
    text = "There were no calibration tokens to measure it on."
    charts = []
    if known:
        usual = sorted(positive)[len(positive) // 20 :]  # a few very small errors are not to squeeze the axis
        low = math.floor(math.log10(min(usual, default=0.1)))
        high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
        ticks = {10.0**k: f"{10.0**k:g}" if k > -4 else f"1e{k}" for k in range(low, high + 1)}

        def height(row: LayerRow) -> float | None:
            error = row.error
            if error is None or not 0 < error < math.inf:
                return None
            return max(0.0, (math.log10(error) - low) / (high - low))

        charts = _charts(
            layers, height, {(math.log10(t) - low) / (high - low): label for t, label in ticks.items()}, False
        )
        text = (
            f"Share of a layer's output, on its calibration inputs, that pruning changed{when}; against depth, on one "
            "logarithmic scale for all types, on whose lowest line still smaller errors stand. A hollow mark has none: "
            "the error is zero or was not measured."
        )
    zeros = _charts(layers, lambda row: row.sparsity, {0.0: "0 %", 0.5: "50 %", 1.0: "100 %"}, True)
    return [
        ("Layer error by depth and type", text, charts),
        ("Zeros by depth and type", "Share of a layer's weights that are zero, against depth.", zeros),
    ]


def _charts(
    layers: list[LayerRow], height: Callable[[LayerRow], float | None], ticks: dict[float, str], bars: bool
) -> list[dict[str, Any]]:
    """One chart for each type of layer, one mark for each layer. height: of a mark, in 0..1, None: unknown."""
    kinds: dict[str, list[tuple[int, LayerRow]]] = defaultdict(list)
    for row in layers:
        kind, depth = _kind_and_depth(row.name)
        kinds[kind].append((depth, row))
    deepest = max((depth for rows in kinds.values() for depth, _ in rows), default=0)
    step = (_WIDTH - _LEFT - 8) / (deepest + 1)  # of one block

    def x(depth: int) -> float:
        return round(_LEFT + 4 + step * (depth + 0.5), 2)

    def y(share: float) -> float:
        return round(_BOTTOM - share * (_BOTTOM - _TOP), 2)

    return [
        {
            "kind": kind,
            "bars": round(0.7 * step, 2) if bars else 0,
            "ticks": [(y(share), label) for share, label in ticks.items()],
            "depths": [(_LEFT, "block 0", "start"), *([(_WIDTH - 4, deepest, "end")] if deepest else [])],
            "marks": [
                {"x": x(depth), "y": y(height(row) or 0), "known": height(row) is not None, "title": _title(row)}
                for depth, row in rows
            ],
        }
        for kind, rows in kinds.items()
    ]


def _kind_and_depth(name: str) -> tuple[str, int]:
    """('self_attn.q_proj', 3) of 'model.layers.3.self_attn.q_proj'; the numbers of experts become *."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)", name)
    return (kind_of_layer(found[2]), int(found[1])) if found else (name, 0)


def _title(row: LayerRow) -> str:
    error = "unknown" if row.error is None else f"{row.error:.3g}"
    return f"{row.name}: error {error}, {row.sparsity:.2%} zeros"


def _recipe(record: RunRecord) -> list[tuple[str, Any]]:
    """All that the record says of how it was made; of a long table, which is folded away, {"summary", "rows"}."""
    allocation_rows = {"allocation rule": record.allocation.rule, "allocation": record.allocation.table}
    before = {"before that": ", ".join(run.made_by for run in reversed(record.runs_before))}
    rows: list[tuple[str, Any]] = []
    for key, value in {**record.as_dict(), **allocation_rows, **before}.items():
        if key in _ELSEWHERE or not value:
            continue
        if key == "allocation" and len(value) > _FEW:
            summary = f"{len(value)} layers, {min(value.values()):.2%} to {max(value.values()):.2%}"
            rows.append((key, {"summary": summary, "rows": [(name, f"{part:.2%}") for name, part in value.items()]}))
        else:
            rows.append((key, _words(value)))
    return rows


def _protocol(measured: Perplexity) -> list[tuple[str, str]]:
    """How a perplexity was measured: all that the record holds beside the two numbers."""
    rest = {**(measured.model_extra or {}), **measured.protocol.as_dict()}
    return [(key, _words(value)) for key, value in rest.items()]


def _reconstruction(how: Reconstruction) -> list[tuple[str, str]]:
    """Its settings, and of the errors of all blocks in all epochs the median block's first and last."""
    ends = [(errors[0], errors[-1]) for errors in how.errors.values() if errors]
    settings = [(key, _words(value)) for key, value in how.as_dict().items() if key != "errors"]
    if not ends:
        return settings
    first, last = (statistics.median(column) for column in zip(*ends, strict=True))
    return [
        *settings,
        ("block error", f"{four_digits(first)} in the first epoch, {four_digits(last)} in the last (median)"),
    ]


def _words(value: Any) -> str:
    """A value of the record for a reader: tables and lists without brackets."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return four_digits(value) if isinstance(value, float) else _HASH.sub(lambda found: short(found[0]), str(value))
