"""The README.md of a pruned model: what it is, how it was made, how good it is, how to load it."""

import json
import re
from pathlib import Path
from typing import Any

from minprune.report import made_by

_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)


def model_card(record: dict[str, Any]) -> str:
    """A model card in Markdown, with the YAML header that model hubs read, from what minprune.json says.

    Licence and languages are those of the card in the source's folder (`record["model"]`), if it has one.
    """
    source = record.get("model", "")
    header = {"library_name": "transformers", "tags": ["pruned", "sparse", "minprune"], **inherited(source)}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]  # JSON is YAML
    name = Path(source).name or "a model"
    text = ["---", *lines, "---", "", f"# {name}, {made_by(record)}", ""]
    text += [
        f"{record['sparsity']:.2%} of the weights in {len(record['layers'])} layers of {name} are zero. Made by "
        f"minprune {record['versions']['minprune']}; `minprune.json` has the recipe and a row for each layer.",
        "",
        *_table(record),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # where this file is',
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "```",
        "",
        "The zeros are stored like other numbers: the files are as large as the dense model's, and run as fast.",
    ]
    return "\n".join(text) + "\n"


def inherited(model: str) -> dict[str, Any]:
    """What a model card takes over: the base model if it is one on the hub, and the lines on licence and language."""
    folder = Path(model)
    if not model or not folder.is_dir():
        return {"base_model": model} if "/" in model else {}
    path = folder / "README.md"
    front = _FRONT.match(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else None
    found = re.findall(r"^(license\w*|language|base_model):[ \t]*(\S.*)$", front[1], re.MULTILINE) if front else []
    return {key: value.strip().strip("\"'") for key, value in found}


def _table(record: dict[str, Any]) -> list[str]:
    calibration = record.get("calibration") or {}
    rows = {"recipe": record["recipe"]} if record.get("recipe") else {}
    rows |= {"method": record["method"], "pattern": record["pattern"]}
    rows |= {f"option {key}": str(value) for key, value in record.get("options", {}).items()}
    if allocation := record.get("allocation"):
        table = allocation["table"]
        rows["allocation"] = (
            f"{allocation['rule'] or 'a table'}, {min(table.values()):.2%} to {max(table.values()):.2%}"
        )
    if (how := record.get("reconstruction")) and how.get("errors"):
        rows["reconstruction"] = f"of each block, {how['epochs']} epochs of {how['windows']} windows a step"
    if calibration:
        source = " ".join(str(calibration[key]) for key in ("source", "split") if calibration.get(key))
        rows["calibration"] = f"{calibration['windows']} x {calibration['length']} tokens {source}".strip()
    if measured := record.get("perplexity"):
        protocol = measured["protocol"]
        source = " ".join(str(protocol[key]) for key in ("text", "split") if protocol.get(key))
        where = f"{protocol['windows']} x {protocol['window']} tokens {source}".strip()
        rows[f"perplexity on {where}"] = f"{measured['before']:,.2f} before, {measured['after']:,.2f} after"
    return ["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
