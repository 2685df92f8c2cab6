"""checks.py: a weight that is not what the model multiplies by is refused, and no report says more than the model."""

import copy
import re

import accelerate
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import minprune as mp
from minprune.allocation.sensitivity import sensitivity
from minprune.formats import save_model
from minprune.methods import Method, Result
from minprune.models.checks import check_weights
from minprune.pipeline.sources import StreamedCheckpoint
from minprune.structured.shrink import shrink

NAME = "model.layers.1.self_attn.q_proj"


class Doubled(nn.Module):
    def forward(self, W):
        return 2 * W


class Kept(nn.Linear):
    """Gives out a copy of what it has registered."""

    weight = property(lambda self: self._parameters["weight"] * 1)


class Answers(nn.Linear):
    def __getattr__(self, name):
        found = super().__getattr__(name)
        return found.clone() if name == "weight" else found


class Shifted(nn.Linear):
    def forward(self, X):
        return linear(X, self.weight + 0.1, self.bias)


class Wrapped(nn.Module):
    """An adapter as it begins: its second factor is zero, so that the output is still that of the layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, X):
        return self.base(X) + self.up(self.down(X))


class Typed(torch.Tensor):
    """A tensor that is none of torch's own, as quantised ones are."""


def layer_of(model):
    return model.get_submodule(NAME)


def with_class(kind):
    def change(model):
        layer_of(model).__class__ = kind

    return change


def with_weight(make):
    """The weight as another kind of parameter."""

    def change(model):
        layer_of(model)._parameters["weight"] = make(layer_of(model).weight.data)

    return change


def with_hook(register, restore):
    """A hook on some module that puts the dense weight back. restore(layer, dense)."""

    def change(model):
        layer, dense = layer_of(model), layer_of(model).weight.detach().clone()
        register(model)(lambda *_: restore(layer, dense))

    return change


def copied(layer, dense):
    layer.weight.data.copy_(dense)


def swapped(layer, dense):
    layer.weight.data = dense.clone()


def replaced(layer, dense):
    layer.weight = nn.Parameter(dense.clone())


def as_attribute(model):
    dense = layer_of(model)._parameters.pop("weight")
    layer_of(model).weight = dense.data


def adapted_by_a_hook(model):
    delta = 0.01 * torch.randn(32, 32)
    layer_of(model).register_forward_hook(lambda module, args, output: output + args[0] @ delta.to(output.dtype))


def adapted_by_a_forward(model):
    layer, delta = layer_of(model), 0.01 * torch.randn(32, 32)
    layer.forward = lambda X: linear(X, layer.weight + delta)


def wrapped(model):
    model.model.layers[1].self_attn.q_proj = Wrapped(layer_of(model))


