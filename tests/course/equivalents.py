"""Mutants of the exercises' references that return the same on all arguments that an exercise allows, and why."""

ORDER = "the order in which they are gone through makes no difference"
NUMBER = "the same numbers in another type"
DISTANCE = "a distance is the same from either end"
ROOM = "what lies behind the values is looked up and never used, one place of it is enough"
MISSING = "NumPy takes any negative size for the one that is missing"
DISTINCT = "no two of what is sorted are equal, or so few that any sort is stable"
RANKS = "what is not negative ranks like its square"
SCALE = "the same factor for all of what is compared"
FLAG = "tells a wrong variant from the reference, in which it is always the same"
SHAPE = "only its mean is taken"
ZERO = "zero already, but for rounding, or set to zero later"
OVERWRITTEN = "every place is written before it is read"
SYMMETRIC = "the matrix is symmetric, and a vector is its own transpose"
SYMMETRIC_IS = "a is b if b is a"
REFUSED = "the package's pattern refuses the same arguments"
ZERO_U = "U is zero wherever something is kept"
EXCHANGED = "a product of numbers, or of a row with its inputs, may be taken in any order"
ONE = "there is exactly one"
ONE_AXIS = "the only axis that there is, counted from the other end"
PADDED = "padding is on the right, the shift is 1, and only sums over all windows are used"
BUDGET = "after a step that is taken in part nothing is left of the budget"
STAIRS = "progress beyond the end is held, by one line or by the other"
GATHER = "gather reads no further than its index"
NEVER = "every case reaches its sparsity"
FILL = "of three places at least two are free if at most one is kept"
GROUPS = "4 divides the number of inputs"
TINY = "no root is so small that it counts, and zero by it stays zero"
UNSIGNED = "its square is taken"
LAST = "at width 0 either line gives 0"
WIDER = "what is wider than the dense model is no smaller"
ODD = "rounding is the same on both sides of 0, so the lowest code is 0"
ALIKE = "loads that begin alike stay in their order"
FOUND = "the interval of the whole way is always one that shows it"
EITHER = "the smaller and the larger of two numbers, named in either order"
FAIR = "a fair coin: k heads are as likely as k tails"
NO_WAY = "there is no way to choose more than all"
WRITERS = "what reads no stream and is no table has a place in the other list"
ONE_TENSOR = "the matrices of a group have one width"
BYTE = "a byte more changes no answer"
LAST_OF_TWO = "the last of two axes, counted from the front"
FIRST = "below the scores of all weights that count, so these weights go first"

