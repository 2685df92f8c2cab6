"""compressed-tensors: transformers reads the quantised weights bit by bit, zeros stay, and the rest is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peak import Peak
from tiny import tiny_model
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import minprune as mp
from minprune.formats.compressed_tensors import write_packed
from minprune.models.layers import find_layers

TOKENS = torch.arange(24).view(2, 12)


class NoTokenizer:
    """Nothing is saved of it."""

    def save_pretrained(self, folder):
        return ()


def quantised(family="llama", bits=4, group=32, grid="asymmetric", pattern="50%", dtype=torch.float32, **changes):
    """A tiny model with zeros in a grid of whole numbers."""
    model = tiny_model(family, hidden_size=64, intermediate_size=96, **changes).to(dtype)
    mp.prune(model, None, "magnitude", pattern)
    mp.quantize(model, None, bits, group=group, method="rtn", grid=grid)
    return model


def read(folder, dequantize=True, **options):
    """What transformers makes of the folder."""
    how = CompressedTensorsConfig(dequantize=dequantize)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, **options)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    ("bits", "group", "grid", "family"),
    [(4, 32, "asymmetric", "llama"), (4, 32, "symmetric", "qwen2"), (8, 32, "asymmetric", "mistral"),
     (3, 16, "asymmetric", "llama"), (2, 32, "symmetric", "llama"), (4, 0, "asymmetric", "llama")],
)  # fmt: skip
def test_transformers_reads_the_same_weights_bit_by_bit(tmp_path, bits, group, grid, family):
    model = quantised(family, bits, group, grid)
    rows = write_packed(tmp_path, model, NoTokenizer(), (bits, group))
    assert {row.name for row in rows} == {layer.name for layer in find_layers(model)}
    assert all(row.error == 0 for row in rows)
    back = read(tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name
    for layer in find_layers(back):
        assert float((layer.weight == 0).float().mean()) >= 0.5


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_symmetric_model_stays_packed_and_gives_the_same_logits(tmp_path):
    model = quantised(grid="symmetric").eval()
    write_packed(tmp_path, model, NoTokenizer(), (4, 32))
    back = read(tmp_path, dequantize=False).eval()
    assert "weight_packed" in dict(back.model.layers[0].mlp.up_proj.named_parameters())
    with torch.no_grad():
        assert torch.allclose(back(TOKENS).logits, model(TOKENS).logits, atol=1e-5)


def test_the_file_takes_the_bits_that_the_formula_says(tmp_path):
    rows = write_packed(tmp_path, quantised(), NoTokenizer(), (4, 32))
    for row in rows:
        d_out, d_in = row.shape
        groups = d_in // 32
        words = (d_out * 4 + 31) // 32 * groups  # of the zero points
        assert row.bytes == d_out * d_in // 2 + 4 * d_out * groups + 4 * words + 16
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert config["ignore"] == ["lm_head"]


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_in_16_bits_scales_are_rounded_zeros_stay_and_the_row_says_by_how_much(tmp_path):
    model = quantised(dtype=torch.bfloat16)
    rows = {row.name: row for row in write_packed(tmp_path, model, NoTokenizer(), (4, 32))}
    back = read(tmp_path, dtype=torch.bfloat16)
    for layer, other in zip(find_layers(model), find_layers(back), strict=True):
        W, read_again = layer.weight.float(), other.weight.float()
        assert torch.equal(read_again == 0, W == 0)
        assert rows[layer.name].error == pytest.approx(float((read_again - W).norm() / W.norm()), rel=1e-3)
        assert rows[layer.name].error < 2**-8


@pytest.mark.parametrize(
    ("make", "grid", "said"),
    [
        (lambda: tiny_model("llama"), (4, 32), "are on no grid of 4 bits"),
        (lambda: quantised(), None, "quantise the model first"),
        (lambda: quantised("gpt2", group=16), (4, 16), "is no torch.nn.Linear"),
        (lambda: quantised(), (4, 40), "groups of 40 inputs do not fit"),
    ],
)
def test_what_the_format_cannot_say_is_refused_before_anything_is_written(tmp_path, make, grid, said):
    with pytest.raises(mp.PruneError, match=said):
        write_packed(tmp_path, make(), NoTokenizer(), grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_the_command_writes_what_transformers_reads_and_the_record_says_how(run, tiny_folder, text_file):
    code, _, err = run("quantize", tiny_folder, "--method", "rtn", "--bits", 4, "--group", 16, "--no-test",
                       "--calibration", text_file, "--samples", 4, "--length", 16, "--output", "q")  # fmt: skip
    assert code == 0, err
    code, out, err = run("export", "q", "--format", "compressed-tensors")
    assert (code, "packed, 4 bits" in " ".join(out.split())) == (0, True), err
    folder = Path("q-compressed-tensors")
    assert json.loads((folder / "minprune.json").read_text())["format"] == "compressed-tensors"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    dense = AutoModelForCausalLM.from_pretrained("q").state_dict()
    assert all(torch.equal(dense[name], tensor) for name, tensor in read(folder).state_dict().items())
    assert run("export", tiny_folder, "--format", "compressed-tensors", "--output", "none")[0] == 2
    assert run("export", "q", "--format", "compressed-tensors", "--type", "q8_0", "--output", "none")[0] == 2
    code, _, err = run("export", "q", "--format", "compressed_tensors", "--output", "none")
    assert code == 2 and err.rstrip().endswith("gguf, compressed-tensors")
    assert not Path("none").exists()


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
def test_the_memory_beside_the_model_is_that_of_one_matrix_however_deep_it_is(tmp_path, grid):
    most = {}
    for blocks in (1, 6):
        model = quantised(grid=grid, num_hidden_layers=blocks)
        (folder := tmp_path / str(blocks)).mkdir()
        with Peak() as peak:
            write_packed(folder, model, NoTokenizer(), (4, 32))
        most[blocks] = peak.most
    largest = max(layer.weight.nbytes for layer in find_layers(model))
    assert largest < most[6] <= most[1] + 1024 and most[6] < 12 * largest


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(mp.PruneError, match="pip install 'minprune\\[vllm\\]'"):
        write_packed(tmp_path, quantised(), NoTokenizer(), (4, 32))
