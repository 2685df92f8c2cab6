"""Lottery tickets with their controls and seeds, for chapter 15: a small network on MNIST-1D, a small language model.

Both are trained from nothing, and again after each round of pruning. Writes one JSON file with the command, versions
and machine; a seed that it already holds is not repeated.

    python benchmarks/lottery.py book/results/lottery.json
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from record import load_cells, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import minprune as mp
from minprune.training.distill import language_loss
from minprune.training.lottery import Ticket, find_tickets, random_ticket, shares, state_of
from minprune.training.masks import keeping, linear_layers, set_zeros, smallest_go, sparsity_of

SEEDS = {"mnist1d": 5, "language": 3}
PROTOCOL = {
    "mnist1d": "4000 training examples, 40-100-100-10, ReLU, 600 steps of 100 examples, Adam, lr 0.002; 1000 test "
    "examples; 8 rounds that prune 30 % of what is left in each layer; score: test accuracy",
    "language": "bytes of wikipedia train, a Llama of 2 blocks, d = 64, 200 steps of 8 x 64 bytes, AdamW, lr 0.005, "
    "warm-up and cosine; 64 x 64 bytes of wikipedia test; 4 rounds that prune half of what is left, all layers of the "
    "blocks together; score: bits a byte",
    "ways": "ticket: rewound to initialisation; early: rewound to a tenth of the run; random: as many survivors in "
    "each layer, elsewhere; new weights: the ticket's masks, drawn anew; at once: one round from dense to sparse",
    "cost": "training steps that were taken to get there, all runs before it included",
}


class Digits:
    """MNIST-1D, which is generated here, and a network for it."""

    steps, early, sparsities, scope = 600, 0, shares(0.3, 8), "layer"
    controlled = (2, 5, 8)

    def __init__(self) -> None:
        from mnist1d.data import get_dataset_args, make_dataset

        data = make_dataset(get_dataset_args())
        self.X, self.X_test = (torch.from_numpy(data[name]).float() for name in ("x", "x_test"))
        self.y, self.y_test = (torch.from_numpy(data[name]) for name in ("y", "y_test"))

    def network(self, seed: int) -> nn.Module:
        """Weights drawn with this seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))

    def layers(self, network: nn.Module):
        """What is pruned."""
        return linear_layers(network)

    def train(self, network: nn.Module, masks, start: int, stop: int) -> None:
        """Step `step` sees the same batch in every run."""
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, fused=True)
        with keeping(masks, optimizer):
            for step in range(start, stop):
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

    steps, early, sparsities, scope = 200, 20, shares(0.5, 4), "global"
    controlled = (2, 4)

    def __init__(self) -> None:
        self.text, self.test = (
            torch.tensor(list(mp.load_text("wikipedia", split).encode())) for split in ("train", "test")
        )

    def network(self, seed: int) -> nn.Module:
        """Weights drawn with this seed."""
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
            initializer_range=0.1,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)

    def layers(self, network: nn.Module):
        """What is pruned: the matrices of the blocks."""
        return mp.find_layers(network)

    def train(self, network: nn.Module, masks, start: int, stop: int) -> None:
        """Step `step` sees the same batch in every run, and the same learning rate."""
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.01, fused=True)
        rest = torch.tensor([1 - step / self.steps for step in range(self.steps)])
        rates = 5e-3 * torch.minimum(
            (torch.arange(self.steps) + 1) / self.early, (1 - rest).mul(torch.pi).cos().add(1) / 2
        )
        with keeping(masks, optimizer):
            for step in range(start, stop):
                optimizer.param_groups[0]["lr"] = float(rates[step])
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


def recompute(task: str, seed: int) -> list[dict]:
    """All cells of one seed from nothing but the protocol: for each way a list of [sparsity, score, cost]."""
    torch.set_num_threads(1)
    start, job = time.process_time(), TASKS[task]()
    network = job.network(seed)
    layers, initial = job.layers(network), state_of(network)

    def ticket(masks, number: int, cost: int, weights) -> Ticket:
        """Train once from these weights under these masks."""
        network.load_state_dict(weights)
        set_zeros(masks)
        job.train(network, masks, 0, job.steps)
        return Ticket(number, masks, sparsity_of(masks), cost, job.measure(network))

    def rounds(rewind: int) -> list[Ticket]:
        network.load_state_dict(initial)
        options = {"steps": job.steps, "sparsities": job.sparsities, "scope": job.scope}
        return find_tickets(network, layers, job.train, job.measure, rewind=rewind, **options)

    found = {"ticket": rounds(0)}
    if job.early:
        found["early"] = rounds(job.early)
    other = state_of(job.network(seed + 1000))
    for number in job.controlled:
        masks = found["ticket"][number].masks
        found.setdefault("random", []).append(ticket(random_ticket(masks, seed), number, job.steps, initial))
        found.setdefault("new weights", []).append(ticket(masks, number, job.steps, other))
    network.load_state_dict(initial)
    job.train(network, {}, 0, job.steps)
    trained = {layer: layer.weight.clone() for layer in layers}
    for number in job.controlled:
        masks = smallest_go(trained, mp.Unstructured(job.sparsities[number - 1]), job.scope)
        found.setdefault("at once", []).append(ticket(masks, number, 2 * job.steps, initial))
    seconds = time.process_time() - start
    rows = {way: [[_short(t.sparsity), _short(t.score), t.cost] for t in tickets] for way, tickets in found.items()}
    return [{"task": task, "seed": seed, "way": way, "rows": r, "seconds": _short(seconds)} for way, r in rows.items()]


def _batch(available: int, size: int, step: int) -> Tensor:
    """Which examples step `step` takes."""
    return torch.randint(available, (size,), generator=torch.Generator().manual_seed(step))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def main() -> None:
    """Fill in what is missing of the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    cells = load_cells(args.output)
    done = {(cell["task"], cell["seed"]) for cell in cells}
    wanted = [("mnist1d", 0), ("mnist1d", 1), ("mnist1d", 2), ("language", 0), ("language", 1)]  # the first to have
    wanted += [(task, seed) for task, seeds in SEEDS.items() for seed in range(seeds) if (task, seed) not in wanted]
    for task, seed in wanted:
        if (task, seed) not in done:
            cells += recompute(task, seed)
            print(cells[-1], file=sys.stderr)
            save(args.output, f"python benchmarks/lottery.py {args.output.as_posix()}", PROTOCOL, cells)


if __name__ == "__main__":
    main()
