"""RunRecord: what minprune.json says of a run. Commands write it; page, model card and later commands read it here.

What a run did not say is not written either, and what a newer minor version says beside it is kept. A record without
a version is of the time before there was one; it has the same fields.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from minprune.errors import PruneError, own_number
from minprune.files import read_json, to_json, whole_characters
from minprune.output.report import LayerRow, Report
from minprune.output.target import RECORD

VERSION = 1  # of the record: more by one when a field comes to mean something else

Text = Annotated[str, BeforeValidator(lambda value: whole_characters(value) if isinstance(value, str) else value)]
Number = Annotated[float | None, BeforeValidator(lambda value: math.inf if value is None else value)]  # null: infinite


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """What was said, by the keys of the file."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Calibration(_Part):
    """Which tokens a run learnt from. source, split, seed: None or unset where the tokens came without them."""

    windows: int = 0
    length: int = 0
    sha256: Text = ""
    source: Text | None = None
    split: Text | None = None
    seed: int | None = None


class Protocol(_Part):
    """How a perplexity was measured. windows: how many, of `window` tokens; text: its name."""

    windows: int | None = None
    window: int | None = None
    sha256: Text = ""
    text: Text | None = None
    split: Text | None = None


class Perplexity(_Part):
    """Before and after the run, on the same windows; both None if nothing was measured."""

    before: Number = None
    after: Number = None
    protocol: Protocol = Field(default_factory=Protocol)


class Reconstruction(_Part):
    """Settings of the recipe's reconstruction. errors: of a block's output in each epoch, by the block's name."""

    epochs: int = 0
    batch_size: int = 0
    errors: dict[Text, list[Number]] = Field(default_factory=dict)


class ChosenSparsities(_Part):
    """rule: what chose the table, None for a user's own."""

    rule: Text | None = None
    table: dict[Text, float] = Field(default_factory=dict)


class Parameters(_Part):
    """How many a model had and has, if it became smaller."""

    before: int
    after: int


class RecoveryRow(_Part):
    """A measurement while a model was trained. loss: the mean since the row before, None in the first."""

    step: int
    tokens: int
    loss: float | None
    perplexity: dict[Text, Number]


class RunRecord(_Part):
    """One run, as in minprune.json. The fields have the file's names and order.

    versions: of the packages that made it; version: of the record. layers: a row for each layer. parameters: of a
    model that became smaller. rows: of a recovery. pruned, earlier, made_from: the record of the model that a
    recovery, any other run, an export was given, as it stood there. format, bytes, dense_bytes: of an export. files:
    all that is in the folder.
    """

    version: int = 0
    model: Text | None = None
    dtype: Text | None = None
    device: Text | None = None
    include: list[Text] | None = None
    exclude: list[Text] | None = None
    sequential: bool | None = None
    command: list[Text] = Field(default_factory=list)
    versions: dict[Text, Text] = Field(default_factory=dict)
    sparsity: float = 0.0
    method: Text = ""
    pattern: Text = ""
    options: dict[Text, Any] = Field(default_factory=dict)
    calibration: Calibration = Field(default_factory=Calibration)
    layers: list[LayerRow] = Field(default_factory=list)
    seconds: dict[Text, float] = Field(default_factory=dict)
    perplexity: Perplexity = Field(default_factory=Perplexity)
    reconstruction: Reconstruction = Field(default_factory=Reconstruction)
    notes: list[Text] = Field(default_factory=list)
    recipe: Text = ""
    allocation: ChosenSparsities = Field(default_factory=ChosenSparsities)
    batch_size: int | None = None
    precision: Text | None = None
    parameters: Parameters | None = None
    rows: list[RecoveryRow] = Field(default_factory=list)
    pruned: "RunRecord | None" = None
    earlier: "RunRecord | None" = None
    made_from: dict[str, Any] = Field(default_factory=dict, alias="made from")
    format: Text = ""
    bytes: int = 0
    dense_bytes: int = 0
    files: list[Text] = Field(default_factory=list)

    @classmethod
    def of(cls, report: Report, **more: Any) -> "RunRecord":
        """The record of a run that made this report. more: fields that a report has not."""
        return cls.model_validate({"version": VERSION, **report.as_dict(), **more})

    @classmethod
    def from_json(cls, path: Path) -> "RunRecord":
        """The record in a file. Raises `PruneError`, with the file and the field, for one that cannot be."""
        try:
            found = read_json(path)
            version = found.get("version", 0)
            if not (type(version) is int and version > VERSION):
                return cls.model_validate_json(to_json(found), strict=True)
        except ValidationError as error:
            said = error.errors(include_url=False, include_input=False)[0]
            reason = f"field {'.'.join(map(str, said['loc']))}: {said['msg']}"
        except (PruneError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        else:
            raise PruneError(
                f"{path} is a record of version {version}, and this minprune reads them up to {VERSION}: upgrade "
                "minprune, or delete the file"
            )
        said_in_one_line = " ".join(whole_characters(reason).split())[:200]
        raise PruneError(
            f"{path} is damaged: delete it, and what it says of the model's origin is left out ({said_in_one_line})"
        )

    @property
    def made_by(self) -> str:
        """How the run is called in one line: 'best (admm) 60%, sparsities by owl'."""
        how = f"{self.recipe} ({self.method})" if self.recipe else self.method
        what = self.pattern + (f", sparsities by {self.allocation.rule}" if self.allocation.rule else "")
        if "bits" not in self.options:
            return f"{how} {what}"
        group = f" in groups of {self.options['group']}" if self.options.get("group") else ""
        return f"{how} {self.options['bits']} bits{group}" + ("" if what == "0%" else f", {what}")

    @property
    def runs_before(self) -> list["RunRecord"]:
        """What had been done to the model that this run was given: the last run first."""
        found, before = list[RunRecord](), self.pruned or self.earlier
        while before and before.model_fields_set:
            found.append(before)
            before = before.pruned or before.earlier
        return found

    @property
    def grid(self) -> tuple[int, int] | None:
        """(bits, group) to which the weights were rounded last, by this run or by one before it; None if by none."""
        for run in (self, *self.runs_before):
            bits, group = (own_number(run.options.get(key, usual)) for key, usual in (("bits", None), ("group", 0)))
            if isinstance(bits, int) and isinstance(group, int):
                return bits, group
        return None


def read_record(folder: str | Path) -> RunRecord:
    """What the minprune.json in a model's folder says; an empty record if there is none. Raises as `from_json`."""
    path = Path(folder, RECORD)
    return RunRecord.from_json(path) if path.is_file() else RunRecord()


def as_record(found: RunRecord | Mapping[str, Any]) -> RunRecord:
    """A record of what is one already, or of a dict with its keys, such as `Report.as_dict()`."""
    return found if isinstance(found, RunRecord) else RunRecord.model_validate(dict(found))
