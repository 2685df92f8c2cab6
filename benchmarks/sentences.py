"""A language model that makes sentences and whose weights no grid has ever seen: a Llama of 3.5 million, trained here.

SmolLM2 comes from a file of 4 bits, so what rounding does to it is not what rounding does to others (chapter 21). This
one is trained from nothing on the embedded Wikipedia, in float32, with a tokenizer learnt from the same text. Writes
one JSON file, and the model into the cache folder, where it is used again: about an hour on one core, once.

    OMP_NUM_THREADS=1 python benchmarks/sentences.py book/results/sentences.json
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from record import fill_in, short
from torch import Tensor, nn

import minprune as mp
from minprune.data.assets import derived
from minprune.evaluation.perplexity import _read_nll
from minprune.training.distill import language_loss

VOCABULARY, WIDTH, INNER, BLOCKS, HEADS, KV_HEADS = 2048, 256, 704, 4, 4, 2
STEPS, BATCH, LENGTH = 1750, 16, 256
LR, DECAY, DROPOUT = 2e-3, 0.1, 0.1
PROMPTS = ("The city is", "In 1965 he", "A theory of")
PROTOCOL = {
    "model": f"a Llama of {BLOCKS} blocks, d = {WIDTH}, d_ff = {INNER}, {HEADS} heads and {KV_HEADS} of keys and "
    "values, embeddings tied; seed 0, float32",
    "tokenizer": f"byte-level BPE of {VOCABULARY} tokens, learnt from wikipedia train",
    "training": f"wikipedia train, {STEPS} steps of {BATCH} x {LENGTH} tokens at random places, AdamW, lr {LR}, weight "
    f"decay {DECAY}, warm-up over a twentieth and cosine to 0, dropout {DROPOUT} on what blocks add to the stream; "
    "settings were not tuned",
    "nats": "a token, 64 x 256 tokens, evenly spaced, of each split of wikipedia; bits: a byte of the test",
    "texts": "40 tokens after each prompt, drawn from the 40 most likely, seed 0",
}


def _learnt_tokenizer(text: str) -> Any:
    """Byte-level BPE, so that every text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer: Any = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=[end], show_progress=False
    )
    learnt.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=learnt, bos_token=end, eos_token=end)


def _drawn_network() -> Any:
    """Weights drawn with seed 0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=LENGTH,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def tokens_of(tokenizer: Any, split: str) -> Tensor:
    """All tokens of a split, (n,)."""
    return torch.tensor(tokenizer(mp.load_text("wikipedia", split), verbose=False)["input_ids"])


def evenly(tokens: Tensor, windows: int, length: int) -> Tensor:
    """Windows at equal distances, (windows, length)."""
    starts = torch.arange(windows) * ((len(tokens) - length) // windows)
    return tokens[starts[:, None] + torch.arange(length)]


@contextmanager
def _dropout(network: Any) -> Iterator[None]:
    """While this is open, a part of what each block adds to the stream is left out; nothing stays in the model."""
    with ExitStack() as stack:
        for block in network.model.layers:
            for layer in (block.self_attn.o_proj, block.mlp.down_proj):
                handle = layer.register_forward_hook(
                    lambda layer, args, out: nn.functional.dropout(out, DROPOUT, layer.training)
                )
                stack.callback(handle.remove)
        yield


def _train(network: Any, text: Tensor, held_out: Tensor) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=DECAY, fused=True)
    rest = torch.arange(STEPS) / STEPS
    rates = LR * torch.minimum((torch.arange(STEPS) + 1) / (STEPS / 20), (rest.mul(torch.pi).cos() + 1) / 2)
    start = time.process_time()
    with _dropout(network), torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = float(rates[step])
            random = torch.Generator().manual_seed(step)
            places = torch.randint(len(text) - LENGTH, (BATCH,), generator=random)
            optimizer.zero_grad()
            loss = language_loss(network.train(), text[places[:, None] + torch.arange(LENGTH)])
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if step % 125 == 124:
                seconds = time.process_time() - start
                seen = f"step {step + 1}: {loss.item():.3f}, held out {nats(network, held_out):.3f}, {seconds:.0f} s"
                print(seen, file=sys.stderr, flush=True)
    network.eval()


@torch.no_grad()
def nats(network: Any, windows: Tensor) -> float:
    """Of a token, on average."""
    return float(_read_nll(network.eval(), windows, 16, False).double().mean())


@torch.enable_grad()
def _build(folder: Path) -> None:
    tokenizer = _learnt_tokenizer(mp.load_text("wikipedia", "train"))
    network = _drawn_network()
    _train(network, tokens_of(tokenizer, "train"), evenly(tokens_of(tokenizer, "validation"), 64, LENGTH))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def sentences_folder() -> Path:
    """Where the trained model and its tokenizer are; trained if they are nowhere yet."""
    return derived("sentences-float32", _build, ("config.json", "model.safetensors", "tokenizer.json"))


def recompute(model: str) -> dict[str, Any]:
    """What the trained model reaches, and what it writes."""
    torch.set_num_threads(1)
    network, tokenizer = mp.load_model(sentences_folder())
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters())}
    for split in ("train", "validation", "test"):
        found[split] = short(nats(network, evenly(tokens_of(tokenizer, split), 64, LENGTH)))
    test = mp.load_text("wikipedia", "test")
    tokens_a_byte = len(tokens_of(tokenizer, "test")) / len(test.encode())
    found["bits"] = short(found["test"] * tokens_a_byte / torch.log(torch.tensor(2.0)).item())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "top_k": 40, "pad_token_id": 0}
        for prompt in PROMPTS:
            written = network.generate(**tokenizer(prompt, return_tensors="pt"), **options)
            found.setdefault("texts", []).append(tokenizer.decode(written[0], skip_special_tokens=True))
    return found


def main() -> None:
    """Train the model if the cache lacks it, and fill in the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    command = "OMP_NUM_THREADS=1 python benchmarks/sentences.py book/results/sentences.json"
    fill_in(args.output, command, PROTOCOL, [{"model": "sentences"}], recompute)


if __name__ == "__main__":
    main()
