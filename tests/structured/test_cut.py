"""cut.py: what somebody has put on a model is on the smaller one, too, or the model is refused; threads; Ctrl-C."""

import copy
import re
import sys
import threading
import types

import pytest
import torch
from tiny import FAMILIES, HANDING_ON, NOT_ON_META, ROUTED, SHARED, UNSUPPORTED_EXPERTS, tiny_model, tiny_tokens
from torch import nn
from torch.nn.utils import parametrize

import minprune as mp
from minprune.structured.cut import check_described
from minprune.structured.shrink import shrink

REMOVALS = ["neurons:25%", "heads:1/2", "blocks:1", "hidden:25%"]
Q, NORM = "model.layers.1.self_attn.q_proj", "model.layers.1.input_layernorm"


def deep_model():
    return tiny_model("llama", num_hidden_layers=3)


def stayed(report, depth=3):
    """The former numbers of the blocks that are left."""
    gone = re.findall(r"blocks (\d) of", " ".join(report.notes))
    return [index for index in range(depth) if str(index) not in gone]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # token ids have no gradient
@pytest.mark.parametrize("remove", REMOVALS)
def test_hooks_are_called_as_usual_under_the_new_names_and_their_handles_remove_them(remove):
    model, called = deep_model(), []

    def noting(what, index):
        return lambda *_: called.append((what, index))

    handles = []
    for index, block in enumerate(model.model.layers):
        handles += [
            block.register_forward_hook(noting("block", index)),
            block.mlp.down_proj.register_forward_pre_hook(noting("matrix", index)),
            block.self_attn.register_full_backward_hook(noting("gradient", index)),
        ]
    handles.append(model.register_forward_hook(noting("model", None)))
    left = stayed(shrink(model, tiny_tokens(), remove))
    called.clear()
    model(tiny_tokens()).logits.sum().backward()
    forward = [(what, index) for index in left for what in ("matrix", "block")] + [("model", None)]
    assert called == forward + [("gradient", index) for index in reversed(left)]
    for handle in handles:
        handle.remove()
    called.clear()
    model(tiny_tokens())
    assert not called and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("remove", REMOVALS)
def test_a_hook_that_changes_the_stream_is_part_of_what_the_smaller_model_computes(remove):
    """Halved embeddings by a hook are halved embeddings."""
    hooked, halved = deep_model(), deep_model()
    hooked.model.embed_tokens.register_forward_hook(lambda module, args, out: out / 2)
    halved.model.embed_tokens.weight.data /= 2
    for model in (hooked, halved):
        shrink(model, tiny_tokens(), remove)
    torch.testing.assert_close(hooked(tiny_tokens()).logits, halved(tiny_tokens()).logits)


@pytest.mark.parametrize("remove", REMOVALS)
def test_what_the_library_was_told_to_do_in_training_it_still_does(remove):
    model = deep_model()
    model.gradient_checkpointing_enable()
    shrink(model, tiny_tokens(), remove)
    assert model.is_gradient_checkpointing
    assert all(block.gradient_checkpointing for block in model.model.layers)
    assert model(tiny_tokens()).logits.requires_grad
    model.gradient_checkpointing_disable()
    model.disable_input_require_grads()
    assert not model.is_gradient_checkpointing and not model.model.embed_tokens._forward_hooks
    model(tiny_tokens(), output_hidden_states=True)  # the library's own hooks, which it puts there once
    shrink(model, tiny_tokens(), "neurons:25%")
    depth = len(model.model.layers)
    assert len(model(tiny_tokens(), output_hidden_states=True).hidden_states) == depth + 1


class Own(nn.Linear):
    """The same product, and more to come."""


class Halved(nn.Module):
    def forward(self, W):
        return W / 2


def with_class(model):
    model.get_submodule(Q).__class__ = Own


def with_forward(model):
    block = model.model.layers[1]
    own = block.forward
    block.forward = types.MethodType(lambda self, *args, **kwargs: own(*args, **kwargs), block)


def with_sequence(model):
    model.set_submodule(Q, nn.Sequential(model.get_submodule(Q), nn.Identity()))


