"""Answers to the exercises of chapter 22, for test_checks.py: right ones in other words, and unforeseen wrong ones."""

import heapq

import numpy as np
import torch


def pack_heap(costs, ranks):
    heap = [(0.0, rank) for rank in range(ranks)]
    owners = {}
    for cost, place in sorted((-cost, place) for place, cost in enumerate(costs.tolist())):
        load, owner = heapq.heappop(heap)
        owners[place] = owner
        heapq.heappush(heap, (load - cost, owner))
    return [owners[place] for place in range(len(costs))]


def pack_numpy(costs, ranks):
    loads, owners = np.zeros(ranks), np.zeros(len(costs), dtype=int)
    for place in np.argsort(-costs.numpy(), kind="stable"):
        owners[place] = loads.argmin()
        loads[owners[place]] += float(costs[place])
    return owners


def traffic_loop(groups, itemsize):
    sums = weights = 0
    for shapes in map(torch.Tensor.tolist, groups):
        d = shapes[0][1]
        sums += 4 * (sum(range(1, d + 1)) + d + d)
        for d_out, d_in in shapes:
            weights += d_out * d_in * itemsize
    return sums, weights


def traffic_numpy(groups, itemsize):
    d = np.array([int(shapes[-1, 1]) for shapes in groups])
    weights = sum(int(shapes.prod(1).sum()) for shapes in groups)
    return np.array([int((2 * d * (d + 1) + 8 * d).sum()), itemsize * weights])


def growth_products(factors):
    width, depth, tokens = map(float, factors)
    weights = width * width * depth
    return weights * tokens, weights * tokens, weights * width, width * width, weights


RIGHT = {
    "pack": [pack_heap, pack_numpy],
    "block_traffic": [traffic_loop, traffic_numpy],
    "growth": [growth_products, lambda factors: torch.tensor(growth_products(factors), dtype=torch.float64)],
}

REJECTED = {
    "pack": [
        lambda costs, ranks: [rank % ranks for rank in reversed(pack_heap(costs, ranks))],
        lambda costs, ranks: pack_heap(1 / costs, ranks)[::-1],
        lambda costs, ranks: [0] * len(costs),
        lambda costs, ranks: pack_heap(costs, ranks + 1),
    ],
    "block_traffic": [
        lambda groups, itemsize: traffic_loop(groups, itemsize)[::-1],
        lambda groups, itemsize: traffic_loop([shapes[:1] for shapes in groups], itemsize),
        lambda groups, itemsize: traffic_loop(groups, 2 * itemsize),
        lambda groups, itemsize: sum(traffic_loop(groups, itemsize)),
    ],
    "growth": [
        lambda factors: growth_products(factors.flip(0)),
        lambda factors: growth_products(factors)[::-1],
        lambda factors: growth_products(factors.square()),
        lambda factors: 1.0,
    ],
}
