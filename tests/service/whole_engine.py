"""A fake engine with every call of the service's protocol, KV out and in among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from fake_engine import MAX_CONTEXT, FakeEngine, _provenance

from semshare.config import ReusePolicy
from semshare.errors import InvalidRequest, KVMismatch
from semshare.kv.exchange import KVFormat, LayerKV
from semshare.types import DonorInfo, NamespaceUse, PoolUse, Prompt, Provenance, TextDelta

FORMAT = KVFormat("f" * 8, "float32", n_layers=2, n_kv_heads=1, head_dim=2, max_tokens=MAX_CONTEXT)


@dataclass(frozen=True)
class Held:
    """A prefilled prompt whose KV is all zeros."""

    ids: np.ndarray
    provenance: Provenance

    def layer(self, _: int) -> LayerKV:
        zeros = torch.zeros(len(self.ids), FORMAT.n_kv_heads, FORMAT.head_dim)
        return LayerKV(zeros, zeros)

    def release(self) -> None:
        pass


@dataclass
class WholeEngine(FakeEngine):
    """Refuses empty prompts, as the real one does; what is to be remembered is a donor at once."""

    kv_format: KVFormat = FORMAT

    def _length(self, prompt: Prompt) -> int:
        if len(prompt) == 0 or super()._length(prompt) == 0:
            raise InvalidRequest("the prompt is empty")
        return super()._length(prompt)

    def encode(self, prompt: Prompt) -> np.ndarray:
        return np.zeros(self._length(prompt), np.int32)

    def donor_ids(self, donor_id: str, *, namespace: str = "default") -> np.ndarray:
        return np.zeros(self._kept(donor_id, namespace).tokens, np.int32)

    def pool_use(self) -> PoolUse:
        namespaces = {name: NamespaceUse(1, 100, 0) for name, _ in self.kept}
        return PoolUse(
            namespaces, running_bytes=0, used_bytes=100, free_bytes=900, donors_evicted=0
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = "default",
        **options: Any,
    ) -> Iterator[TextDelta]:
        for delta in super().stream(prompt, policy=policy, namespace=namespace, **options):
            if delta.answer is None or policy is None or not policy.remember:
                yield delta
            else:
                donor = self.remember(prompt, namespace=namespace)
                answer = replace(delta.answer, remembered="done", donor=donor)
                yield replace(delta, answer=answer)

    def prefill(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = "default",
        given_up: Callable[[], bool] | None = None,
    ) -> Any:
        tokens = self._length(prompt)
        return Held(np.zeros(tokens, np.int32), _provenance(tokens, policy))

    def import_donor(
        self,
        ids: Sequence[int],
        layers: Iterable[LayerKV],
        *,
        fingerprint: str,
        namespace: str = "default",
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        if fingerprint != FORMAT.fingerprint or len(list(layers)) != FORMAT.n_layers:
            raise KVMismatch("the KV is another model's")
        return self.remember(list(ids), namespace=namespace, pinned=pinned, ttl_s=ttl_s)
