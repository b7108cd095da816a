"""Requests: what passes reaches the engine as it was sent; the rest names its field."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from semshare.config import ReusePolicy
from semshare.errors import InvalidPolicy
from semshare_service.errors import InvalidParameter
from semshare_service.generation_schemas import ChatRequest, CompletionRequest
from semshare_service.openai_fields import (
    CHAT_NEUTRAL,
    CHAT_UNREAD,
    COMPLETION_NEUTRAL,
    COMPLETION_UNREAD,
)
from semshare_service.schemas import DonorRequest, MatchRequest

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", "text"),
        ("", ""),
        (["text"], "text"),
        ([1, 2, 3], [1, 2, 3]),
        ([[1, 2, 3]], [1, 2, 3]),
    ],
)
def test_a_prompt_in_each_of_openai_forms(prompt: Any, expected: Any) -> None:
    assert CompletionRequest.parse({"prompt": prompt}).prompt == expected


@pytest.mark.parametrize(
    "prompt",
    [None, 1, [], [[]], ["a", "b"], [[1], [2]], [1, "a"], [-1], [2**31], [True], [1.5], {"a": 1}],
)
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        CompletionRequest.parse({"prompt": prompt})
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 65),
        ("n", True),
        ("stream", 1),
        ("echo", True),
        ("logprobs", 6),
        ("logprobs", -1),
        ("logprobs", True),
        ("best_of", 3),
        ("suffix", "x"),
        ("logit_bias", {"50256": -101}),
        ("logit_bias", {"50256": float("nan")}),
        ("logit_bias", {"50256": "1"}),
        ("logit_bias", {"50256": True}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"²": 1}),
        ("logit_bias", {"the": 1}),
        ("logit_bias", {str(2**31): 1}),
        ("logit_bias", [50256]),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("stream_options", {"include_usage": True}),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", 2**63),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 5),
        ("model", 5),
        ("min_p", 1.1),
        ("min_p", -0.1),
        ("deadline_s", 0),
        ("deadline_s", float("inf")),
        ("semshare", []),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        CompletionRequest.parse({"prompt": "x", field: value})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", 1),
        ("top_logprobs", 2),
        ("top_logprobs", 21),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("best_of", 2),
        ("n", 65),
        ("stream", 1),
    ],
)
def test_what_chat_can_not_honour_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ChatRequest.parse({"messages": HELLO, field: value})
    assert caught.value.param == field


def test_values_that_ask_for_nothing_pass() -> None:
    neutral = {name: values[0] for name, values in CHAT_NEUTRAL.items() if values}
    unread = dict.fromkeys(CHAT_UNREAD, "anything")
    ChatRequest.parse({"messages": HELLO, **neutral, **unread})
    ChatRequest.parse({"messages": HELLO, **dict.fromkeys(CHAT_NEUTRAL)})
    neutral = {name: values[0] for name, values in COMPLETION_NEUTRAL.items() if values}
    CompletionRequest.parse({"prompt": "x", **neutral, "user": "me"})


def test_every_field_of_the_openai_package_is_decided_on() -> None:
    completion = _fields_of(completion_create_params, "CompletionCreateParams")
    known = {*CompletionRequest.model_fields, *COMPLETION_NEUTRAL, *COMPLETION_UNREAD}
    assert completion - known == set()
    chat = _fields_of(chat_create_params, "CompletionCreateParams")
    assert chat - {*ChatRequest.model_fields, *CHAT_NEUTRAL, *CHAT_UNREAD} == set()


def _fields_of(module: Any, prefix: str) -> set[str]:
    classes = [
        kind
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if name.startswith(prefix)
    ]
    names = {name for kind in classes for name in kind.__annotations__}
    assert {"model", "stream", "temperature"} <= names
    return names


def test_sampling_defaults_to_greedy() -> None:
    assert CompletionRequest.parse({"prompt": "x"}).options(7) == {
        "policy": None,
        "namespace": "default",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "logit_bias": {},
        "logprobs": None,
        "seed": None,
        "stop": (),
        "n": 1,
        "deadline_s": None,
    }


def test_null_asks_for_nothing() -> None:
    for request, body in (
        (CompletionRequest, {"prompt": "x"}),
        (ChatRequest, {"messages": HELLO}),
    ):
        fields = ("n", "min_p", "logit_bias", "logprobs", "top_logprobs", "deadline_s")
        nothing = {name: None for name in fields if name in request.model_fields}
        assert request.parse(body | nothing).options(7) == request.parse(body).options(7)


def test_what_is_sampled_and_told_reaches_the_engine() -> None:
    body = {
        "n": 64,
        "min_p": 1,
        "logit_bias": {"5": -100, "0": 1.5},
        "deadline_s": 2,
    }
    completion = CompletionRequest.parse({"prompt": "x", "logprobs": 5} | body).options(7)
    chat = ChatRequest.parse(
        {"messages": HELLO, "logprobs": True, "top_logprobs": 20} | body
    ).options(7)
    for options, alternatives in ((completion, 5), (chat, 20)):
        assert options["n"] == 64
        assert options["min_p"] == 1.0
        assert options["logit_bias"] == {5: -100.0, 0: 1.5}
        assert options["deadline_s"] == 2.0
        assert options["logprobs"] == alternatives


@pytest.mark.parametrize(
    ("fields", "alternatives"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": None}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
    ],
)
def test_logprobs_of_a_chat_are_asked_for_in_two_fields(
    fields: dict[str, Any], alternatives: int | None
) -> None:
    assert ChatRequest.parse({"messages": HELLO, **fields}).alternatives() == alternatives


def test_alternatives_without_logprobs_say_what_is_missing() -> None:
    with pytest.raises(InvalidParameter, match="set logprobs to true"):
        ChatRequest.parse({"messages": HELLO, "top_logprobs": 2})


def test_the_newer_token_limit_counts() -> None:
    body = {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 6}
    assert ChatRequest.parse(body).token_limit() == 6


def test_message_content_may_be_text_parts() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    request = ChatRequest.parse({"messages": [{"role": "developer", "content": parts}]})
    assert request.messages[0].as_chat_message() == {"role": "system", "content": "hello"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content"),
        ({"role": "user", "content": "x", "name": "me"}, "messages.0.name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
        ("hello", "messages.0"),
    ],
)
def test_a_wrong_message_is_named(message: Any, param: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ChatRequest.parse({"messages": [message]})
    assert caught.value.param == param


def test_messages_may_not_be_empty() -> None:
    with pytest.raises(InvalidParameter, match="messages"):
        ChatRequest.parse({"messages": []})


def test_the_extension_carries_namespace_and_policy() -> None:
    body = {"prompt": "x", "semshare": {"mode": "span", "recompute": 0, "namespace": "a:1"}}
    assert CompletionRequest.parse(body).reuse() == (
        "a:1",
        ReusePolicy(mode="span", recompute=0),
    )
    assert CompletionRequest.parse({"prompt": "x"}).reuse() == ("default", None)


@pytest.mark.parametrize(
    "extension", [{"mode": "x"}, {"mode": ["span"]}, {"speed": 1}, {"recompute": "1"}, {"seed": -1}]
)
def test_a_wrong_policy_is_refused(extension: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        CompletionRequest.parse({"prompt": "x", "semshare": extension}).reuse()


def test_a_bound_that_the_service_cannot_keep_to_is_refused() -> None:
    body = {"prompt": "x", "semshare": {"max_divergence": 0.1}}
    with pytest.raises(InvalidParameter, match=r"max_divergence is 0\.1.*leave it out"):
        CompletionRequest.parse(body).reuse()
    _, policy = CompletionRequest.parse(body).reuse(measured=True)
    assert policy == ReusePolicy(max_divergence=0.1)
    body["semshare"] = {"max_divergence": None, "mode": "span"}
    assert CompletionRequest.parse(body).reuse()[1] == ReusePolicy(mode="span")


@pytest.mark.parametrize("namespace", ["", "a b", "a/b", "x" * 129, 5, None, "a\n"])
def test_a_wrong_namespace_is_refused(namespace: Any) -> None:
    with pytest.raises(InvalidParameter, match="namespace"):
        CompletionRequest.parse({"prompt": "x", "semshare": {"namespace": namespace}}).reuse()
    with pytest.raises(InvalidParameter, match="namespace"):
        DonorRequest.parse({"text": "x", "namespace": namespace})


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"text": "x"}, "x"),
        ({"text": ""}, ""),
        ({"ids": [1, 2]}, [1, 2]),
        ({"messages": HELLO}, HELLO),
    ],
)
def test_a_donor_in_each_form(body: dict[str, Any], prompt: Any) -> None:
    assert DonorRequest.parse(body).prompt() == prompt
    assert MatchRequest.parse(body).prompt() == prompt


@pytest.mark.parametrize("body", [{}, {"text": "x", "ids": [1]}, {"text": None}])
def test_a_donor_has_exactly_one_form(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="one of text, messages and ids"):
        DonorRequest.parse(body)


@pytest.mark.parametrize("body", [None, [], "text", 1])
def test_a_body_is_a_map(body: Any) -> None:
    with pytest.raises(InvalidParameter, match="must be a map"):
        DonorRequest.parse(body)


def test_errors_do_not_quote_prompts() -> None:
    for body in (
        {"prompt": ["my secret", "my secret"]},
        {"prompt": "x", "stop": {"my secret": 1}},
        {"prompt": "x", "max_tokens": "my secret"},
    ):
        with pytest.raises(InvalidParameter) as caught:
            CompletionRequest.parse(body)
        assert "secret" not in str(caught.value)
