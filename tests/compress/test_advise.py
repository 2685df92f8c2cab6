"""What `advise` names: the best of what fits, in bytes that formats really take, and no worse with a larger budget."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, HANDING_ON, NOT_ON_META, ROUTED, UNSUPPORTED_EXPERTS, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import minprune as mp
from minprune.cli.advise import commands_for
from minprune.compress import advice
from minprune.compress.advice import advise
from minprune.errors import PruneError
from minprune.formats import store
from minprune.models.layers import block_layers, unsupported_experts
from minprune.structured.shrink import shrink

ROOT = Path(__file__).parents[2]
ATLAS = json.loads((ROOT / "book" / "results" / "atlas.json").read_text())["cells"]
NARROW = [cell for cell in ATLAS if cell["dtype"] == "bfloat16"]
SIZE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4}


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZE, "num_hidden_layers": 4, "tie_word_embeddings": True, **changes}))


def way(*steps, loss=0.1, zeros=0.0, faster=None):
    return {"steps": list(steps), "dtype": "bfloat16", "loss": loss, "error": 0.01, "zeros": zeros, "faster": faster}


DENSE = way(loss=0.0, faster=1.0)
MADE = [  # steps, the share of zeros that they leave
    (("prune magnitude 50%",), 0.5), (("prune magnitude 2:4",), 0.5), (("quantize rtn 3",), 0.25),
    (("prune magnitude 70%", "quantize rtn 4"), 0.7), (("prune magnitude 2:4", "quantize rtn 8"), 0.5),
    (("shrink neurons:25%",), 0.0), (("shrink blocks:15",), 0.0),  # of 30 in the atlas, so half
    (("shrink neurons:25%", "prune magnitude 50%", "quantize rtn 4"), 0.5),
]  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    """measured(ways): the atlas holds the dense model and these."""
    return lambda *ways: monkeypatch.setattr(advice, "atlas", lambda: [DENSE, *ways])


@pytest.mark.parametrize("share", [0.99, 0.8, 0.45, 0.4, 0.35])
def test_the_advised_way_is_within_3_percent_of_the_best_of_the_atlas_that_fits(share, smollm2):
    """The bytes are those that the formats had in the atlas, not those that `advise` counts."""
    dense = next(cell for cell in NARROW if not cell["steps"])
    size = share * dense["bytes"]
    best = min(cell["loss"] for cell in NARROW if cell["bytes"] <= size)
    first = advise(smollm2[0], size=size).fits[0]
    assert next(c["bytes"] for c in NARROW if tuple(c["steps"]) == first.steps) <= 1.005 * size
    assert first.times <= 1.03 * math.exp(best)


def test_the_bytes_of_the_atlas_are_those_that_the_formats_took(smollm2):
    found = advise(smollm2[0], size=250e6)
    counted = {choice.steps: choice.bytes for choice in (found.dense, *found.fits, *found.beyond)}
    for cell in NARROW:
        if not cell["steps"] or not cell["steps"][0].startswith("low-rank"):
            assert counted[tuple(cell["steps"])] == pytest.approx(cell["bytes"], rel=0.01), cell["steps"]


@pytest.mark.parametrize(
    ("steps", "zeros"), MADE, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_the_bytes_are_those_of_a_model_that_went_that_way(steps, zeros, measured):
    """With the true share of zeros; one model has a head of its own."""
    tied, bits = len(steps) > 1, 0
    model, whole = llama(tie_word_embeddings=tied), llama(tie_word_embeddings=tied)
    for step in steps:
        verb, what, *rest = step.split()
        if verb == "prune":
            mp.prune(model, None, what, rest[0])
        elif verb == "quantize":
            bits = int(rest[0])
            mp.quantize(model, None, bits, method=what)
        else:
            windows = torch.randint(300, (4, 16), generator=torch.Generator().manual_seed(0))
            shrink(model, windows, "blocks:2" if "blocks" in what else what, repair="none")
    layers = mp.find_layers(model)
    gone = sum(int((x.weight == 0).sum()) for x in layers) / sum(x.weight.numel() for x in layers)
    assert gone == pytest.approx(zeros, abs=0.1)
    measured(way(*steps, zeros=gone))
    found = advise(whole, size=0.999 * _bytes(whole, 0)).fits[0]
    assert found.bytes == pytest.approx(_bytes(model, bits), rel=0.005)


def _bytes(model, bits):
    layers = mp.find_layers(model)
    stored = sum(store(x.weight.detach().half(), grid=(bits, 64) if bits else None).nbytes for x in layers)
    return stored + 2 * (sum(p.numel() for p in model.parameters()) - sum(x.weight.numel() for x in layers))


steps = st.sampled_from([list(made) for made, _ in MADE])
ways = st.lists(
    st.builds(
        lambda made, loss, zeros, faster: way(*made, loss=loss, zeros=zeros, faster=faster),
        steps,
        st.floats(-0.1, 3),
        st.floats(0, 1),
        st.none() | st.floats(0.5, 4),
    ),
    min_size=1,
    max_size=12,
)
budgets = st.none() | st.floats(0.05, 1.2)
MODEL = llama()
WHOLE = _bytes(MODEL, 0)


@settings(max_examples=30, deadline=None)
@given(ways, budgets, st.none() | st.floats(0.5, 4), st.floats(1, 2), st.floats(0.3, 1))
def test_a_larger_budget_never_loses_more_and_everything_is_where_it_belongs(cells, share, faster, more, slower):
    """Budgets of bytes, of time and of both, on atlases of any content; what cannot be said is said in one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advice, "atlas", lambda: [DENSE, *cells])
        size = share and share * WHOLE
        first = _first(size, faster)
        second = _first(size and more * size, faster and slower * faster)
    if isinstance(first, str):
        return
    found = first
    assert [x.loss for x in found.fits] == sorted(x.loss for x in found.fits)
    assert all((size is None or x.bytes <= size) and (not faster or x.faster >= faster) for x in found.fits)
    assert all((size and x.bytes > size) or (faster and (x.faster or 0) < faster) for x in found.beyond)
    assert {x.loss for x in (*found.fits, *found.beyond)} >= {cell["loss"] for cell in cells}
    assert second == "dense" or second.fits[0].loss <= found.fits[0].loss


