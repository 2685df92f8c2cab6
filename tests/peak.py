"""How much memory tensors take at most while something runs: bytes of tensors, the same on every machine."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Peak(TorchDispatchMode):
    """The most bytes that tensors made while it is open take at a time."""

    def __init__(self):
        super().__init__()
        self.users, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(x) for x in tree_flatten((args, kwargs))[0]}
        storages = {x.untyped_storage()._cdata for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
        for made in tree_flatten(out)[0]:
            if isinstance(made, torch.Tensor) and id(made) not in given and not made.is_meta:
                storage = made.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.users and key in storages:
                    continue  # a view of what was there before
                if key not in self.users:
                    self.users[key] = 0
                    self.now += size
                    self.most = max(self.most, self.now)
                self.users[key] += 1
                weakref.finalize(made, self.release, key, size)
        return out

    def release(self, key, size):
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.now -= size
