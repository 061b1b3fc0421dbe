"""Text to tokens, and tokens to something a person can read."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from sparsight.errors import DataError
from sparsight.models.tokens import Tokens


def tokenize(tokenizer: Any, texts: str | Sequence[str], context: int) -> Tokens:
    """Texts as one batch, with the special tokens that the tokenizer itself adds, padded on the right.

    Args:
        tokenizer: A Hugging Face tokenizer; it need not have a padding token.
        texts: One text or several.
        context: Most tokens kept of each text, special ones included.
    Raises:
        ValueError: no text came, or `context` leaves no room beside the special tokens.
        DataError: a text has no token of its own.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("expected at least one text, got none")
    n_special = tokenizer.num_special_tokens_to_add()
    if context <= n_special:
        raise ValueError(
            f"context must be at least {n_special + 1} (the tokenizer adds {n_special} special tokens), got {context}"
        )
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=context,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_special_tokens_mask=True,
    )
    special = [[bool(flag) for flag in flags] for flags in encoded["special_tokens_mask"]]
    for number, flags in enumerate(special):
        if all(flags):
            raise DataError(f"text {number} gives no tokens: {texts[number][:40]!r}; drop empty texts")
    return Tokens.pad(encoded["input_ids"], special, padding_id(tokenizer))


def padding_id(tokenizer: Any) -> int:
    """What to write under padding, where only the mask matters: the padding token, else the end of sequence, else 0."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def tokens_to_strings(tokenizer: Any, ids: Int64[Tensor, " t"]) -> list[str]:
    """One readable string for each token: byte-level and SentencePiece blanks become spaces, `##` of WordPiece stays.

    A token that is a part of a multi-byte character is shown by the replacement character.
    """
    strings = []
    byte_level = _is_byte_level(tokenizer)
    tokens: list[str | None] = tokenizer.convert_ids_to_tokens(ids.tolist())
    for token_id, token in zip(ids.tolist(), tokens, strict=True):
        if token is None:  # models may have more rows of embeddings than their tokenizer has tokens
            strings.append(f"<id {token_id}>")
        elif byte_level and token_id not in tokenizer.all_special_ids:
            strings.append(tokenizer.convert_tokens_to_string([token]))
        else:
            strings.append(token.replace("▁", " "))
    return strings


def _is_byte_level(tokenizer: Any) -> bool:
    if not tokenizer.is_fast:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in str(type(tokenizer.backend_tokenizer.decoder))
