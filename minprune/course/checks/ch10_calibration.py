"""The exercises of chapter 10: windows of a text, mixed texts, a damping from one text, test text seen before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from minprune.course.checks.core import Case, Exercise, mistakes
from minprune.course.checks.mutations import averaged, exchanged, given, inverted, then
from minprune.course.checks.values import normal


# cut_with_bos(ids, length, bos): full windows that each begin with the token bos
def _body(ids: Tensor, size: int) -> Tensor:
    """As many full rows of `size` tokens as there are: (rows, size)."""
    return ids[: len(ids) // size * size].view(-1, size)


def _before(bos: int, rows: Tensor) -> Tensor:
    return torch.cat([torch.full((len(rows), 1), bos), rows], dim=1)


def _cut(ids: Tensor, length: int, bos: int) -> Tensor:
    return _before(bos, _body(ids, length - 1))


cut_with_bos = Exercise(
    name="cut_with_bos",
    chapter=10,
    title="full windows of one length that each begin with the BOS token",
    reference=_cut,
    difficulty=2,
    wrong=mistakes(
        {
            "token overwritten": lambda ids, length, bos: _body(ids, length).index_fill(1, torch.tensor(0), bos),
            "windows too long": lambda ids, length, bos: _before(bos, _body(ids, length)),
            "only the first window": lambda ids, length, bos: _body(torch.cat([torch.tensor([bos]), ids]), length),
            "at the end": then(_cut, lambda windows: windows.roll(-1, dims=1)),
            "end of the window cut off": lambda ids, length, bos: _before(bos, _body(ids, length)[:, :-1]),
            "without BOS": lambda ids, length, bos: _body(ids, length),
        },
        """
        token overwritten: The BOS token stands where a token of the text was: one token in each window is lost.
        windows too long: Your windows have one token more than was asked for: a model with as many positions would
          refuse them.
        only the first window: Only the text as a whole begins with the BOS token. Every window is a text of its own for
          the model.
        at the end: The token stands at the end of each window. BOS is what the model sees first.
        end of the window cut off: The last token of each window was dropped to make room. Cut the text for the room
          that there is.
        without BOS: There is no BOS token. A model that was trained with one behaves oddly without it.
        """,
    ),
    cases=lambda: [
        Case("a text of 20 tokens", (torch.arange(20), 5, 99)),
        Case("a rest that fills no window", (torch.arange(23) + 7, 4, 1)),
        Case("windows of two tokens", (torch.arange(6) + 3, 2, 0)),
        Case("one window", (torch.arange(10), 8, 50)),
        Case("tokens of a large vocabulary", (torch.tensor([151935, 300, 128, 40000, 65536, 255, 7]), 4, 151643)),
    ],
)


# draw_windows(ids, length, samples, seed): windows of a text, none of which shares a token with another
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _drawn(ids: Tensor, length: int, samples: int, seed: int) -> Tensor:
    windows = _body(ids, length)
    return windows[_order(len(windows), seed)[:samples]]


def _drawn_as(choose: Callable[[Tensor, int, int], Tensor]) -> Callable:
    """choose: (windows of the text, samples, seed) -> what comes back."""
    return lambda ids, length, samples, seed: choose(_body(ids, length), samples, seed)


def _again(windows: Tensor, samples: int, seed: int) -> Tensor:
    return windows[torch.randint(len(windows), (samples,), generator=torch.Generator().manual_seed(seed))]


def _anywhere(ids: Tensor, length: int, samples: int, seed: int) -> Tensor:
    places = ids.unfold(0, length, 1)
    return places[_order(len(places), seed)[:samples]]


draw_windows = Exercise(
    name="draw_windows",
    chapter=10,
    title="windows of a text, drawn in random order, of which no two overlap",
    reference=_drawn,
    difficulty=2,
    wrong=mistakes(
        {
            "as they stand in the text": _drawn_as(lambda windows, samples, seed: windows[:samples]),
            "drawn twice": _drawn_as(_again),
            "windows that overlap": _anywhere,
            "seed forgotten": _drawn_as(
                lambda windows, samples, seed: windows[torch.randperm(len(windows), generator=torch.Generator())][
                    :samples
                ]
            ),
            "only the first ones mixed": _drawn_as(
                lambda windows, samples, seed: windows[:samples][_order(len(windows[:samples]), seed)]
            ),
            "the end of the order": _drawn_as(
                lambda windows, samples, seed: windows[_order(len(windows), seed)[-samples:]]
            ),
            "sorted again": _drawn_as(
                lambda windows, samples, seed: windows[_order(len(windows), seed)[:samples].sort().values]
            ),
            "tokens far apart": lambda ids, length, samples, seed: _drawn(
                _body(ids, length).reshape(length, -1).T.reshape(-1), length, samples, seed
            ),
            "rest at the beginning": lambda ids, length, samples, seed: _drawn(
                ids[len(ids) % length :], length, samples, seed
            ),
        },
        """
        as they stand in the text: These are the first windows, in the order of the text: a text begins with one
          subject. Where does the seed come in?
        drawn twice: A window can be drawn twice here, and then it is less text than it looks. `randperm` draws each
          number once.
        windows that overlap: A window may begin anywhere here, so that two can share tokens. Cut the text first, then
          draw.
        seed forgotten: The order is the same whatever the seed: a new generator has to be given it.
        only the first ones mixed: Only the first windows of the text were mixed. Draw from all of them.
        the end of the order: These are the last of the random order. The first ones are asked for.
        sorted again: The right windows in the order of the text. They are to stay in the order in which they were
          drawn.
        tokens far apart: The tokens of a window do not follow each other in the text: rows and columns were exchanged
          when it was cut.
        rest at the beginning: The rest was left out at the beginning of the text. The first window begins with its
          first token.
        """,
    ),
    cases=lambda: [
        Case("four windows, of which two are drawn", (torch.arange(20), 5, 2, 0)),
        Case("a rest that fills no window", (torch.arange(23) + 7, 4, 3, 1)),
        Case("all windows drawn", (torch.arange(31), 3, 10, 2)),
        Case("another seed", (torch.arange(31), 3, 4, 17)),
        Case("one window drawn of many", (torch.arange(64) * 11 % 64, 8, 1, 5)),
    ],
)


# mix_grams(grams, tokens, shares): statistics of several texts, put together so that each has a given share
def _mixed(grams: Sequence[Tensor], tokens: Sequence[int], shares: Sequence[float]) -> Tensor:
    total = sum(tokens)
    return torch.stack([total * s / n * G for G, n, s in zip(grams, tokens, shares, strict=True)]).sum(0)


mix_grams = Exercise(
    name="mix_grams",
    chapter=10,
    title="the Gram matrix of a mixture of texts in which each text has a given share of the tokens",
    reference=_mixed,
    difficulty=2,
    wrong=mistakes(
        {
            "plain sum": lambda grams, tokens, shares: torch.stack(list(grams)).sum(0),
            "shares of the sums": lambda grams, tokens, shares: torch.stack(
                [s * G for G, s in zip(grams, shares, strict=True)]
            ).sum(0),
            "a mean over tokens": lambda grams, tokens, shares: _mixed(grams, tokens, shares) / sum(tokens),
            "equal shares": given(_mixed, shares=lambda shares: [1 / len(shares)] * len(shares)),
            "shares squared": given(_mixed, shares=lambda shares: [s * s for s in shares]),
            "mean length instead of the total": averaged(_mixed, over="grams"),
        },
        """
        plain sum: The texts were added up as they are, so the longest one decides, whatever its share.
        shares of the sums: The shares multiply sums over unequally many tokens: a long text still counts for more. What
          would the sum be if the text had as many tokens as its share says?
        a mean over tokens: This is what one token gives on average. A Gram matrix is a sum: over how many tokens?
        equal shares: All texts count alike. Where do the shares come in?
        shares squared: The shares enter with a square. They say how many tokens there are, not how long these are.
        mean length instead of the total: The mixture is as long as one text on average. It is to have as many tokens as
          all of them together.
        """,
    ),
    cases=lambda: [
        Case("two texts of unequal length", (_grams([40, 10], 3, 1000), [40, 10], [0.5, 0.5])),
        Case("three texts", (_grams([10, 30, 20], 4, 1010), [10, 30, 20], [0.2, 0.3, 0.5])),
        Case("a text without a share", (_grams([12, 8], 3, 1020), [12, 8], [1.0, 0.0])),
        Case("one text", (_grams([9], 2, 1030), [9], [1.0])),
    ],
)


def _grams(tokens: list[int], d_in: int, seed: int) -> list[Tensor]:
    inputs = [(i + 1) * normal(n, d_in, seed=seed + i) for i, n in enumerate(tokens)]
    return [X.T @ X for X in inputs]


# damping_from_one_text(W, grams, damps, prune): the damping whose result is best on the pieces that were left out
Prune = Callable[[Tensor, Tensor, float], Tensor]


def _loss(D: Tensor, G: Tensor) -> float:
    """The squared error of the outputs after a change D of the weights."""
    return float(((D @ G) * D).sum())


@dataclass(frozen=True)
class _LeaveOut:
    """The best of several dampings by leaving out one piece of a text after the other; right unless a field differs.

    seen, measured: (all pieces, the one that is left out, damping) -> the Gram matrix that is pruned with, and the one
    of the error. loss: (layer, change, Gram matrix). together: losses (dampings, pieces) -> (dampings,). result:
    (losses, dampings). afresh: each trial begins with the layer as it was.
    """

    seen: Callable[[Tensor, Tensor], Tensor] = lambda total, piece: total - piece
    measured: Callable[[Tensor, Tensor, float], Tensor] = lambda total, piece, damp: piece
    loss: Callable[[Tensor, Tensor, Tensor], float] = lambda W, D, G: _loss(D, G)
    together: Callable[[Tensor], Tensor] = lambda losses: losses.sum(1)
    result: Callable[[list[float], Sequence[float]], float] = lambda losses, damps: damps[losses.index(min(losses))]
    afresh: bool = True

    def __call__(self, W: Tensor, grams: Sequence[Tensor], damps: Sequence[float], prune: Prune) -> Tensor:
        total, V = torch.stack(list(grams)).sum(0), W
        losses: list[list[float]] = []
        for damp in damps:
            losses.append([])
            for piece in grams:
                V = prune(W if self.afresh else V, self.seen(total, piece), damp)
                losses[-1].append(self.loss(W, W - V, self.measured(total, piece, damp)))
        return torch.tensor(float(self.result(self.together(torch.tensor(losses)).tolist(), damps)))


def _votes(losses: Tensor) -> Tensor:
    """How many pieces have their least loss with another damping: (dampings,)."""
    return losses.shape[1] - torch.bincount(losses.argmin(0), minlength=len(losses)).double()


damping_from_one_text = Exercise(
    name="damping_from_one_text",
    chapter=10,
    title="the damping that is best on pieces of the text that were left out of the fit",
    reference=_LeaveOut(),
    difficulty=4,
    wrong=mistakes(
        {
            "nothing left out": _LeaveOut(seen=lambda total, piece: total),
            "judged by what was seen": _LeaveOut(measured=lambda total, piece, damp: total - piece),
            "judged by the whole text": _LeaveOut(measured=lambda total, piece, damp: total),
            "fitted to the piece, judged by the rest": _LeaveOut(
                seen=lambda total, piece: piece, measured=lambda total, piece, damp: total - piece
            ),
            "each piece by itself": _LeaveOut(seen=lambda total, piece: piece),
            "only one piece left out": [
                _LeaveOut(together=lambda losses: losses[:, 0]),
                _LeaveOut(together=lambda losses: losses[:, -1]),
            ],
            "a vote": _LeaveOut(together=_votes),
            "the worst piece": _LeaveOut(together=lambda losses: losses.max(1).values),
            "relative errors": _LeaveOut(loss=lambda W, D, G: _loss(D, G) / _loss(W, G)),
            "pruned again and again": _LeaveOut(afresh=False),
            "only the diagonal": _LeaveOut(measured=lambda total, piece, damp: piece.diagonal().diag()),
            "length of the slope": _LeaveOut(loss=lambda W, D, G: float((D @ G).norm())),
            "worst instead of best": _LeaveOut(loss=lambda W, D, G: -_loss(D, G)),
            "error instead of damping": _LeaveOut(result=lambda losses, damps: min(losses)),
            "place instead of damping": _LeaveOut(result=lambda losses, damps: losses.index(min(losses))),
            "damping in the measure": _LeaveOut(measured=lambda total, piece, damp: _damped(piece, damp)),
            "distance of the weights": _LeaveOut(loss=lambda W, D, G: float(D.square().sum())),
        },
        """
        nothing left out: The weights were fitted to the whole text, so to every piece that judges them. There less
          damping always looks better.
        judged by what was seen: A piece was left out, and then the error was measured on the pieces that were fitted
          to. The one that was left out is the judge.
        judged by the whole text: The error was measured on the whole text, most of which was fitted to. Only the piece
          that was left out is a judge.
        fitted to the piece, judged by the rest: The two are exchanged: you fit to one piece and judge by all others.
          With so few tokens more damping is better than it will be in the end.
        each piece by itself: The same piece is fitted to and judges. Which pieces has `prune` to see?
        only one piece left out: Only one piece was ever left out. Each of them has its turn, and all of them count.
        a vote: Each piece had one vote, so a small gain counts like a large loss. Add up their errors.
        the worst piece: The damping was chosen by the largest error of a piece. Add up the errors of all of them.
        relative errors: The error on each piece was divided by what the layer puts out there, so a short or quiet piece
          counts like a long one. Add up the squared errors as they are.
        pruned again and again: Each trial began with what the one before had left. Every one of them begins with the
          layer as it was.
        only the diagonal: Only the diagonal of the Gram matrix of the piece was used, as if its inputs were
          uncorrelated.
        length of the slope: ||D G|| is not the error. The squared error of the outputs is D G D^T: the change of the
          weights stands on both sides.
        worst instead of best: Of all dampings this one has the *largest* error.
        error instead of damping: This is the error of the best damping. Asked for is the damping itself.
        place instead of damping: This is the place of the best damping in the list. Asked for is the damping itself.
        damping in the measure: The error was measured with the damping added to the piece: every damping then has a
          measure of its own.
        distance of the weights: The weights were compared, not the outputs. How far a weight moved is of no interest if
          the inputs do not show it.
        """,
    ),
    cases=lambda: [
        *(Case(f"layer {i}, {_told(n)}", _pieces(n, seed, _refit)) for i, (n, seed) in enumerate(_REFITTED)),
        *(
            Case(f"layer {i}, {_told(n)}, the damping decides which inputs go", _pieces(n, seed, _chosen))
            for i, (n, seed) in enumerate(_CHOSEN, len(_REFITTED))
        ),
    ],
)

_DAMPS = [0.0001, 0.01, 0.1, 1.0, 10.0]
_Texts = tuple[tuple[tuple[int, ...], int], ...]
_REFITTED: _Texts = (((6, 9, 5), 1020), ((4, 4, 4), 1300), ((6, 9, 5), 1170), ((4, 4, 4), 1010))
_CHOSEN: _Texts = (
    ((7, 4, 6, 5), 1350),
    ((5, 12), 1250),
    ((7, 4, 6, 5), 1450),
    ((20, 6, 8), 1770),
    ((9, 5, 3, 7), 1030),
)


def _told(sizes: tuple[int, ...]) -> str:
    return f"pieces of {', '.join(map(str, sizes[:-1]))} and {sizes[-1]} tokens"


def _damped(G: Tensor, damp: float) -> Tensor:
    return G + damp * G.diagonal().mean() * torch.eye(len(G))


def _refit(W: Tensor, G: Tensor, damp: float) -> Tensor:
    """The upper half of the inputs goes, the lower half makes up for it."""
    H = _damped(G, damp)
    k = len(G) // 2
    kept = W[:, :k] + torch.linalg.solve(H[:k, :k], H[:k, k:] @ W[:, k:].T).T
    return torch.cat([kept, torch.zeros_like(W[:, k:])], dim=1)


def _chosen(W: Tensor, G: Tensor, damp: float) -> Tensor:
    """The half of the inputs goes that costs least with this damping, and the other half makes up for it."""
    H = _damped(G, damp)
    order = (W.square().sum(0) / torch.linalg.inv(H).diagonal()).argsort(descending=True)
    return _refit(W[:, order], G[order][:, order], damp)[:, order.argsort()]


def _pieces(sizes: tuple[int, ...], seed: int, prune: Prune) -> tuple:
    """A layer and a text in pieces of so many tokens, each of which has something of its own."""
    mix = normal(8, 8, seed=seed) * torch.logspace(-1, 1, 8).roll(seed // 10)
    inputs = [normal(n, 8, seed=seed + i) @ (mix + normal(8, 8, seed=seed - i)) for i, n in enumerate(sizes, 1)]
    damps = _DAMPS if seed % 20 else _DAMPS[::-1]
    return normal(3, 8, seed=seed + 9), [X.T @ X for X in inputs], damps, prune


# contaminated(train, test, n): which test windows share n tokens in a row with the calibration windows
def _runs(window: Tensor, n: int) -> set[tuple[int, ...]]:
    tokens = window.tolist()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _shared(
    train: Tensor, test: Tensor, n: int, runs: Callable[[Tensor, int], set] = _runs, joined: bool = False
) -> Tensor:
    seen = runs(train.flatten(), n) if joined else set().union(*(runs(window, n) for window in train))
    return torch.tensor([bool(runs(window, n) & seen) for window in test])


def _same_place(window: Tensor, n: int) -> set:
    tokens = window.tolist()
    return {(i, *tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _steps(window: Tensor, n: int) -> set:
    tokens = window.tolist()
    return {tuple(tokens[i : i + n]) for i in range(0, len(tokens) - n + 1, n)}


def _all_but_last(window: Tensor, n: int) -> set:
    tokens = window.tolist()
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n)}


def _between(of_train: Callable[[Tensor, int], set], of_test: Callable[[Tensor, int], set]) -> Callable:
    """What is shared if the runs of the two texts are taken in different ways."""
    return lambda train, test, n: torch.tensor(
        [any(of_train(one, n) & of_test(other, n) for one in train) for other in test]
    )


contaminated = Exercise(
    name="contaminated",
    chapter=10,
    title="which test windows share a run of n tokens with a calibration window",
    reference=_shared,
    difficulty=3,
    wrong=mistakes(
        {
            "roles exchanged": exchanged(_shared, 0, 1),
            "inverted": inverted(_shared),
            "nothing found": lambda train, test, n: torch.zeros(len(test), dtype=torch.bool),
            "whole windows only": partial(_shared, runs=lambda window, n: {tuple(window.tolist())}),
            "same place only": partial(_shared, runs=_same_place),
            "order ignored": partial(_shared, runs=lambda window, n: {tuple(sorted(run)) for run in _runs(window, n)}),
            "single tokens": given(_shared, n=1),
            "runs across windows": partial(_shared, joined=True),
            "every n-th run": [
                partial(_shared, runs=_steps),
                _between(_steps, _runs),
                _between(_runs, _steps),
            ],
            "last run left out": [
                partial(_shared, runs=_all_but_last),
                _between(_all_but_last, _runs),
                _between(_runs, _all_but_last),
            ],
            "one token too long": given(_shared, n=lambda n: n + 1),
        },
        """
        roles exchanged: Your verdicts are on the *calibration* windows. Asked for is one on each test window.
        inverted: The verdicts are the opposite of what was asked for: True means that a window is contaminated.
        nothing found: No window was found in any case. If you put runs into a set: tensors in a set (or in a tuple in
          one) are compared by identity, so no two are equal. Make numbers of them first, with `tolist()`.
        whole windows only: Only windows that are equal as a whole were found. A leak is rarely cut at the same places.
        same place only: A shared run was found only where it stands at the same place of both windows.
        order ignored: Runs with the same tokens in another order were taken for the same.
        single tokens: One common token was enough. All texts share tokens; it takes n of them in a row.
        runs across windows: A run was found that begins in one calibration window and ends in the next. They are not
          neighbours in the text.
        every n-th run: Only runs that begin at multiples of n were compared. A run may begin anywhere.
        last run left out: The last run of a window was not looked at. A window of n tokens has one run, and
          `range(length - n)` would have none.
        one token too long: Runs of n tokens were not found, only longer ones: look at the ends of your slices.
        """,
    ),
    cases=lambda: [
        Case("a run at other places", (_rows("abcdefgh", "ijklmnop"), _rows("qrcdestu", "vwxyzabx", "ponmlkji"), 3)),
        Case("a window that is there as a whole", (_rows("abcd", "efgh"), _rows("wxyz", "efgh", "efxy"), 3)),
        Case("a run of exactly n", (_rows("abcdef", "ghijkl"), _rows("zzabcd", "zzabcz", "lkjihg"), 4)),
        Case("the end of one window and the start of the next", (_rows("abcd", "efgh"), _rows("cdef", "bcde"), 4)),
        Case("more test windows than calibration windows", (_rows("abcab"), _rows("xabca", "bcxxx", "abxab"), 2)),
        Case("an end that is too short", (_rows("abcde", "fghij"), _rows("klmde", "nopqj", "bcdkl"), 3)),
        Case("common tokens that do not follow each other", (_rows("abcdef"), _rows("azbzcz", "zabzde", "fedcba"), 3)),
        Case("common tokens, each twice", (_rows("aabbcc"), _rows("abcabc", "aazbbz", "zaabbz"), 4)),
        Case(
            "numbers that hold others", (torch.tensor([[11, 2, 31, 5]]), torch.tensor([[1, 2, 3, 9], [7, 2, 31, 5]]), 3)
        ),
        Case("single tokens", (_rows("abc"), _rows("xyz", "xyc", "axx"), 1)),
        Case("the last run of a window", (_rows("uvwxyz", "abcdef"), _rows("ghixyz", "defghi", "hgfedc"), 3)),
    ],
)


def _rows(*texts: str) -> Tensor:
    return torch.tensor([[ord(letter) - ord("a") for letter in text] for text in texts])


EXERCISES = [draw_windows, cut_with_bos, mix_grams, damping_from_one_text, contaminated]
