"""Results files: the cells that were measured, under the facts that one needs to measure them again."""

import datetime
import json
import platform
from pathlib import Path

import torch
from provenance import script_of, stamp

from minprune.output.report import versions


def load_cells(path: Path) -> list[dict]:
    """The cells that the file holds; none if there is no file yet."""
    return json.loads(path.read_text())["cells"] if path.exists() else []


def save(path: Path, command: str, protocol: dict[str, str], cells: list[dict]) -> None:
    """Write the cells with command, protocol, date, machine, versions, commit and the code behind them."""
    facts = {
        "command": command,
        "protocol": protocol,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s), no GPU",
        "versions": versions(),
        **stamp(script_of(command)),
    }
    path.write_text(json.dumps({**facts, "cells": cells}, indent=1) + "\n")


def processor() -> str:
    """The processor in words, with the instructions that it has for bfloat16: seconds depend on both."""
    known = torch.cpu.get_capabilities()
    units = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
    unit = next((unit for name, unit in units.items() if known.get(name)), "no unit")
    return f"{platform.machine()} CPU ({known.get('cpu_name', 'unknown')}, bfloat16 in {unit})"


def short(value: float) -> float:
    """Six significant digits, enough to compare and short to read."""
    return float(f"{value:.6g}")
