"""Exported folders load with their matrices as they are stored, say what the dense model says, and take its bytes."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import FAMILIES, tiny_model, tiny_tokens

import minprune as mp
from minprune.cli.main import main
from minprune.formats import disk, save_model
from minprune.kernels import build, linear
from minprune.kernels.linear import SparseLinear, place_stored, sparsify
from minprune.models.layers import find_layers


class NoTokenizer:
    """Stands in for a tokenizer where only the model matters."""

    def save_pretrained(self, folder):
        pass


def zeroed(model, pattern):
    draw = torch.Generator().manual_seed(0)
    for layer in find_layers(model):
        layer.weight.mul_(mp.pattern(pattern).with_default("row").keep(torch.rand(layer.weight.shape, generator=draw)))
    return model


@pytest.fixture
def kernel_anew():
    """The kernel is looked for again, in an environment that the test has changed."""
    build.kernel.cache_clear()
    yield
    build.kernel.cache_clear()


@pytest.fixture
def exported(tiny_folder, tmp_path):
    model, tokenizer = mp.load_model(tiny_folder)
    save_model(zeroed(model, "50%"), tokenizer, tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_from_its_stored_matrices(family, tmp_path):
    model = zeroed(tiny_model(family, torch.bfloat16 if family == "qwen2" else torch.float32), "50%")
    save_model(model, NoTokenizer(), tmp_path / "out")
    sparse = disk.read_exported(tmp_path / "out", place=place_stored).eval()
    assert not any(parameter.is_meta for parameter in [*sparse.parameters(), *sparse.buffers()])
    tokens = tiny_tokens(2, 12)
    with torch.no_grad():
        close = {"atol": 1e-4} if model.dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
        assert torch.allclose(sparse(tokens).logits, model(tokens).logits, **close)
        assert torch.allclose(sparse(tokens[:1, :3]).logits, model(tokens[:1, :3]).logits, **close)


@pytest.mark.parametrize(
    "form, pattern, held",
    [("bitmask", "50%", "bitmask"), ("nm", "2:4", "nm"), ("nm", "1:4", "bitmask"), ("csr", "50%", "bitmask"),
     ("csc", "70%", "bitmask"), ("block", "block4:50%", "bitmask"), ("dense", "50%", "dense")],
)  # fmt: skip
def test_matrices_without_a_product_are_stored_anew(form, pattern, held, tmp_path):
    model = zeroed(tiny_model("llama"), pattern)
    save_model(model, NoTokenizer(), tmp_path / "out", form)
    sparse = disk.read_exported(tmp_path / "out", place=place_stored).eval()
    found = [module for module in sparse.modules() if isinstance(module, SparseLinear)]
    assert {module.format for module in found} == {held} and len(found) == len(find_layers(model))
    with torch.no_grad():
        tokens = tiny_tokens(1, 9)
        assert torch.allclose(sparse(tokens).logits, model(tokens).logits, atol=1e-4)


@pytest.mark.parametrize("pattern", ["0%", "50%", "2:4"])
@pytest.mark.parametrize("bits, held", [(4, "integers"), (8, "integers")])
def test_a_quantised_model_is_multiplied_in_its_whole_numbers(bits, held, pattern, tmp_path):
    model = zeroed(tiny_model("llama", torch.bfloat16), pattern)
    mp.quantize(model, None, bits, 16, "rtn", grid="symmetric")
    save_model(model, NoTokenizer(), tmp_path / "out", "auto", grid=(bits, 16))
    sparse = disk.read_exported(tmp_path / "out", place=place_stored).eval()
    found = [module for module in sparse.modules() if isinstance(module, SparseLinear)]
    assert {module.format for module in found} == {held} and len(found) == len(find_layers(model))
    for layer in find_layers(model):
        module = sparse.get_submodule(layer.name)
        assert torch.equal(module.weight, layer.weight)
        assert module.nbytes < layer.weight.nbytes
    with torch.no_grad():
        tokens = tiny_tokens(1, 9)
        assert torch.allclose(sparse(tokens).logits, model(tokens).logits, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("tokens", [1, 65, 200])
@pytest.mark.parametrize("form", ["bitmask", "nm", "dense"])
def test_one_token_and_many_are_multiplied_with_the_same_matrix(form, tokens):
    draw = torch.Generator().manual_seed(tokens)
    layer = torch.nn.Linear(72, 33)
    layer.weight.data *= mp.pattern("2:4").keep(torch.rand(33, 72, generator=draw))
    model = zeroed(tiny_model("llama"), "2:4")
    model.other = layer
    X = torch.randn(tokens, 72, generator=draw)
    expected = layer(X)
    sparsify(model, form)
    assert isinstance(model.other, SparseLinear)
    assert torch.allclose(model.other(X), expected, atol=1e-5)
    assert torch.equal(model.other.weight, layer.weight)


def test_a_folder_loads_sparse_whether_exported_or_not(exported, tiny_folder):
    tokens = tiny_tokens(1, 7)
    for folder in (exported, tiny_folder):
        dense, sparse = mp.load_model(folder)[0], mp.load_model(folder, sparse=True)[0]
        assert not any(type(module) is torch.nn.Linear for module in sparse.modules())
        with torch.no_grad():
            assert torch.allclose(sparse(tokens).logits, dense(tokens).logits, atol=1e-4)


def test_a_sparse_model_cannot_be_saved_as_if_it_were_whole(exported, tmp_path):
    sparse, _ = mp.load_model(exported, sparse=True)
    with pytest.raises(mp.PruneError, match="save the model before"):
        sparse.save_pretrained(tmp_path / "saved")


def test_float16_stays_dense_and_says_so(exported, caplog):
    model, _ = mp.load_model(exported, "float16", sparse=True)
    assert "stay dense" in caplog.text and "float16" in caplog.text
    assert not any(isinstance(module, SparseLinear) for module in model.modules())


@pytest.mark.parametrize("level", [*build.LEVELS, "torch"])
def test_each_version_can_be_forced_and_writes_the_same_text(level, exported, kernel_anew, monkeypatch, capfd):
    if level != "torch" and build.LEVELS.index(level) > build.kernel()[0].library.minprune_best_level():
        pytest.skip("this processor has no such instructions")
    command = ["generate", str(exported), "--prompt", "The moon", "--tokens", "6"]
    assert main(command) == 0
    expected = capfd.readouterr().out
    build.kernel.cache_clear()
    monkeypatch.setenv("MINPRUNE_KERNEL", level)
    assert main([*command, "--sparse"]) == 0
    told = capfd.readouterr()
    assert told.out == expected
    assert ("stay dense: MINPRUNE_KERNEL=torch" in told.err) == (level == "torch")


def test_without_a_compiler_one_line_says_so_and_the_text_is_right(exported, kernel_anew, monkeypatch, capfd, tmp_path):
    command = ["generate", str(exported), "--prompt", "The moon", "--tokens", "6"]
    assert main(command) == 0
    expected = capfd.readouterr().out
    build.kernel.cache_clear()
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert main([*command, "--sparse"]) == 0
    told = capfd.readouterr()
    assert told.out == expected
    assert [line for line in told.err.splitlines() if "stay dense" in line and "no C compiler" in line]
    assert len([line for line in told.err.splitlines() if "compiler" in line]) == 1


def test_instructions_that_the_processor_lacks_are_refused(exported, kernel_anew, monkeypatch, capfd):
    monkeypatch.setenv("MINPRUNE_KERNEL", "avx9")
    assert main(["generate", str(exported), "--prompt", "x", "--sparse"]) == 2
    assert "avx9" in capfd.readouterr().err


def test_eval_measures_the_same_perplexity(exported, capfd, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The moon rose over the old town. " * 60)
    common = ["eval", str(exported), "--text", str(text), "--samples", "2", "--length", "32"]
    assert main(common) == 0
    dense = capfd.readouterr().out
    assert main([*common, "--sparse"]) == 0
    assert capfd.readouterr().out == dense


CHILD = """
import sys, psutil, torch
from pathlib import Path
import transformers.models.llama.modeling_llama
from minprune.formats import disk
from minprune.kernels.linear import place_stored, sparsify, kernel
kernel()
torch.set_num_threads(1)
before = psutil.Process().memory_info().rss
model = disk.read_exported(Path(sys.argv[1]), place=place_stored if sys.argv[2] == "sparse" else None)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(int(status[key].split()[0]) * 1024 - before for key in ("VmRSS", "VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from Linux")
def test_the_process_holds_the_stored_bytes_and_never_the_dense_ones(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = zeroed(LlamaForCausalLM(config), "90%")
    rows = save_model(model, NoTokenizer(), tmp_path / "out", "bitmask")
    stored, dense = sum(row.bytes for row in rows), sum(row.dense_bytes for row in rows)
    assert stored < dense / 6
    held = {}
    for kind in ("sparse", "dense"):
        words = [sys.executable, "-c", CHILD, str(tmp_path / "out"), kind]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ})
        held[kind] = [int(word) for word in done.stdout.split()]
    slack = 24 * 2**20  # of torch, which loads parts of itself when they are first used
    assert max(held["sparse"]) < 2 * stored + slack < dense / 2, held  # the file counts too, as long as it is open
    assert min(held["dense"]) > dense, held


def test_why_dense_names_what_stands_in_the_way():
    model = tiny_model("llama")
    assert linear.why_dense(model) == ""
    assert "float64" in linear.why_dense(model.double())
    assert "meta" not in linear.why_dense(tiny_model("llama").to("meta"))
