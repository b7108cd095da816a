import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import SETTING, row

from semshare.evaluation.report.markdown import markdown_table, write_markdown
from semshare.evaluation.report.summary import (
    KL,
    PGR,
    Summary,
    beaten_by,
    frontier,
    pareto,
    summarize,
)
from semshare.evaluation.report.tables import brief, headline, table_of


def only_group(*rows):  # type: ignore[no-untyped-def]
    (summaries,) = summarize(rows).values()
    return {one.method: one for one in summaries}


def test_figures_of_a_method_are_means_and_ratios_over_its_examples() -> None:
    found = only_group(
        row("full", "a"),
        row("full", "b", ttft_s=4.0, log_likelihood=-2.0),
        row("no_context", "a", log_likelihood=-3.0),
        row("no_context", "b", log_likelihood=-6.0),
        row(
            "semshare",
            "a",
            hit_rate=0.9,
            ttft_s=0.5,
            kl=0.1,
            log_likelihood=-1.5,
            kl_by_position=[0.1, 0.3],
        ),
        row(
            "semshare",
            "b",
            hit_rate=0.9,
            ttft_s=0.5,
            kl=0.3,
            log_likelihood=-2.0,
            kl_by_position=[0.3],
        ),
        row("epic", "a", hit_rate=0.9, ttft_s=2.5, kl=0.2),
    )
    ours = found["semshare"]
    assert ours.n == 2
    assert ours.means["kl"].mean == pytest.approx(0.2)
    assert ours.means["kl"].low == pytest.approx(0.1)
    assert ours.means["kl"].high == pytest.approx(0.3)
    assert ours.speedup == pytest.approx((4.0 + 8.0) / 2)
    assert ours.ttft_p50 == 0.5
    # (1.5 + 4) of a gap of (2 + 4).
    assert ours.means["pgr"].mean == pytest.approx(5.5 / 6)
    assert ours.kl_by_position == pytest.approx((0.2, 0.3))
    assert ours.break_even == 2  # 3 s of building, 2.5 s saved a request
    assert ours.differences["kl"].mean == 0.0
    epic = found["epic"]
    assert epic.differences["kl"].mean == pytest.approx(0.1)
    assert epic.break_even is None  # it is slower than full prefill
    assert found["full"].kind == "reference"
    assert found["no_context"].kind == "control"
    assert "right" not in ours.means


def test_a_metric_that_some_rows_lack_is_a_mean_of_the_others() -> None:
    found = only_group(row("epic", "a", numbers=None), row("epic", "b", numbers=0.5))
    assert found["epic"].means["numbers"].mean == 0.5
    assert found["epic"].means["numbers"].n == 1
    assert "pgr" not in found["epic"].means


def test_lengths_are_groups_of_their_own() -> None:
    groups = summarize([row("full", length=500), row("full", length=1000)])
    assert [group.length for group in groups] == [500, 1000]


def test_the_frontier_leaves_out_references_and_names_who_beats_us() -> None:
    found = only_group(
        row("full"),
        row("random_map", compute_fraction=0.01, kl=0.001),
        row("semshare", compute_fraction=0.2, kl=0.2),
        row("epic", compute_fraction=0.1, kl=0.1),
        row("cacheblend", compute_fraction=0.3, kl=0.05),
        row("align_only", compute_fraction=0.05, kl=0.5),
    )
    summaries: list[Summary] = list(found.values())
    assert [one.method for one in frontier(summaries, KL)] == ["align_only", "epic", "cacheblend"]
    assert [one.method for one in beaten_by(summaries, KL)] == ["epic"]
    assert beaten_by(summaries, PGR) == []
    assert "by epic (0.1000 at 10.0 %, within the noise)." in " ".join(headline(summaries))


def test_a_difference_of_every_example_is_no_noise() -> None:
    pairs = [
        (
            row("semshare", name, compute_fraction=0.2, kl=0.2),
            row("epic", name, compute_fraction=0.1),
        )
        for name in "abcdefgh"
    ]
    found = only_group(*(one for pair in pairs for one in pair))
    assert " ".join(headline(list(found.values()))).endswith("by epic (0 at 10.0 %).")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_pareto_keeps_just_what_nothing_betters(points: list[tuple[int, int]]) -> None:
    chosen = pareto(points, cost=lambda point: point[0], loss=lambda point: point[1])

    def is_bettered(point: tuple[int, int]) -> bool:
        return any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )

    assert sorted(chosen) == sorted(point for point in points if not is_bettered(point))


def test_tables_leave_out_what_nobody_has() -> None:
    found = only_group(row("full"), row("semshare", kl=0.25, compute_fraction=0.125), row("epic"))
    table = table_of(list(found.values()))
    assert "KL" in table.columns
    assert "right, %" not in table.columns
    ours, epic = table.contenders
    assert ours.method == "semshare"
    assert ours.cells[table.columns.index("KL")].value == "0.2500"
    assert ours.cells[table.columns.index("compute, %")].value == "12.5"
    assert epic.cells[table.columns.index("KL − semshare's")].value == "-0.2500"
    (full,) = table.others
    assert full.cells[table.columns.index("top-1, %")].value == "100.0"
    (first, *_) = brief({found["full"].group: list(found.values())})
    assert first["method"] == "full"
    assert first["right"] == "–"


def test_markdown_has_every_method_of_every_group(tmp_path) -> None:  # type: ignore[no-untyped-def]
    groups = summarize([row("full"), row("semshare"), row("full", length=500)])
    path = tmp_path / "report.md"
    write_markdown(groups, SETTING, path)
    text = path.read_text()
    assert text.count("## pairs · paraphrase") == 2
    assert text.count("| semshare |") == 1
    assert markdown_table([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
