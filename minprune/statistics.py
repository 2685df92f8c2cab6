"""What calibration remembers of a layer's inputs: sums over tokens, which can be merged.

Left out on purpose: any division by a number of sequences or batches. Sums over *tokens* make the result
independent of how the tokens came in batches, and a long text counts for more than a short one.
"""

import math

import torch
from torch import Tensor

from minprune.arguments import checked, known_device
from minprune.arithmetic import exact_arithmetic
from minprune.errors import PruneError, check_kind, short, shown
from minprune.selection import check_order

_EXACT = (torch.float32, torch.float64)  # sums of squares leave the range of float16, and stand still in bfloat16
PANEL = 144  # columns per panel of a symmetric product: narrower ones save more, but make slower matrix products
TOKENS_AT_ONCE = 1024  # at a time: bounds the memory of casting and squaring, and is still much for a matrix product


class Statistics:
    """Running sums over the inputs of one layer, or of several layers that read the same tensor.

    No setting around a call (autocast, matmul precision, inference mode) changes how the sums are computed.

    Parameters
    ----------
    d_in : int
        The number of inputs.
    gram : bool, default True
        Whether to keep X.T @ X, too. It costs d_in**2 numbers and tokens * d_in**2 operations.
    dtype : torch.dtype, default torch.float32
        Of the sums, or torch.float64. The inputs are cast to it before anything is squared.
    device : str or torch.device, default "cpu"
        Where the sums are.

    Raises
    ------
    PruneError
        For another dtype, fewer inputs than one, or a device that is not there.

    Attributes
    ----------
    tokens : int
        How many inputs have been seen.
    d_in : int
        The number of inputs.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> stats = mp.Statistics(2).update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> stats.tokens, stats.sq_norm, stats.mean
    (2, tensor([10.,  4.]), tensor([2., 1.]))
    >>> stats.gram
    tensor([[10.,  2.],
            [ 2.,  4.]])
    """

    @checked()
    @exact_arithmetic()
    def __init__(
        self, d_in: int, gram: bool = True, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ):
        d_in = check_kind("d_in", d_in, int)
        if dtype not in _EXACT or not 1 <= d_in < 2**31:
            raise PruneError(f"no statistics of {short(d_in)} inputs in {dtype}: give 1 up, in float32 or float64")
        self.d_in, self.tokens = d_in, 0
        device = known_device(device)
        self._sum = torch.zeros(d_in, dtype=dtype, device=device)
        self._sq_norm = torch.zeros(d_in, dtype=dtype, device=device)
        self._gram = torch.zeros(d_in, d_in, dtype=dtype, device=device) if gram else None
        self._upper_is_stale = False

    @exact_arithmetic()
    def update(self, X: Tensor) -> "Statistics":
        """Add inputs to the sums.

        Parameters
        ----------
        X : Tensor (..., d_in), floating
            Any leading shape: every vector of d_in numbers is one token.

        Returns
        -------
        Statistics
            These statistics.

        Raises
        ------
        PruneError
            If X is not a dense tensor of real numbers, or its last side is not d_in.
        """
        if not (isinstance(X, Tensor) and X.layout == torch.strided and X.ndim and not X.is_complex()) or X.is_meta:
            what = f"{X.dtype}, {X.layout}, on {X.device}" if isinstance(X, Tensor) else type(X).__name__
            raise PruneError(f"the inputs are {what}: they must be a dense tensor (..., {self.d_in}) of real numbers")
        if X.shape[-1] != self.d_in:
            raise PruneError(f"inputs have {X.shape[-1]} features, these statistics expect {self.d_in}")
        for part in X.reshape(-1, self.d_in).split(TOKENS_AT_ONCE):
            self._add(part.to(self._sum))
        return self

    def _add(self, X: Tensor) -> None:
        """The sums of X (tokens, d_in), already in their dtype."""
        self.tokens += X.shape[0]
        self._sum += X.sum(0)
        self._sq_norm += X.square().sum(0)
        if self._gram is None:
            return
        for start in range(0, self.d_in, PANEL):  # on and below the diagonal: 0.55 of X.T @ X at 1536 inputs
            panel = X[:, start : start + PANEL]  # (tokens, panel)
            self._gram[start:, start : start + PANEL].addmm_(X[:, start:].T, panel)
        self._upper_is_stale = True

    @exact_arithmetic()
    def merge(self, other: "Statistics") -> "Statistics":
        """Add what `other` has seen, as if its tokens had been given to `update`.

        Parameters
        ----------
        other : Statistics
            Of the same d_in, and with a Gram matrix if these have one.

        Returns
        -------
        Statistics
            These statistics.

        Raises
        ------
        PruneError
            If the two differ in d_in or in whether they have a Gram matrix.
        """
        if not isinstance(other, Statistics):
            raise PruneError(f"a {type(other).__name__} cannot be merged with statistics: give Statistics")
        if (other.d_in, other._gram is None) != (self.d_in, self._gram is None):
            raise PruneError("these statistics differ in d_in or in gram and cannot be merged")
        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum)
        self._sq_norm += other._sq_norm.to(self._sum)
        if self._gram is not None and other._gram is not None:
            self._gram += other._gram.to(self._gram)
            self._upper_is_stale = True
        return self

    @exact_arithmetic()
    def packed(self) -> Tensor:
        """All sums in one new vector, as they travel between processes; of the Gram matrix the computed half.

        Those of the same inputs in several parts can be added up; see `unpacked`.
        """
        halves = [] if self._gram is None else [half.flatten() for half in self._halves(self._gram)]
        return torch.cat([self._sum, self._sq_norm, *halves])

    @exact_arithmetic()
    def unpacked(self, sums: Tensor, tokens: int) -> "Statistics":
        """New statistics of that many tokens, like these, with the sums that `packed` gives."""
        d = self.d_in
        other = Statistics(d, self._gram is not None, self._sum.dtype, self._sum.device)
        other.tokens, other._sum, other._sq_norm = tokens, sums[:d].clone(), sums[d : 2 * d].clone()
        if other._gram is not None:
            start = 2 * d
            for half in other._halves(other._gram):
                half.copy_(sums[start : start + half.numel()].view(half.shape))
                start += half.numel()
            other._upper_is_stale = True
        return other

    def _halves(self, gram: Tensor) -> list[Tensor]:
        """Views of the panels of the matrix, on and below its diagonal."""
        return [gram[start:, start : start + PANEL] for start in range(0, self.d_in, PANEL)]

    @exact_arithmetic()
    def permuted(self, order: Tensor) -> "Statistics":
        """New statistics, those of the same inputs in another order, X[:, order]. order (d_in,) int64."""
        check_order(order, self.d_in)
        gram = None if self._gram is None else self.gram[order][:, order]
        return self._with(self._sum[order], self._sq_norm[order], gram)

    @exact_arithmetic()
    def to(self, device: str | torch.device) -> "Statistics":
        """These statistics on that device: themselves if they lie there, else new ones."""
        device = known_device(device)
        if self._sum.device == device:
            return self
        dtype = torch.float32 if device.type == "mps" else self._sum.dtype  # which has no float64
        gram = None if self._gram is None else self.gram.to(device, dtype)
        return self._with(self._sum.to(device, dtype), self._sq_norm.to(device, dtype), gram)

    def _with(self, total: Tensor, sq_norm: Tensor, gram: Tensor | None) -> "Statistics":
        """New statistics of as many tokens with these sums."""
        other = Statistics(self.d_in, gram=False, dtype=total.dtype, device=total.device)
        other.tokens, other._sum, other._sq_norm, other._gram = self.tokens, total, sq_norm, gram
        return other

    def of_equal_inputs(self) -> "Statistics":
        """New statistics of the same kind, of inputs that are equally large and uncorrelated."""
        like = self._sum
        other = Statistics(self.d_in, self._gram is not None, like.dtype, like.device)
        return other.update(torch.eye(self.d_in, dtype=like.dtype, device=like.device))

    @property
    @exact_arithmetic()
    def gram(self) -> Tensor:
        """G = X.T @ X, (d_in, d_in): a sum over tokens, not a mean. The buffer itself: clone it before changing it."""
        if self._gram is None:
            raise PruneError("these statistics hold no Gram matrix: make them with Statistics(d_in, gram=True)")
        if self._upper_is_stale:  # mirror the computed half once, when somebody asks
            self._gram.tril_()
            for start in range(0, self.d_in, PANEL):
                rows = self._gram[start : start + PANEL]
                self._gram[:start, start : start + PANEL] = rows[:, :start].T
                square = rows[:, start : start + PANEL]
                square += square.tril(-1).T
            self._upper_is_stale = False
        return self._gram

    @property
    @exact_arithmetic()
    def sq_norm(self) -> Tensor:
        """The sum over tokens of x_j**2, (d_in,): the same bits with a Gram matrix and without one."""
        if self._gram is not None and not self.tokens:  # nothing or what somebody has put into the matrix by hand
            return self._gram.diagonal().clone()
        return self._sq_norm

    @property
    @exact_arithmetic()
    def mean(self) -> Tensor:
        """The mean input, (d_in,); zeros if no token was seen."""
        return self._sum / max(self.tokens, 1)


