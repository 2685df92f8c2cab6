"""patterns.py against a slow selection in pure Python, which sorts (score, index) pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minprune as mp
from minprune.patterns import keep_largest

SETTINGS = settings(derandomize=True, max_examples=60, deadline=None)
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, math.inf, -math.inf]),  # ties, signed zeros, infinities
    st.floats(-10, 10, width=16),
)


@st.composite
def matrices(draw, d_in=None):
    d_out, d_in = draw(st.integers(1, 6)), d_in or draw(st.integers(1, 14))
    values = draw(st.lists(VALUES, min_size=d_out * d_in, max_size=d_out * d_in))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    return torch.tensor(values, dtype=torch.float64).view(d_out, d_in).to(dtype)


def keep_by_sorting(scores: list[float], zeros: int) -> list[bool]:
    """What is kept of one comparison group: all but the first `zeros` in the order of score, then index."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    pruned = set(order[:zeros])
    return [i not in pruned for i in range(len(scores))]


def keep_groups(scores: torch.Tensor, groups: list[list[tuple[int, int]]], zeros) -> torch.Tensor:
    """The keep mask when each group (a list of places in order) loses `zeros(len(group))` of its places."""
    keep = torch.ones(scores.shape, dtype=torch.bool)
    for group in groups:
        kept = keep_by_sorting([float(scores[i, j]) for i, j in group], zeros(len(group)))
        for (i, j), stays in zip(group, kept, strict=True):
            keep[i, j] = stays
    return keep


@given(matrices(), st.floats(0, 1), st.sampled_from(["row", "layer", "block"]), st.integers(1, 9))
@SETTINGS
def test_unstructured_equals_sorting_each_group(scores, sparsity, group, block_size):
    d_out, d_in = scores.shape
    if group == "row":
        groups = [[(i, j) for j in range(d_in)] for i in range(d_out)]
    else:
        width = d_in if group == "layer" else block_size
        starts = range(0, d_in, width)
        groups = [[(i, j) for i in range(d_out) for j in range(s, min(s + width, d_in))] for s in starts]
    expected = keep_groups(scores, groups, lambda size: round(sparsity * size))
    assert torch.equal(mp.Unstructured(sparsity, group).keep(scores, block_size), expected)


@given(st.data(), st.integers(1, 9), st.integers(0, 9), st.integers(1, 4))
@SETTINGS
def test_n_m_equals_sorting_each_group_for_any_n_up_to_m(data, m, n, groups_per_row):
    n = min(n, m)
    scores = data.draw(matrices(m * groups_per_row))
    places = [[(i, j) for j in range(s, s + m)] for i in range(scores.shape[0]) for s in range(0, scores.shape[1], m)]
    keep = mp.NM(n, m).keep(scores)
    assert torch.equal(keep, keep_groups(scores, places, lambda size: m - n))
    assert (keep.view(-1, m).sum(1) == n).all()


