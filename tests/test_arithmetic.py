"""arithmetic.py: what is set around statistics, methods and errors changes none of them, and is left as it was."""

import copy
from contextlib import contextmanager, nullcontext
from threading import Event, Thread

import pytest
import torch
from samples import lifelike
from test_checkpoint import write_tokenizer
from tiny import tiny_model, tiny_tokens
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import minprune as mp
from minprune.allocation.sensitivity import sensitivity
from minprune.arithmetic import WideProducts, clock, exact_arithmetic, random_devices
from minprune.formats import save_model
from minprune.methods import Method, magnitude
from minprune.models.modes import eval_mode
from minprune.pipeline.precision import multiplies_bfloat16, narrow_products
from minprune.pipeline.recipes import Recipe
from minprune.pipeline.reconstruction import Reconstruction
from minprune.training.recipe import Recipe as RecoveryRecipe
from minprune.training.recover import recover

WIDTH = 320  # more than a panel of the Gram matrix, and than the leaf of a triangular inverse
WINDOWS, LENGTH = 72, 32  # 2304 tokens: more than one chunk of the statistics
NARROW = Reconstruction(epochs=1, batch_size=24, bfloat16=True)


@contextmanager
def changed(change, undo):
    change()
    try:
        yield
    finally:
        undo()


def precision(name):
    return changed(
        lambda: torch.set_float32_matmul_precision(name), lambda: torch.set_float32_matmul_precision("highest")
    )


def mkldnn_precision(name):
    matmul = torch.backends.mkldnn.matmul
    return changed(lambda: setattr(matmul, "fp32_precision", name), lambda: setattr(matmul, "fp32_precision", "ieee"))