# exercise -> what stood there and what stands there now -> why it changes nothing
EQUIVALENT: dict[str, dict[str, str]] = {
    "zero_shares": {
        "together or (lambda flags: torch.cat([flag.flatten() for flag in flags]).float().mean()) -> lambda flags: torch.cat([flag.flatten() for flag in flags]).float().mean()": FLAG,  # noqa: E501
    },
    "eliminate": {
        "torch.outer(P[o, q], P[q, o]) -> torch.outer(P[q, o], P[o, q])": SYMMETRIC,
        "P[o, q] -> P[q, o]": SYMMETRIC,
        "P[q, o] -> P[o, q]": SYMMETRIC,
    },
    "return_gains": {
        "self.between(H, gone) @ w[gone] -> w[gone] @ self.between(H, gone)": SYMMETRIC,
        "self.between(H, gone) @ w[gone] -> self.between(H, gone).T @ w[gone]": SYMMETRIC,
        "self.between(H, gone) @ w[gone] -> self.between(H, gone) @ w[gone].T": SYMMETRIC,
        "self.pivots(H, gone, self.between(H, gone)) -> self.pivots(gone, H, self.between(H, gone))": FLAG,
    },
    "swap_change": {
        "lost(w, keep) @ G -> G @ lost(w, keep)": SYMMETRIC,
        "lost(w, keep) @ G -> lost(w, keep).T @ G": SYMMETRIC,
        "lost(w, keep) @ G -> lost(w, keep) @ G.T": SYMMETRIC,
        "squares * (w[p] ** 2 * G[p, p] + w[u] ** 2 * G[u, u]) -> w[p] ** 2 * G[p, p] + w[u] ** 2 * G[u, u]": FLAG,
        "G[p, u] -> G[u, p]": SYMMETRIC,
    },
    "towards_dense": {
        "M @ W if left else W @ M -> W @ M": FLAG,
        "more * stays -> more / stays": FLAG,
        "more * stays -> more": FLAG,
    },
    "leftover": {
        "second.sqrt() + 1e-12 -> second.sqrt() - 1e-12": TINY,
        "second.sqrt() + 1e-12 -> second.sqrt() + 1e-11": TINY,
        "second.sqrt() + 1e-12 -> second.sqrt() + 1e-13": TINY,
    },
    "masked_steps": {
        "min(1.0, (step + 1) / 5) -> min((step + 1) / 5, 1.0)": EITHER,
        "m / (1 - beta ** (step + 1)) if hats else m -> m / (1 - beta ** (step + 1))": FLAG,
        "v / (1 - beta_of_squares ** (step + 1)) if hats else v -> v / (1 - beta_of_squares ** (step + 1))": FLAG,
        "size = self.size(V, keep) if self.measured_again else size -> pass": FLAG,
        "(second.sqrt() if self.root else second) + 1e-12 -> (second.sqrt() if self.root else second) - 1e-12": TINY,
        "(second.sqrt() if self.root else second) + 1e-12 -> (second.sqrt() if self.root else second) + 1e-11": TINY,
        "(second.sqrt() if self.root else second) + 1e-12 -> (second.sqrt() if self.root else second) + 1e-13": TINY,
    },
    "with_padding": {
        "length - real if counted else torch.zeros_like(real) -> length - real": FLAG,
        "if not weigh: return ((nats * real + easy(cost) * padding) / (real + padding)).exp().mean() -> if False: return ((nats * real + easy(cost) * padding) / (real + padding)).exp().mean()": FLAG,  # noqa: E501
    },
    "too_short": {
        "min(1.0, limit / norm) -> min(limit / norm, 1.0)": ORDER,
    },
    "exposing_interval": {
        "int(steps[-1] - steps[0]) -> steps[-1] - steps[0]": NUMBER,
        "way + 1 -> way + 2": FOUND,
    },
    "padded_perplexity": {
        "(at >= 0) & (at < length) -> at < length": PADDED,
        "at >= 0 -> at > 0": PADDED,
        "at >= 0 -> at >= 1": PADDED,
        "at >= 0 -> at >= -1": PADDED,
        "at.clamp(0, length - 1) -> at.clamp(1, length - 1)": PADDED,
        "at.clamp(0, length - 1) -> at.clamp(-1, length - 1)": PADDED,
        "logits.log_softmax(-1).gather(-1, tokens[:, at, None])[..., 0] -> logits.log_softmax(-1).gather(-1, tokens[:, at, None])[..., -1]": PADDED,  # noqa: E501
        "real[:, at] & real -> real[:, at]": PADDED,
        "(nats * counts).sum(1) -> (nats * counts).sum(0)": PADDED,
        "counts.sum(1) -> counts.sum(0)": PADDED,
    },
    "contaminated": {
        "range(len(tokens) - n + 1) -> range(len(tokens) - n + 1)[::-1]": ORDER,
        "runs(train.flatten(), n) if joined else set().union(*(runs(window, n) for window in train)) -> set().union(*(runs(window, n) for window in train))": FLAG,  # noqa: E501
    },
    "take_steps": {
        "costs.diff(dim=1) -> costs.diff()": BUDGET,
        "sizes[:, None] if per_weight else 1 -> sizes[:, None]": FLAG,
        "torch.zeros(len(costs), dtype=torch.float64) -> torch.zeros(len(costs))": NUMBER,
        "prices.flatten().argsort(stable=True) -> prices.flatten().argsort()": DISTINCT,
        "stable=True -> stable=False": DISTINCT,
        "min(1.0, max(left, 0.0) / weights) -> min(max(left, 0.0) / weights, 1.0)": BUDGET,
        "max(left, 0.0) -> max(0.0, left)": BUDGET,
        "max(left, 0.0) -> max(left, -1.0)": BUDGET,
        "if part < 1 - 1e-09: part = {'part': part, 'whole': float(part > 0), 'none': 0.0}[last] -> if True: part = {'part': part, 'whole': float(part > 0), 'none': 0.0}[last]": BUDGET,  # noqa: E501
        "if part < 1 - 1e-09: part = {'part': part, 'whole': float(part > 0), 'none': 0.0}[last] -> if False: part = {'part': part, 'whole': float(part > 0), 'none': 0.0}[last]": BUDGET,  # noqa: E501
        "part = {'part': part, 'whole': float(part > 0), 'none': 0.0}[last] -> pass": BUDGET,
        "part * weights -> weights": BUDGET,
        "if part < 1 - 1e-09: break -> if False: break": BUDGET,
        "part < 1 - 1e-09 -> part <= 1 - 1e-09": BUDGET,
        "1 - 1e-09 -> 1": BUDGET,
        "1 - 1e-09 -> 1e-09": BUDGET,
        "1 - 1e-09 -> 1e-09 - 1": BUDGET,
        "1 - 1e-09 -> 0 - 1e-09": BUDGET,
        "1 - 1e-09 -> 1 - 1.000000001": BUDGET,
        "1 - 1e-09 -> 1 - 1e-08": BUDGET,
        "1 - 1e-09 -> 1 - 1e-10": BUDGET,
        "break -> pass": BUDGET,
    },
    "ticket_cost": {
        "int(sizes.sum()) -> sizes.sum()": NUMBER,
        "if left == before: raise PruneError(f'layers of {left} weights lose none at a rate of {rate:g}: {sparsity:g} is never reached') -> if False: raise PruneError(f'layers of {left} weights lose none at a rate of {rate:g}: {sparsity:g} is never reached')": NEVER,  # noqa: E501
    },
    "distillation": {
        "max(0, -self.shift) -> max(-self.shift, 0)": FLAG,
        "tokens[:, max(0, self.shift):length + min(0, self.shift)] -> tokens[:, max(0, self.shift):]": FLAG,
        "tokens[:, max(0, self.shift):length + min(0, self.shift)] -> tokens[:, max(0, self.shift):length + min(0, self.shift) + 1]": FLAG,  # noqa: E501
        "max(0, self.shift) -> max(self.shift, 0)": FLAG,
        "max(0, self.shift) -> max(1, self.shift)": FLAG,
        "max(0, self.shift) -> max(-1, self.shift)": FLAG,
        "length + min(0, self.shift) -> length - min(0, self.shift)": FLAG,
        "length + min(0, self.shift) -> length": FLAG,
        "min(0, self.shift) -> max(0, self.shift)": FLAG,
        "min(0, self.shift) -> min(self.shift, 0)": FLAG,
        "min(0, self.shift) -> min(1, self.shift)": FLAG,
        "text[:, start:start + aims.shape[1]] -> text[:, :]": GATHER,
        "text[:, start:start + aims.shape[1]] -> text[:, :start + aims.shape[1]]": GATHER,
        "text[:, start:start + aims.shape[1]] -> text[:, start:]": GATHER,
        "text[:, start:start + aims.shape[1]] -> text[:, start:start + aims.shape[1] + 1]": GATHER,
        "start + aims.shape[1] -> aims.shape[1]": GATHER,
        "share = 1 - share if self.exchanged else share -> pass": FLAG,
    },
    "csr_matmul": {
        "zip(pointers[:-1].tolist(), pointers[1:].tolist(), strict=True) -> zip(pointers[1:].tolist(), pointers[:-1].tolist(), strict=True)": EXCHANGED,  # noqa: E501
        "min(begin + self.first, end) -> min(end, begin + self.first)": EXCHANGED,
        "max(end - self.last, begin) -> max(begin, end - self.last)": EXCHANGED,
    },
    "count_parameters": {
        "d // config['num_attention_heads'] if guess_head else config['head_dim'] -> config['head_dim']": FLAG,
        "final_norm * d -> d": FLAG,
    },
    "block_mask": {
        "W.abs() -> W.square()": RANKS,
    },
    "best_mask": {
        "(X @ (w * ~keep)).square().sum() -> (X @ (w * ~keep)).square().mean()": SCALE,
        "X @ (w * ~keep) -> X @ (w * ~keep).T": SYMMETRIC,
        "range(len(w)) -> range(len(w))[::-1]": ORDER,
    },
    "remove_several": {
        "w[gone] @ factor @ rows -> (w[gone] @ factor).T @ rows": SYMMETRIC,
        "w[gone] @ factor -> factor @ w[gone]": SYMMETRIC,
        "w[gone] @ factor -> w[gone].T @ factor": SYMMETRIC,
        "w[gone] @ factor -> w[gone] @ factor.T": SYMMETRIC,
    },
    "surgeon_2_4": {
        "(w[:, c] / U.diagonal()[c]).square() -> (w[:, c] / U.diagonal()[c]).abs()": RANKS,
        "torch.ones_like(W, dtype=torch.bool) -> torch.zeros_like(W, dtype=torch.bool)": OVERWRITTEN,
    },
    "error_split": {
        "_split(w, X, keep, _own, _cross) -> _split(X, w, keep, _own, _cross)": EXCHANGED,
    },
    "nm_mask": {
        "_refuse(scores, m) -> pass": REFUSED,
        "if scores.shape[1] % m: raise ValueError(f'{m} does not divide {scores.shape[1]} inputs, so a group would reach into the next row') -> if False: raise ValueError(f'{m} does not divide {scores.shape[1]} inputs, so a group would reach into the next row')": REFUSED,  # noqa: E501
        "scores.shape[1] -> scores.shape[0]": REFUSED,
    },
    "lost_in_runs": {
        "min(run, m) -> min(m, run)": EITHER,
        "max(0, k * run - m // 2) -> max(k * run - m // 2, 0)": EITHER,
        "k * run - m // 2 -> m // 2 - k * run": FAIR,
        "m // 2 -> m / 2": NUMBER,
        "range(coins + 1) -> range(coins + 1)[::-1]": FAIR,
        "coins + 1 -> coins + 2": NO_WAY,
    },
    "exact_row": {
        "H @ w -> w @ H": SYMMETRIC,
        "H @ w -> H.T @ w": SYMMETRIC,
        "H @ w -> H @ w.T": SYMMETRIC,
        "torch.eye(len(G), dtype=G.dtype) -> torch.eye(len(G))": NUMBER,
        "self.target(G + self.right(G, damp) * eye, w, keep) -> self.target(w, G + self.right(G, damp) * eye, keep)": EXCHANGED,  # noqa: E501
    },
    "always_holds": {
        "right ^ torch.isin(claims, torch.tensor(wrong, dtype=claims.dtype)) -> right": FLAG,
        "torch.tensor(wrong, dtype=claims.dtype) -> torch.tensor(wrong)": NUMBER,
    },
    "ramp": {
        "done.clamp(max=1) if held else done -> done.clamp(max=1)": FLAG,
    },
    "next_mask": {
        "self.score(W) / (self.scale(W) if self.scale else 1) -> self.score(W) * (self.scale(W) if self.scale else 1)": FLAG,  # noqa: E501
        "self.score(W) / (self.scale(W) if self.scale else 1) -> self.score(W)": FLAG,
        "self.scale(W) if self.scale else 1 -> self.scale(W) if self.scale else 2": FLAG,
        "keep.flatten() -> keep": ONE,
        "goes = survivors - goes if self.keep_share else goes -> pass": FLAG,
        "goes += len(flat) - survivors if self.zeros else 0 -> pass": FLAG,
        "goes += len(flat) - survivors if self.zeros else 0 -> goes -= len(flat) - survivors if self.zeros else 0": FLAG,  # noqa: E501
        "old.clone() -> old": ONE,
        "old.nonzero()[:, 0] -> old.nonzero()[:, -1]": ONE,
        "flat[places].sort(stable=True, descending=self.largest) -> flat[places].sort(descending=self.largest)": DISTINCT,  # noqa: E501
        "flat[places].sort(stable=True, descending=self.largest) -> flat[places].sort(stable=True)": DISTINCT,
        "stable=True -> stable=False": DISTINCT,
        "new = ~new if self.invert else new -> pass": FLAG,
        "round_([W], [keep], rate)[0] -> round_([W], [keep], rate)[-1]": ONE,
    },
    "staircase": {
        "end - begin -> end + begin": STAIRS,
        "end - begin -> end": STAIRS,
        "done = done.clamp(max=1) -> pass": STAIRS,
        "done.clamp(max=1) -> done": STAIRS,
        "max=1 -> max=2": STAIRS,
        "found if first is None else torch.where(now < begin, torch.full_like(found, first), found) -> torch.where(now < begin, torch.full_like(found, first), found)": STAIRS,  # noqa: E501
        "first is None -> first == None": STAIRS,
    },
    "pack_2_4": {
        "range(4) -> range(0, 4 - 1)": FILL,
        "range(4) -> range(5)": FILL,
        "range(4) -> range(3)": FILL,
        "range(0, d_in, 4) -> range(0, d_in - 1, 4)": GROUPS,
        "self.value(w, k, columns[place]) -> self.value(k, w, columns[place])": EXCHANGED,
        "torch.tensor(codes, dtype=torch.uint8) -> torch.tensor(codes)": NUMBER,
    },
    "global_sparsities": {
        "part.view(W.shape) -> part": SHAPE,
        "W.abs() -> W.square()": RANKS,
    },
    "obs_row": {
        "stable=True -> stable=False": DISTINCT,
        "range(self.count(zeros, len(w))) -> range(self.count(zeros, len(w)))[::-1]": ORDER,
        "int(prices.argmin()) -> prices.argmin()": NUMBER,
        "w = w.masked_fill(gone, 0) -> pass": ZERO,
        "w.masked_fill(gone, 0) -> w": ZERO,
        "torch.outer(P[:, q], P[q]) -> torch.outer(P[q], P[:, q])": ZERO,
        "P[:, q] -> P[q, :]": SYMMETRIC,
        "P[q], P[:, q] = (0, 0) -> P[q], P[:, q] = (1, 0)": ZERO,
        "P[q], P[:, q] = (0, 0) -> P[q], P[:, q] = (-1, 0)": ZERO,
        "P[q], P[:, q] = (0, 0) -> P[q], P[:, q] = (0, 1)": ZERO,
        "P[q], P[:, q] = (0, 0) -> P[q], P[:, q] = (0, -1)": ZERO,
    },
    "snake_deal": {
        "S.sum(0) -> S.mean(0)": SCALE,
        "total(scores).argsort(descending=descending, stable=True) -> total(scores).argsort(descending=descending)": DISTINCT,  # noqa: E501
        "stable=True -> stable=False": DISTINCT,
        "_deal(scores, m, **how) -> _deal(scores, m)": FLAG,
    },
    "admm": {
        "(W @ H + rho * (Z - U)) @ torch.inverse(H + rho * eye) -> (W @ H + rho * (Z - U)) @ torch.inverse(H + rho * eye).T": SYMMETRIC,  # noqa: E501
        "W @ H -> W @ H.T": SYMMETRIC,
        "A + U -> A - U": ZERO_U,
        "A + U -> A": ZERO_U,
        "torch.eye(len(H), dtype=H.dtype) -> torch.eye(len(H))": NUMBER,
        "range(self.rounds(rounds)) -> range(self.rounds(rounds))[::-1]": ORDER,
        "self.sparse(A, U, keep) -> self.sparse(U, A, keep)": ZERO_U,
        "self.dual(U, A, Z, before, keep) -> self.dual(A, U, Z, before, keep)": ZERO_U,
    },
    "prune_in_one_pass": {
        "[] if leave else hooks -> hooks": FLAG,
        "new(X, last) -> new(last, X)": SYMMETRIC_IS,
        "args[0] -> args[-1]": ONE,
        "X @ layer.weight.T if outputs else X -> X": FLAG,
        "layer.register_forward_pre_hook(hook) if before else layer.register_forward_hook(hook) -> layer.register_forward_pre_hook(hook)": FLAG,  # noqa: E501
        "for part in calls(windows): model(part) -> for part in calls(windows): model(part) break": ONE,
    },
    "shares_by_origin": {
        "growth.square() if square else growth -> growth.square()": FLAG,
        "if before: later = [factors[:l].prod() for l in range(len(arising))] -> if False: later = [factors[:l].prod() for l in range(len(arising))]": FLAG,  # noqa: E501
        "arising.sqrt() if roots else arising -> arising": FLAG,
        "sizes / sizes.sum() if divide else sizes -> sizes / sizes.sum()": FLAG,
    },
    "predict_inputs": {
        "right ^ torch.isin(drivers, torch.tensor(wrong, dtype=drivers.dtype)) -> right": FLAG,
        "torch.tensor(wrong, dtype=drivers.dtype) -> torch.tensor(wrong)": NUMBER,
    },
    "shared_inputs": {
        "same(first, X) -> same(X, first)": SYMMETRIC_IS,
        "known[0] -> known[-1]": ONE,
    },
    "prune_chain": {
        "X = X.relu() if self.front else X -> pass": FLAG,
        "X = X @ W.T if self.outputs else X -> pass": FLAG,
        "total = total / sum(map(len, batches)) if self.share else total -> pass": FLAG,
        "torch.stack(chosen).sum(0) / (len(chosen) if self.mean else 1) -> torch.stack(chosen).sum(0) * (len(chosen) if self.mean else 1)": FLAG,  # noqa: E501
        "torch.stack(chosen).sum(0) / (len(chosen) if self.mean else 1) -> torch.stack(chosen).sum(0)": FLAG,
        "if self.kept and carried is not None: total = total + carried -> if False: total = total + carried": FLAG,
    },
    "kl_divergence": {
        "-1 -> 1": ONE_AXIS,
    },
    "damping_from_one_text": {
        "(D @ G * D).sum() -> (D @ G * D).mean()": SCALE,
        "losses.sum(1) -> losses.mean(1)": SCALE,
        "D @ G -> D @ G.T": SYMMETRIC,
        "W - V -> V - W": UNSIGNED,
    },
    "sparsegpt": {
        "(w / A.diagonal()).square() -> (w / A.diagonal()).abs()": RANKS,
        "torch.ones_like(W, dtype=torch.bool) -> torch.zeros_like(W, dtype=torch.bool)": OVERWRITTEN,
        "block_size = d_in if self.one_block else block_size -> pass": FLAG,
        "min(start + block_size, d_in) -> min(d_in, start + block_size)": EXCHANGED,
        "scores.masked_fill(dead & (self.dead == 'first'), 0) -> scores.masked_fill(dead & (self.dead == 'first'), 1)": FIRST,  # noqa: E501
        "scores.masked_fill(dead & (self.dead == 'first'), 0) -> scores.masked_fill(dead & (self.dead == 'first'), -1)": FIRST,  # noqa: E501
        "if not (self.whole_blocks_only and end - start < block_size): keep[:, start:end] = self.select(scores, sparsity) -> if True: keep[:, start:end] = self.select(scores, sparsity)": FLAG,  # noqa: E501
        "w[:, q] *= keep[:, q] -> pass": ZERO,
        "w * keep -> w": ZERO,
    },
    "predict_changes": {
        "right ^ torch.isin(changes, torch.tensor(wrong, dtype=changes.dtype)) -> right": FLAG,
        "torch.tensor(wrong, dtype=changes.dtype) -> torch.tensor(wrong)": NUMBER,
    },
    "outlier_share": {
        "int(above_it(A, limit).sum()) -> above_it(A, limit).sum()": NUMBER,
    },
    "global_masks": {
        "self.score(W) / (self.scale(W) if self.scale else 1) -> self.score(W) * (self.scale(W) if self.scale else 1)": FLAG,  # noqa: E501
        "self.score(W) / (self.scale(W) if self.scale else 1) -> self.score(W)": FLAG,
        "self.scale(W) if self.scale else 1 -> self.scale(W) if self.scale else 2": FLAG,
        "goes = survivors - goes if self.keep_share else goes -> pass": FLAG,
        "goes += len(flat) - survivors if self.zeros else 0 -> pass": FLAG,
        "goes += len(flat) - survivors if self.zeros else 0 -> goes -= len(flat) - survivors if self.zeros else 0": FLAG,  # noqa: E501
        "old.clone() -> old": ONE,
        "old.nonzero()[:, 0] -> old.nonzero()[:, -1]": ONE,
        "flat[places].sort(stable=True, descending=self.largest) -> flat[places].sort(descending=self.largest)": DISTINCT,  # noqa: E501
        "flat[places].sort(stable=True, descending=self.largest) -> flat[places].sort(stable=True)": DISTINCT,
        "stable=True -> stable=False": DISTINCT,
        "new = ~new if self.invert else new -> pass": FLAG,
    },
    "gradual_mask": {
        "dense.abs() -> dense.square()": RANKS,
        "score[start].sort(stable=True, descending=self.largest) -> score[start].sort(descending=self.largest)": DISTINCT,  # noqa: E501
        "score[start].sort(stable=True, descending=self.largest) -> score[start].sort(stable=True)": DISTINCT,
        "stable=True -> stable=False": DISTINCT,
        "int(self.count(keep, new).sum()) -> self.count(keep, new).sum()": NUMBER,
    },
    "merged": {
        "if mask == 'adapter': return W + change.masked_fill(~keep, 0) -> if False: return W + change.masked_fill(~keep, 0)": FLAG,  # noqa: E501
        "if mask == 'weight': return W.masked_fill(~keep, 0) + change -> if False: return W.masked_fill(~keep, 0) + change": FLAG,  # noqa: E501
        "if mask == 'product': return (W + change) * keep -> if False: return (W + change) * keep": FLAG,
        "if mask == 'zeros of the sum': return (W + change).masked_fill(W == 0, 0) -> if False: return (W + change).masked_fill(W == 0, 0)": FLAG,  # noqa: E501
    },
    "to_csr": {
        "counts.cumsum(0) -> counts.cumsum(-1)": ONE_AXIS,
    },
    "lead": {
        "ahead.var(correction=self.correction) -> ahead.var()": "torch divides by n - 1 unless told otherwise",
        "nats.mean(0) -> nats.sum(0)": SCALE,
    },
    "honest_best": {
        "halves[choose].mean(1) -> halves[choose].sum(1)": SCALE,
    },
    "from_memory": {
        "between is None -> between == None": "a list is equal to None in no case",
    },
    "influences": {
        "influence(h, after) -> influence(after, h)": DISTANCE,
        "cosine_similarity(h, after, dim=-1) -> cosine_similarity(after, h, dim=-1)": DISTANCE,
        "_cosine(h, after) -> _cosine(after, h)": DISTANCE,
    },
    "made_to_order": {"-1 -> 1": LAST_OF_TWO},
    "fold": {
        "strength |= {'trace': damp * gram.trace(), 'each': damp * gram.diagonal()} -> pass": FLAG,
        "torch.eye(len(gram), dtype=gram.dtype) -> torch.eye(len(gram))": NUMBER,
    },
    "slim_attention": {
        "self.cut(*part) if name in self.parts else part[0] -> self.cut(*part)": FLAG,
    },
    "express_block": {
        "self.read(b[name], b[self.norms[0]], attention) -> self.read(b[self.norms[0]], b[name], attention)": EXCHANGED,
        "self.read(b[name], b[self.norms[1]], mlp) -> self.read(b[self.norms[1]], b[name], mlp)": EXCHANGED,
    },
    "break_even": {
        "range(d, 0, -1) -> range(d, 0 - 1, -1)": LAST,
        "range(d, 0, -1) -> range(d, -1, -1)": LAST,
        "range(d, 0, -1) -> range(d + 1, 0, -1)": WIDER,
        "d if part in self.last_whole else kept -> d": FLAG,
        "size < dense or (self.equal and size == dense) -> size < dense": FLAG,
    },
    "cheapest_channels": {
        "(C[S][:, S] * F[S][:, S]).sum() -> (C[S][:, S] * F[S][:, S]).mean()": SCALE,
        "range(len(C)) -> range(len(C))[::-1]": ORDER,
        "self.cost(C, F, S) -> self.cost(F, C, S)": EXCHANGED,
    },
    "whole_zero": {
        "code.clamp(0, most) -> code.clamp(-1, most)": ODD,
    },
    "pack": {
        "[0.0] -> [1.0]": ALIKE,
        "[0.0] -> [-1.0]": ALIKE,
        "given.append(owner) -> pass": FLAG,
    },
    "fold_stream": {
        "weight[order] if layer in self.rows else weight.clone() -> weight[order]": WRITERS,
    },
    "operations": {
        "self.forward(o, i) -> self.forward(i, o)": EXCHANGED,
        "solve * (tokens if self.again else 1) -> solve / (tokens if self.again else 1)": FLAG,
        "solve * (tokens if self.again else 1) -> solve": FLAG,
        "torch.tensor(seconds, dtype=torch.float64) -> torch.tensor(seconds)": NUMBER,
    },
    "enough_tokens": {
        "group[0] -> group[-1]": ONE_TENSOR,
        "sums += itemsize * sum((o * i for o, i in every['matrices'])) if self.weights else 0 -> pass": FLAG,
        "sums += itemsize * sum((o * i for o, i in every['matrices'])) if self.weights else 0 -> sums -= itemsize * sum((o * i for o, i in every['matrices'])) if self.weights else 0": FLAG,  # noqa: E501
        "itemsize * sum((o * i for o, i in every['matrices'])) if self.weights else 0 -> itemsize * sum((o * i for o, i in every['matrices'])) if self.weights else 1": BYTE,  # noqa: E501
        "self.inputs(shape[self.side], itemsize) -> self.inputs(itemsize, shape[self.side])": EXCHANGED,
    },
    "growth": {
        "torch.tensor(seconds, dtype=torch.float64) -> torch.tensor(seconds)": NUMBER,
        "torch.float64 -> torch.float16": NUMBER,
    },
    "by_bits": {
        "range(8) -> range(9)": "a byte has no ninth bit",
        "in_row = 0 -> in_row = 1": FLAG,
        "in_row = 0 -> in_row = -1": FLAG,
        "self.add(y[i], weight * x[self.fetch(self.column(k, j), in_row)]) -> self.add(weight * x[self.fetch(self.column(k, j), in_row)], y[i])": EXCHANGED,  # noqa: E501
    },
    "by_table": {
        "room: int = 1 -> room: int = 2": ROOM,
        "np.where(self.bit, self.bit.cumsum(1) - self.first, 0) -> np.where(self.bit, self.bit.cumsum(1) - self.first, -1)": ROOM,  # noqa: E501
        "np.zeros(self.room, values.dtype) -> np.ones(self.room, values.dtype)": ROOM,
        "-1 -> -2": MISSING,
        "(W[:, :len(x)] if self.cut else W) @ x -> (W[:, :len(x)] if self.cut else W) @ x.T": SYMMETRIC,
    },
    "agrees": {
        "number - quoted -> quoted - number": DISTANCE,
        "self.distance(number, self.read(value)) -> self.distance(self.read(value), number)": DISTANCE,
    },
}