def _first(size, faster):
    """The advice, or in one word why there is none."""
    try:
        return advise(MODEL, size, faster)
    except PruneError as error:
        assert "\n" not in str(error)
        return next(
            word for word in ("dense", "nothing", "missing") if word in str(error).replace("the dense speed", "")
        )


def test_what_fits_nothing_names_the_smallest_and_the_fastest(measured):
    measured(way("quantize rtn 3"), way("prune magnitude 50%", zeros=0.5, faster=1.8))
    with pytest.raises(PruneError, match=r"fits 1\.00 kB: the smallest is quantize rtn 3, 1\d\d kB"):
        advise(MODEL, size=1000)
    with pytest.raises(PruneError, match=r"2\.00 times the dense speed: the fastest is prune magnitude 50%, 1\.80"):
        advise(MODEL, faster=2)
    with pytest.raises(PruneError, match="both budgets"):
        advise(MODEL, size=0.4 * WHOLE, faster=1.5)


@pytest.mark.parametrize("budget", [{"size": WHOLE}, {"size": 1e12}, {"faster": 1.0}, {"size": 1e12, "faster": 0.2}])
def test_a_budget_that_the_dense_model_keeps_says_to_keep_it(budget):
    with pytest.raises(PruneError, match="keep it dense"):
        advise(MODEL, **budget)


@pytest.mark.parametrize("budget", [{"size": 0}, {"size": -5.0}, {"size": math.nan}, {"faster": math.inf}, {}])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(PruneError, match="budget"):
        advise(MODEL, **budget)


def test_what_a_models_shapes_do_not_allow_is_left_out_with_the_reason(measured):
    measured(way("quantize rtn 4"), way("prune magnitude 50%", zeros=0.5), way("shrink blocks:1"))
    narrow = llama(hidden_size=96, num_hidden_layers=4)  # groups of 64 do not divide it, and 4 / 30 of a block is none
    found = advise(narrow, size=1.9 * sum(p.numel() for p in narrow.parameters()))
    assert [choice.steps for choice in found.fits] == [("prune magnitude 50%",)]
    assert len(found.left_out) == 2 and "groups of 64" in found.left_out[0] and "blocks" in found.left_out[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_advice_from_its_configuration_alone(family, measured):
    """On the meta device: no weight is read. What a family cannot do is left out."""
    kind, values = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(kind(**values))
    measured(way("prune magnitude 50%", zeros=0.5), way("shrink neurons:25%"), way("shrink blocks:15"))
    dense = 2 * sum(p.numel() for p in model.parameters())
    found = advise(model, size=0.99 * dense)
    assert found.dense.bytes == dense and all(choice.bytes < dense for choice in found.fits)
    assert len(found.fits) + len(found.left_out) == 3 and len(found.fits) >= 2


@pytest.mark.parametrize("family", [*FAMILIES, *HANDING_ON, *ROUTED, *NOT_ON_META, "zamba2"])
def test_a_removal_is_offered_only_to_a_family_that_shrink_can_do_it_with(family, measured):
    """A recurrent model has no heads, and norms that are no RMSNorms cannot be rotated."""
    measured(way("shrink neurons:25%"), way("shrink hidden:25%"), way("prune magnitude 50%", zeros=0.5))
    model = tiny_model(family)
    found = advise(model, size=2 * sum(p.numel() for p in model.parameters()) - 1)
    for choice in (*found.fits, *found.beyond):
        verb, what, *_ = choice.steps[0].split()
        if verb == "shrink":
            smaller = copy.deepcopy(model)
            shrink(smaller, tiny_tokens(), what)
            assert smaller.num_parameters() != model.num_parameters()


@pytest.mark.parametrize("family", UNSUPPORTED_EXPERTS)
def test_experts_that_cannot_be_pruned_are_counted_as_they_are_and_excluded_in_the_commands(family, measured):
    measured(way("prune magnitude 50%", zeros=0.5))
    model = tiny_model(family)
    globs = unsupported_experts(block_layers(model))
    pruned = sum(layer.weight.numel() for layer in mp.find_layers(model, exclude=globs))
    found = advise(model, size=2 * sum(p.numel() for p in model.parameters()) - 1)
    assert found.dense.bytes - found.fits[0].bytes == pytest.approx(pruned * (2 - 1 - 1 / 8), rel=1e-3)
    lines = commands_for(found.fits[0].steps, "m", exclude=globs)
    assert [lines[0][at + 1] for at, word in enumerate(lines[0]) if word == "--exclude"] == globs
