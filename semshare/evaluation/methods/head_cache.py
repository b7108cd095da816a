"""A prompt of which each KV head keeps its own tokens, and what is decoded after it.

The pool keeps a token for all heads of a layer at once; the published compressors choose head by
head. So this is an executor of its own over the model's modules (`semshare.engine.adapter`), with
torch's attention over dense tensors. A layer's KV is cut as soon as the layer has been computed, as
their code does, so that no more than one layer is ever there in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from semshare.engine.adapter import AS_TRANSFORMERS, NO_ROPE, Linears, ModelAdapter
from semshare.errors import UnsupportedModel
from semshare.types import Ids
from semshare_kernels import apply_rotary, few_rows_linears

MAX_SCORES = 1 << 20  # attention probabilities held at once: 4 MB of float32, which caches hold


@dataclass(frozen=True, slots=True, eq=False)
class PromptLayer:
    """What one layer computed of a prompt of n tokens, rotated where the model rotates.

    index:   of the layer.
    queries: `[n, heads, d]`.
    keys:    `[n, kv_heads, d]`.
    scale:   of the dot products.
    """

    index: int
    queries: Tensor
    keys: Tensor
    scale: float

    def attention_received(self, first_query: int) -> Tensor:
        """Attention that the queries from `first_query` on pay to each key.

        Returns:
            `[kv_heads, n]` float32, summed over queries, a mean over the heads of a KV head.

        """
        n, heads, d = self.queries.shape
        kv_heads = self.keys.shape[1]
        group = heads // kv_heads
        keys = self.keys.float().permute(1, 2, 0)  # [kv_heads, d, n]
        received = keys.new_zeros(kv_heads, n)
        step = max(MAX_SCORES // (heads * n), 1)
        for start in range(first_query, n, step):
            stop = min(start + step, n)
            queries = self.queries[start:stop].float() * self.scale
            rows = stop - start
            # The heads of a KV head are rows of one product: keys are not copied for each of them.
            grouped = queries.view(rows, kv_heads, group, d).permute(1, 2, 0, 3).flatten(1, 2)
            scores = (grouped @ keys[..., :stop]).view(kv_heads, group, rows, stop)
            later = torch.ones(rows, rows, dtype=torch.bool, device=keys.device).triu_(1)
            scores[..., start:].masked_fill_(later, -torch.inf)
            received[:, :stop] += scores.softmax(dim=-1).sum(dim=(1, 2)) / group
        return received


# Which tokens each KV head keeps of a layer: `[kv_heads, kept]` int64, ascending.
Choose = Callable[[PromptLayer], Tensor]


class HeadCache:
    """A prompt's KV, cut, and what follows it. Keys keep the positions they were computed at.

    Args:
        model: its modules.
        ids: `[n]` of the prompt.
        choose: says what each layer keeps.
        room: most tokens that follow the prompt.

    Raises:
        UnsupportedModel: a sliding window is shorter than prompt and room: what it hides would
            differ from head to head.

    """

    def __init__(self, model: ModelAdapter, ids: Ids, choose: Choose, *, room: int) -> None:
        window = min((window for window in model.windows if window is not None), default=None)
        if window is not None and window < len(ids) + room:
            raise UnsupportedModel(
                f"the prompt and its answer take {len(ids) + room} tokens and some layers see only "
                f"the last {window}: compressing by head is for models without sliding windows, or "
                "for shorter prompts"
            )
        self._model = model
        self._prompt_tokens = len(ids)
        self._added = 0  # tokens after the prompt
        # For each layer [kv_heads, kept + room, d], and how many are kept.
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._kept: list[int] = []
        self.prompt_logits = self._prefill(ids, choose, room)  # [1, vocab] of its last token

    @property
    def kept_share(self) -> float:
        """Of all (token, layer) pairs of the prompt."""
        return sum(self._kept) / (self._prompt_tokens * len(self._kept))

    @property
    def bytes(self) -> int:
        """Of what is kept of the prompt."""
        model = self._model
        cell = 2 * model.n_kv_heads * model.head_dim * model.dtype.itemsize
        return sum(self._kept) * cell

    def rewind(self) -> None:
        """Forget what has followed the prompt."""
        self._added = 0

    def extend(self, ids: Ids) -> Tensor:
        """Logits `[n, vocab]` float32 after each of `ids` `[n]`, which follow what is there."""
        start = self._prompt_tokens + self._added
        self._added += len(ids)
        hidden = self._model.embed(self._index(ids))
        linears = few_rows_linears(hidden)
        rope = self._model.rope(self._positions(start, len(ids)))
        for layer in range(self._model.n_layers):
            query, key, value = self._attention_inputs(layer, hidden, rope, linears)
            stop = self._kept[layer] + self._added
            new = slice(stop - len(ids), stop)
            self._keys[layer][:, new] = key.transpose(0, 1)
            self._values[layer][:, new] = value.transpose(0, 1)
            keys, values = self._keys[layer][:, :stop], self._values[layer][:, :stop]
            attended = self._attend(query, keys, values, seen=_seen(len(ids), stop, hidden.device))
            hidden = self._model.layer_output(layer, hidden, attended, linears)
        return self._model.logits(hidden, linears)

    def _prefill(self, ids: Ids, choose: Choose, room: int) -> Tensor:
        hidden = self._model.embed(self._index(ids))
        rope = self._model.rope(self._positions(0, len(ids)))
        for layer in range(self._model.n_layers):
            query, key, value = self._attention_inputs(layer, hidden, rope, AS_TRANSFORMERS)
            chosen = choose(PromptLayer(layer, query, key, self._model.scale))
            keys, values = key.transpose(0, 1), value.transpose(0, 1)
            self._kept.append(chosen.shape[1])
            self._keys.append(_taken(keys, chosen, room))
            self._values.append(_taken(values, chosen, room))
            attended = self._attend(query, keys, values, seen=None, is_causal=True)
            hidden = self._model.layer_output(layer, hidden, attended)
        return self._model.logits(hidden[-1:])

    def _attention_inputs(
        self, layer: int, hidden: Tensor, rope: dict[str, tuple[Tensor, Tensor]], linears: Linears
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, rotated where the layer rotates."""
        query, key, value = self._model.attention_inputs(layer, hidden, linears)
        kind = self._model.rope_kinds[layer]
        if kind != NO_ROPE:
            query, key = (apply_rotary(part, *rope[kind]) for part in (query, key))
        return query, key, value

    def _attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        seen: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        """`[n, heads, d]` of `query` `[n, heads, d]` over `[kv_heads, m, d]`."""
        out = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=seen,
            is_causal=is_causal,
            scale=self._model.scale,
            enable_gqa=self._model.n_heads != self._model.n_kv_heads,
        )
        return out[0].transpose(0, 1)

    def _index(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids).to(self._model.device, torch.int64)

    def _positions(self, start: int, n: int) -> Tensor:
        return torch.arange(start, start + n, device=self._model.device)


def _taken(heads: Tensor, chosen: Tensor, room: int) -> Tensor:
    """`[kv_heads, kept + room, d]`: the chosen tokens of `heads` `[kv_heads, n, d]`, and room."""
    index = chosen[..., None].expand(-1, -1, heads.shape[2])
    return pad(heads.gather(1, index), (0, 0, 0, room))


def _seen(n: int, stop: int, device: torch.device) -> Tensor | None:
    """`[n, stop]` bool: the last n keys are the rows' own, all before them is seen by every row."""
    if n == 1:
        return None
    return torch.ones(n, stop, dtype=torch.bool, device=device).tril_(stop - n)