COMPUTED = {  # what was done to a layer, and what the message says to do about it
    "parametrised": (lambda m: parametrize.register_parametrization(layer_of(m), "weight", Doubled()), "remove_param"),
    "weight norm": (lambda m: parametrizations.weight_norm(layer_of(m)), "remove_parametrizations"),
    "spectral norm": (lambda m: parametrizations.spectral_norm(layer_of(m)), "remove_parametrizations"),
    "orthogonal": (lambda m: parametrizations.orthogonal(layer_of(m)), "remove_parametrizations"),
    "pruned by torch": (lambda m: torch_prune.random_unstructured(layer_of(m), "weight", 0.1), r"prune\.remove"),
    "weight norm before 2.0": (lambda m: nn.utils.weight_norm(layer_of(m)), "remove_weight_norm"),
    "spectral norm before 2.0": (lambda m: nn.utils.spectral_norm(layer_of(m)), "remove_spectral_norm"),
    "property": (with_class(Kept), "ordinary parameter"),
    "own attribute access": (with_class(Answers), "ordinary parameter"),
    "own forward": (with_class(Shifted), "forward of Shifted"),
    "no parameter": (as_attribute, "ordinary parameter"),
    "pre-hook that copies": (with_hook(lambda m: layer_of(m).register_forward_pre_hook, copied), "hook"),
    "pre-hook that swaps": (with_hook(lambda m: layer_of(m).register_forward_pre_hook, swapped), "hook"),
    "pre-hook that replaces": (with_hook(lambda m: layer_of(m).register_forward_pre_hook, replaced), "hook"),
    "pre-hook of the block": (with_hook(lambda m: m.model.layers[1].register_forward_pre_hook, copied), "hook"),
    "pre-hook of the model": (with_hook(lambda m: m.register_forward_pre_hook, copied), "hook"),
    "hook after the layer": (with_hook(lambda m: layer_of(m).register_forward_hook, copied), "hook"),
    "hook after the model": (with_hook(lambda m: m.register_forward_hook, swapped), "hook"),
    "adapter in a hook": (adapted_by_a_hook, "hook, adapter or forward"),
    "adapter in a forward": (adapted_by_a_forward, "hook, adapter or forward"),
    "adapter around it": (wrapped, f"Wrapped that takes the place of {NAME}.*merge"),
    "on no device": (with_weight(lambda W: nn.Parameter(W.to("meta"))), "without offloading"),
    "offloaded": (lambda m: accelerate.cpu_offload(m, torch.device("cpu")), "without offloading"),
    "float8": (with_weight(lambda W: nn.Parameter(W.to(torch.float8_e4m3fn), False)), "float8.*not quantised"),
    "integers": (with_weight(lambda W: nn.Parameter(W.to(torch.int8), False)), "int8.*not quantised"),
    "complex": (with_weight(lambda W: nn.Parameter(W.to(torch.complex64))), "complex64"),
    "sparse": (with_weight(lambda W: nn.Parameter(W.to_sparse())), "sparse"),
    "of a tensor's subclass": (with_weight(lambda W: nn.Parameter(W.as_subclass(Typed))), "Typed.*not quantised"),
    "one number everywhere": (with_weight(lambda W: nn.Parameter(W[:1, :1].expand(32, 32))), "one number in memory"),
    "empty": (with_weight(lambda W: nn.Parameter(W[:0])), "empty"),
}


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("way", COMPUTED)
def test_a_weight_that_is_computed_is_refused_with_its_name_and_the_remedy_and_nothing_is_changed(way, method):
    change, remedy = COMPUTED[way]
    model = tiny_model("llama")
    change(model)
    others = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    where = r"model\.layers\.0" if way == "offloaded" else NAME.replace(".", r"\.")
    with pytest.raises(mp.PruneError, match=f"{where}.*{remedy}"):
        mp.prune(model, tiny_tokens() if method == "wanda" else None, method, "50%")
    for name, value in model.state_dict().items():
        if name in others and value.layout is torch.strided:
            assert torch.equal(value, others[name]), name


def test_a_hook_for_all_modules_is_seen_too():
    model = tiny_model("llama")
    layer, dense = layer_of(model), layer_of(model).weight.detach().clone()
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: copied(layer, dense) if module is layer else None
    )
    try:
        with pytest.raises(mp.PruneError, match=NAME):
            mp.prune(model, None, "magnitude", "50%")
    finally:
        handle.remove()


def test_experts_whose_weights_are_put_back_are_refused():
    model = tiny_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    dense = experts.down_proj.detach().clone()
    experts.register_forward_hook(lambda *_: [experts.down_proj.data.copy_(dense), None][1])
    with pytest.raises(mp.PruneError, match=r"layers\.1\.mlp\.experts\.down_proj\.0: .*hook"):
        mp.prune(model, tiny_tokens(), "wanda", "50%")
    assert torch.equal(experts.down_proj, dense)


