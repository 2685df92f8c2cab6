"""Kinds of wrong answers that are easily missed: each is one case that an exercise must have, whoever solves it."""

import math

import answers_formats
import answers_lottery
import answers_schedules
import answers_wanda
import numpy as np
import pytest
import test_checks
import torch

from minprune import checks
from minprune.course.checks.core import Case, Exercise, Wrong


def half_up(number):
    return math.floor(number + 0.5)


def with_rounding(module, function, rounding):
    """The function with another `round`."""
    other = type(function)(function.__code__, {**module.__dict__, "round": rounding})
    other.__kwdefaults__, other.__defaults__ = function.__kwdefaults__, function.__defaults__
    return other


ROUNDED = {  # the exercises that count by rounding, and a plain answer to each
    "block_mask": (test_checks, test_checks.block_mask_loop),
    "global_sparsities": (test_checks, test_checks.global_sparsities_loop),
    "sparsegpt": (test_checks.answers_columns, test_checks.answers_columns.sparsegpt_loop),
    "wanda": (answers_wanda, answers_wanda.wanda_loop),
    "next_mask": (answers_lottery, answers_lottery.next_mask_loop),
    "global_masks": (answers_lottery, answers_lottery.global_loop),
    "gradual_mask": (answers_schedules, answers_schedules.gradual_loop),
}


@pytest.mark.parametrize("name", [*ROUNDED, "ticket_cost"])
@pytest.mark.parametrize("rounding", [half_up, math.ceil, math.floor, int], ids=lambda f: f.__name__)
def test_only_rounding_half_to_even_passes(name, rounding):
    def cost(sizes, rate, sparsity, steps, rewind):
        rounds, left = 0, sizes.tolist()
        while (sum(sizes.tolist()) - sum(left)) / int(sizes.sum()) < sparsity and rounds < 30:
            rounds, left = rounds + 1, [n - rounding(rate * n) for n in left]
        return rounds, steps + rounds * (steps - rewind)

    answer = cost if name == "ticket_cost" else with_rounding(*ROUNDED[name], rounding)
    verdict = checks.EXERCISES[name](answer)
    assert not verdict.passed
    if rounding is half_up and name == "sparsegpt":  # chapter 04 counts the bugs that have names
        assert verdict.bug is None and "where round(4.5) is 4" in verdict.message
    elif rounding is half_up:
        assert verdict.bug == "halves rounded up" and "round(2.5) is 2" in verdict.message


def obs_row_with_first_prices(w, H, zeros):
    w, P, first = w.double(), torch.linalg.inv(H.double()), torch.linalg.inv(H.double()).diagonal()
    gone = []
    for _ in range(zeros):
        q = int((w**2 / first).index_fill(0, torch.tensor(gone, dtype=torch.long), math.inf).argmin())
        w = w - w[q] / P[q, q] * P[q]
        P = P - torch.outer(P[:, q], P[q]) / P[q, q]
        gone.append(q)
        w[gone], P[gone], P[:, gone] = 0, 0, 0
    return w


def global_sparsities_without_guard(weights, s):
    line = torch.cat([W.abs().flatten() for W in weights])
    threshold = line.sort().values[round(s * len(line)) - 1]  # the last one if nothing is to go
    return [(W.abs() <= threshold).float().mean() for W in weights]


def best_mask_with(change):
    return lambda w, X, zeros: test_checks.best_mask_loop(w, change(X), zeros)


def short_runs(train, test, n):
    def runs(row):
        return {tuple(row[i : i + n]) for i in range(len(row))}  # those at the end are shorter

    seen = set().union(*(runs(row) for row in train.tolist()))
    return [bool(runs(row) & seen) for row in test.tolist()]


def in_no_row(train, test, n):
    return [any(sum(t in row for t in window) >= n for row in train.tolist()) for window in test.tolist()]


def as_sets(train, test, n):
    return [any(len(set(window) & set(row)) >= n for row in train.tolist()) for window in test.tolist()]


def sets_of_tensors(train, test, n):
    def runs(window):
        return {tuple(window[i : i + n]) for i in range(len(window) - n + 1)}  # of tensors, no two of which are equal

    seen = set().union(*map(runs, train))
    return torch.tensor([not seen.isdisjoint(runs(window)) for window in test])


def joined_by_blanks(train, test, n):
    lines = [" ".join(map(str, row)) for row in train.tolist()]
    runs = [[" ".join(map(str, w[i : i + n])) for i in range(len(w) - n + 1)] for w in test.tolist()]
    return [any(run in line for run in of_window for line in lines) for of_window in runs]


def input_norms_on_the_right(batches, real):
    total = 0
    for X, mask in zip(batches, real, strict=True):
        for text, length in zip(X, mask.sum(1).tolist(), strict=True):
            total = total + text[:length].square().sum(0)
    return total.sqrt()


