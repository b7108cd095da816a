import math
import sys

import pytest
import torch

from semshare import fidelity
from semshare.errors import InvalidRequest, ModelNotAvailable
from semshare.evaluation import metrics


def log_of(*rows: list[float]) -> torch.Tensor:
    """Logits whose softmax is `rows`; softmax doesn't see an added constant."""
    return torch.tensor(rows).log() + 3.0


def test_kl_of_a_fair_and_a_biased_coin() -> None:
    # ½·ln(½ / ¼) + ½·ln(½ / ¾) = ½·ln(4/3)
    value = fidelity.kl(log_of([0.5, 0.5]), log_of([0.25, 0.75]))
    assert value == pytest.approx(0.5 * math.log(4 / 3), abs=1e-7)


def test_kl_is_the_mean_over_tokens() -> None:
    full = log_of([0.5, 0.5], [0.5, 0.5])
    other = log_of([0.25, 0.75], [0.5, 0.5])
    assert fidelity.kl(full, other) == pytest.approx(0.25 * math.log(4 / 3), abs=1e-7)
    assert fidelity.kl(full[1:2], other[1:2]) == pytest.approx(0.0, abs=1e-12)


def test_kl_of_tokens_that_full_excludes_is_finite() -> None:
    # p = (1, 0), q = (½, ½): KL = ln 2, the excluded token adds nothing.
    assert fidelity.kl(log_of([1.0, 0.0]), log_of([0.5, 0.5])) == pytest.approx(math.log(2))


def test_kl_keeps_differences_that_float32_loses() -> None:
    full = torch.zeros(1, 50_000)
    other = full.clone()
    other[0, 0] = 1e-3  # KL ≈ ½·p·δ² = ½ · 2e-5 · 1e-6
    assert fidelity.kl(full, other) == pytest.approx(0.5e-6 / 50_000, rel=0.01)


def test_kl_takes_rows_in_blocks() -> None:
    torch.manual_seed(0)
    full, other = torch.randn(130, 7), torch.randn(130, 7)
    parts = [fidelity.kl(full[i : i + 1], other[i : i + 1]) for i in range(130)]
    assert fidelity.kl(full, other) == pytest.approx(sum(parts) / 130)


def test_top1_agreement_and_the_largest_difference() -> None:
    full = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [5.0, 1.0, 1.0]])
    other = torch.tensor([[1.0, 2.5, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 9.0], [5.0, 1.0, 1.0]])
    assert fidelity.top1_agreement(full, other) == 0.75
    assert fidelity.max_logit_difference(full, other) == 8.0


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (0, 3)])
def test_logits_of_different_tokens_are_refused(shape: tuple[int, int]) -> None:
    full = torch.zeros(0, 3) if shape[0] == 0 else torch.zeros(1, 3)
    with pytest.raises(InvalidRequest, match="same n"):
        fidelity.kl(full, torch.zeros(shape))


def test_mean_log_likelihood() -> None:
    logits = log_of([0.5, 0.5], [0.2, 0.8])
    expected = (math.log(0.5) + math.log(0.8)) / 2
    assert metrics.mean_log_likelihood(logits, [0, 1]) == pytest.approx(expected)
    with pytest.raises(InvalidRequest, match="2 rows of logits for 1 tokens"):
        metrics.mean_log_likelihood(logits, [0])


def test_performance_gap_recovered() -> None:
    def pgr(method: float) -> float | None:
        return metrics.performance_gap_recovered(method, full=-1.0, no_context=-3.0)

    assert (pgr(-1.0), pgr(-3.0), pgr(-1.5), pgr(-4.0)) == (1.0, 0.0, 0.75, -0.5)
    assert metrics.performance_gap_recovered(0.4, full=0.5, no_context=0.5) is None


def test_rouge_l() -> None:
    # The longest common subsequence is "the gunman": precision and recall ½ (Lin, 2004).
    assert metrics.rouge_l("police killed the gunman", "the gunman kill police") == 0.5
    assert metrics.rouge_l("police killed the gunman", "police kill the gunman") == 1.0
    assert metrics.rouge_l("police killed the gunman", "") == 0.0


def test_rouge_counts_words_pairs_of_words_and_the_longest_subsequence() -> None:
    # Unigrams: all four of each after stemming but "kill" ≠ "killed" stems alike: 4 of 4.
    # Bigrams: "the gunman" of three. Longest subsequence: two of four.
    scores = metrics.rouge_scores("police killed the gunman", "the gunman kill police")
    assert scores.rouge1 == 1.0
    assert scores.rouge2 == pytest.approx(1 / 3)
    assert scores.rouge_l == 0.5


def test_rouge_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    metrics._rouge_scorer.cache_clear()
    with pytest.raises(ModelNotAvailable, match=r"rouge-score is missing: pip install"):
        metrics.rouge_scores("a", "b")


@pytest.mark.parametrize(
    ("reference", "answer", "f1"),
    [
        ("The Eiffel Tower", "eiffel tower!", 1.0),  # articles, case and punctuation are no words
        ("the red house", "a big red red house", 2 * 2 / (2 + 4)),  # precision 2/4, recall 2/2
        ("yes", "no", 0.0),
        ("yes", "", 0.0),
        ("the", "the", 0.0),  # nothing is left to compare, as in SQuAD's own script
    ],
)
def test_token_f1(reference: str, answer: str, f1: float) -> None:
    assert metrics.token_f1(reference, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "similarity"),
    [
        ("return x", 1.0),
        ("\n```python\n# done\nreturn x\nreturn y", 1.0),
        ("return y", 1 - 2 / 16),  # one deletion and one insertion of 8 + 8 characters
        ("// only a comment", 0.0),
        ("", 0.0),
    ],
)
def test_edit_similarity_is_of_the_first_line_of_code(answer: str, similarity: float) -> None:
    assert metrics.edit_similarity("return x", answer) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("B", 1.0), ("The answer is (B).", 1.0), ("C, not B", 0.0), ("Both", 0.0), ("", 0.0)],
)
def test_choice_accuracy(answer: str, right: float) -> None:
    assert metrics.choice_accuracy("B", answer) == right


def test_an_answer_is_scored_against_its_nearest_reference() -> None:
    assert metrics.task_score("token_f1", ["no", "red house", "house"], "a house") == 1.0
    assert metrics.task_score("accuracy", ["B"], "C") == 0.0
    with pytest.raises(InvalidRequest, match=r"'fact' compares no answers .* rouge_l, token_f1"):
        metrics.task_score("fact", ["a"], "a")
    with pytest.raises(InvalidRequest, match="at least one reference"):
        metrics.task_score("rouge_l", [], "a")