@pytest.mark.parametrize(
    "way, undo",
    [
        ("parametrised", lambda layer: parametrize.remove_parametrizations(layer, "weight")),
        ("weight norm", lambda layer: parametrize.remove_parametrizations(layer, "weight")),
        ("pruned by torch", lambda layer: torch_prune.remove(layer, "weight")),
        ("weight norm before 2.0", nn.utils.remove_weight_norm),
        ("spectral norm before 2.0", nn.utils.remove_spectral_norm),
    ],
)
def test_the_remedy_that_is_named_helps(way, undo):
    model = tiny_model("llama")
    COMPUTED[way][0](model)
    undo(layer_of(model))
    report = mp.prune(model, tiny_tokens(), "wanda", "50%")
    seen = []
    layer_of(model).register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    model(tiny_tokens())
    (X, Y) = seen[0]
    torch.testing.assert_close(X @ layer_of(model).weight.T, Y)
    assert report.sparsity == 0.5 and int((layer_of(model).weight == 0).sum()) == 512


def test_a_layer_that_is_left_out_may_be_computed():
    model = tiny_model("llama")
    COMPUTED["parametrised"][0](model)
    assert mp.prune(model, tiny_tokens(), "wanda", "50%", exclude=[NAME]).sparsity == 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_who_only_looks_on_changes_nothing(family):
    """Hooks that observe, a class with the same product in other words, accelerate on one device."""
    plain, watched = tiny_model(family), tiny_model(family)
    for module in watched.modules():
        module.register_forward_pre_hook(lambda module, args: None)
        module.register_forward_hook(lambda module, args, output: None)
        if type(module) is nn.Linear:
            module.__class__ = type("Own", (nn.Linear,), {"forward": lambda self, X: nn.Linear.forward(self, X)})
    accelerate.dispatch_model(watched, {"": "cpu"}, force_hooks=True)
    for model in (plain, watched):
        mp.prune(model, tiny_tokens(), "sparsegpt", "50%")
    for (name, value), other in zip(plain.named_parameters(), watched.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_an_ordinary_model_is_not_run_for_the_check(monkeypatch):
    model = tiny_model("llama")
    runs = []
    monkeypatch.setattr(type(model), "forward", lambda *args, **kwargs: runs.append(args))
    mp.prune(model, None, "magnitude", "50%")
    assert not runs


def test_offloaded_to_disk_is_refused_also_when_layers_are_found_there(tmp_path):
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=places | {"lm_head": "cpu", "model.rotary_emb": "cpu"},
        offload_folder=tmp_path / "off",
    )
    assert len(mp.find_layers(model)) == 14
    with pytest.raises(mp.PruneError, match=r"model\.layers\.1\.self_attn\.q_proj: .*offload"):
        mp.prune(model, tiny_tokens(), "wanda", "50%")


def test_no_offloaded_layer_is_said_to_be_tied():
    model = accelerate.cpu_offload(tiny_model("llama", tie_word_embeddings=False), torch.device("cpu"))
    assert len(mp.find_layers(model, include=["*"])) == 15


def test_weights_made_in_inference_mode_are_refused_with_the_cause():
    with torch.inference_mode():
        model = tiny_model("llama")
    with pytest.raises(mp.PruneError, match=r"q_proj: .*inference_mode"):
        mp.prune(model, tiny_tokens(), "wanda", "50%")


def test_a_quantised_model_an_encoder_decoder_and_one_with_adapters_are_refused_as_such():
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(mp.PruneError, match="quantised"):
        mp.prune(model, None, "magnitude")
    model = tiny_model("llama")
    model.merge_and_unload = lambda: model
    with pytest.raises(mp.PruneError, match="merge_and_unload"):
        mp.prune(model, None, "magnitude")
    model = tiny_model("llama")
    model.config.is_encoder_decoder = True
    with pytest.raises(mp.PruneError, match="encoder"):
        mp.prune(model, None, "magnitude")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_zeros_that_vanish_while_the_model_is_pruned_are_an_error_and_no_report(batch_size):
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp.up_proj

    def fill(*_):
        layer.weight.data[layer.weight == 0] = 1

    model.model.layers[1].register_forward_hook(fill)
    with pytest.raises(mp.PruneError, match=r"layers\.0\.mlp\.up_proj has 0 zeros now, not the 768"):
        mp.prune(model, tiny_tokens(), "wanda", "50%", batch_size=batch_size)


