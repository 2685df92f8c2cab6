"""Text -> windows of tokens, all of one length.

Left out on purpose: padding. A window is full or it does not exist, so no statistic ever counts a padding token.
"""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from minprune.arguments import checked
from minprune.arithmetic import ordinary_tensors
from minprune.data.documents import documents
from minprune.data.texts import articles
from minprune.errors import PruneError, check_seed, from_extra
from minprune.files import exists
from minprune.models.tokenizer import tokenize

BUNDLED = ("wikipedia", "news", "python")  # python: the manual behind `help()`, of the running version
HUB = {  # name -> (data set, config, column, what its splits are called there)
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "text", {}),
    "c4": ("allenai/c4", "en", "text", {"test": "validation"}),
}


@checked()
@ordinary_tensors()
def load_tokens(
    tokenizer,
    source: str | Path,
    split: str = "train",
    samples: int | None = 64,
    length: int = 512,
    seed: int | None = None,
) -> Tensor:
    """Windows of tokens, all of one length, cut from one text without overlap.

    The text is tokenised as a whole and cut into consecutive windows. What the tokenizer puts before every text, mostly
    one BOS token, begins each window.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the model that will read the tokens.
    source : str or Path
        A bundled text ("wikipedia", "news", "python"), a data set on the hub ("wikitext2", "c4"), or a file or folder
        of documents (see `minprune.data.documents`).
    split : str, default "train"
        "train", "validation" or "test". Files have no splits.
    samples : int or None, default 64
        How many windows; None takes all.
    length : int, default 512
        Tokens in each window, its first ones included.
    seed : int or None, default None
        None spreads the windows evenly over the text. A number draws them at random without replacement.

    Returns
    -------
    Tensor (samples, length), int64

    Raises
    ------
    PruneError
        For a source that is unknown, missing, empty, not text, or too short; for samples or a length below 1, or a
        negative seed.

    Examples
    --------
    >>> import minprune as mp
    >>> _, tokenizer = mp.load_model("smollm2")
    >>> mp.load_tokens(tokenizer, "news", split="test", samples=4, length=32).shape
    torch.Size([4, 32])
    """
    seed = None if seed is None else check_seed(seed)
    if length < 1 or (samples is not None and samples < 1):
        raise PruneError(f"asked for {samples} windows of {length} tokens: both must be at least 1")
    if seed is not None and seed < 0:
        raise PruneError(f"seed {seed} is negative: use 0 or more, or None for evenly spaced windows")
    text = load_text(source, split, tokenizer)
    check_normalizer(tokenizer, text)
    ids = tokenize(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"]
    prefix = prefix_of(tokenizer)
    starts = window_starts(len(ids), length - len(prefix), samples, seed, source=str(source))
    return cut(torch.tensor(ids), starts, length, prefix)


def window_starts(
    count: int, body: int, samples: int | None, seed: int | None = None, step: int | None = None, source: str = "text"
) -> Tensor:
    """Where `samples` windows of `body` tokens each begin in a text of `count` tokens: (samples,), int64.

    Possible beginnings are 0, step, 2 step, ... (step=None: no overlap); see `load_tokens` for samples and seed.
    """
    step = step or body
    available = (count - body) // step + 1 if 0 < body <= count else 0
    samples = available if samples is None else samples
    if available < max(samples, 1):
        raise PruneError(
            f"{source} has {count} tokens, too few for {max(samples, 1)} windows of {body}: use a longer text, "
            "fewer samples or a shorter length"
        )
    if seed is None:
        chosen = torch.arange(samples) * available // samples
    else:
        chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:samples]
    return chosen * step


def cut(ids: Tensor, starts: Tensor, length: int, prefix: list[int]) -> Tensor:
    """The windows of `length` tokens that begin at `starts`, each after the tokens `prefix`: (windows, length)."""
    windows = ids[starts[:, None] + torch.arange(length - len(prefix))]  # (windows, length - len(prefix))
    return torch.cat([torch.tensor(prefix, dtype=torch.long).expand(len(starts), -1), windows], dim=1)


@checked()
def load_text(source: str | Path, split: str = "train", tokenizer=None) -> str:
    """The whole text of a source, its documents separated by an empty line.

    Parameters
    ----------
    source : str or Path
        As for `load_tokens`.
    split : str, default "train"
        "train", "validation" or "test". Files have no splits.
    tokenizer : PreTrainedTokenizerBase, optional
        Its chat template writes those documents that are chats.

    Returns
    -------
    str

    Raises
    ------
    PruneError
        For a source that is unknown, missing, empty or not text.

    Examples
    --------
    >>> import minprune as mp
    >>> len(mp.load_text("news", split="test")) > 10_000
    True
    """
    if not isinstance(source, (str, os.PathLike)):
        raise PruneError(f"a text is given by its name or its file, not by {source!r}")
    if source in BUNDLED:
        return "\n\n".join(articles(str(source), split))
    if source in HUB:
        return _from_hub(str(source), split)
    path = Path(source)
    if not exists(path):
        raise PruneError(f"no text {str(source)!r}: name a file, or one of {', '.join([*BUNDLED, *HUB])}")
    text = "\n\n".join(documents(path, split, tokenizer))
    if not text.strip():
        raise PruneError(f"{source} is empty: calibration and evaluation need text")
    return text


def fingerprint(tokens: Tensor) -> str:
    """A sha256 over shape and token ids: equal fingerprints mean equal calibration data."""
    content = repr(tuple(tokens.shape)).encode() + tokens.cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def prefix_of(tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before every text: mostly [bos] or [], [gMASK] and <sop> in GLM's models."""
    bare, whole = (tokenizer("a 1", add_special_tokens=special)["input_ids"] for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start]
    return whole[:1] if whole and whole[0] == tokenizer.bos_token_id else []


def check_normalizer(tokenizer, text: str) -> None:
    """Raise `PruneError` if a tokenizer's normalizer makes a text many times as long, which would never end.

    A sample goes through one step after the other: each alone can only multiply by what its own file holds.
    """
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return
    sample = text[:2000]
    longest = 100 * len(sample) + 1000  # the longest honest expansion, of one Arabic ligature, has 18 letters
    for step in normalizer if hasattr(normalizer, "__len__") else [normalizer]:
        sample = step.normalize_str(sample)
        if len(sample) > longest:
            raise PruneError(
                f"the tokenizer's normalizer makes {len(sample):,} characters of {len(text[:2000]):,}: its "
                "tokenizer.json is damaged, copy or download it again"
            )


def _from_hub(source: str, split: str) -> str:
    with from_extra("texts", f"the data set {source!r}"):
        import datasets

    repository, config, column, names = HUB[source]
    try:
        rows = datasets.load_dataset(repository, config, split=names.get(split, split), streaming=source == "c4")
        rows = rows.take(5000) if source == "c4" else rows  # all of C4 is 300 GB; these are about 2 M tokens
        return "\n\n".join(row[column] for row in rows)
    except (OSError, ValueError, RuntimeError) as error:
        raise PruneError(
            f"cannot get {source!r} from the hub ({type(error).__name__}): use a bundled text "
            f"({', '.join(BUNDLED)}) or a file"
        ) from None