def default_dtype(dtype):
    return changed(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast in float16": lambda: torch.autocast("cpu", torch.float16),
    "medium products": lambda: precision("medium"),
    "high products": lambda: precision("high"),
    "bfloat16 products of one backend": lambda: mkldnn_precision("bf16"),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


def ambient_state():
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # one backend was set by itself
        common = None
    return (
        torch.is_autocast_enabled("cpu"),
        common,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        torch.get_default_dtype(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


def test_the_ambient_states_of_these_tests_do_change_a_product(generator):
    """Else the tests below would show nothing: this processor takes such products in bfloat16."""
    A = torch.randn(WIDTH, WIDTH, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert (A @ A).dtype == torch.bfloat16


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize("method", mp.METHODS)
def test_nothing_that_is_set_around_a_method_changes_statistics_weights_mask_or_error(method, ambient):
    W, X = lifelike(16, WIDTH, dtype=torch.float32)

    def all_of_it(call):
        stats = mp.Statistics(WIDTH)
        for part in X.split(1500):
            stats.update(part)
        stats.merge(mp.Statistics(WIDTH).update(X[:100]))
        result = call(W, stats, mp.pattern("50%:row" if call is mp.METHODS[method] else "2:4"))
        error = mp.layer_error(W, result.weight, stats.gram)
        return stats.gram, stats.sq_norm, stats.mean, result.weight, result.keep, error

    for call in (mp.METHODS[method], mp.METHODS[method].function):
        expected = all_of_it(call)
        with AMBIENT[ambient]():
            before = ambient_state()
            found = all_of_it(call)
            assert ambient_state() == before
        for one, other in zip(found[:-1], expected[:-1], strict=True):
            assert one.dtype == other.dtype and not one.requires_grad and not one.is_inference()
            assert torch.equal(one, other)
        assert found[-1] == expected[-1]


@pytest.mark.parametrize("ambient", AMBIENT)
def test_the_state_is_as_it_was_after_an_error_too(ambient):
    with AMBIENT[ambient]():
        before = ambient_state()
        with pytest.raises(KeyError), exact_arithmetic(), exact_arithmetic():
            assert ambient_state()[:4] == (False, "highest", "ieee", "ieee")
            assert ambient_state()[5:] == (False, False)
            raise KeyError
        assert ambient_state() == before


def wide_model():
    """One block of width 320 with ordinary products."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_key_value_heads": 1}
    return tiny_model("llama", **sizes, tie_word_embeddings=False)


@pytest.fixture
def remembered(monkeypatch):
    """What every Statistics is given during a test: itself -> its inputs."""
    inputs, update = {}, mp.Statistics.update

    def remember(stats, X):
        inputs.setdefault(stats, []).append(X.clone())
        return update(stats, X)

    monkeypatch.setattr(mp.Statistics, "update", remember)
    return inputs


@pytest.mark.parametrize("method", mp.METHODS)
@pytest.mark.parametrize(
    "around, batch_size",
    [(nullcontext, None), (nullcontext, 30), (AMBIENT["autocast"], None)],
    ids=["whole", "parts", "autocast"],
)
def test_with_narrow_forward_products_each_layer_gets_what_the_method_gives_for_the_same_inputs(
    method, batch_size, around, remembered, monkeypatch
):
    model, calls = wide_model(), []

    def probe(W, stats, pattern):
        result = mp.METHODS[method].function(W, stats, pattern)
        calls.append((W.clone(), remembered[stats], result, ambient_state()))
        return result

    monkeypatch.setitem(mp.METHODS, "probe", Method(probe, needs=mp.METHODS[method].needs))
    recipe = Recipe("probe", reconstruction=NARROW) if around is nullcontext else Recipe("probe")
    with around():
        report = mp.prune(
            model,
            tiny_tokens(WINDOWS, LENGTH),
            recipe=recipe,
            include=["*.k_proj", "lm_head"],
            batch_size=batch_size,
        )
    assert len(calls) == 2
    for row, (W, inputs, result, state) in zip(report.layers, calls, strict=True):
        assert state[0] is False and state[1] == "highest" and state[-1] is False
        stats = mp.Statistics(WIDTH)
        for X in inputs:
            stats.update(X)
        expected = mp.METHODS[method](W, stats, "50%")
        assert torch.equal(result.weight, expected.weight) and torch.equal(result.keep, expected.keep), row.name
        assert row.error == mp.layer_error(W, expected.weight, stats.gram)


@pytest.mark.parametrize("method", ["admm", "sparsegpt", "wanda"])
def test_a_recipe_that_trains_nothing_is_the_method_alone_bit_for_bit_whatever_the_hardware(method, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    dense, tokens = wide_model(), tiny_tokens(4)
    for pattern, recipe in (
        ("40%", "best"),
        ("40%", Recipe("admm", reconstruction=NARROW)),
        ("60%", Recipe("admm", reconstruction=Reconstruction(epochs=0))),
    ):
        plain, other = copy.deepcopy(dense), copy.deepcopy(dense)
        mp.prune(plain, tokens, method, pattern)
        report = mp.prune(other, tokens, method, pattern, recipe=recipe)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))
        assert report.reconstruction["bfloat16"] is False and report.reconstruction["errors"] == {}


def test_the_hardwares_answer_is_in_the_report(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able})
        report = mp.prune(tiny_model("llama"), tiny_tokens(4), recipe="best", pattern="60%")
        assert report.reconstruction["bfloat16"] is able


@pytest.mark.parametrize("method", ["sparsegpt", "wanda", "magnitude"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_model_is_pruned_in_inference_mode_and_with_gradients_as_without(method, batch_size):
    dense = wide_model()
    plain = copy.deepcopy(dense)
    mp.prune(plain, tiny_tokens(), method, batch_size=batch_size)
    for around in (torch.inference_mode, torch.enable_grad):
        model = copy.deepcopy(dense)
        with around():
            mp.prune(model, tiny_tokens(), method, batch_size=batch_size)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("part", ["layers.0", "layers.1.mlp", ""])
def test_a_model_that_runs_in_inference_mode_by_itself_is_pruned_as_one_that_does_not(part, batch_size, method):
    """Tensors of that mode do not count their changes."""
    plain, own = (tiny_model("llama", torch.float64) for _ in range(2))
    inside = own.model.get_submodule(part)
    inside.forward = torch.inference_mode()(inside.forward)
    reports = [mp.prune(model, tiny_tokens(), method, batch_size=batch_size) for model in (plain, own)]
    for (name, value), other in zip(plain.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-14, msg=name)
    assert [row.note for row in reports[0].layers] == [row.note for row in reports[1].layers]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_autocast_that_remembers_weights_does_not_calibrate_on_dense_ones(batch_size):
    """Within a caller's autocast the dense weights are cached in bfloat16, and stay so when they change in place."""
    models = [wide_model() for _ in range(2)]
    for model, cache in zip(models, (True, False), strict=True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache), torch.enable_grad():
            model(tiny_tokens())  # so that there is something in the cache
            mp.prune(model, tiny_tokens(), "wanda", batch_size=batch_size)
            model.logits = model(tiny_tokens()).logits.detach()
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))
    assert torch.equal(models[0].logits, models[1].logits)


def test_a_probe_of_a_method_without_statistics_is_called_outside_of_autocast():
    seen = []

    def probe(W, stats, pattern):
        seen.append(ambient_state())
        return magnitude.magnitude(W, stats, pattern)

    with torch.autocast("cpu", torch.bfloat16):
        Method(probe, needs="nothing")(torch.ones(2, 4), None, "50%")
    assert seen[0][0] is False


def test_a_clock_waits_for_a_gpu_and_for_nothing_else(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert clock(torch.device("cpu")) <= clock(torch.device("cuda", 1)) <= clock(torch.device("cpu"))
    assert waited == [torch.device("cuda", 1)]
    assert random_devices(torch.device("cuda", 1)) == waited and random_devices(torch.device("cpu")) == []


CALIB = tiny_tokens()
PUBLIC = {
    "prune": lambda model: mp.prune(model, CALIB, "wanda", "60%", allocation="owl", batch_size=2),
    "shrink": lambda model: mp.shrink(model, CALIB, "neurons:25%"),
    "sensitivity": lambda model: sensitivity(model, CALIB, "50%"),
    "perplexity": lambda model: mp.perplexity(model, CALIB),
    "divergence": lambda model: mp.divergence(model, copy.deepcopy(model), CALIB),
    "recover": lambda model: recover(model, CALIB, RecoveryRecipe(steps=1)),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_callers_default_device_changes_nothing(name):
    """As after torch.set_default_device("cuda"): what is made without a device would lie there."""
    expected, found = tiny_model("llama"), tiny_model("llama")
    PUBLIC[name](expected)
    with torch.device("meta"):
        PUBLIC[name](found)
        assert torch.get_default_device().type == "meta"
    for (key, value), other in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_a_model_and_its_tokens_are_read_onto_the_cpu_whatever_the_default_device(tmp_path):
    tiny_model("llama").save_pretrained(write_tokenizer(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text("w3 w4 w5 " * 40)
    with torch.device("meta"):
        model, tokenizer = mp.load_model(tmp_path)
        tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
        tokens = mp.load_tokens(tokenizer, text, samples=3, length=8, seed=0)
        assert mp.perplexity(model, tokens) > 1
    assert {p.device.type for p in model.parameters()} | {tokens.device.type} == {"cpu"}


@pytest.mark.parametrize("method", ["slicegpt", "outputs"])
def test_channels_are_removed_under_a_callers_autocast(method):
    model = tiny_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        mp.shrink(model, tiny_tokens(), "hidden:25%", method)
    assert model.config.hidden_size == 24


BY_DTYPE = PUBLIC | {
    "blocks": lambda model: mp.shrink(model, CALIB, "blocks:1"),
    "adapters": lambda model: recover(model, CALIB, RecoveryRecipe(steps=1, mode="adapters", rank=2, lr=0.1)),
    "reconstruct": lambda model: mp.prune(
        model, CALIB, pattern="50%", recipe=Recipe("wanda", reconstruction=Reconstruction(epochs=1, bfloat16=False))
    ),
    "hidden": lambda model: mp.shrink(model, CALIB, "hidden:25%"),
    "quantize": lambda model: mp.quantize(model, CALIB, group=16),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", BY_DTYPE)
def test_a_callers_default_dtype_changes_nothing(name, dtype):
    expected, found = tiny_model("llama"), tiny_model("llama")
    given = BY_DTYPE[name](expected)
    with default_dtype(dtype):
        other = BY_DTYPE[name](found)
    for (key, value), same in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert same.dtype == value.dtype and torch.equal(value, same), key
    if name in ("sensitivity", "perplexity", "divergence"):
        assert other == given


@pytest.mark.parametrize("name", BY_DTYPE)
def test_gradients_that_a_caller_has_switched_off_change_nothing(name):
    expected, found = tiny_model("llama"), tiny_model("llama")
    BY_DTYPE[name](expected)
    with torch.no_grad():
        BY_DTYPE[name](found)
        assert not torch.is_grad_enabled()
    for (key, value), same in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(value, same), key


def test_pairs_of_sentences_are_compared_in_full_whatever_the_default_dtype(tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    expected = mp.grammar(model, tokenizer)
    for dtype in (torch.bfloat16, torch.float64):
        with default_dtype(dtype):
            assert mp.grammar(model, tokenizer) == expected


def test_a_perplexity_is_measured_the_same_whatever_the_default_device(tiny_folder, text_file):
    model, tokenizer = mp.load_model(tiny_folder)
    given = {"source": text_file, "samples": 3, "length": 16}
    expected = mp.measure(model, tokenizer, **given)
    with torch.device("meta"):
        assert mp.measure(model, tokenizer, **given) == expected


@pytest.mark.parametrize("family", ["llama", "diffllama", "mixtral"])
def test_reading_and_writing_a_model_leaves_a_callers_random_numbers_alone(family, tmp_path):
    """Some families draw parameters where a model is made without weights, or before they are loaded."""
    tiny_model(family).save_pretrained(write_tokenizer(tmp_path / "model"))
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    model, tokenizer = mp.load_model(tmp_path / "model")
    mp.prune_checkpoint(tmp_path / "model", tmp_path / "sparse", CALIB, "wanda", "50%")
    save_model(model, tokenizer, tmp_path / "export")
    mp.load_model(tmp_path / "export")
    assert torch.equal(torch.rand(4), expected)


HALVES = [torch.bfloat16, torch.float16]
WIDENED = {  # each of factors x (rows, 24), W (16, 24), b (16,)
    "linear": lambda x, W, b: torch.nn.functional.linear(x, W, b),
    "named": lambda x, W, b: torch.nn.functional.linear(input=x, weight=W),
    "operator": lambda x, W, b: x @ W.T,
    "addmm": lambda x, W, b: torch.addmm(b, x, W.T),
    "bmm": lambda x, W, b: torch.bmm(x[None], W.T[None]),
    "attention": lambda x, W, b: torch.nn.functional.scaled_dot_product_attention(
        *(x[None, None] for _ in range(3)), is_causal=True
    ),
}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", WIDENED)
def test_a_widened_product_is_the_exact_one_rounded(name, kind, generator):
    x, W, b = (torch.randn(shape, generator=generator).to(kind) for shape in [(40, 24), (16, 24), (16,)])
    with WideProducts():
        found = WIDENED[name](x, W, b)
    exact = WIDENED[name](x.double(), W.double(), b.double())
    assert found.dtype == kind
    slack = exact.abs() * torch.finfo(kind).eps / 2 + 1e-5  # half a unit in the last place, and float32's own sums
    assert ((found.double() - exact).abs() <= slack).all()


class Seen(TorchFunctionMode):
    """The types of tensors in every product that goes through it."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in {
            "linear",
            "matmul",
            "__matmul__",
            "addmm",
            "bmm",
            "scaled_dot_product_attention",
        }:
            self.kinds |= {part.dtype for part in (*args, *(kwargs or {}).values()) if isinstance(part, torch.Tensor)}
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", WIDENED)
def test_every_form_of_a_narrow_product_is_taken_in_float32(name, generator):
    x, W, b = (torch.randn(shape, generator=generator).bfloat16() for shape in [(40, 24), (16, 24), (16,)])
    with Seen() as seen, WideProducts():
        WIDENED[name](x, W, b)
    assert seen.kinds == {torch.float32}


def test_a_processor_that_says_nothing_of_its_units_is_left_alone(monkeypatch):
    said = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said, raising=False)
    found = []
    for answer in ({}, {"amx_bf16": False, "avx512_bf16": False}, {"amx_bf16": False, "avx512_bf16": True}):
        said = answer
        with eval_mode(tiny_model("llama", torch.bfloat16)):
            found.append((multiplies_bfloat16("cpu"), torch._C._len_torch_function_stack()))
    assert found == [(False, 0), (False, 1), (True, 0)]


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", WIDENED)
def test_under_an_autocast_a_widened_product_is_that_of_rounded_factors_rounded(name, kind, generator):
    x, W, b = (torch.randn(shape, generator=generator) for shape in [(40, 24), (16, 24), (16,)])
    with WideProducts(), torch.autocast("cpu", kind):
        found = WIDENED[name](x, W, b)
    with torch.autocast("cpu", kind):
        assert WIDENED[name](x, W, b).dtype == found.dtype == kind
    exact = WIDENED[name](*(factor.to(kind).double() for factor in (x, W, b)))
    assert ((found.double() - exact).abs() <= exact.abs() * torch.finfo(kind).eps / 2 + 1e-5).all()


@pytest.mark.parametrize("rows", [1, 7])
def test_products_of_few_rows_of_wide_numbers_and_of_several_types_are_left_alone(rows, generator):
    x, W = torch.randn(rows, 24, generator=generator).bfloat16(), torch.randn(16, 24, generator=generator).bfloat16()
    many, own = x.repeat(8, 1), x @ W.T
    with WideProducts():
        assert torch.equal(x @ W.T, own)
        assert torch.equal(many.double() @ W.double().T, torch.mm(many.double(), W.double().T))
        assert (many.float() @ W.float().T).dtype == torch.float32
        with pytest.raises(RuntimeError, match="dtype"):
            torch.nn.functional.linear(many, W.float())


def test_narrow_products_are_the_same_on_any_processor(monkeypatch, generator):
    x, W = torch.randn(40, 24, generator=generator), torch.randn(16, 24, generator=generator, requires_grad=True)
    found = []
    for able in (True, False):
        monkeypatch.setattr("minprune.pipeline.precision.cpu_multiplies", lambda kind, able=able: able)
        with narrow_products("cpu", True):
            out = torch.nn.functional.linear(x, W)
        (slope,) = torch.autograd.grad(out.float().square().sum(), W)
        assert out.dtype == torch.bfloat16
        found.append((out.detach().float(), slope))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=2**-7 * float(one.abs().max()) / 8)


@pytest.mark.parametrize("kind", HALVES)
def test_a_slope_goes_through_a_widened_product(kind, generator):
    x, W = torch.randn(40, 24, generator=generator).to(kind), torch.randn(16, 24, generator=generator).to(kind)
    W.requires_grad_()
    with WideProducts():
        torch.nn.functional.linear(x, W).float().sum().backward()
    assert W.grad.dtype == kind
    torch.testing.assert_close(W.grad.double(), x.double().sum(0).expand(16, 24), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", HALVES)
def test_a_narrow_model_is_read_and_pruned_alike_by_any_processor(kind, monkeypatch):
    tokens, found = tiny_tokens(), []
    for able in (True, False):
        monkeypatch.setattr(
            "minprune.models.modes.cpu_multiplies", lambda given, able=able: able or given not in HALVES
        )
        model = tiny_model("llama", kind)
        report = mp.prune(model, tokens, "wanda", "50%")
        assert report.precision == str(kind).removeprefix("torch.")
        assert {parameter.dtype for parameter in model.parameters()} == {kind}
        assert torch._C._len_torch_function_stack() == 0
        found.append((mp.perplexity(tiny_model("llama", kind), tokens), sum(row.error for row in report.layers)))
    assert found[0] == pytest.approx(found[1], rel=4 * torch.finfo(kind).eps)


def test_a_product_that_is_written_into_a_callers_tensor_stands_there(generator):
    x, W = torch.randn(40, 24, generator=generator).bfloat16(), torch.randn(24, 16, generator=generator).bfloat16()
    for product in (torch.mm, torch.matmul):
        there = torch.zeros(40, 16, dtype=torch.bfloat16)
        with WideProducts():
            assert product(x, W, out=there) is there
        assert torch.equal(there, product(x, W))


def test_products_of_nested_tensors_are_left_alone(generator):
    x, W = torch.randn(30, 24, generator=generator).bfloat16(), torch.randn(16, 24, generator=generator).bfloat16()
    with WideProducts():
        found = torch.nn.functional.linear(torch.nested.nested_tensor([x[:10], x[10:]]), W)
    assert torch.equal(torch.cat(found.unbind()), torch.nn.functional.linear(x, W))


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_is_read_as_it_is_where_products_would_be_widened(whole, monkeypatch):
    """Dynamo would look into the widening, and not come out of it."""
    monkeypatch.setattr("minprune.models.modes.cpu_multiplies", lambda given: given not in HALVES)
    model = tiny_model("llama", torch.bfloat16)
    expected = mp.perplexity(model, tiny_tokens())
    compiled = torch.compile(model, backend="eager", fullgraph=whole)
    assert mp.perplexity(compiled, tiny_tokens()) == pytest.approx(expected, rel=4 * torch.finfo(torch.bfloat16).eps)


def test_exact_arithmetic_holds_in_each_thread_until_the_last_is_done():
    """Which precision float32 products have is one setting for all threads."""
    entered, left, found = Event(), Event(), []

    def other():
        with exact_arithmetic():
            entered.set()
            left.wait(10)
            found.append(torch.get_float32_matmul_precision())

    thread = Thread(target=other)
    with precision("medium"):
        with exact_arithmetic():
            thread.start()
            entered.wait(10)
        left.set()
        thread.join()
        assert found == ["highest"] and torch.get_float32_matmul_precision() == "medium"


ATTENTION = torch.nn.functional.scaled_dot_product_attention
IN_PARTS = {  # of x (5, 24, 16), W (32, 16), b (32,); the forms of models: (windows, heads, tokens, width of a head)
    "linear": lambda x, W, b: torch.nn.functional.linear(x, W, b),
    "without a bias": lambda x, W, b: torch.nn.functional.linear(x, W),
    "of a matrix": lambda x, W, b: torch.nn.functional.linear(x[0], W, b),
    "attention": lambda x, W, b: ATTENTION(*(x.unflatten(1, (3, 8)) for _ in range(3)), is_causal=True),
    "one mask": lambda x, W, b: ATTENTION(*(x.unflatten(1, (3, 8)) for _ in range(3)), attn_mask=FLAGS[:1, :1]),
    "a mask each": lambda x, W, b: ATTENTION(*(x.unflatten(1, (3, 8)) for _ in range(3)), attn_mask=FLAGS),
    "shared keys": lambda x, W, b: ATTENTION(x.unflatten(1, (3, 8)), *(x[:1].unflatten(1, (3, 8)) for _ in range(2))),
    "three dimensions": lambda x, W, b: ATTENTION(x, x, x),
}
FLAGS = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.7
FLAGS |= torch.eye(8, dtype=torch.bool)


@pytest.mark.parametrize("part", [1, 300, 1000, 2**23])
@pytest.mark.parametrize("name", IN_PARTS)
def test_a_product_in_parts_is_the_exact_one_rounded_and_slopes_go_through_it(name, part, monkeypatch, generator):
    monkeypatch.setattr("minprune.arithmetic._PART", part)
    x, W, b = (torch.randn(shape, generator=generator).bfloat16() for shape in [(5, 24, 16), (32, 16), (32,)])
    for gradients in (False, True):
        exact = [value.double().requires_grad_(gradients) for value in (x, W, b)]
        found = [value.clone().requires_grad_(gradients) for value in (x, W, b)]
        with WideProducts():
            narrow = IN_PARTS[name](*found)
        wide = IN_PARTS[name](*exact)
        assert narrow.dtype == torch.bfloat16 and narrow.shape == wide.shape
        assert ((narrow.double() - wide).abs() <= wide.abs() * 2**-8 + 1e-5).all()
    narrow.float().sin().sum().backward()
    wide.sin().sum().backward()
    for ours, theirs in zip(found, exact, strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0.05, atol=0.2)


class Largest(TorchDispatchMode):
    """How many numbers the largest float32 tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32:
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("name", sorted(IN_PARTS.keys() - {"three dimensions"}))  # no model asks for that
def test_no_more_is_widened_at_a_time_than_a_part(name, monkeypatch, generator):
    """So that reading many windows at a time takes the memory that it takes where products are narrow."""
    monkeypatch.setattr("minprune.arithmetic._PART", 700)
    x, W, b = (torch.randn(shape, generator=generator).bfloat16() for shape in [(5, 24, 16), (32, 16), (32,)])
    with torch.no_grad(), Largest() as largest, WideProducts():
        IN_PARTS[name](x, W, b)
    assert 0 < largest.numbers <= 700
