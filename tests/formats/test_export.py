"""Exported models: the same bits come back, in the bytes promised; damaged and crafted folders are refused by name."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_model, tiny_tokens

import minprune as mp
from minprune.cli.main import main
from minprune.formats import disk, save_model
from minprune.models.layers import find_layers
from minprune.training.recover import Recipe, recover


class NoTokenizer:
    """Stands in for a tokenizer where only the model matters."""

    def save_pretrained(self, folder):
        pass


def zeroed(model, pattern="50%", seed=0):
    """The model with random zeros of that pattern in its matrices."""
    generator = torch.Generator().manual_seed(seed)
    for layer in find_layers(model):
        layer.weight.mul_(
            mp.pattern(pattern).with_default("row").keep(torch.rand(layer.weight.shape, generator=generator))
        )
    return model


def same_parameters(one, other):
    """Whether two models have equal parameters and buffers of equal dtypes, name by name."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_folder):
    """(the pruned tiny model, its folder): each matrix in the format that `auto` chose."""
    model, tokenizer = mp.load_model(tiny_folder)
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    save_model(zeroed(model), tokenizer, folder)
    return model, folder


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the exported folder that a test may spoil."""
    return shutil.copytree(exported[1], tmp_path / "copy")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_with_the_same_logits(family, tmp_path):
    model = zeroed(tiny_model(family, torch.bfloat16 if family == "qwen2" else torch.float32))
    rows = save_model(model, NoTokenizer(), tmp_path / "out")
    assert {row.format.split()[0] for row in rows} <= {"bitmask", "nm"} and len(rows) == len(find_layers(model))
    again = disk.read_exported(tmp_path / "out").eval()
    assert type(again) is type(model) and same_parameters(model, again)
    tokens = tiny_tokens(2, 12)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_has_the_logits_of_the_folder_that_it_was_made_from(family, dtype, tmp_path, tiny_folder):
    """Equal, in every dtype, though a table in the narrow one is held by no file and computed on both sides."""
    zeroed(tiny_model(family, dtype)).save_pretrained(tmp_path / "dense")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path / "dense")
    model, tokenizer = mp.load_model(tmp_path / "dense")
    save_model(model, tokenizer, tmp_path / "small")
    again, tokens = mp.load_model(tmp_path / "small")[0], tiny_tokens(2, 12)
    with torch.no_grad():
        assert model.dtype == dtype and torch.equal(model(tokens).logits, again(tokens).logits)
    buffers = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffers[name].dtype == buffer.dtype and torch.equal(buffers[name], buffer), name


def test_reading_an_export_draws_no_random_number_and_makes_nothing_dense_twice(exported):
    state = torch.get_rng_state()
    again = disk.read_exported(exported[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    assert all(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("form", ["dense", "bitmask", "csr", "csc", "nm", "block", "auto"])
def test_every_format_comes_back_through_load_model(form, tmp_path, tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    zeroed(model, {"nm": "2:4", "block": "block16:50%"}.get(form, "90%"))
    rows = save_model(model, tokenizer, tmp_path / "out", form)
    again, words = mp.load_model(tmp_path / "out")
    labels = {"nm": "nm 2:4", "block": "block 16"}
    found = {row.format for row in rows}
    assert found == {labels.get(form, form)} or (form == "auto" and found == {"bitmask", "csr", "csc"})
    assert same_parameters(model, again) and not again.training
    assert words("the moon").input_ids == tokenizer("the moon").input_ids
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    tokens = tiny_tokens(2, 20)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_the_bytes_are_those_of_the_file(exported):
    model, folder = exported
    record = json.loads((folder / "minprune.json").read_text())
    arrays = load_file(folder / disk.ARRAYS)
    assert record["bytes"] == sum(array.nbytes for name, array in arrays.items() if "/" in name)
    assert record["dense_bytes"] == sum(layer.weight.nbytes for layer in find_layers(model))
    header = (folder / disk.ARRAYS).stat().st_size - sum(array.nbytes for array in arrays.values())
    assert 0 < header < 20000


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_in_another_dtype_it_is_what_transformers_makes_of_the_dense_folder(dtype, exported, tmp_path):
    """Parameters are cast, and the rotary frequencies are not: `model.half()` would round them, too."""
    model, folder = exported
    model.save_pretrained(tmp_path / "dense")
    shutil.copy(folder / "tokenizer.json", tmp_path / "dense")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "dense")
    dense, again = mp.load_model(tmp_path / "dense", dtype)[0], mp.load_model(folder, dtype)[0]
    assert again.dtype == dense.dtype != torch.float32 and same_parameters(dense, again)
    buffers = dict(dense.named_buffers())
    assert buffers and all(torch.equal(buffers[name], buffer) for name, buffer in again.named_buffers())
    tokens = tiny_tokens(2, 20)
    with torch.no_grad():
        assert torch.equal(dense(tokens).logits, again(tokens).logits)


def test_parameters_of_several_dtypes_keep_theirs(tmp_path):
    model = zeroed(tiny_model("llama", torch.bfloat16))
    model.model.norm.float()
    save_model(model, NoTokenizer(), tmp_path / "out")
    assert same_parameters(model, disk.read_exported(tmp_path / "out"))


def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path):
    model = zeroed(tiny_model("llama", tie_word_embeddings=True))
    save_model(model, NoTokenizer(), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / disk.ARRAYS)
    again = disk.read_exported(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight and same_parameters(model, again)


def untied(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1)


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def with_a_bias(model):
    layer = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(layer.in_features, layer.out_features)


def wider(model):
    mlp = model.model.layers[1].mlp
    mlp.up_proj, mlp.gate_proj, mlp.down_proj = (torch.nn.Linear(*sizes, bias=False) for sizes in (
        (32, 56), (32, 56), (56, 32),
    ))  # fmt: skip


def with_a_parameter(model):
    model.register_parameter("more", torch.nn.Parameter(torch.ones(3)))


def of_one_mlp(model):
    model.model.layers[1].mlp = model.model.layers[0].mlp


def of_one_matrix(model):
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.gate_proj.weight


def with_a_computed_head(model):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


def with_a_shorter_head(model):
    model.lm_head = torch.nn.Linear(32, 90, bias=False)


def with_settings_for_sampling(model):
    model.generation_config.temperature = 0.5  # which the library does not save without do_sample


CHANGES = {  # how a model is no longer what its configuration says -> how the refusal names it, None for none
    untied: None, tied: None, with_a_bias: "mlp.up_proj.bias is (48,), and not there", wider: "down_proj is (32, 56)",
    with_a_parameter: "more is (3,), and not there", of_one_mlp: "layers.1.", of_one_matrix: "up_proj.weight is not",
    with_a_computed_head: "lm_head.parametrizations.", with_a_shorter_head: "lm_head.weight is (90, 32)",
    with_settings_for_sampling: "model.generation_config",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_exported_can_be_read_again_or_is_refused_before_anything_is_there(change, tmp_path):
    model = zeroed(tiny_model("llama", tie_word_embeddings=change is untied))
    with torch.no_grad():
        change(model)
    if not CHANGES[change]:
        expected = model(tiny_tokens()).logits
        save_model(model, NoTokenizer(), tmp_path / "out")
        found = disk.read_exported(tmp_path / "out").eval()
        assert same_parameters(model, found) and torch.equal(found(tiny_tokens()).logits, expected)
        return
    with pytest.raises(mp.PruneError) as caught:
        save_model(model, NoTokenizer(), tmp_path / "out")
    assert CHANGES[change] in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_head_that_its_checkpoint_has_apart_is_exported_with_it(run, tiny_folder, tmp_path):
    """Fine-tuned models come with such a config.json: it says that the head is tied, and two tensors are stored."""
    folder = shutil.copytree(tiny_folder, tmp_path / "apart")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert run("export", folder, "--output", "out")[0] == 0
    for name in (folder, "out"):
        model, _ = mp.load_model(name)
        assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert same_parameters(mp.load_model(folder)[0], model)


def test_transformers_does_not_take_the_folder_for_a_dense_model(exported):
    """It would fill what is missing with random numbers."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(exported[1])


