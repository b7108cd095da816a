"""All methods on one real paper: which must be closer to full prefill than which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from method_cases import NAMESPACE, run

from semshare import EngineConfig, SemShare, fidelity
from semshare.evaluation.material import Example, Material
from semshare.evaluation.methods.base import Outcome, Task
from semshare.evaluation.methods.registry import METHODS
from semshare.evaluation.paper_scenarios import question_last, shifted

pytestmark = pytest.mark.real_model


def far_shifted(engine: SemShare) -> Example:
    """A known paper behind half of another one, so that its keys move by some 150 tokens."""
    material = Material(lambda chat: len(engine.encode(chat)), 400, split="val")
    first, other = shifted(material, 2)
    halved = other.target[0]["content"][: len(other.target[0]["content"]) // 2]
    content = f"{halved}\n\n{first.target[0]['content']}"
    return replace(
        first,
        target=[{"role": "user", "content": content}],
        donor_text=question_last(halved, "outcome"),
    )


def test_methods_are_in_the_order_that_they_must_be_in() -> None:
    engine = SemShare.from_pretrained("smollm2", config=EngineConfig(kv_budget_bytes=1 << 30))
    example = far_shifted(engine)
    for donor in example.donors:
        engine.remember(donor, namespace=NAMESPACE)
    assert example.gold is not None
    continuation = engine.session.encoder.continuation_ids(example.gold).tolist()
    task = Task(NAMESPACE, continuation[:24], max_tokens=2)
    outcomes: dict[str, Outcome] = {name: run(engine, name, example, task) for name in METHODS}
    full = outcomes["full"]
    kl = {name: fidelity.kl(full.logits, one.logits) for name, one in outcomes.items()}
    assert kl["full"] == 0.0
    assert kl["rerun"] < 1e-3 < kl["align_only"] < kl["no_realign"]
    assert max(kl["semshare"], kl["cacheblend"], kl["epic"]) < kl["no_realign"]
    assert kl["semshare"] < kl["random_map"]
    assert kl["semshare"] < kl["semsharekv"]
    reading_it = set(kl) - {"donor_text", "no_context"}
    assert max(kl[name] for name in reading_it) < kl["no_context"]
    compute = {name: one.provenance.compute_fraction for name, one in outcomes.items()}
    assert compute["rerun"] < compute["align_only"] < compute["epic"] < compute["cacheblend"]
    assert compute["align_only"] < compute["semshare"] < compute["cacheblend"]
    for name in ("snapkv", "pyramidkv", "h2o"):
        assert outcomes[name].kv_bytes == pytest.approx(0.4 * full.kv_bytes, rel=0.01)
    assert outcomes["semsharekv"].kv_bytes == pytest.approx(0.6 * full.kv_bytes, rel=0.01)
    assert all(one.provenance.fallback is None for one in outcomes.values())
