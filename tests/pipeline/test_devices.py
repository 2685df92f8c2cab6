"""Methods and statistics on two devices, with a pretended one: whatever mixes it with the CPU fails, as on a GPU."""

import pytest
import torch
from samples import lifelike
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import minprune as mp

AWAY = torch.device("lazy", 0)


class Away(torch.Tensor):
    """A tensor that says that it lies on another device; its numbers are in `here`."""

    @staticmethod
    def __new__(cls, here):
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=AWAY
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("used outside of the pretended device")


class Pretended(TorchDispatchMode):
    """While open, tensors may be made on, moved to and computed with on the pretended device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        away = any(isinstance(x, Away) for x in tensors)
        target = kwargs.get("device")
        to = target is not None and torch.device(target).type == AWAY.type
        moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_) or not tensors
        if away and not moves and any(x.ndim and not isinstance(x, Away) for x in tensors):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if func._schema.is_mutable:  # in place, or into `out`: the very tensors that were given
            written = [x for x in tensors if isinstance(x, Away)]
            return tree_map(lambda y: next((x for x in written if x.here is y), y), out)
        stays = to if target is not None else away
        return tree_map(lambda y: Away(y) if stays and isinstance(y, torch.Tensor) else y, out)


def _here(x):
    return x.here if isinstance(x, Away) else x


@pytest.mark.parametrize("pattern", ["50%:row", "2:4", "6:40"])
@pytest.mark.parametrize("method", mp.METHODS)
def test_statistics_are_moved_to_the_weights_and_everything_stays_there(method, pattern):
    W, X = lifelike(8, 320, windows=20, dtype=torch.float32)
    stats = mp.Statistics(320, gram=mp.METHODS[method].needs == "gram").update(X)
    expected = mp.METHODS[method](W, stats, pattern)
    with Pretended():
        found = mp.METHODS[method](Away(W.clone()), stats, pattern)
        error = mp.layer_error(Away(W), found.weight, Away(X.T @ X))
    assert found.weight.device == found.keep.device == AWAY
    kept = W.abs() > 1e-3  # no ties: the other device sorts
    assert torch.equal(found.keep.here[kept], expected.keep[kept])
    torch.testing.assert_close(found.weight.here, expected.weight, rtol=1e-3, atol=1e-4)
    assert error == pytest.approx(mp.layer_error(W, expected.weight, X.T @ X), rel=1e-3)


def test_the_pretended_device_does_not_mix_with_the_cpu():
    with Pretended():
        away = torch.ones(3, device=AWAY)
        assert (away + 1).device == AWAY and float(away.sum()) == 3
        with pytest.raises(RuntimeError, match="same device"):
            away + torch.ones(3)
        assert torch.equal((away * 2).cpu(), torch.full((3,), 2.0))


def test_statistics_that_lie_there_already_are_not_copied():
    stats = mp.Statistics(4).update(torch.eye(4))
    assert stats.to(torch.device("cpu")) is stats
    with Pretended():
        moved = stats.to(AWAY)
        assert moved.gram.device == moved.sq_norm.device == AWAY and moved.tokens == 4
