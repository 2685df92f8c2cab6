"""report.html of a recovery: how the loss and the perplexities went, beside what minprune.json says."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minprune.files import whole_characters, write_text
from minprune.output.page import template
from minprune.output.record import RunRecord, as_record

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 320, 150, 40, 8, 128  # of one chart, in its own units


def write_curves(path: str | Path, found: RunRecord | Mapping[str, Any]) -> None:
    """Write the page of a run to `path`. found: what `minprune recover` writes to minprune.json, or a dict of it."""
    record = as_record(found)
    rows, measured = record.rows, record.perplexity
    facts = [
        ("zeros", f"{record.sparsity:.2%}", "as before, in the same places"),
        ("trained on", f"{rows[-1].tokens:,}", f"tokens of {record.calibration.source}"),
        ("time", f"{record.seconds['total']:,.0f}", "processor seconds of training"),
    ]
    if measured.before is not None and measured.after is not None:
        ratio = measured.after / measured.before
        facts[1:1] = [
            ("perplexity before", f"{measured.before:,.4g}", "pruned, before training"),
            ("perplexity after", f"{measured.after:,.4g}", f"{ratio:.3f} times that"),
        ]
    steps = [row.step for row in rows]
    series: dict[str, list[float | None]] = {"loss while training, in nats": [row.loss for row in rows]}
    series |= {f"perplexity on {name}": [row.perplexity[name] for row in rows] for name in rows[0].perplexity}
    page = template("recover.html").render(
        title=f"{record.model or 'a model'}, recovered",
        layers=[],
        facts=facts,
        charts=[_chart(name, steps, values) for name, values in series.items()],
        names=list(rows[0].perplexity),
        rows=rows,
        lists=[("Recipe", list(record.options.items())), ("Versions", list(record.versions.items()))],
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
    )
    write_text(Path(path), whole_characters(page))


def _chart(name: str, steps: list[int], values: list[float | None]) -> dict[str, Any]:
    """One curve over the steps, from the lowest to the highest value; a point for each row that has one."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    finite = [value for _, value in known if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        height = (min(value, high) - low) / span
        return round(_BOTTOM - height * (_BOTTOM - _TOP), 2)

    def x(step: int) -> float:
        return round(_LEFT + 6 + (_WIDTH - _LEFT - 14) * step / steps[-1], 2)

    return {
        "name": name,
        "ticks": [(y(value), f"{value:.4g}") for value in sorted({low, (low + high) / 2, high})],
        "steps": [(x(0), "step 0", "start"), (x(steps[-1]), f"{steps[-1]:,}", "end")],
        "points": [(x(step), y(value), f"step {step:,}: {value:.5g}") for step, value in known],
    }
