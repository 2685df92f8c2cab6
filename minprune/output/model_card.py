"""The README.md of a pruned model: what it is, how it was made, how good it is, how to load it.

Names of models, files and options come from outside. In the template every text is escaped unless it says otherwise,
so nothing in them becomes Markdown or HTML.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minprune.files import check_regular, whole_characters
from minprune.output.record import RunRecord, as_record

if TYPE_CHECKING:
    from jinja2 import Template

_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_KEPT = ("license", "license_name", "license_link", "language", "base_model", "pipeline_tag")
_LONGEST = 100_000  # characters of a card that are read
_MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~!$^@&]|/(?=/)|:(?=[\w+-]+:)|(?<=www)\.", re.IGNORECASE)
_BUNDLED = {
    "smollm2": {"license": "apache-2.0", "language": ["en"], "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
}


def model_card(found: RunRecord | Mapping[str, Any], source: Path | None = None) -> str:
    """A model card in Markdown, with the YAML header that model hubs read, from what minprune.json says.

    source: the folder of the model that this one was made from, whose card tells licence and languages; by default
    the model that the record names, if that is a folder.
    """
    import yaml

    record = as_record(found)
    model = record.model or ""
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    bits = record.options.get("bits")
    tags = (["quantized"] if bits else []) + ([] if bits and record.pattern == "0%" else ["pruned", "sparse"])
    header |= {"tags": [*tags, "minprune"], **inherited(model, source)}
    command = whole_characters(shlex.join(record.command))
    ticks = max(map(len, re.findall("`+", command)), default=0)
    return _template().render(
        header=Verbatim(yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)),
        name=Path(model).name or "a model",
        made=record.made_by,
        zeros=f"{record.sparsity:.2%}",
        layers=len(record.layers),
        bits=bits,
        smaller={key: f"{count:,}" for key, count in record.parameters} if record.parameters else None,
        version=record.versions.get("minprune", ""),
        rows=list(_rows(record)),
        command=Verbatim(command),
        fence=Verbatim("`" * max(3, ticks + 1)),  # longer than any that the command has
    )


class Verbatim(str):
    """A text of a template that is not to be escaped."""


def escaped(text: object) -> str:
    """A text as a part of a line of Markdown, not its beginning, that shows as it is: characters by their numbers."""
    if isinstance(text, Verbatim):
        return text
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", whole_characters(str(text))).split())
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)


def inherited(model: str, source: Path | None = None) -> dict[str, Any]:
    """What a model card takes over: the base model if it is one on the hub, and the lines on licence and language."""
    if model in _BUNDLED:
        return dict(_BUNDLED[model])
    folder = source or (Path(model) if model and Path(model).is_dir() else None)
    front = _front(folder / "README.md") if folder else {}
    found = {key: value for key, value in front.items() if _is_kept(key, value)}
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) and not Path(model).is_dir():
        found["base_model"] = model
    return found


def _front(path: Path) -> dict[str, Any]:
    """The YAML header of a card, with texts for all scalars; {} if there is none that can be read."""
    import yaml

    try:
        check_regular(path)
        with path.open(encoding="utf-8", errors="replace") as file:
            front = _FRONT.match(file.read(_LONGEST))
        found = yaml.load(front[1], yaml.BaseLoader) if front else {}  # which makes texts of all: `no` is Norwegian
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_kept(key: Any, value: Any) -> bool:
    if key in ("language", "base_model") and isinstance(value, list):
        return len(value) < 1000 and all(isinstance(item, str) for item in value)
    return key in _KEPT and isinstance(value, str) and value != ""


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader

    return Environment(
        autoescape=False,  # of HTML; `escaped` does that, too
        finalize=escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=PackageLoader("minprune.output"),
    ).get_template("card.jinja")


def _rows(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What the table says: name and value."""
    if record.recipe:
        yield "recipe", record.recipe
    yield "method", record.method
    yield "pattern", record.pattern
    if record.runs_before:
        yield "before that", ", ".join(run.made_by for run in reversed(record.runs_before))
    for key, value in record.options.items():
        yield f"option {key}", str(value)
    if record.allocation.model_fields_set:
        table = record.allocation.table
        spread = f", {min(table.values()):.2%} to {max(table.values()):.2%}" if table else ""
        yield "allocation", f"{record.allocation.rule or 'a table'}{spread}"
    if (how := record.reconstruction).errors:
        yield "reconstruction", f"of each block, {how.epochs} epochs of {how.batch_size} windows a step"
    if (calibration := record.calibration).windows:
        source = " ".join(part for part in (calibration.source, calibration.split) if part)
        yield "calibration", f"{calibration.windows} x {calibration.length} tokens {source}".strip()
        if calibration.seed is not None:
            yield "seed", str(calibration.seed)
    measured = record.perplexity
    if measured.before is not None and measured.after is not None:
        protocol = measured.protocol
        source = " ".join(part for part in (protocol.text, protocol.split) if part)
        where = f"{protocol.windows} x {protocol.window} tokens {source}".strip()
        yield f"perplexity on {where}", f"{measured.before:,.2f} before, {measured.after:,.2f} after"