@checked()
@exact_arithmetic()
def layer_error(W: Tensor, W_pruned: Tensor, gram: Tensor) -> float:
    """The relative layer error tr(D G D^T) / tr(W G W^T) with D = W - W' and G = gram.

    It equals ||X D^T||^2 / ||X W^T||^2, the share of the output's energy that is lost: 0 is perfect, and 1 is what
    pruning everything costs. A layer whose output is zero on these inputs has error 0 if it stays so.

    Parameters
    ----------
    W, W_pruned : Tensor (d_out, d_in), floating
        The weights before and after.
    gram : Tensor (d_in, d_in), float32 or float64
        X.T @ X, a sum over tokens.

    Returns
    -------
    float

    Raises
    ------
    PruneError
        If the shapes are not those of one layer, a number is complex, or the Gram matrix is in neither type.

    Examples
    --------
    >>> import torch, minprune as mp
    >>> W = torch.tensor([[2.0, 1.0]])
    >>> mp.layer_error(W, torch.tensor([[2.0, 0.0]]), gram=torch.eye(2))
    0.2
    """
    for given in (W, W_pruned, gram):
        if not isinstance(given, Tensor) or given.is_complex() or (given is gram and gram.dtype not in _EXACT):
            raise PruneError(f"weights and Gram matrix (float32 or float64) are real tensors, not {shown(given)}")
    if W.ndim != 2 or W_pruned.shape != W.shape or gram.shape != (W.shape[1], W.shape[1]):
        raise PruneError(
            f"weights {tuple(W.shape)}, {tuple(W_pruned.shape)} and a Gram matrix {tuple(gram.shape)} are not of one "
            "layer: give (d_out, d_in) twice and (d_in, d_in)"
        )
    W, W_pruned = W.to(gram), W_pruned.to(gram)
    power = _power(W if W.any() else W_pruned, gram)
    lost, whole = _energy(W - W_pruned, gram, power), _energy(W.clone(), gram, power)
    return float(lost > 0) if whole <= 0 else lost / whole  # NaN stays NaN


def _power(M: Tensor, gram: Tensor) -> int:
    """The k for which the energy of 2^k M is about 1, so that no square leaves the range of the dtype on the way."""
    if not M.numel():
        return 0
    low, high, energy = torch.stack([*M.aminmax(), gram.diagonal().amax()]).cpu().tolist()
    return -math.frexp(max(-low, high))[1] - math.frexp(energy)[1] // 2


def _energy(M: Tensor, gram: Tensor, power: int) -> float:
    """tr(M G M^T) for 2^power M (d_out, d_in), which M becomes, without any rounding.

    From the half of the symmetric G (d_in, d_in) on and below the diagonal.
    """
    for step in (power // 2, power - power // 2):  # 2^power itself may be too large a number for the dtype
        M *= 2.0**step
    parts = []
    for here, below in ((slice(i, i + PANEL), slice(i + PANEL, None)) for i in range(0, len(gram), PANEL)):
        sent = torch.addmm(M[:, here] @ gram[here, here], M[:, below], gram[below, here], alpha=2)  # (d_out, panel)
        parts.append((sent * M[:, here]).sum())
    return sum(torch.stack(parts).cpu().tolist())  # asking for each by itself would stop a GPU as often
