"""A causal LM whose blocks hand each other hidden states in many ways, for tests; the ways are in `KINDS`.

Every block mixes tokens with those before them by a running mean (keys of its own or those that travel), then has an
MLP: enough for a mistake in what travels to show in all later layers.
"""

from dataclasses import dataclass

import torch
import transformers as hf
from torch import nn

KINDS = (
    "tensor", "pair", "triple", "list", "keyword", "in place", "four axes",
    "state", "scaled state", "shared dict", "shared list", "cache", "scaled", "argument in place", "flat",
    "loss first", "object",
)  # fmt: skip
LEFT = ("left behind", "left unread")  # something is left in an attribute that all blocks hold
ALONE = ("tensor", "pair", "triple", "list", "keyword", "in place", "four axes", "flat")  # hidden states alone travel


class Cache:
    """What blocks leave for later ones, in an attribute."""

    def __init__(self):
        self.keys = []


@dataclass
class Answer:
    """What a block returns, in attributes."""

    size: torch.Tensor
    hidden: torch.Tensor


class OddConfig(hf.PretrainedConfig):
    model_type = "minprune_odd"

    def __init__(self, kind="tensor", vocab_size=96, hidden_size=32, num_hidden_layers=4, **more):
        self.kind, self.vocab_size, self.hidden_size = kind, vocab_size, hidden_size
        self.num_hidden_layers, self.max_position_embeddings = num_hidden_layers, 64
        self.pad_token_id, self.bos_token_id, self.eos_token_id = 0, 1, 2
        super().__init__(**{"tie_word_embeddings": False, **more})


class OddBlock(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.kind, self.index, d = config.kind, index, config.hidden_size
        self.norm = nn.LayerNorm(d)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up = nn.Linear(d, 48)
        self.store = None
        self.down = nn.Linear(48, d)

    def forward(self, hidden, shared=None, *, windows=None):
        kind = self.kind
        x = hidden[0] if kind == "four axes" else hidden.unflatten(0, (windows, -1)) if kind == "flat" else hidden
        normed = self.norm(x)
        keys = self.key(input=normed) if kind == "by name" else self.key(normed)
        mixed = keys
        if kind in ("state", "scaled state") and shared is not None:
            mixed = keys + shared
        if kind == "shared dict":
            mixed = keys + shared["keys"] if self.index % 2 else keys
            shared["keys"] = keys
        if kind == "shared list":
            mixed = keys + sum(shared[-2:])
            shared.append(keys)
        if kind == "cache":
            mixed = keys + sum(shared.keys[-1:])
            shared.keys.append(keys)
        if kind == "argument in place":
            mixed = keys + shared
            shared += 0.1 * keys
        if kind in LEFT and self.index % 2 == 0:
            self.store.keys = [keys]
        if kind == "left behind" and self.index % 2:
            mixed = keys + self.store.keys[0]
        if kind == "by position":
            return hidden + self.down(self.up(self.out(mixed * self.value(normed))).relu())
        if kind == "by name":
            return hidden + self.down(input=self.up(input=self.out(input=mixed * self.value(input=normed))).relu())
        weights = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
        mean = (mixed * self.value(normed)).cumsum(1) / weights
        if kind == "in place":
            hidden += self.out(mean)
            hidden += self.down(self.up(self.norm(hidden)).relu())
            return hidden
        x = x + self.out(mean)
        x = x + self.down(self.up(self.norm(x)).relu())
        if kind == "four axes":
            return torch.stack([x, hidden[1] + x.tanh()])
        if kind == "flat":
            return x.flatten(0, 1)
        if kind == "object":
            return Answer(x[..., 0].mean(1), x)
        if kind == "loss first":
            return x.square().mean(), x
        beside = {"pair": (None,), "triple": (mean, None), "list": (mean,), "state": (keys,), "scaled state": (keys,)}
        return (list if kind == "list" else tuple)([x, *beside[kind]]) if kind in beside else x


class OddPreTrained(hf.PreTrainedModel):
    config_class, base_model_prefix = OddConfig, "model"


class OddModel(OddPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OddBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        if config.kind in LEFT:
            store = Cache()
            for block in self.layers:
                block.store = store
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, use_cache=None, **_):
        kind, hidden = self.config.kind, self.embed(input_ids)
        shared = {"shared dict": {}, "shared list": [], "cache": Cache()}.get(kind)
        if kind == "argument in place":
            shared = torch.zeros_like(hidden)
        if kind == "four axes":
            hidden = torch.stack([hidden, hidden.tanh()])
        if kind == "flat":
            hidden = hidden.flatten(0, 1)
        for block in self.layers:
            if kind == "keyword":
                hidden = block(hidden=hidden, shared=None)
            elif kind == "flat":
                hidden = block(hidden, windows=len(input_ids))
            elif kind in ("state", "scaled state"):
                hidden, shared = block(hidden, shared)
                shared = shared if kind == "state" else 0.5 * shared
            else:
                out = block(hidden, shared)
                hidden = out[0] if isinstance(out, (tuple, list)) else out
                hidden = out.hidden if kind == "object" else out[1] if kind == "loss first" else hidden
            if kind == "scaled":
                hidden = hidden / 2
        if kind == "four axes":
            hidden = hidden.sum(0)
        if kind == "flat":
            hidden = hidden.unflatten(0, (len(input_ids), -1))
        return hf.modeling_outputs.BaseModelOutput(last_hidden_state=self.norm(hidden))


class OddForCausalLM(OddPreTrained, hf.GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = OddModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, use_cache=None, **_):
        hidden = self.model(input_ids).last_hidden_state
        return hf.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden))


hf.AutoConfig.register(OddConfig.model_type, OddConfig)
hf.AutoModelForCausalLM.register(OddConfig, OddForCausalLM)
