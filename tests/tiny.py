"""Tiny models with random weights, one per family, and token windows for them."""

import logging

import torch
import transformers as hf
from torch import Tensor

VOCABULARY, WINDOWS, LENGTH = 96, 5, 24
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}  # two query heads share one key and value head
_BARE = {key: _COMMON[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
_GPT = {**_BARE, "n_embd": 32, "n_layer": 2, "n_head": 4}

FAMILIES = {  # name -> (configuration class, its arguments)
    "llama": (hf.LlamaConfig, _GROUPED),
    "mistral": (hf.MistralConfig, {**_GROUPED, "sliding_window": 8}),
    "qwen2": (hf.Qwen2Config, _GROUPED),
    "qwen3": (hf.Qwen3Config, {**_GROUPED, "head_dim": 8}),
    "gemma2": (hf.Gemma2Config, {**_GROUPED, "head_dim": 8, "sliding_window": 8}),
    "gemma3": (
        hf.Gemma3TextConfig,
        {**_GROUPED, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "opt": (
        hf.OPTConfig,
        {
            **{key: value for key, value in _COMMON.items() if key != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
    ),
    "gpt2": (hf.GPT2Config, {**_GPT, "n_positions": 64, "n_inner": 48}),
    "gpt_neox": (hf.GPTNeoXConfig, _COMMON),
    "phi": (hf.PhiConfig, _COMMON),
    "falcon": (
        hf.FalconConfig,
        {**_BARE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
    ),
    "mixtral": (hf.MixtralConfig, {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bloom": (hf.BloomConfig, {**_BARE, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gptj": (hf.GPTJConfig, {**_GPT, "n_positions": 64, "n_inner": 48, "rotary_dim": 4}),
    "olmo2": (hf.Olmo2Config, _COMMON),
    "granite": (hf.GraniteConfig, _GROUPED),
    "starcoder2": (hf.Starcoder2Config, _GROUPED),
    "cohere": (hf.CohereConfig, _GROUPED),
}
_LAYERED = {**_GROUPED, "head_dim": 8, "num_hidden_layers": 4, "sliding_window": 8, "num_kv_shared_layers": 2}
_LAYERED |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "vocab_size_per_layer_input": VOCABULARY}
_LAYERED |= {"hidden_size_per_layer_input": 8}
HANDING_ON = {  # their blocks return other things than hidden states of three axes, or share keys and values
    "gemma4": (hf.Gemma4TextConfig, {**_LAYERED, "global_head_dim": 8}),
    "gemma3n": (
        hf.Gemma3nTextConfig,
        {**_LAYERED, "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
    ),
    "bamba": (
        hf.BambaConfig,
        {
            **_GROUPED,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "rwkv": (hf.RwkvConfig, {**_BARE, "hidden_size": 32, "num_hidden_layers": 3, "context_length": 64}),
    "gpt1": (hf.OpenAIGPTConfig, {**_GPT, "n_positions": 64}),
    "mamba": (hf.MambaConfig, {**_BARE, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}),
}
UNSUPPORTED_EXPERTS = {  # their expert matrices are stored as (experts, d_in, d_out)
    "gpt_oss": (hf.GptOssConfig, {**_GROUPED, "head_dim": 8, "num_local_experts": 4}),
    "llama4": (
        hf.Llama4TextConfig,
        {**_GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1},
    ),
}
ROUTED = {  # their routers or gates are linear layers
    "phimoe": (hf.PhimoeConfig, {**_GROUPED, "num_local_experts": 4}),
    "hunyuan": (hf.HunYuanMoEV1Config, {**_GROUPED, "head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    "qwen2_moe": (
        hf.Qwen2MoeConfig,
        {**_GROUPED, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "afmoe": (
        hf.AfmoeConfig,
        {
            **_GROUPED,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "num_dense_layers": 1,
        },
    ),
}
NOT_ON_META = {"diffllama": (hf.DiffLlamaConfig, _GROUPED)}  # parameters with numbers in a model without weights
SHARED = {  # one set of weights in several blocks
    "zamba2": (
        hf.Zamba2Config,
        _GROUPED
        | {"num_hidden_layers": 4, "num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid"] * 2}
        | {"hybrid_layer_ids": [1, 3], "num_mem_blocks": 1, "adapter_rank": 8, "mamba_d_state": 8, "n_mamba_heads": 8}
        | {"mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8},
    )
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """A model of that family in eval mode, two blocks of width 32, with weights that a real model could have.

    The library's own initial weights are so small that attention is nearly uniform, and its biases are zero, so
    that a bug in either would not show: matrices are drawn from N(0, 0.2^2) here and biases from N(0, 0.1^2).
    changes: arguments of the configuration other than the family's own.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)  # warnings about the tiny sizes
    make, arguments = (FAMILIES | HANDING_ON | UNSUPPORTED_EXPERTS | ROUTED | SHARED | NOT_ON_META)[family]
    with torch.random.fork_rng():  # the library draws what is not drawn below
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(make(**(arguments | changes)), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in ((n, p) for n, p in model.named_parameters() if not n.endswith("A_log")):
            width = 0.2 if parameter.ndim >= 2 else 0.1 if name.endswith(("bias", "output_scale", "sinks")) else None
            if width:
                parameter.copy_(width * torch.randn(parameter.shape, generator=generator))  # the same in every dtype
    return model.eval()


def tiny_tokens(windows: int = WINDOWS, length: int = LENGTH, seed: int = 1) -> Tensor:
    """Random token ids (windows, length), int64; the special ids 0, 1, 2 do not occur."""
    return torch.randint(3, VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


def loud_model(loud: float, dtype: torch.dtype = torch.float64, **changes):
    """A tiny Llama whose first position is loud, as in real models, if the windows begin with token 1.

    In two channels that token's embedding is large and all others are small, and the first norm multiplies both by
    `loud`: about that many times larger than the other inputs, and only there. One input is always zero.
    """
    model = tiny_model("llama", dtype, **changes)
    with torch.no_grad():
        embedding, norm = model.get_input_embeddings().weight, model.model.layers[0].input_layernorm.weight
        embedding[:, :2] /= loud
        embedding[1, :2] = 2.0
        norm[:2], norm[-1] = loud, 0.0
    return model


def loud_tokens(windows: int = WINDOWS, length: int = LENGTH) -> Tensor:
    """As `tiny_tokens`, but each window begins with token 1."""
    tokens = tiny_tokens(windows, length)
    tokens[:, 0] = 1
    return tokens
