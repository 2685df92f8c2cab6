"""A byte-level BPE tokenizer in a GGUF file: its tokens, merges, special tokens, and how it cuts a text into words.

The programs that read the file know this cut by a name alone, and have the rest of a tokenizer compiled in. So the
tokenizer is taken apart, and refused if any of its parts would do something else there. Of the normalisers NFC is left
out, as llama.cpp does: a text with accents as characters of their own gets other tokens.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minprune.errors import PruneError, short
from minprune.files import parse_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

_WORDS = (  # %s: how many digits at most make a word
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_WORDS % "": "qwen2", _WORDS % "{1,3}": "llama-bpe"}


def add_tokenizer(writer: "GGUFWriter", tokenizer: Any, rows: int) -> None:
    """Describe the tokenizer in the file's metadata. rows: of the embeddings; those without a token get a name.

    Raises `PruneError` if it is not byte-level BPE, or cuts texts in a way that llama.cpp has no name for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it has no tokenizer.json")
    content = parse_json(backend.to_str())
    if problem := next(_problems(content, rows), None):
        raise _refused(problem)
    tokens, types = _tokens(content, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(content) or "")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (found := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            add(found)
    first, last = _around(tokenizer)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(last)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        writer.add_chat_template(template)


def _problems(content: dict[str, Any], rows: int) -> Iterator[str]:
    model = content["model"]
    if model.get("type") != "BPE" or not model["merges"]:
        yield f"it is {model.get('type')} without merges, not byte-level BPE"
        return
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            yield f"its {key} is {short(model[key])}"
    cut, normalizer = _cut(content), content.get("normalizer")
    if cut is None:
        yield f"its pre-tokenizer is {short(content.get('pre_tokenizer'))}"
    if bool(model.get("ignore_merges")) != (cut == "llama-bpe"):
        yield f"its ignore_merges is {short(model.get('ignore_merges'))}"
    if normalizer and normalizer.get("type") != "NFC":
        yield f"its normalizer is {short(normalizer)}"
    added = content.get("added_tokens") or []
    if any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word")):
        yield "some of its added tokens take blanks around them"
    if (last := max([*model["vocab"].values(), *(token["id"] for token in added)])) >= rows:
        yield f"its token {last} is none of the model's {rows}"


def _cut(content: dict[str, Any]) -> str | None:
    """llama.cpp's name for how the text is cut into words before any merge, None if it has none."""
    found = content.get("pre_tokenizer") or {}
    *before, last = found.get("pretokenizers") or [found]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    kinds = [part.get("type") for part in before]
    if last.get("use_regex", True):
        if kinds == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
        return None if kinds else "gpt-2"
    if kinds != ["Split"] or before[0].get("behavior") != "Isolated" or before[0].get("invert"):
        return None
    return _SPLITS.get(before[0].get("pattern", {}).get("Regex"))


def _tokens(content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The text and the type of every token, by id."""
    from gguf import TokenType

    texts = [f"[PAD{i}]" for i in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for text, i in content["model"]["vocab"].items():
        texts[i], types[i] = text, int(TokenType.NORMAL)
    for token in content.get("added_tokens") or []:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        texts[token["id"]], types[token["id"]] = token["content"], int(kind)
    return texts, types


def _around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts its first and its last special token around a text."""
    whole, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    for first in (False, True):
        for last in (False, True):
            before, after = [tokenizer.bos_token_id] * first, [tokenizer.eos_token_id] * last
            if before + bare + after == whole:
                return first, last
    raise _refused(f"it makes {short(whole)} of 'a'")


def _refused(problem: str) -> PruneError:
    return PruneError(f"no GGUF file: the tokenizer cannot be written ({problem}); export it in another format")
