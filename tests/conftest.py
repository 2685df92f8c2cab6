"""Fixtures that tests share: a tiny Llama and a tiny tokenizer on disk, a text, the bundled model, a generator."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test needs the hub
os.environ.setdefault("TQDM_DISABLE", "1")

WORDS = "the moon goes around a planet and its light comes from the sun while rivers carry water down to some sea"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A safetensors folder: Llama, 2 blocks, d=64, 128 positions, and a byte-level tokenizer without BOS."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [WORDS], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", bos_token="<end>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A plain text of about 1500 words, shuffled by a seed."""
    import random

    words = random.Random(0).choices(WORDS.split(), k=1500)
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def smollm2():
    """The bundled model and its tokenizer. Shared by all tests: prune a deep copy."""
    import minprune as mp

    return mp.load_model("smollm2")


@pytest.fixture
def generator():
    """A CPU random generator with a fixed seed."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_thread():
    """One thread for torch, and afterwards as many as before, so that no other test sums in another order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch) -> None:
    """The command line is used from an empty folder, in a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def run(capsys, in_an_empty_folder):
    """run(...) -> (exit code, stdout, stderr) of the command line with these arguments."""
    from minprune.cli.main import main

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