def keep_budget_between_minus_one_and_one(wanted, sizes, average):
    wanted, share, low, high = wanted.double(), sizes.double() / sizes.double().sum(), -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((wanted + middle).clamp(0, 1) @ share) < average else (low, middle)
    return (wanted + low).clamp(0, 1)


def dense_product(values, columns, pointers, X):
    W = torch.zeros(len(pointers) - 1, X.shape[1])
    for i in range(len(W)):
        W[i, columns[pointers[i] : pointers[i + 1]]] = values[pointers[i] : pointers[i + 1]]
    return X @ W.T


def running_sums(values, columns, pointers, X):
    sums = np.cumsum(X.numpy()[:, columns] * values.numpy(), axis=1)
    return np.diff(np.insert(sums, 0, 0, axis=1)[:, pointers], axis=1)


def csr_in(columns_type, pointers_type):
    def answer(W, keep):
        values, columns, pointers = answers_formats.to_csr_numpy(W, keep)
        return values, columns.astype(columns_type), pointers.astype(pointers_type)

    return answer


def ticket_cost_of(sizes_of, rounded=True):
    def answer(sizes, rate, sparsity, steps, rewind):
        rounds, left = 0, sizes_of(sizes).tolist()
        total = sum(left)
        while (total - sum(map(round, left))) / total < sparsity and rounds < 40:
            left = [n - (round(rate * n) if rounded else rate * n) for n in left]
            rounds += 1
        return rounds, steps + rounds * (steps - rewind)

    return answer


def product_of_probabilities(logits, tokens, real):
    chances = logits.double().softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return chances[real[:, 1:]].prod() ** (-1 / int(real[:, 1:].sum()))


