"""Results files: the cells that were measured, under the facts that one needs to measure them again."""

import datetime
import json
import platform
import sys
from collections.abc import Callable, Iterable
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from provenance import script_of, stamp

from minprune.output.report import versions


def load_cells(path: Path) -> list[dict]:
    """The cells that the file holds; none if there is no file yet."""
    return json.loads(path.read_text())["cells"] if path.exists() else []


def save(path: Path, command: str, protocol: dict[str, str], cells: list[dict]) -> None:
    """Write the cells with command, protocol, date, machine, versions, commit and the code behind them.

    What was confirmed of earlier cells stays in the file, and where they were measured. If not all cells agree with
    the head in that, "measured" says for each run of neighbours how many they are, and their machine and commit.
    """
    before = json.loads(path.read_text()) if path.exists() else {}
    facts = {
        "command": command,
        "protocol": protocol,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s), no GPU",
        "versions": versions(),
        **stamp(script_of(command)),
        **{key: before[key] for key in ("confirmed",) if key in before},
    }
    if len(measured := _runs(before, cells, facts)) > 1:
        facts["measured"] = measured
    path.write_text(json.dumps({**facts, "cells": cells}, indent=1) + "\n")


def _runs(before: dict, cells: list[dict], facts: dict) -> list[dict]:
    """Runs of neighbouring cells of one machine and commit: those that the file held before keep theirs."""
    of_all = {**before, "cells": len(before.get("cells", []))}
    each = [_where(run) for run in before.get("measured", [of_all]) for _ in range(run["cells"])]
    known = {json.dumps(cell): where for cell, where in zip(before.get("cells", []), each, strict=True)}
    runs = groupby(known.get(json.dumps(cell)) or _where(facts) for cell in cells)
    return [{"cells": len(list(run)), **where} for where, run in runs]


def _where(facts: dict) -> dict:
    return {key: facts.get(key) for key in ("machine", "commit")}


def fill_in(
    path: Path,
    command: str,
    protocol: dict[str, str],
    wanted: Iterable[dict[str, Any]],
    recompute: Callable[..., dict[str, Any]],
    most: int | None = None,
) -> None:
    """Measure those of the wanted cells that the file lacks, at most so many, and save after each.

    wanted: what is asked of each cell, by name; `recompute` gets it as keywords and returns what it found.
    """
    wanted = list(wanted)
    names = {name for asked in wanted for name in asked}
    done = [{name: value for name, value in cell.items() if name in names} for cell in load_cells(path)]
    for asked in islice((asked for asked in wanted if asked not in done), most):
        found = {**asked, **recompute(**asked)}
        print(found, file=sys.stderr, flush=True)
        save(path, command, protocol, [*load_cells(path), found])  # another process may have added to it


def processor() -> str:
    """The processor in words, with the instructions that it has for bfloat16: seconds depend on both."""
    known = torch.cpu.get_capabilities()
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
    unit = next((unit for name, unit in units.items() if known.get(name)), "no unit")
    return f"{platform.machine()} CPU ({known.get('cpu_name', 'unknown')}, bfloat16 in {unit})"


def short(value: float) -> float:
    """Six significant digits, enough to compare and short to read."""
    return float(f"{value:.6g}")
