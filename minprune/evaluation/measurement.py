"""A perplexity and its protocol: what two of them must have in common before they are compared. Chapter 09.

The same model on the same text has another perplexity for another window, stride or first token, and per-token numbers
of different tokenizers do not even count the same things. bits per byte count the text itself:

    bits per byte = (sum of -log2 p(token | before) over the counted tokens) / (bytes of text in these tokens)
"""

import math
from dataclasses import asdict, dataclass, field

from minprune.arguments import checked
from minprune.errors import PruneError
from minprune.evaluation.perplexity import exp

_ENOUGH = 0.95  # share of a text that has to be counted before two tokenizers are compared on it


@dataclass(frozen=True)
class Protocol:
    """What a perplexity depends on besides the model.

    text, split: the source as it was named, and its split; text_hash: sha256 of the text as UTF-8. tokenizer: its
    name; vocabulary: sha256 of its tokens and their ids. window: tokens that the model reads at once, special ones
    included; stride: tokens from one window's beginning to the next one's. bos: whether special tokens begin each
    window; prefix: which ones, mostly one BOS token. windows: how many; tokens: how many predictions count;
    tokens_hash: sha256 over the windows. bytes: bytes of text in the counted tokens; coverage: their share of the
    text. dtype: in which the model took its products, its own or that of an autocast around the call (told, but never
    a reason to refuse).
    """

    text: str
    split: str | None
    text_hash: str
    tokenizer: str
    vocabulary: str
    window: int
    stride: int
    bos: bool
    windows: int
    tokens: int
    tokens_hash: str
    bytes: int
    coverage: float
    dtype: str
    prefix: list[int] = field(default_factory=list)

    @property
    def overlap(self) -> int:
        """Tokens of text that a window shares with the one before it."""
        return self.window - len(self.prefix) - self.stride

    def __str__(self) -> str:
        where = f"{self.text} ({self.split})" if self.split else self.text
        several = f"{len(self.prefix)} special tokens first"
        start = several if len(self.prefix) > 1 else "a BOS token first" if self.bos else "no BOS token"
        windows = "1 window" if self.windows == 1 else f"{self.windows} windows"
        return (
            f"{where}: {windows} of {self.window} tokens, stride {self.stride}, {start}; "
            f"{self.tokens:,} predictions of {self.bytes:,} bytes count; tokens {self.tokens_hash[:8]}, "
            f"tokenizer {self.tokenizer} {self.vocabulary[:8]}, {self.dtype}"
        )


@dataclass(frozen=True)
class Measurement:
    """A perplexity and how it was measured.

    Parameters
    ----------
    nats : float
        The mean of -log p over the counted tokens, in nats.
    protocol : Protocol
        How it was measured.

    Examples
    --------
    >>> import minprune as mp
    >>> model, tokenizer = mp.load_model("smollm2")
    >>> found = mp.measure(model, tokenizer, "news", samples=2, length=32)
    >>> found.ratio(found)
    1.0
    """

    nats: float
    protocol: Protocol

    @property
    def perplexity(self) -> float:
        """exp(nats): per token, so it compares models with one tokenizer."""
        return exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        """-log2 p of the counted tokens over the bytes of text in them: compares tokenizers, too."""
        return self.nats * self.protocol.tokens / math.log(2) / self.protocol.bytes

    @checked()
    def ratio(self, other: "Measurement", per: str = "token") -> float:
        """How many times as large this one is as the other.

        Per token everything must agree that decides which predictions are made. Per byte the tokenizers may differ, if
        both counted nearly the whole text.

        Parameters
        ----------
        other : Measurement
            What this one is divided by.
        per : {"token", "byte"}, default "token"
            Whether to compare perplexities or bits per byte.

        Returns
        -------
        float

        Raises
        ------
        PruneError
            If the two were not measured alike; it names the field.
        """
        mine, theirs = self.protocol, other.protocol
        if per not in _ALIKE:
            raise PruneError(f"a ratio per {per!r} is not defined: choose token or byte")
        for name in _ALIKE[per]:
            here, there = getattr(mine, name), getattr(theirs, name)
            if here != there:
                raise PruneError(
                    f"not measured alike: {name} is {_short(here)} here and {_short(there)} there; measure both with "
                    f"the same {_WHAT[name]}"
                )
        if per == "token":
            return self.perplexity / other.perplexity
        if mine.tokens_hash != theirs.tokens_hash and (low := min(mine.coverage, theirs.coverage)) < _ENOUGH:
            raise PruneError(
                f"coverage is {low:.0%} of the text: different tokens are compared on the whole text only, so measure "
                "both with samples=None"
            )
        return self.bits_per_byte / other.bits_per_byte

    def as_dict(self) -> dict:
        """Everything for a JSON file, which cannot hold an infinite perplexity: None then."""
        perplexity = self.perplexity if math.isfinite(self.perplexity) else None
        numbers = {"perplexity": perplexity, "nats": self.nats, "bits_per_byte": self.bits_per_byte}
        return {**numbers, "protocol": asdict(self.protocol)}


_ALIKE = {
    "token": ("text_hash", "window", "vocabulary", "bos", "prefix", "stride", "tokens_hash"),
    "byte": ("text_hash", "window", "overlap"),
}
_WHAT = {
    "text_hash": "text",
    "window": "window length",
    "stride": "stride",
    "overlap": "overlap (window minus stride)",
    "vocabulary": "tokenizer, or compare bits per byte on the whole text",
    "bos": "first token",
    "prefix": "tokenizer",
    "tokens_hash": "windows of the text",
}


def _short(value) -> str:
    return value[:8] if isinstance(value, str) else str(value)
