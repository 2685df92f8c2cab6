"""PruningPlan: what a run will do, checked before it does anything. Chapter 08."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minprune.allocation.allocate import allocate, describe_allocation
from minprune.data.tokens import fingerprint
from minprune.errors import PruneError
from minprune.methods import Method, get_method
from minprune.models.hooks import check_compiled
from minprune.models.layers import Layer, check_batch_size, check_windows, find_layers
from minprune.models.memory import windows_at_once
from minprune.models.passes import check_forward
from minprune.patterns import Pattern
from minprune.patterns import pattern as read_pattern
from minprune.pipeline.precision import check_precision, narrow_products, type_of_products
from minprune.pipeline.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PruningPlan:
    """Which layers are pruned, each to which pattern, by which method, on which tokens.

    calib: (windows, length) int64 on the model's device, or None; batches: the same, split into what goes through the
    model at once. from_memory: whether the batch size follows from the memory that was free. allocation: as in a
    `Report`. pattern, recipe: as they are written in it. precision: as it was asked for; products_in: the type of the
    forward products, None without calibration; bfloat16: whether it is that one for a float32 model.
    """

    layers: list[Layer]
    patterns: Mapping[Layer, Pattern]
    name: str
    method: Method
    options: Mapping[str, Any]
    pattern: str
    recipe: str
    allocation: Mapping[str, Any]
    calib: Tensor | None = None
    batches: tuple[Tensor, ...] = ()
    from_memory: bool = False
    precision: str = "auto"
    products_in: torch.dtype | None = None
    bfloat16: bool = False

    @property
    def batch_size(self) -> int | None:
        """Windows that go through the model at once; None without calibration."""
        return len(self.batches[0]) if self.batches else None

    def products(self) -> AbstractContextManager[Any]:
        """Open around each forward pass of the calibration windows."""
        if self.calib is None or (self.precision == "auto" and not self.bfloat16):
            return nullcontext()  # as the caller has it
        return narrow_products(self.calib.device.type, self.bfloat16)

    @property
    def sparsity(self) -> float:
        """The share of zeros over all layers that their patterns ask for."""
        zeros = sum(self.patterns[layer].sparsity * layer.weight.numel() for layer in self.layers)
        return zeros / sum(layer.weight.numel() for layer in self.layers)

    @property
    def calibration(self) -> dict[str, Any]:
        """What the report says of the calibration tokens."""
        if self.calib is None:
            return {}
        return {"windows": len(self.calib), "length": self.calib.shape[1], "sha256": fingerprint(self.calib)}

    def layers_under(self, prefix: str) -> list[Layer]:
        """The layers with a name that begins with prefix, such as "model.layers.3."."""
        return [layer for layer in self.layers if any(name.startswith(prefix) for name in layer.names)]

    def with_batch_size(self, batch_size: int | None) -> "PruningPlan":
        """The same with so many windows at a time; None leaves it as it is."""
        if self.calib is None or not batch_size:
            return self
        return replace(self, batches=self.calib.split(batch_size))


def make_plan(
    model: "PreTrainedModel",
    calib: Tensor | None,
    pattern: str | Pattern,
    recipe: Recipe,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    precision: str = "auto",
) -> PruningPlan:
    """The plan of a run, after every check that needs no weights. The arguments are those of `minprune.prune`.

    recipe: as it was resolved; see `resolve_recipe`. Raises `PruneError` for what cannot be done.
    """
    check_forward(model)
    check_precision(precision)
    chosen, options = get_method(recipe.method), dict(recipe.options)
    name = recipe.method if isinstance(recipe.method, str) else chosen.name
    chosen.check_options(name, options)
    layers = find_layers(model, include, exclude)
    patterns = allocate(layers, read_pattern(pattern), recipe.allocation, model, calib)
    for layer in layers:
        _check_layer(layer, patterns[layer], chosen, options)
    if calib is None and chosen.needs != "nothing":
        raise PruneError(f"method {name!r} needs calibration tokens: pass calib")
    batch_size = None if batch_size is None else check_batch_size(batch_size)
    plan = PruningPlan(
        layers,
        patterns,
        name,
        chosen,
        options,
        str(read_pattern(pattern)),
        recipe.name,
        describe_allocation(recipe.allocation, patterns),
        from_memory=batch_size is None,
        precision=precision,
    )
    if calib is None:
        return plan
    check_windows(model, calib)
    embeddings: Any = model.get_input_embeddings()
    calib = calib.to(embeddings.weight.device)
    kind = type_of_products(model.dtype, calib.device.type, precision)
    narrow = kind == torch.bfloat16 and model.dtype == torch.float32
    plan = replace(plan, calib=calib, products_in=kind, bfloat16=narrow)
    return plan.with_batch_size(batch_size or windows_at_once(model, layers, calib))


def check_model(model: "PreTrainedModel") -> None:
    """Raise `PruneError` unless the model is a causal language model of transformers whose weights are its own."""
    from transformers import PreTrainedModel

    kind = type(model).__name__
    check_compiled(model)
    if hasattr(model, "merge_and_unload"):
        raise PruneError(
            f"{kind} has adapters beside its weights, in which zeros would not last: merge_and_unload() first"
        )
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise PruneError(f"{kind} is no Hugging Face causal language model: load it with load_model")
    if model.config.is_encoder_decoder:
        raise PruneError(f"{kind} is an encoder with a decoder, not a causal language model: use one of those")
    if getattr(model.config, "quantization_config", None):
        raise PruneError(f"{kind} is quantised, which minprune cannot prune: use the model that it was made from")


def _check_layer(layer: Layer, pattern: Pattern, method: Method, options: dict[str, Any]) -> None:
    d_out, d_in = layer.weight.shape
    try:
        pattern.check(d_out, d_in)
        if method.fits:
            method.fits(d_in, **options)
    except PruneError as error:
        raise PruneError(f"{layer.name}: {error}") from None