def test_a_layer_that_is_replaced_while_the_model_is_pruned_is_an_error():
    model = tiny_model("llama")
    attention = model.model.layers[0].self_attn

    def put_back(*_):
        if bool((attention.q_proj.weight == 0).any()):
            attention.q_proj = nn.Linear(32, 32, bias=False)

    model.model.layers[1].register_forward_hook(put_back)
    with pytest.raises(mp.PruneError, match=r"layers\.0\.self_attn\.q_proj: the model has another weight there"):
        mp.prune(model, tiny_tokens(), "wanda", "50%")


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda W: W.clone(), "set 0 weights to zero, not the 512"),
        (lambda W: W.clone().fill_diagonal_(0), "set 32 weights to zero, not the 512"),
        (lambda W: W[:, :16] * 0, r"made \(32, 16\) of its \(32, 32\)"),
    ],
)
@pytest.mark.parametrize("pattern", ["50%", "50%:row", "2:4", "block16:50%", "columns:50%", "rows4:50%:2"])
def test_a_method_that_does_not_make_the_zeros_of_its_pattern_is_an_error(make, reason, pattern, monkeypatch):
    method = Method(lambda W, stats, pattern: Result(make(W), W == W), needs="nothing")
    monkeypatch.setitem(mp.METHODS, "lazy", method)
    model = tiny_model("llama")
    dense = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(mp.PruneError, match=r"layers\.0\.self_attn\.q_proj: the method " + reason):
        mp.prune(model, None, "lazy", pattern)
    assert all(torch.equal(value, other) for value, other in zip(model.parameters(), dense, strict=True))


@pytest.mark.parametrize("recipe", [None, "best"])
def test_each_row_says_the_zeros_that_the_model_has(recipe):
    """Also those that were there before, and those that rounding adds."""
    model = tiny_model("llama", torch.bfloat16)
    model.model.layers[0].mlp.up_proj.weight.data[:30] = 0  # 30 of 48 rows
    report = mp.prune(model, tiny_tokens(), None if recipe else "wanda", "50%:layer", recipe=recipe)
    for row in report.layers:
        W = model.get_submodule(row.name).weight
        assert row.sparsity == (W == 0).double().mean().item() and row.shape == tuple(W.shape)
    assert {row.name: row.sparsity for row in report.layers}["model.layers.0.mlp.up_proj"] == 0.625


def test_what_is_written_to_disk_is_held_against_the_rows(tmp_path, tiny_folder, monkeypatch):
    own = StreamedCheckpoint.tensors

    def dense(self, part):
        return {name: value + (name.endswith("layers.1.mlp.up_proj.weight")) for name, value in own(self, part).items()}

    monkeypatch.setattr(StreamedCheckpoint, "tensors", dense)
    with pytest.raises(mp.PruneError, match=r"layers\.1\.mlp\.up_proj has 0 zeros now"):
        mp.prune_checkpoint(tiny_folder, tmp_path / "out", None, "magnitude", "50%")
    assert not (tmp_path / "out").exists()


def test_trials_and_exports_refuse_computed_weights_too(tmp_path, tiny_folder):
    model = tiny_model("llama")
    COMPUTED["parametrised"][0](model)
    with pytest.raises(mp.PruneError, match=NAME):
        sensitivity(model, tiny_tokens(), "50%")
    with pytest.raises(mp.PruneError, match=NAME):
        save_model(model, mp.load_model(tiny_folder)[1], tmp_path / "out")


