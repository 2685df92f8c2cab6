"""What our own files must hold when they are read again: anybody may have written or changed them meanwhile.

The types say which keys there are and what values they take; numbers are finite, and a whole number is no boolean.
"""

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from minprune.output.report import LayerRow

_OURS = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Saved(TypedDict):
    """A file in the work folder of a run, by its name there."""

    __pydantic_config__ = _OURS  # type: ignore[misc]
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    sha256: Digest


class Seconds(TypedDict):
    """Where the time of a pruning run went, up to a block."""

    __pydantic_config__ = _OURS  # type: ignore[misc]
    total: Amount
    statistics: Amount
    solve: Amount
    reconstruction: NotRequired[Amount]


class Row(TypedDict):
    """A `LayerRow` in JSON."""

    __pydantic_config__ = ConfigDict(**_OURS, extra="forbid")  # type: ignore[misc]
    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    sparsity: Share
    error: float | None
    seconds: Amount
    note: str


class Line(TypedDict):
    """What a journal says of one block; there may be more in it."""

    __pydantic_config__ = ConfigDict(**_OURS, extra="allow")  # type: ignore[misc]
    block: Count
    sha256: Digest
    hidden: Saved | None
    rows: list[Row]
    seconds: Seconds
    errors: NotRequired[dict[str, list[Amount]]]


class Measured(TypedDict):
    """A row of a recovery."""

    __pydantic_config__ = _OURS  # type: ignore[misc]
    step: Count
    tokens: Count
    loss: float | None
    perplexity: dict[str, float]


class State(TypedDict):
    """Where a training run is."""

    __pydantic_config__ = _OURS  # type: ignore[misc]
    trained: list[Tensor]
    optimizer: dict[str, Any]
    step: Count
    tokens: Count
    losses: list[float]
    rows: Annotated[list[Measured], Field(min_length=1)]
    seconds: Amount


class SweepRun(TypedDict):
    """A line of a sweep; a perplexity without a number was infinite."""

    __pydantic_config__ = ConfigDict(**_OURS, extra="allow")  # type: ignore[misc]
    method: str
    pattern: str
    seed: Count | None
    perplexity: dict[str, Amount | None]
    relative: dict[str, Amount | None]
    dense: dict[str, Amount | None]
    zeros: Share
    error: Amount | None
    seconds: dict[str, Amount]
    protocol: dict[str, Any]


_ADAPTERS = {kind: TypeAdapter(kind) for kind in (Line, State, SweepRun)}
assert Row.__annotations__.keys() == LayerRow.__annotations__.keys()


def checked(value: Any, kind: Any) -> Any:
    """The value, if it is of that kind all through; else a `ValueError` that says where it is not."""
    return _ADAPTERS[kind].validate_python(value)