def logarithm_of_softmax(logits, tokens, real):
    nats = -logits.softmax(-1).log()[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return nats[real[:, 1:]].mean().exp()


def pruned_ones_as_zeros(W, keep, rate):
    goes = round(rate * int(keep.sum())) + int((~keep).sum())
    new = torch.ones(W.numel(), dtype=torch.bool)
    new[W.masked_fill(~keep, 0).abs().flatten().argsort(stable=True)[:goes]] = False
    return new.view(W.shape)


def pruned_first(dense, keep, sparsity):
    order = sorted(range(dense.numel()), key=lambda i: (abs(float(dense.view(-1)[i])), bool(keep.view(-1)[i]), i))
    new = torch.ones(dense.numel(), dtype=torch.bool)
    new[order[: round(sparsity * dense.numel())]] = False
    return new.view(keep.shape), int((new.view(keep.shape) & ~keep).sum())


def outliers_at_the_limit(weights, norms, outlier):
    scores = torch.cat([(W.abs() * n).flatten() for W, n in zip(weights, norms, strict=True)])
    return (scores >= outlier * scores.mean()).float().mean()


def damping_by(measure):
    def answer(W, grams, damps, prune):
        def error(damp):
            return sum(float(measure(W - prune(W, sum(grams) - piece, damp), piece)) for piece in grams)

        return min(damps, key=error)

    return answer


def damping_in_a_chain(W, grams, damps, prune):
    best, least, V = None, math.inf, W
    for damp in damps:
        error = 0.0
        for piece in grams:
            V = prune(V, sum(grams) - piece, damp)
            error += float(((W - V) @ piece * (W - V)).sum())
        if error < least:
            best, least = damp, error
    return best


def damping_of_the_whole_text(W, grams, damps, prune):
    """A text for fitting, and the same for choosing: the function of two texts that the exercise once was."""
    return min(damps, key=lambda damp: float(((D := W - prune(W, sum(grams), damp)) @ sum(grams) * D).sum()))


def damping_of_the_last_piece(W, grams, damps, prune):
    """The last piece for validation, as one splits a text once."""
    return min(damps, key=lambda damp: float(((D := W - prune(W, sum(grams[:-1]), damp)) @ grams[-1] * D).sum()))


def swap_with(sign):
    def answer(w, G, keep, p, u):
        w, G = w.double(), G.double()
        r, step = sign * torch.where(keep, 0, w), torch.zeros_like(w)
        step[p], step[u] = w[p], -w[u]
        return (2 * r + step) @ G @ step

    return answer


def admm_in_the_order_of_the_chapter(as_it_is):
    def answer(W, H, keep, rho, rounds):
        W, H, keep = W.double(), H.double(), keep.bool()
        inverse = torch.linalg.inv(H + rho * torch.eye(len(H)))
        A, U, Z = W, torch.zeros_like(W), W * keep
        for _ in range(rounds):
            Z = (A + U) * keep
            U = U + A - Z
            A = (W @ H + rho * (Z - U)) @ inverse
        return Z if as_it_is else (A + U) * keep

    return answer


def cross_terms_once(w, X, zeros):
    G = X.T @ X
    masks = [k for k in torch.cartesian_prod(*[torch.tensor([False, True])] * len(w)) if int((~k).sum()) == zeros]

    def error(keep):
        lost = w * ~keep
        own = (lost.square() * G.diagonal()).sum()
        return float(own + (lost @ G @ lost - own) / 2)

    return min(masks, key=error)


REFUSED = [
    ("obs_row", obs_row_with_first_prices, "costs from the first inverse"),
    ("global_sparsities", global_sparsities_without_guard, "everything at sparsity 0"),
    ("best_mask", best_mask_with(lambda X: X - X.mean(0)), "inputs centred"),
    ("best_mask", cross_terms_once, "cross terms counted once"),
    ("contaminated", short_runs, None),
    ("contaminated", in_no_row, None),
    ("contaminated", sets_of_tensors, "nothing found"),
    ("contaminated", as_sets, None),
    ("contaminated", joined_by_blanks, None),
    ("damping_from_one_text", damping_by(lambda D, G: (D @ G).norm()), "length of the slope"),
    ("damping_from_one_text", damping_by(lambda D, G: (D.square() * G.diagonal()).sum()), "only the diagonal"),
    ("damping_from_one_text", damping_by(lambda D, G: D.square().sum()), "distance of the weights"),
    ("damping_from_one_text", damping_in_a_chain, "pruned again and again"),
    ("damping_from_one_text", damping_of_the_whole_text, "nothing left out"),
    ("damping_from_one_text", damping_of_the_last_piece, "only one piece left out"),
    ("input_norms", input_norms_on_the_right, "padding taken to be at the end"),
    ("keep_budget", keep_budget_between_minus_one_and_one, None),
    ("csr_matmul", dense_product, "the dense matrix multiplied"),
    ("csr_matmul", running_sums, "digits of a loud row"),
    ("to_csr", csr_in(np.uint8, np.int64), None),
    ("to_csr", csr_in(np.int64, np.uint8), None),
    ("to_csr", csr_in(np.uint8, np.uint8), "indices in eight bits"),
    ("to_csr", csr_in(np.int16, np.int64), None),
    ("to_csr", csr_in(np.int64, np.uint16), None),
    ("ticket_cost", ticket_cost_of(lambda sizes: sizes[:1]), "the first layer only"),
    ("ticket_cost", ticket_cost_of(lambda sizes: sizes.max()[None]), "the largest layer only"),
    ("ticket_cost", ticket_cost_of(lambda sizes: sizes.sum()[None]), "all layers as one"),
    ("ticket_cost", ticket_cost_of(lambda sizes: sizes[-1:]), None),
    ("ticket_cost", ticket_cost_of(lambda sizes: sizes, rounded=False), "whole numbers only at the end"),
    ("perplexity", lambda nlls: torch.cat(nlls).double().neg().exp().prod() ** (-1 / sum(map(len, nlls))), None),
    ("perplexity", lambda nlls: torch.cat(nlls).neg().exp().log().neg().mean().exp(), None),
    ("padded_perplexity", product_of_probabilities, None),
    ("padded_perplexity", logarithm_of_softmax, None),
    ("kl_divergence", lambda p, q: (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1).mean(), None),
    (
        "bits_per_byte",
        lambda nats, texts: -nats.double().neg().exp().prod().log2() / len("".join(texts[1:]).encode()),
        None,
    ),
    ("next_mask", pruned_ones_as_zeros, "pruned weights come back"),
    ("gradual_mask", pruned_first, "pruned ones first"),
    ("outlier_share", outliers_at_the_limit, "the limit itself"),
    ("swap_change", swap_with(-1), "linear terms with the wrong sign"),
    ("swap_change", lambda w, G, keep, p, u: swap_with(1)(w, G, keep, u, p), "linear terms with the wrong sign"),
    ("admm", admm_in_the_order_of_the_chapter(as_it_is=False), "U updated before Z"),
    ("admm", admm_in_the_order_of_the_chapter(as_it_is=True), "U updated before Z"),
]


@pytest.mark.parametrize(
    ("name", "answer", "bug"), [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(REFUSED)]
)
def test_a_wrong_answer_is_refused_under_its_own_name_or_none(name, answer, bug):
    verdict = checks.EXERCISES[name](answer)
    assert not verdict.passed and verdict.bug == bug, str(verdict)


def test_what_two_mistakes_have_in_common_is_named_after_neither():
    """On these cases the answer agrees with both; two forms of one mistake share their name."""
    wrong = (Wrong("squared", lambda x: x * x, "no square"), Wrong("doubled", lambda x: 2 * x, "not twice"))
    toy = Exercise("toy", 1, "as it is", lambda x: x, wrong, lambda: [Case("two", (2.0,)), Case("nothing", (0.0,))])
    assert toy(lambda x: x + x).bug is None and not toy(lambda x: x + x).passed
    other = Exercise("toy", 1, "as it is", lambda x: x, wrong, lambda: [Case("three", (3.0,))])
    assert other(lambda x: x + x).bug == "doubled"
