"""Outcomes as lines of JSON, and back: what an answer returned comes out of its process as data and nothing else.

Reading runs no code of the writer's: there are no pickles, no classes and no names to look up, only numbers, texts and
the bytes of tensors, and each is checked against what it says of itself.
"""

import base64
import json
import math
from typing import Any

import torch
from torch import Tensor

from minprune.course.outcome import Failure, Outcome, Thing, legible
from minprune.files import parse_json

LINE = 4 * 2**20  # bytes of one outcome
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.float16, torch.bfloat16, torch.float32, torch.float64,
    )
}  # fmt: skip
_TEXT = 2000


def to_line(outcome: Outcome) -> bytes:
    """An outcome in a line; of a value that is too large its kind alone is told."""
    for value in (outcome.value, Thing("a result of several million bytes")):
        error = outcome.error and [outcome.error.kinds, outcome.error.text, outcome.error.line]
        line = json.dumps(
            {"value": _pack(value), "error": error, "changed": outcome.changed, "slope": _pack(outcome.slope)}
        ).encode()
        if len(line) < LINE:
            break
    return line + b"\n"


def from_line(line: bytes) -> Outcome:
    """The outcome in a line. Raises `ValueError` if the line holds anything else."""
    try:
        found = parse_json(line.decode())
        error = found["error"]
        return Outcome(
            _unpack(found["value"]),
            None if error is None else Failure(tuple(map(_text, error[0])), _text(error[1]), _line(error[2])),
            None if found["changed"] is None else _text(found["changed"]),
            _slope(_unpack(found["slope"])),
        )
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError, RecursionError) as wrong:
        raise ValueError(f"this is no outcome: {wrong}") from None


def _pack(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value if str(value.dtype).removeprefix("torch.") in _DTYPES else value.double()
        if value.numel() * value.element_size() > LINE:
            return _pack(Thing("a tensor of several million bytes"))
        flat = value.cpu().reshape(-1).clone(memory_format=torch.contiguous_format)  # an empty one may have odd strides
        content = flat.view(torch.uint8).numpy().tobytes()
        name = str(value.dtype).removeprefix("torch.")
        return {"dtype": name, "shape": list(value.shape), "data": base64.b64encode(content).decode()}
    if isinstance(value, Thing):
        return {"thing": value.text}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(part) for part in value]}
    return value


def _unpack(found: Any) -> Any:
    if found is None or isinstance(found, (bool, float)):
        return found
    if isinstance(found, int):
        if not -(2**63) <= found < 2**63:
            raise ValueError("a whole number of more than 64 bits")
        return found
    ((kind, content), *others) = found.items()
    if kind == "dtype":
        return _tensor(content, **dict(others))
    if kind == "thing" and not others:
        return Thing(_text(content))
    parts = [_unpack(part) for part in content]
    return {"list": parts, "tuple": tuple(parts)}[kind]


def _tensor(name: str, shape: list[int], data: str) -> Tensor:
    dtype = _DTYPES[name]
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 64:
        raise ValueError(f"{shape} is no shape")
    content = base64.b64decode(data, validate=True)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{len(content)} bytes are no tensor of shape {shape}")
    if not content:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # a byte that is neither 0 nor 1 is no boolean
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _slope(found: Any) -> Tensor | None:
    return found.double() if isinstance(found, Tensor) else None


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"a text was expected, not a {type(found).__name__}")
    return legible(found[:_TEXT])


def _line(found: Any) -> int | None:
    return found if isinstance(found, int) and abs(found) < 10**6 else None
