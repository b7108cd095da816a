"""Text, messages and ids become checked token ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import VOCAB_SIZE, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from semshare import InvalidRequest, PromptTooLong
from semshare.engine.prompts import PromptEncoder, TokenTexts, eos_ids
from semshare.planning.guard import mark_facts

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def encoder() -> PromptEncoder:
    return PromptEncoder(TOKENIZER, VOCAB_SIZE, max_context=32)


def test_text_ids_and_arrays_are_the_same_prompt(encoder: PromptEncoder) -> None:
    ids = encoder.encode("hello")
    assert ids.dtype == np.int32
    assert encoder.decode(ids.tolist()) == "hello"
    for same in (ids.tolist(), tuple(ids.tolist()), ids, ids.astype(np.int64)):
        np.testing.assert_array_equal(encoder.encode(same), ids)


def test_messages_go_through_the_chat_template_once(encoder: PromptEncoder) -> None:
    ids = encoder.encode([{"role": "user", "content": "hi"}])
    text = TOKENIZER.decode(ids)
    assert text == "<|user|>hi\n<|assistant|>"
    assert ids[0] == 2  # the template's own special token, as one token
    assert ids[-1] == 3


def test_messages_without_a_chat_template_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template: send the prompt as text"):
        PromptEncoder(tokenizer, VOCAB_SIZE, 32).encode([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("prompt", ["", [], np.empty(0, np.int32), ()])
def test_an_empty_prompt_is_refused(encoder: PromptEncoder, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="the prompt is empty: it needs at least one token"):
        encoder.prompt_ids(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        [1.5, 2.0],
        [[1, 2], [3, 4]],
        [[1], [2, 3]],
        [1, "a"],
        None,
        7,
        [None],
        [2**70],
        [True, False],
        {},
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused(encoder: PromptEncoder, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        encoder.prompt_ids(prompt)


@pytest.mark.parametrize("ids", [[-1, 3], [3, VOCAB_SIZE], [2**40]])
def test_ids_outside_the_vocabulary_are_refused_with_both_limits(
    encoder: PromptEncoder, ids: list[int]
) -> None:
    with pytest.raises(InvalidRequest, match=f"from {min(ids)} to {max(ids)}; .* 0 to 259"):
        encoder.prompt_ids(ids)


def test_a_prompt_must_leave_room_for_one_token(encoder: PromptEncoder) -> None:
    assert len(encoder.prompt_ids([5] * 31)) == 31
    with pytest.raises(PromptTooLong, match=r"has 32 tokens; .* holds 32, .* at most 31") as caught:
        encoder.prompt_ids([5] * 32)
    assert (caught.value.tokens, caught.value.limit) == (32, 32)


def test_continuations_are_text_or_ids_and_not_empty(encoder: PromptEncoder) -> None:
    np.testing.assert_array_equal(encoder.continuation_ids("ab"), encoder.encode("ab"))
    np.testing.assert_array_equal(encoder.continuation_ids([7, 8]), [7, 8])
    for empty in ("", []):
        with pytest.raises(InvalidRequest, match="continuation is empty"):
            encoder.continuation_ids(empty)


def test_token_texts_keep_their_spaces_and_are_asked_for_once() -> None:
    asked: list[int] = []

    class Counting:
        def batch_decode(self, batches: list[list[int]]) -> list[str]:
            asked.extend(token for (token,) in batches)
            return list(TOKENIZER.batch_decode(batches))

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return list(TOKENIZER.convert_ids_to_tokens(ids))

    texts = TokenTexts(Counting())
    ids = np.array(TOKENIZER("a b a")["input_ids"], dtype=np.int32)
    assert texts(ids) == ["a", " ", "b", " ", "a"]
    assert texts(ids) == ["a", " ", "b", " ", "a"]
    assert len(asked) == 3


def test_token_texts_keep_the_spaces_that_sentencepiece_decoders_strip() -> None:
    """Without them the guard reads "wasnoteffective" and finds no negation."""
    vocabulary = {"<unk>": 0, "▁the": 1, "▁was": 2, "▁not": 3, "▁eff": 4, "ective": 5, "▁": 6}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.decoder = decoders.Sequence(  # as Llama 2's, Mistral's and Phi-3's
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    ids = np.array([1, 2, 3, 4, 5], np.int32)
    assert "".join(tokenizer.batch_decode([[i] for i in ids])) == "thewasnoteffective"
    texts = TokenTexts(tokenizer)
    assert texts(ids) == [" the", " was", " not", " eff", "ective"]
    assert mark_facts(ids, texts).negations.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("text", ["plain words", "a€ 🙂 é漢", "\ufffd", "<|user|>"])
def test_bytes_of_byte_level_tokens_are_those_of_their_text(text: str) -> None:
    texts = TokenTexts(TOKENIZER)
    ids = TOKENIZER(text)["input_ids"]
    assert b"".join(texts.utf8(token) for token in ids) == text.encode()


def test_bytes_of_tokens_of_sentencepiece() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "ective": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert b"".join(texts.utf8(token) for token in (1, 2, 3, 4, 5)) == " theective€".encode()


def test_an_id_that_only_pads_the_vocabulary_has_no_text() -> None:
    assert TokenTexts(TOKENIZER).utf8(VOCAB_SIZE + 3) == b""


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"role": "user", "content": None}, "NoneType"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "list"),
        ({"role": "user"}, "NoneType"),
        ("hello", "str"),
    ],
)
def test_content_that_is_no_text_is_refused(
    encoder: PromptEncoder, message: Any, kind: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"the content of message 1 is a {kind}"):
        encoder.encode([{"role": "user", "content": "hi"}, message])


def test_eos_ids_come_from_all_places() -> None:
    model = SimpleNamespace(
        config=SimpleNamespace(eos_token_id=5),
        generation_config=SimpleNamespace(eos_token_id=[6, 7]),
    )
    assert eos_ids(model, SimpleNamespace(eos_token_id=None)) == {5, 6, 7}
    bare = SimpleNamespace(config=SimpleNamespace(eos_token_id=None))
    assert eos_ids(bare, SimpleNamespace(eos_token_id=0)) == {0}