def test_a_model_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    with pytest.raises(mp.PruneError, match=r"^model\.layers\.0\.self_attn\.q_proj: .* no nm format pay: use auto"):
        save_model(model, tokenizer, tmp_path / "out", "nm")
    assert list(tmp_path.iterdir()) == []


# damaged folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [disk.ARRAYS, disk.INDEX, "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("how", ["truncated", "edited", "missing"])
def test_a_damaged_file_is_named(copied, name, how):
    path = copied / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else content.replace(b'"', b"'", 2))
    if (name, how) == (disk.INDEX, "missing"):
        name = "model"  # it is a folder like any other then, without weights that transformers knows
    with pytest.raises(mp.PruneError, match=name) as caught:
        mp.load_model(copied)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_model_is_named(copied, tmp_path, tiny_folder):
    model, tokenizer = mp.load_model(tiny_folder)
    save_model(zeroed(model, seed=1), tokenizer, tmp_path / "other")
    shutil.copy(tmp_path / "other" / disk.ARRAYS, copied / disk.ARRAYS)
    with pytest.raises(mp.PruneError, match=f"{disk.ARRAYS} is not the file that was exported"):
        mp.load_model(copied)


def crafted(folder, arrays=None, index=None, config=None, generation=None):
    """Change the arrays, the index or a configuration, and let all checksums be right again."""
    path = folder / disk.INDEX
    content = json.loads(path.read_text())
    if arrays:
        stored = load_file(folder / disk.ARRAYS)
        arrays(stored)
        save_file(stored, folder / disk.ARRAYS)
    if config:
        made = json.loads((folder / "config.json").read_text())
        config(made)
        (folder / "config.json").write_text(json.dumps(made))
    if generation:
        (folder / "generation_config.json").write_text(generation)
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if index:
        index(content)
    path.write_text(json.dumps(content))


