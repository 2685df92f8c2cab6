"""What rivals.py runs: transformers, llama.cpp and OpenVINO behind the same two functions, and the way to OpenVINO.

Nothing is imported before it is needed: a process that runs llama.cpp holds no torch.
"""

import os
from pathlib import Path
from typing import Any

LENGTH = 512  # of the longest window


class Torch:
    """A model of transformers, as it is, compiled, or with stored matrices."""

    def __init__(self, model: Any, static: bool = False):
        import torch
        from transformers import StaticCache

        torch.set_grad_enabled(False)
        self.model, self.torch = model, torch
        self.cache = StaticCache(config=model.config, max_cache_len=64) if static else None

    def write(self, prompt: list[int], tokens: int) -> list[int]:
        """The tokens that follow the prompt."""
        ids = self.torch.tensor([prompt])
        if self.cache is not None:
            self.cache.reset()
        out = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=tokens,
                                  min_new_tokens=tokens, do_sample=False, pad_token_id=0,
                                  past_key_values=self.cache)  # fmt: skip
        return out[0, len(prompt) :].tolist()

    def logits(self, window: list[int]):
        """Of every position, (tokens, vocabulary)."""
        return self.model(self.torch.tensor([window])).logits[0].float().numpy()


class Stepwise:
    """What the engines below share: a loop that takes the likeliest token."""

    def write(self, prompt: list[int], tokens: int) -> list[int]:
        """The tokens that follow the prompt."""
        self.forget()
        written: list[int] = []
        for _ in range(tokens):
            row = self.read(written[-1:] or prompt, len(prompt) + len(written[:-1]) if written else 0)[-1]
            written.append(int(row.argmax()))
        return written

    def logits(self, window: list[int]):
        """Of every position, (tokens, vocabulary)."""
        self.forget()
        return self.read(window, 0, every=True)


class LlamaCpp(Stepwise):
    """llama.cpp on a GGUF file, through its C functions."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp as lib

        self.lib = lib
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        given = lib.llama_context_default_params()
        given.n_ctx = given.n_batch = given.n_ubatch = LENGTH
        given.n_threads = given.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, given)

    def forget(self) -> None:
        """Empty the cache of keys and values."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def read(self, tokens: list[int], place: int, every: bool = False):
        """The logits of the last token, or of all: (1 or tokens, vocabulary)."""
        from numpy.ctypeslib import as_array

        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, place + i, 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        assert self.lib.llama_decode(self.context, batch) == 0
        self.lib.llama_batch_free(batch)
        rows = len(tokens) if every else 1
        return as_array(self.lib.llama_get_logits(self.context), (rows, self.vocabulary))


class LlamaServer:
    """llama.cpp as it is compiled in xllamacpp, which has its server: that writes, and shows no logits."""

    def __init__(self, path: Path, threads: int):
        from xllamacpp import CommonParams, Server

        given = CommonParams()
        given.model.path, given.n_ctx, given.n_parallel = str(path), LENGTH, 1
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
        self.server = Server(given)

    def write(self, prompt: list[int], tokens: int) -> str:
        """What follows the prompt, as text."""
        task = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = self.server.handle_completions(task)
        assert answer["usage"]["completion_tokens"] == tokens
        return answer["choices"][0]["text"]


class OpenVINO(Stepwise):
    """A model that OpenVINO compiles for the processor; its state is the cache."""

    def __init__(self, path: Path, threads: int, precision: str | None):
        import numpy as np
        import openvino

        given = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        given |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
        self.numpy, self.request = np, openvino.Core().compile_model(path, "CPU", given).create_infer_request()

    def forget(self) -> None:
        """Empty the cache of keys and values."""
        self.request.reset_state()

    def read(self, tokens: list[int], place: int, every: bool = False):
        """The logits of the tokens, (tokens, vocabulary)."""
        places = self.numpy.arange(place, place + len(tokens))
        self.request.infer({"ids": self.numpy.array([tokens]), "positions": places[None]}, share_outputs=True)
        return self.request.get_output_tensor(0).data[0]


def export_openvino(model: Any, work: Path, group: int) -> None:
    """Write a Llama with float32, int8 and int4 weights, the latter two rounded by nncf.

    It is traced with keys and values as inputs and outputs, which then become a state.
    """
    import nncf
    import openvino as ov
    import torch
    from openvino._offline_transformations import apply_make_stateful_transformation

    class Past:
        """What attention asks of a cache."""

        is_compileable = False

        def __init__(self, parts):
            self.parts = list(parts)

        def update(self, keys, values, layer, *_, **__):
            both = self.parts[2 * layer : 2 * layer + 2]
            self.parts[2 * layer : 2 * layer + 2] = (
                torch.cat(pair, 2) for pair in zip(both, (keys, values), strict=True)
            )
            return self.parts[2 * layer], self.parts[2 * layer + 1]

        def get_seq_length(self, layer=0):
            return self.parts[2 * layer].shape[2]

    class WithPast(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids, positions, *past):
            known = torch.arange(past[0].shape[2] + ids.shape[1])
            cache = Past(past)
            mask = (known <= positions[0][:, None])[None, None]
            out = self.model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
            return out.logits, *cache.parts

    sizes = model.config
    heads, count = sizes.num_key_value_heads, 2 * sizes.num_hidden_layers
    width = sizes.hidden_size // sizes.num_attention_heads
    past = [torch.zeros(1, heads, 3, width) for _ in range(count)]
    example = (torch.arange(4)[None], torch.arange(3, 7)[None], *past)
    with torch.no_grad():
        traced = ov.convert_model(WithPast(model).eval(), example_input=example)
    pairs = {f"past {i}": f"present {i}" for i in range(count)}
    for port, name in zip(traced.inputs, ("ids", "positions", *pairs), strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(ov.PartialShape([1, heads, -1, width] if name in pairs else [1, -1]))
    for port, name in zip(traced.outputs, ("logits", *pairs.values()), strict=True):
        port.get_tensor().set_names({name})
    traced.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(traced, pairs)
    ov.save_model(traced, work / "float32.xml", compress_to_fp16=False)
    modes = nncf.CompressWeightsMode
    for name, how in {"int8": {}, "int4": {"mode": modes.INT4_SYM, "ratio": 1.0, "group_size": group}}.items():
        smaller = nncf.compress_weights(ov.Core().read_model(work / "float32.xml"), **how)
        ov.save_model(smaller, work / f"{name}.xml", compress_to_fp16=False)
