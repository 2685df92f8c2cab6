"""Two small networks that benchmarks train from nothing, many times: on MNIST-1D, and a language model of bytes.

Both see the same batch at the same step in every run, so that runs differ in what is pruned and in nothing else.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import minprune as mp
from minprune.training.distill import language_loss
from minprune.training.masks import linear_layers, maintain_sparsity

DIGITS = (
    "4000 training examples, 40-100-100-10, ReLU, 600 steps of 100 examples, Adam, lr 0.002; 1000 test examples; "
    "score: test accuracy"
)
LANGUAGE = (
    "bytes of wikipedia train, a Llama of 2 blocks, d = 64, 600 steps of 8 x 64 bytes, AdamW, lr 0.005, warm-up over a "
    "tenth and cosine to 0; 64 x 64 bytes of wikipedia test; score: bits a byte"
)
STEPS = 600
BeforeStep = Callable[[int], object]


def _nothing(step: int) -> None:
    """What is done before each step if nothing is asked for."""


class Digits:
    """MNIST-1D, which is generated here, and a network for it."""

    early, scope = 0, "layer"

    def __init__(self, steps: int = STEPS, lr: float = 2e-3) -> None:
        self.steps, self.lr = steps, lr
        self.X, self.X_test, self.y, self.y_test = _digits()

    def network(self, seed: int) -> nn.Module:
        """Weights drawn with this seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))

    def layers(self, network: nn.Module):
        """What is pruned."""
        return linear_layers(network)

    def train(self, network: nn.Module, masks, start: int, stop: int, before: BeforeStep = _nothing) -> None:
        """Step `step` sees the same batch in every run."""
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr, fused=True)
        with maintain_sparsity(masks, optimizer):
            for step in range(start, stop):
                before(step)
                batch = _batch(len(self.X), 100, step)
                optimizer.zero_grad()
                cross_entropy(network(self.X[batch]), self.y[batch]).backward()
                optimizer.step()

    @torch.no_grad()
    def measure(self, network: nn.Module) -> float:
        """Test accuracy."""
        return float((network(self.X_test).argmax(1) == self.y_test).float().mean())


class Language:
    """Bytes of Wikipedia and a very small Llama."""

    scope = "global"

    def __init__(self, steps: int = STEPS, lr: float = 5e-3, decay: str = "cosine", width: int = 64) -> None:
        self.width = width  # a multiple of 16
        rest = torch.arange(steps) / steps  # of the run is done
        fall = (rest.mul(torch.pi).cos() + 1) / 2 if decay == "cosine" else torch.ones(steps)
        self.steps, self.early = steps, steps // 10
        self.rates = lr * torch.minimum((torch.arange(steps) + 1) / self.early, fall)
        self.text, self.test = _bytes()

    def network(self, seed: int) -> nn.Module:
        """Weights drawn with this seed."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=256, hidden_size=self.width, intermediate_size=self.width * 5 // 2, num_hidden_layers=2,
            num_attention_heads=self.width // 16, num_key_value_heads=self.width // 16, max_position_embeddings=64,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=True, initializer_range=0.8 / self.width**0.5,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)

    def layers(self, network: nn.Module):
        """What is pruned: the matrices of the blocks."""
        return mp.find_layers(network)

    def train(self, network: nn.Module, masks, start: int, stop: int, before: BeforeStep = _nothing) -> None:
        """Step `step` sees the same batch in every run, and the same learning rate."""
        optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.01, fused=True)
        with maintain_sparsity(masks, optimizer):
            for step in range(start, stop):
                before(step)
                optimizer.param_groups[0]["lr"] = float(self.rates[step])
                places = _batch(len(self.text) - 64, 8, step)
                optimizer.zero_grad()
                language_loss(network, self.text[places[:, None] + torch.arange(64)]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()

    @torch.no_grad()
    def measure(self, network: nn.Module) -> float:
        """Bits a byte."""
        places = torch.arange(64) * ((len(self.test) - 64) // 64)
        windows = self.test[places[:, None] + torch.arange(64)]
        return float(language_loss(network, windows)) / torch.log(torch.tensor(2.0)).item()


TASKS = {"mnist1d": Digits, "language": Language}
SCORES = {"mnist1d": DIGITS, "language": LANGUAGE}


@cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs for training and test, then their digits."""
    from mnist1d.data import get_dataset_args, make_dataset

    data = make_dataset(get_dataset_args())
    X, X_test = (torch.from_numpy(data[name]).float() for name in ("x", "x_test"))
    return X, X_test, torch.from_numpy(data["y"]), torch.from_numpy(data["y_test"])


@cache
def _bytes() -> tuple[Tensor, ...]:
    """For training and test."""
    return tuple(torch.tensor(list(mp.load_text("wikipedia", split).encode())) for split in ("train", "test"))


def _batch(available: int, size: int, step: int) -> Tensor:
    """Which examples step `step` takes."""
    return torch.randint(available, (size,), generator=torch.Generator().manual_seed(step))