def test_is_conv1d_needs_no_transformers():
    """A plain network's layers are found in an interpreter that has never imported the library."""
    import subprocess
    import sys

    code = (
        "import sys, torch; from minprune.training.masks import linear_layers, masks_of; "
        "masks_of(linear_layers(torch.nn.Linear(2, 2))); assert 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


COMPILED = {
    "wrapped": lambda model: torch.compile(model, backend="eager"),
    "in place": lambda model: model.compile(backend="eager") or model,
    "a block": lambda model: model.model.layers[1].compile(backend="eager") or model,
    "a layer": lambda model: model.model.layers[1].mlp.up_proj.compile(backend="eager") or model,
    "its forward": lambda model: setattr(model, "forward", torch.compile(model.forward, backend="eager")) or model,
    "the forward of a class": lambda model: setattr(model.model.layers[1].mlp, "__class__", compiled_class()) or model,
}


def compiled_class():
    """As who puts @torch.compile above a method."""
    return type("Compiled", (LlamaMLP,), {"forward": torch.compile(LlamaMLP.forward, backend="eager")})


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize(
    "use",
    [
        lambda model: mp.prune(model, tiny_tokens(), "wanda"),
        lambda model: mp.prune(model, tiny_tokens(), "sparsegpt", batch_size=2),
        lambda model: sensitivity(model, tiny_tokens()),
        lambda model: shrink(model, tiny_tokens(), "neurons:25%"),
        lambda model: shrink(model, tiny_tokens(), "blocks:1"),
    ],
)
def test_a_model_that_is_compiled_is_refused_in_a_line_that_names_the_remedy(how, use):
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(mp.PruneError, match="before it is compiled") as caught:
        use(COMPILED[how](model))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_part_that_torchscript_has_compiled_is_refused_for_none_of_its_matrices_would_be_found():
    model = tiny_model("llama")
    model.model.layers[1].mlp = torch.jit.trace(model.model.layers[1].mlp, torch.randn(1, 4, 32))
    for use in (mp.prune, mp.quantize, sensitivity):
        with pytest.raises(mp.PruneError, match=r"layers\.1\.mlp is compiled by TorchScript: put back"):
            use(model, tiny_tokens())


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("watched", [False, True])
def test_a_mixture_in_float64_is_pruned_though_the_library_has_no_grouped_product_for_it(batch_size, watched):
    model = tiny_model("mixtral", torch.float64)
    model.set_experts_implementation("grouped_mm")
    before = model.get_experts_implementation()
    if watched:  # so that the checks run the model, too
        model.model.layers[0].register_forward_hook(lambda module, args, out: None)
    report = mp.prune(model, tiny_tokens(), "wanda", batch_size=batch_size)
    assert report.sparsity == pytest.approx(0.5)
    assert model.get_experts_implementation() == before
    rows = sensitivity(tiny_model("mixtral", torch.float64), tiny_tokens(8, 16))
    assert all(row.cost > 0 for row in rows)


def test_a_layer_that_multiplies_in_groups_is_refused_with_the_globs_that_leave_it_dense():
    class Grouped(torch.nn.Linear):
        def forward(self, X):
            return torch.cat([X, X], -1) @ torch.cat([self.weight, self.weight], 1).T

    model = tiny_model("llama")
    for block in model.model.layers:
        grouped = Grouped(32, 32, bias=False)
        grouped.weight = block.self_attn.o_proj.weight
        block.self_attn.o_proj = grouped
    with pytest.raises(mp.PruneError, match=re.escape("--exclude '*.o_proj'")) as caught:
        mp.prune(model, tiny_tokens(), "wanda")
    assert "exclude=['*.o_proj'] in Python" in str(caught.value)
    mp.prune(model, tiny_tokens(), "wanda", exclude=["*.o_proj"])


def test_the_check_of_weights_is_not_misled_by_what_a_callers_autocast_remembers():
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda module, args, out: None)  # so that the model is run and watched
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        expected = model(tiny_tokens()).logits
        check_weights(model, mp.find_layers(model))
        assert torch.equal(model(tiny_tokens()).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("around", [torch.float16, torch.bfloat16])
def test_weights_are_looked_at_in_their_own_type_whatever_a_callers_autocast(dtype, around):
    """Autocast refuses to stack numbers of the other narrow type."""
    found = []
    for enabled in (False, True):
        model = tiny_model("llama", dtype)
        with torch.autocast("cpu", around, enabled=enabled):
            mp.prune(model, None, "magnitude", "50%")
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = float("inf")
    with torch.autocast("cpu", around), pytest.raises(mp.PruneError, match=f"{NAME}: its weights hold NaN or infinity"):
        mp.prune(model, None, "magnitude", "50%")
