"""Text in, token ids out, checked before anything is spent on them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError

from semshare.engine.text import REPLACEMENT
from semshare.errors import InvalidRequest, PromptTooLong
from semshare.types import Ids, Prompt


class PromptEncoder:
    """A tokenizer with the model's limits.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_size, max_context: of the model.

    """

    def __init__(self, tokenizer: Any, vocab_size: int, max_context: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_context = max_context

    def encode(self, prompt: Prompt) -> Ids:
        """Token ids `[n]` of a text, of chat messages under the chat template, or of ids."""
        if isinstance(prompt, str):
            return self._tokenize(prompt, special_tokens=True)
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], Mapping):
            if self._tokenizer.chat_template is None:
                raise InvalidRequest(
                    "this model's tokenizer has no chat template: send the prompt as text"
                )
            for number, message in enumerate(prompt):
                content = message.get("content") if isinstance(message, Mapping) else message
                if not isinstance(message, Mapping) or not isinstance(content, str):
                    raise InvalidRequest(
                        f"the content of message {number} is a {type(content).__name__}: "
                        "a message is {role, content}, and its content a string"
                    )
            try:
                text = self._tokenizer.apply_chat_template(
                    list(prompt), tokenize=False, add_generation_prompt=True
                )
            except TemplateError as error:  # the order of roles, say
                raise InvalidRequest(
                    f"the chat template refuses these messages: {error}"
                ) from error
            return self._tokenize(text, special_tokens=False)  # the template wrote them
        try:
            ids = np.asarray(prompt)
        except ValueError:  # lists of different lengths
            ids = np.empty((0, 0))
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise InvalidRequest(
                "a prompt is a string, a list of {role, content} messages or a list of token ids"
            )
        if ids.size and not (ids.min() >= 0 and ids.max() < self._vocab_size):
            raise InvalidRequest(
                f"token ids run from {ids.min()} to {ids.max()}; "
                f"this model's are 0 to {self._vocab_size - 1}"
            )
        return ids.astype(np.int32)

    def prompt_ids(self, prompt: Prompt) -> Ids:
        """The ids of a prompt that can be answered.

        Raises:
            InvalidRequest: empty, or not a prompt.
            PromptTooLong: no room for even one token of an answer.

        """
        ids = self.encode(prompt)
        if len(ids) == 0:
            raise InvalidRequest("the prompt is empty: it needs at least one token")
        if len(ids) >= self._max_context:
            raise PromptTooLong(len(ids), self._max_context)
        return ids

    def continuation_ids(self, continuation: str | Sequence[int]) -> Ids:
        """The ids of a text to be scored, at least one."""
        if isinstance(continuation, str):
            ids = self._tokenize(continuation, special_tokens=False)
        else:
            ids = self.encode(continuation)
        if len(ids) == 0:
            raise InvalidRequest("the continuation is empty: it needs at least one token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of answer tokens, special ones left out."""
        return cast(str, self._tokenizer.decode(ids, skip_special_tokens=True))

    def _tokenize(self, text: str, *, special_tokens: bool) -> Ids:
        encoded = self._tokenizer(text, add_special_tokens=special_tokens, verbose=False)
        return np.asarray(encoded["input_ids"], dtype=np.int32)


class TokenTexts:
    """The text of single tokens, leading spaces included, remembered by id."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def __call__(self, ids: Ids) -> list[str]:
        """The texts of `ids` `[n]`."""
        new = [token for token in set(ids.tolist()) if token not in self._texts]
        if new:
            texts = self._tokenizer.batch_decode([[token] for token in new])
            pieces = self._tokenizer.convert_ids_to_tokens(new)
            for token, text, piece in zip(new, texts, pieces, strict=True):
                # SentencePiece decoders strip the space that a lone word begins with.
                # An id that only pads the model's vocabulary has no piece, and no text.
                lost = (piece or "").startswith("▁") and not text.startswith(" ")
                self._texts[token] = " " + text if lost else text
        return [self._texts[token] for token in ids.tolist()]

    def utf8(self, token: int) -> bytes:
        """A token's text in UTF-8; where it is part of a character, the bytes it stands for.

        So that the bytes of consecutive tokens are those of their text.
        """
        (text,) = self(np.array([token], dtype=np.int32))
        if REPLACEMENT not in text:
            return text.encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        byte_fallback = re.fullmatch("<0x([0-9A-F]{2})>", piece)  # SentencePiece
        if byte_fallback:
            return bytes.fromhex(byte_fallback[1])
        if all(character in _BYTE_OF for character in piece):  # byte-level BPE
            return bytes(_BYTE_OF[character] for character in piece)
        return text.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """Character → byte, as GPT-2's byte-level BPE writes bytes as printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


_BYTE_OF = _byte_level_alphabet()


def eos_ids(hf_model: Any, tokenizer: Any) -> frozenset[int]:
    """All ids that end an answer, from generation settings, configuration and tokenizer."""
    found: set[int] = set()
    for holder in (getattr(hf_model, "generation_config", None), hf_model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        values = value if isinstance(value, (list, tuple)) else [value]
        found |= {int(token) for token in values if token is not None}
    return frozenset(found)
