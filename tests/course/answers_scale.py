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


def operations_loop(groups, tokens):
    found = [0.0, 0.0, 0.0]
    for shapes in map(torch.Tensor.tolist, groups):
        found[1] += tokens * shapes[0][1] ** 2
        for d_out, d_in in shapes:
            found[0] += 2 * d_out * d_in * tokens
            found[2] += 2 * d_in**3 / 3 + d_out * d_in**2
    return found


def operations_numpy(groups, tokens):
    o, i = np.concatenate([group.numpy() for group in groups]).astype(float).T
    first = np.array([float(group[0, 1]) for group in groups])
    return np.array([2 * tokens * (o @ i), tokens * (first @ first), ((i * 2 / 3 + o) * i * i).sum()])


def enough_by_search(groups, itemsize):
    sums, _ = traffic_loop(groups, itemsize)
    low, high = 0, 10**7  # inputs of `low` tokens are no more bytes than the sums
    while high - low > 1:
        tokens = (low + high) // 2
        sent = sum(tokens * itemsize * int(group[0, 1]) for group in groups)
        low, high = (low, tokens) if sent > sums else (tokens, high)
    return high


def enough_by_division(groups, itemsize):
    widths = [int(group[-1, -1]) for group in groups]
    return int(sum(2 * d * d + 10 * d for d in widths) // (itemsize * sum(widths))) + 1


def growth_products(factors):
    width, depth, tokens = map(float, factors)
    weights = width * width * depth
    return weights * tokens, weights * tokens, weights * width, width * width, weights


RIGHT = {
    "pack": [pack_heap, pack_numpy],
    "block_traffic": [traffic_loop, traffic_numpy],
    "operations": [operations_loop, operations_numpy],
    "enough_tokens": [enough_by_search, enough_by_division],
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
    "operations": [
        lambda groups, tokens: operations_loop(groups, tokens)[::-1],
        lambda groups, tokens: operations_loop([group[:1] for group in groups], tokens),
        lambda groups, tokens: operations_loop(groups, 2 * tokens),
        lambda groups, tokens: sum(operations_loop(groups, tokens)),
    ],
    "enough_tokens": [
        lambda groups, itemsize: enough_by_search(groups, itemsize) + 1,
        lambda groups, itemsize: enough_by_search(groups[:1], itemsize),
        lambda groups, itemsize: 10**6,
        lambda groups, itemsize: traffic_loop(groups, itemsize)[0],
    ],
}
