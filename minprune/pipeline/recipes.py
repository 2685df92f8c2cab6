"""Recipes: what is more than one layer's business, put together with a method. Chapters 11 and 12.

    mp.prune(model, calib, recipe="best", pattern="60%")

"best": ADMM in the order of the model, and after each block a reconstruction of the block. It was put together
on validation text and measured on test text: book/results/recipe.json, and sweep.jsonl beside ADMM alone. Below 45 %
zeros it is ADMM alone: what is lost there is too little for the reconstruction to pay.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from minprune.allocation.allocate import Allocation
from minprune.arguments import check_fields, checked
from minprune.errors import PruneError, check_seed


@dataclass(frozen=True)
class Reconstruction:
    """How blocks are trained after their layers are pruned.

    Parameters
    ----------
    epochs : int, default 2
        Passes over the calibration windows for each block, 0 for none.
    lr : float, default 0.03
        The largest step, relative to the root mean square of what each tensor keeps. It falls to 0 as half a cosine.
    batch_size : int, default 4
        Windows in one step.
    seed : int, default 0
        Of the order of the steps.
    min_sparsity : float, default 0.45
        If the requested sparsity over all layers is below this, nothing is trained. At 40 % it gained less than one per
        cent for three times the time (book/results/recipe.json).
    bfloat16 : bool or None, default None
        Whether forward passes take their matrix products in that type; statistics, solves, sums and weights stay in
        float32. None: where blocks are trained and the hardware multiplies it faster. Models that are not in float32
        keep their type.

    Raises
    ------
    PruneError
        For an invalid setting.

    Examples
    --------
    >>> from minprune.pipeline.reconstruction import Reconstruction
    >>> Reconstruction(epochs=1).lr
    0.03
    """

    epochs: int = 2
    lr: float = 0.03
    batch_size: int = 4
    seed: int = 0
    min_sparsity: float = 0.45
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_seed(self.seed)
        if self.epochs < 0 or self.batch_size < 1 or not 0 < self.lr < math.inf or not 0 <= self.min_sparsity <= 1:
            raise PruneError(
                f"{self.epochs} epochs of {self.batch_size} windows at rate {self.lr:g} from {self.min_sparsity:g} "
                "zeros on cannot be trained: use 2 epochs, 4 windows, 0.03 and 0.45, or 0 epochs for none"
            )


@dataclass(frozen=True)
class Recipe:
    """A method with its options, how sparse each layer is, and how blocks are reconstructed.

    Parameters
    ----------
    method : str
        Its name.
    options : mapping of str to value, optional
        Of the method.
    allocation : str, mapping or callable, optional
        See `minprune.allocation.allocate`. N:M patterns have one sparsity and go without.
    reconstruction : Reconstruction or None, default None
        None: blocks are not reconstructed.
    name : str, default ""
        What reports call it.

    Examples
    --------
    >>> from minprune.pipeline.recipes import Recipe, get_recipe
    >>> get_recipe(Recipe("wanda", allocation="owl")).allocation
    'owl'
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    allocation: Allocation = None
    reconstruction: Reconstruction | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "method", "allocation")


RECIPES = {"best": Recipe("admm", reconstruction=Reconstruction(), name="best")}


@checked()
def get_recipe(recipe: str | Recipe | None) -> Recipe:
    """The recipe of that name.

    Parameters
    ----------
    recipe : str, Recipe or None
        A `Recipe` is returned as it is; None is plain SparseGPT.

    Returns
    -------
    pipeline.recipes.Recipe

    Raises
    ------
    PruneError
        For an unknown name.

    Examples
    --------
    >>> from minprune.pipeline.recipes import get_recipe
    >>> get_recipe("best").method
    'admm'
    """
    if recipe is None:
        return Recipe("sparsegpt")
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise PruneError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


@checked("calib", "method", "allocation")
def resolve_recipe(
    recipe: str | Recipe | None,
    calib: Tensor | None,
    method: Any,
    allocation: Allocation,
    options: dict[str, Any],
    precision: str = "auto",
) -> Recipe:
    """The recipe with what is given beside it in place of its own.

    Parameters
    ----------
    recipe : str, Recipe or None
        As for `get_recipe`.
    calib : Tensor of int64, (windows, length), or None
        Calibration tokens.
    method : str, Method or None
        In place of the recipe's. A recipe's options go with its method.
    allocation : dict, str, callable or None
        In place of the recipe's, as for `prune`.
    options : dict
        Of the method.
    precision : str, default "auto"
        Of forward products: "float32" or "bfloat16" in place of the recipe's.

    Returns
    -------
    pipeline.recipes.Recipe

    Raises
    ------
    PruneError
        If blocks are to be reconstructed and there are no tokens, or for an unknown name.

    Examples
    --------
    >>> from minprune.pipeline.recipes import resolve_recipe
    >>> resolve_recipe(None, None, "wanda", None, {}).method
    'wanda'
    """
    chosen = get_recipe(recipe)
    if calib is None and chosen.reconstruction:
        raise PruneError("this recipe reconstructs blocks, which needs calibration tokens: pass calib")
    if chosen.reconstruction and precision != "auto":
        chosen = replace(chosen, reconstruction=replace(chosen.reconstruction, bfloat16=precision == "bfloat16"))
    if allocation is not None:
        chosen = replace(chosen, allocation=allocation)
    if method is None or (isinstance(method, str) and method == chosen.method):  # an array is not compared
        return replace(chosen, options={**chosen.options, **options})
    return replace(chosen, method=method, options=options)