@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.floats(0, 1))
@SETTINGS
def test_square_blocks_equal_sorting_their_sums(data, size, rows, columns, sparsity):
    whole_numbers = st.integers(0, 5)  # their sums are exact in any order, so ties are true ties
    count = rows * columns * size * size
    scores = torch.tensor(data.draw(st.lists(whole_numbers, min_size=count, max_size=count)), dtype=torch.float32)
    scores = scores.view(rows * size, columns * size)
    sums = [
        sum(float(scores[i, j]) for i in range(r * size, (r + 1) * size) for j in range(c * size, (c + 1) * size))
        for r in range(rows)
        for c in range(columns)
    ]
    kept = keep_by_sorting(sums, round(sparsity * len(sums)))
    keep = mp.Block(size, sparsity).keep(scores)
    for i in range(rows * size):
        for j in range(columns * size):
            assert bool(keep[i, j]) == kept[(i // size) * columns + j // size]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("fill", ["constant", "few values", "two zeros"])
def test_ties_prune_the_lower_index_first_in_a_large_matrix(dtype, fill, generator):
    shape = (37, 301)
    if fill == "constant":
        scores = torch.full(shape, 0.7, dtype=dtype)
    elif fill == "few values":
        scores = torch.randint(0, 4, shape, generator=generator).to(dtype)
    else:
        scores = torch.where(torch.rand(shape, generator=generator) < 0.5, 0.0, -0.0).to(dtype)
    zeros = round(0.5 * scores.numel())
    expected = torch.tensor(keep_by_sorting(scores.flatten().tolist(), zeros)).view(shape)
    assert torch.equal(mp.pattern("50%:layer").keep(scores), expected)
    assert int((~mp.pattern("50%:row").keep(scores)).sum()) == 37 * round(0.5 * 301)


@pytest.mark.parametrize("text", ["0%:row", "0%:layer", "0%:block", "4:4", "1:1", "block2:0%"])
def test_sparsity_0_keeps_everything(text):
    assert mp.pattern(text).keep(torch.randn(4, 8)).all()
    assert mp.pattern(text).sparsity == 0


@pytest.mark.parametrize("text", ["100%:row", "100%:layer", "100%:block", "0:4", "0:1", "block2:100%"])
def test_sparsity_1_keeps_nothing(text):
    assert not mp.pattern(text).keep(torch.randn(4, 8)).any()
    assert mp.pattern(text).sparsity == 1


def test_scores_that_are_views_or_need_gradients_give_the_same_mask(generator):
    scores = torch.rand(12, 8, generator=generator)
    for text in ["50%:row", "50%:layer", "50%:block", "2:4", "block4:50%"]:
        expected = mp.pattern(text).keep(scores)
        assert torch.equal(mp.pattern(text).keep(scores.T.contiguous().T), expected)
        assert torch.equal(mp.pattern(text).keep(scores.clone().requires_grad_()), expected)


@pytest.mark.parametrize("text", ["50%:row", "50%:layer", "50%:block", "0%:row", "100%:layer", "2:4", "block2:50%"])
@pytest.mark.parametrize("place", [(0, 0), (3, 7), (2, 3)])
def test_nan_scores_are_refused(text, place, generator):
    scores = torch.rand(4, 8, generator=generator)
    scores[place] = math.nan
    with pytest.raises(mp.PruneError, match="NaN"):
        mp.pattern(text).keep(scores)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
@SETTINGS
def test_keep_largest_prunes_exactly_the_number_asked_for(size, zeros, seed):
    scores = torch.randint(0, 3, (5, size), generator=torch.Generator().manual_seed(seed)).float()
    zeros = min(zeros, size)
    assert ((~keep_largest(scores, zeros)).sum(1) == zeros).all()


@pytest.mark.parametrize("rows, size", [(1, 150_000), (3, 50_001), (70_000, 3)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_ties_of_any_number_of_scores_go_from_the_lowest_index_on(rows, size, share, generator):
    scores = torch.randint(0, 4, (rows, size), generator=generator).float()
    scores[0] += torch.rand(size, generator=generator)  # a row without ties
    zeros = round(share * size)
    expected = torch.ones(rows, size, dtype=torch.bool)
    expected.scatter_(1, scores.argsort(dim=1, stable=True)[:, :zeros], False)
    assert torch.equal(keep_largest(scores, zeros), expected)


@pytest.mark.parametrize("text", ["50%", "50%:row", "62.5%:layer", "0%", "100%:block", "2:4", "1:4", "8:8", "0:3",
                                  "block16:50%", "block1:12.5%"])  # fmt: skip
def test_a_pattern_written_out_reads_back(text):
    pattern = mp.pattern(text)
    assert str(pattern) == text
    assert mp.pattern(str(pattern)) == pattern
    assert mp.pattern(pattern) is pattern


WRONG = ["", "50", "50 %", " 2:4", "fifty", "2:", ":4", "2:4:8", "-1:4", "2.5:4", "5:4", "0:0", "101%", "-1%", ".%",
         "1.2.3%", "nan%", "50%:column", "50%:", "block16", "block:50%", "block0:50%", "block16:150%", "block8:50%:row",
        ]  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_text_is_an_error_that_names_it(text):
    with pytest.raises(mp.PruneError) as error:
        mp.pattern(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("value", [0.5, 50, None, ("2", "4")])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(mp.PruneError, match="not"):
        mp.pattern(value)


@pytest.mark.parametrize("make", [
    lambda: mp.Unstructured(1.5), lambda: mp.Unstructured(-0.1), lambda: mp.Unstructured(math.nan),
    lambda: mp.Unstructured(0.5, "columns"), lambda: mp.NM(3, 2), lambda: mp.NM(-1, 2), lambda: mp.NM(0, 0),
    lambda: mp.Block(0, 0.5), lambda: mp.Block(4, 2.0),
])  # fmt: skip
def test_a_pattern_that_cannot_be_is_never_made(make):
    with pytest.raises(mp.PruneError):
        make()


def test_a_width_that_m_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(mp.PruneError, match=r"2:4 .* 10"):
        mp.pattern("2:4").keep(torch.rand(4, 10))
    with pytest.raises(mp.PruneError, match=r"block4.* 6 x 8"):
        mp.pattern("block4:50%").keep(torch.rand(6, 8))


def test_a_group_that_was_left_open_is_asked_for_and_never_overrides_a_given_one():
    with pytest.raises(mp.PruneError, match="50%:row"):
        mp.pattern("50%").keep(torch.rand(4, 4))
    assert mp.pattern("50%").with_default("row") == mp.pattern("50%:row")
    assert mp.pattern("50%:layer").with_default("row") == mp.pattern("50%:layer")
    assert mp.pattern("2:4").with_default("row") == mp.pattern("2:4")


@pytest.mark.parametrize("n, m", [(1, 33), (20, 33), (300, 512), (8, 4096), (0, 64), (64, 64)])
def test_large_groups_keep_exactly_n_whatever_is_set_around_them(n, m, generator):
    scores = torch.randint(0, 50, (3, 2 * m), generator=generator).float()  # many ties
    expected = torch.zeros_like(scores, dtype=torch.bool).view(-1, m)
    order = scores.view(-1, m).sort(dim=1, stable=True).indices  # of equal scores the lower index is pruned first
    expected.scatter_(1, order[:, m - n :], True)
    with torch.autocast("cpu", torch.bfloat16):
        keep = mp.NM(n, m).keep(scores)
    assert torch.equal(keep.view(-1, m), expected)
    columns = scores.view(-1, m).T.contiguous()
    assert torch.equal(torch.from_numpy(mp.NM(n, m).keep_places(columns.numpy())), expected.T)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mp.Unstructured("50%"),
        lambda: mp.Unstructured(True),
        lambda: mp.Unstructured(torch.tensor(0.5)),
        lambda: mp.NM(2.0, 4),
        lambda: mp.NM("2", 4),
        lambda: mp.NM(1, True),
        lambda: mp.Block(16.0, 0.5),
        lambda: mp.Block(16, None),
    ],
)
def test_a_pattern_of_something_else_than_numbers_is_refused(make):
    with pytest.raises(mp.PruneError, match=r"(sparsity|n|m|size) is .*: it must be a"):
        make()


@pytest.mark.parametrize("size", [0, -1, 1.5, "128", True, None])
def test_blocks_of_no_columns_are_refused(size):
    with pytest.raises(mp.PruneError, match=r"block size .* is not a positive whole number"):
        mp.pattern("50%:block").keep(torch.rand(2, 4), block_size=size)