NOT_DESCRIBED = {  # what is in a model, and what the message says of it
    "a buffer": (lambda m: m.register_buffer("extra", torch.zeros(3)), "extra is not of the model's configuration"),
    "a parameter": (lambda m: m.register_parameter("extra", nn.Parameter(torch.zeros(3))), "extra is not of"),
    "a module": (lambda m: setattr(m.model, "more", nn.Dropout(0.5)), r"model\.more is a Dropout, which"),
    "another activation": (lambda m: setattr(m.model.layers[1].mlp, "act_fn", nn.Tanh()), "act_fn is a Tanh, not the"),
    "a class of its own": (with_class, f"{Q} is a Own, not the Linear of its configuration"),
    "a forward of its own": (with_forward, r"layers\.1 has a forward of its own.*del module\.forward"),
    "a layer in a row": (with_sequence, f"{Q} is a Sequential, not the Linear"),
    "a computed norm": (
        lambda m: parametrize.register_parametrization(m.get_submodule(NORM), "weight", Halved()),
        f"{NORM} is a ParametrizedLlamaRMSNorm",
    ),
    "computed embeddings": (
        lambda m: parametrize.register_parametrization(m.get_input_embeddings(), "weight", Halved()),
        "embed_tokens is a ParametrizedEmbedding",
    ),
    "a head without numbers": (lambda m: m.lm_head.to("meta"), r"lm_head\.weight is elsewhere"),
}


@pytest.mark.parametrize("remove", REMOVALS)
@pytest.mark.parametrize("what", NOT_DESCRIBED)
def test_what_no_configuration_describes_is_refused_by_name_and_nothing_is_changed(what, remove):
    change, said = NOT_DESCRIBED[what]
    model = tiny_model("llama", tie_word_embeddings=False)
    change(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    with pytest.raises(mp.PruneError, match=said) as caught:
        shrink(model, tiny_tokens(), remove)
    assert "\n" not in str(caught.value)
    assert dict(model.named_modules()) == modules
    assert all(value.is_meta or torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_that_was_made_in_inference_mode_is_refused_by_name():
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.inference_mode():
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    with pytest.raises(mp.PruneError, match=r"lm_head\.weight was made under torch\.inference_mode"):
        shrink(model, tiny_tokens(), "neurons:25%")


@pytest.mark.parametrize("family", [*FAMILIES, *HANDING_ON, *UNSUPPORTED_EXPERTS, *ROUTED, *SHARED, *NOT_ON_META])
def test_a_model_as_its_family_makes_it_is_what_its_configuration_describes(family):
    check_described(tiny_model(family))


def test_a_model_that_cannot_be_copied_is_refused_only_where_a_copy_is_needed():
    model = tiny_model("llama")
    model.model.layers[0].guard = threading.Lock()
    with pytest.raises(mp.PruneError, match=r"cannot be copied.*lock.*another repair"):
        shrink(model, tiny_tokens(), "neurons:25%", repair="reconstruct")
    assert model.config.intermediate_size == 48
    shrink(model, tiny_tokens(), "neurons:25%")
    assert model.config.intermediate_size == 36


def test_models_in_several_threads_do_not_disturb_each_other():
    """The library makes a model without weights by a change to a class that all threads have."""
    dense = [tiny_model("llama", seed=seed) for seed in range(3)]
    alone, together, errors = copy.deepcopy(dense), copy.deepcopy(dense), []
    for model in alone:
        shrink(model, tiny_tokens(), "neurons:25%")

    def work(model):
        try:
            shrink(model, tiny_tokens(), "neurons:25%")
        except Exception as error:
            errors.append(error)

    every, interval = [threading.Thread(target=work, args=(model,)) for model in together], sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in every:
            thread.start()
        for thread in every:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    for one, other in zip(alone, together, strict=True):
        for (name, value), same in zip(one.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(value, same), name
    assert nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("remove", REMOVALS)
def test_modes_are_kept_when_ctrl_c_comes_after_the_cut(remove, monkeypatch):
    def stop(reports, plan):
        raise KeyboardInterrupt

    model = deep_model().train()
    for block in model.model.layers:
        block.self_attn.eval()
    monkeypatch.setattr("minprune.structured.shrink.merged", stop)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, tiny_tokens(), remove)
    assert model.num_parameters() < deep_model().num_parameters()
    for block in model.model.layers:
        assert block.training and block.mlp.training and not any(part.training for part in block.self_attn.modules())