Q = "model.layers.0.self_attn.q_proj"
CRAFTED = {
    "array missing": ({"arrays": lambda a: a.pop(f"{Q}/values")}, disk.ARRAYS),
    "array too many": ({"arrays": lambda a: a.update(x=torch.zeros(1))}, disk.ARRAYS),
    "mask of other values": ({"arrays": lambda a: a[f"{Q}/bits"].bitwise_not_()[0].zero_()}, f"{disk.ARRAYS}: {Q}"),
    "whole numbers": ({"arrays": lambda a: a.update({f"{Q}/values": a[f"{Q}/values"].int()})}, f"values of {Q}"),
    "norm of another size": ({"arrays": lambda a: a.update({"model.norm.weight": torch.ones(3)})}, "model.norm.weight"),
    "norm of whole numbers": (
        {"arrays": lambda a: a.update({"model.norm.weight": torch.ones(64).int()})},
        "model.norm.weight",
    ),
    "another shape": ({"index": lambda i: i["matrices"][Q].update(shape=[2**40, 64])}, f"{disk.INDEX}: {Q}"),
    "another format": ({"index": lambda i: i["matrices"][Q].update(format="csr")}, disk.ARRAYS),
    "unknown format": ({"index": lambda i: i["matrices"][Q].update(format="zip")}, disk.INDEX),
    "a format that is a list": ({"index": lambda i: i["matrices"][Q].update(format=[])}, disk.INDEX),
    "a setting too many": ({"index": lambda i: i["matrices"][Q].update(n=2)}, f"{disk.INDEX}: {Q}"),
    "a matrix missing": ({"index": lambda i: i["matrices"].pop(Q)}, disk.INDEX),
    "no matrices": ({"index": lambda i: i.pop("matrices")}, disk.INDEX),
    "no checksums": ({"index": lambda i: i.pop("files")}, disk.INDEX),
    "weights without checksum": ({"index": lambda i: i["files"].pop(disk.ARRAYS)}, disk.INDEX),
    "a file elsewhere": ({"index": lambda i: i["files"].update({"../x": ""})}, "outside the folder"),
    "a name with a null": ({"index": lambda i: i["files"].update({"a\0b": ""})}, f"{disk.INDEX}: it names files"),
    "a name with half a sign": ({"index": lambda i: i["files"].update({"\ud800": ""})}, "signs that no name has"),
    **{
        f"a generation of {text}": ({"generation": text}, "generation_config.json")
        for text in ("[]", "3", "null", "{", '{"compile_config": 3}')
    },
    "a later version": ({"index": lambda i: i.update(version=2)}, "version 1"),
    "a smaller model": ({"config": lambda c: c.update(num_hidden_layers=1)}, disk.INDEX),
    "a wider model": ({"config": lambda c: c.update(intermediate_size=256)}, f"{disk.INDEX}: model.layers.0.mlp"),
    "no model": ({"config": lambda c: c.update(model_type="nothing")}, "config.json"),
    "no whole heads": ({"config": lambda c: c.update(num_attention_heads=5)}, "number of attention heads (5)"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_folder_with_right_checksums_is_refused(copied, what):
    changes, message = CRAFTED[what]
    crafted(copied, **changes)
    with pytest.raises(mp.PruneError) as caught:
        mp.load_model(copied)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_safetensors_file_that_is_none_is_refused(copied):
    for content in (b"", b"x" * 7, b"\xff" * 64, (10**15).to_bytes(8, "little") + b"{}"):
        (copied / disk.ARRAYS).write_bytes(content)
        crafted(copied)
        with pytest.raises(mp.PruneError, match=f"{disk.ARRAYS} is damaged"):
            mp.load_model(copied)


def fuzz(folder, rounds, dice):
    """Overwrite bytes of the arrays, with right checksums: how many were refused, and how many other models loaded."""
    clean, refused, loaded = (folder / disk.ARRAYS).read_bytes(), 0, 0
    header = 8 + int.from_bytes(clean[:8], "little")
    for _ in range(rounds):
        content = bytearray(clean)
        low, high = dice.choice([(0, header), (header, len(clean)), (header, len(clean))])
        for _ in range(dice.choice([1, 4, 64])):
            content[dice.randrange(low, high)] = dice.randrange(256)
        (folder / disk.ARRAYS).write_bytes(content[: dice.choice([None, None, dice.randrange(len(content))])])
        crafted(folder)
        try:
            model = disk.read_exported(folder)
            loaded += 1
            assert all(parameter.shape == torch.Size(parameter.shape) for parameter in model.parameters())
            model(tiny_tokens(1, 4))
        except mp.PruneError as error:
            refused += 1
            assert disk.ARRAYS in str(error) and "\n" not in str(error)
    return refused, loaded


@pytest.fixture
def with_indices(tmp_path):
    """A tiny model of which every matrix is stored in CSR, which has the most indices to spoil."""
    save_model(zeroed(tiny_model("llama"), "80%"), NoTokenizer(), tmp_path / "csr", "csr")
    return tmp_path / "csr"


def test_disturbed_files_are_refused_or_load(with_indices):
    refused, loaded = fuzz(with_indices, 40, random.Random(0))
    assert refused > 15 and loaded > 2, (refused, loaded)


@pytest.mark.slow
def test_many_disturbed_files_are_refused_or_load(with_indices):
    refused, loaded = fuzz(with_indices, 600, random.Random(1))
    assert refused > 200 and loaded > 30, (refused, loaded)


# the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(tmp_path, tiny_folder, monkeypatch):
    """The tiny model pruned by `minprune prune`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    assert main(["prune", str(tiny_folder), "--method", "magnitude", "--pattern", "2:4", "--output", "pruned"]) == 0
    return tmp_path / "pruned"


def test_the_command_writes_a_folder_that_the_other_commands_load(pruned, text_file, capsys):
    assert main(["export", "pruned", "--format", "nm", "--dtype", "float16"]) == 0
    out = capsys.readouterr().out
    assert "written to pruned-nm" in out
    all_layers = next(line.split() for line in out.splitlines() if line.split()[:1] == ["all"])
    assert all_layers == ["all", "14", "nm", "2:4", "0.08", "56.2%"]
    record = json.loads((pruned.parent / "pruned-nm" / "minprune.json").read_text())
    assert record["format"] == "nm" and record["made from"]["pattern"] == "2:4" and record["dtype"] == "float16"
    assert record["bytes"] / record["dense_bytes"] == pytest.approx(0.5625)
    values = []
    for name in ("pruned", "pruned-nm"):
        command = ["eval", name, "--text", str(text_file), "--length", "32", "--samples", "4", "--dtype", "float16"]
        assert main(command) == 0
        values.append(capsys.readouterr().out.splitlines()[3].split()[1:])
    assert values[0] == values[1]
    assert main(["info", "pruned-nm"]) == 0
    assert capsys.readouterr().out.count("2:4") == 7


def test_an_export_can_be_pruned_further(pruned):
    """`minprune prune` reads a folder that it cannot read tensor by tensor, and writes one of Hugging Face's form."""
    assert main(["export", "pruned", "--output", "packed"]) == 0
    for source, output in (("packed", "one"), ("pruned", "other")):
        assert main(["prune", source, "--method", "magnitude", "--pattern", "75%", "--output", output]) == 0
    one, other = (mp.load_model(pruned.parent / name)[0] for name in ("one", "other"))
    assert same_parameters(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruned", "--format", "zip"], "unknown format 'zip': use auto, dense"),
        (["pruned", "--output", "pruned"], "is the model itself"),
        (["./nowhere"], "no model './nowhere'"),
        (["pruned", "--format", "block"], "model.layers.0.self_attn.q_proj: the zeros of this 64 x 64 matrix"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(pruned, capsys, arguments, message):
    before = sorted(pruned.parent.iterdir())
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(pruned.parent.iterdir()) == before


@pytest.mark.parametrize("damage", ["{", "[1]"])
def test_a_damaged_record_is_told_in_one_line(pruned, capsys, damage):
    (pruned / "minprune.json").write_text(damage)
    capsys.readouterr()
    assert main(["export", "pruned", "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert "pruned/minprune.json is damaged: delete it" in error and error.count("\n") == 1
    assert not (pruned.parent / "out").exists()


def test_an_export_is_only_overwritten_when_asked(pruned, capsys):
    assert main(["export", "pruned"]) == 0
    assert main(["export", "pruned"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", "pruned", "--overwrite"]) == 0


# the bundled model -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "form"), [("50%", "bitmask"), ("2:4", "nm"), ("50%", "auto")])
def test_half_of_smollm2_in_float16_takes_at_most_57_percent(tmp_path, pattern, form):
    """The matrices, by the bytes of the file; and the logits are the same."""
    model, tokenizer = mp.load_model("smollm2", "float16")
    mp.prune(model, None, method="magnitude", pattern=pattern)
    save_model(model, tokenizer, tmp_path / "out", form)
    arrays = load_file(tmp_path / "out" / disk.ARRAYS)
    stored = sum(array.nbytes for name, array in arrays.items() if "/" in name)
    dense = sum(layer.weight.nbytes for layer in find_layers(model))
    assert dense == 2 * 106_168_320 and stored <= 0.57 * dense
    again, words = mp.load_model(tmp_path / "out")
    tokens = words("The moon goes around the", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_a_model_whose_experts_were_left_out_is_exported_and_recovered_and_keeps_them(
    run, tiny_folder, text_file, family
):
    tiny_model(family, vocab_size=320).save_pretrained("model")
    for path in tiny_folder.glob("token*"):
        Path("model", path.name).write_bytes(path.read_bytes())
    excluded = ["--exclude", "*.experts.*", "--no-test", "--output", "pruned"]
    assert run("prune", "model", "--method", "magnitude", *excluded)[0] == 0
    assert run("export", "pruned", "--output", "small")[0] == 0
    pruned, small = (mp.load_model(folder)[0].state_dict() for folder in ("pruned", "small"))
    assert pruned.keys() == small.keys() and all(torch.equal(value, small[name]) for name, value in pruned.items())
    for output, how in (("recovered", []), ("adapted", ["--adapters", 2])):
        short = ["--data", text_file, "--steps", 1, "--length", 24, "--output", output]
        code, _, err = run("recover", "pruned", *short, *how)
        assert code == 0, err
        recovered = mp.load_model(output)[0].state_dict()
        for name, value in pruned.items():
            assert ((value != 0) | (recovered[name] == 0)).all(), name
            assert not how or "experts" not in name or torch.equal(value, recovered[name]), name


def test_the_zeros_of_a_pruned_router_or_head_outlast_recovery_and_export(run, tiny_folder, text_file):
    tiny_model("phimoe", tie_word_embeddings=False).save_pretrained("model")
    for path in tiny_folder.glob("token*"):
        Path("model", path.name).write_bytes(path.read_bytes())
    model, tokenizer = mp.load_model("model")
    mp.prune(model, None, "magnitude", "50%:row", include=["*.mlp.router", "lm_head", "*.q_proj"])
    pruned = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, "small")
    small = mp.load_model("small")[0].state_dict()
    assert all(torch.equal(value, small[name]) for name, value in pruned.items())
    recover(model, tiny_tokens(), Recipe(steps=2, batch_size=2))
    for name, value in model.state_dict().items():
        if value.ndim == 2 and name.endswith(("router.weight", "head.weight", "q_proj.weight")):
            assert (pruned[name] == 0).double().mean() == 0.5, name
            assert "router" in name or not torch.equal(value, pruned[name]), name  # a router need not learn in a step
            assert (value[pruned[name] == 0] == 0).all(), name
