import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_rows import row

from semshare.errors import ModelNotAvailable
from semshare.evaluation.report.drawing import Item, Style
from semshare.evaluation.report.html import write_html
from semshare.evaluation.report.label_places import LINE, Box, place_labels, spread
from semshare.evaluation.report.plots import merge_lines
from semshare.evaluation.report.summary import summarize
from semshare.evaluation.report.tokens import token_map, wrap
from semshare.evaluation.rows import Row

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "br", "img", "hr", "input"}
SETTING = {
    "runs": [{"datasets": ["papers"], "scenarios": [], "lengths": [500, 1000], "limit": 2}],
    "split": "test",
    "seed": 7,
    "answer_tokens": None,
    "methods": {"full": "computes everything", "semshare": "this library's defaults"},
    "model": "tiny",
    "dtype": "float32",
    "machine": {"cpu": "abacus", "gpu": None, "threads": 2, "system": "Linux 6"},
    "versions": {"python": "3.11"},
}
BASE = row(
    "full",
    "one",
    dataset="papers",
    scenario="shifted",
    length=1000,
    seed=7,
    decode_s=0.02,
    kv_bytes=4_000_000,
    own_kv_bytes=4_000_000,
    log_likelihood=None,
    rouge_l_own=None,
    answer="",
    sources=None,
)


def rows_of(length: int = 1000, **values: Any) -> list[Row]:
    """Full prefill and three contenders on two examples; `values` go into semshare's rows."""
    full = replace(BASE, length=length, tokens=length)
    ours = replace(
        full,
        method="semshare",
        compute_fraction=0.125,
        hit_rate=0.875,
        ttft_s=0.5,
        own_kv_bytes=500_000,
        kl=0.0625,
        kl_by_position=[0.05, 0.075],
        sources=[("prefix", 10), ("span", 700), ("fresh", 200), ("fuzzy", 90)],
    )
    epic = replace(ours, method="epic", compute_fraction=0.25, kl=0.03, ttft_s=1.0, sources=None)
    blend = replace(epic, method="cacheblend", compute_fraction=0.5, kl=0.02)
    one = [full, replace(ours, **values), epic, blend]
    return one + [replace(row, example="two") for row in one]


def page_of(rows: Sequence[Row], folder: Path, setting: dict[str, Any] | None = None) -> str:
    path = folder / "report.html"
    write_html(summarize(rows), rows, setting or SETTING, path)
    return path.read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Every element is closed in the order it was opened; ids and text are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "src", "xlink:href", "action", "data", "poster", "srcset"}:
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def prose(page: str) -> str:
    return " ".join(" ".join(checked(page).text).split())


def test_a_page_is_well_formed_loads_nothing_and_its_ids_are_of_one_element(
    tmp_path: Path,
) -> None:
    page = page_of(rows_of() + rows_of(500), tmp_path)
    found = checked(page)
    assert len(found.ids) == len(set(found.ids)) > 20
    assert {"svg", "table", "figure"} <= found.tags
    assert not found.tags & {"script", "link", "img", "iframe", "object"}
    assert found.references
    for reference in found.references:
        assert reference.startswith("#")
        assert reference[1:] in found.ids
    for reference in re.findall(r"url\(#([^)]*)\)", page):
        assert reference in found.ids
    assert "@import" not in page
    assert "http" not in page


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = rows_of() + rows_of(500)
    assert page_of(rows, tmp_path) == page_of(rows, tmp_path)


def test_figures_of_rows_made_by_hand(tmp_path: Path) -> None:
    text = prose(page_of(rows_of(), tmp_path))
    assert (
        "semshare computes 12.5 % of the prompt at KL 0.0625 from full prefill; its first token "
        "comes after 0.5 s, 4.00 × as fast as full prefill (medians, n = 2). "
        "It is on the frontier of compute and KL."
    ) in text
    assert "papers · shifted · 1,000 tokens" in text
    # 3 s to remember the donors; 2 s − 0.5 s are saved each time.
    row = "semshare ● 2 12.5 87.5 0.0625 100.0 – 0.5 4.00 × 20 4.0 0.5 3.00 2"
    assert row in text
    assert "prefix 10 (1.0 %) span 700 (70.0 %) fuzzy 90 (9.0 %)" in text
    for said in ("--tokens 500,1000", "--seed 7", "tiny, float32", "abacus, 2 threads"):
        assert said in text


def test_columns_in_which_no_method_has_a_value_are_left_out(tmp_path: Path) -> None:
    bare = page_of(rows_of(), tmp_path)
    assert '<th scope="col">ROUGE-L</th>' not in bare
    assert '<th scope="col">ROUGE-L</th>' in page_of(rows_of(rouge_l=0.5), tmp_path)


def test_a_method_that_is_better_with_less_is_named_with_its_figures(tmp_path: Path) -> None:
    text = prose(page_of(rows_of(compute_fraction=0.3), tmp_path))
    assert (
        "Beaten in KL (0.0625), with less computed, by epic (0.0300 at 25.0 %, within the noise)."
        in text
    )
    text = prose(page_of(rows_of(compute_fraction=0.6), tmp_path))
    assert "by epic (0.0300 at 25.0 %, within the noise) and cacheblend (0.0200" in text


def test_a_method_that_equals_in_one_is_not_called_better_in_both(tmp_path: Path) -> None:
    text = prose(page_of(rows_of(compute_fraction=0.25), tmp_path))
    assert "In KL another method equals it in one of the two, and betters it in the other." in text
    assert "Beaten" not in text


def test_what_rows_say_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x & y")</script>'
    rows = [
        replace(row, dataset=evil, scenario=evil, example=evil + row.example)
        for row in rows_of() + [replace(one, method=f"{evil}$x$") for one in rows_of()[2:3]]
    ]
    setting = SETTING | {"model": evil, "methods": {evil: evil}}
    page = page_of(rows, tmp_path, setting)
    assert "script" not in checked(page).tags
    assert prose(page).count(evil) >= 6


def test_a_plot_without_data_says_so(tmp_path: Path) -> None:
    only_full = [row for row in rows_of() if row.method == "full"]
    text = prose(page_of(only_full, tmp_path))
    assert "semshare was not run here." in text
    assert "No plot of quality against compute: no contender was run." in text
    assert "no scenario was run at two lengths" in text
    assert "no contender has a KL of more than 0.0001 at any of several positions" in text
    assert "No token map" in text
    assert "svg" not in checked(page_of(only_full, tmp_path)).tags
    assert "No rows: nothing was measured." in prose(page_of([], tmp_path))


def test_two_lengths_are_plotted_against_each_other(tmp_path: Path) -> None:
    text = prose(page_of(rows_of() + rows_of(500), tmp_path))
    assert "Time to first token, median, against the prompt's length. n = 2" in text
    assert "no scenario was run at two lengths" not in text


def test_matplotlib_is_asked_for_by_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModelNotAvailable, match=r'pip install "semshare\[eval\]"'):
        page_of(rows_of(), tmp_path)


def test_runs_are_cut_where_a_line_is_full() -> None:
    assert wrap([("span", 5), ("fresh", 1), ("span", 4)], 4) == (
        (("span", 4),),
        (("span", 1), ("fresh", 1), ("span", 2)),
        (("span", 2),),
    )


@given(
    st.lists(st.tuples(st.sampled_from(["fresh", "span"]), st.integers(0, 40)), max_size=20),
    st.integers(1, 30),
)
def test_lines_hold_every_token_in_order(runs: list[tuple[str, int]], width: int) -> None:
    lines = wrap(runs, width)
    flat = [name for line in lines for name, count in line for _ in range(count)]
    assert flat == [name for name, count in runs for _ in range(count)]
    sizes = [sum(count for _, count in line) for line in lines]
    assert all(size == width for size in sizes[:-1])
    assert all(0 < size <= width for size in sizes[-1:])


@pytest.mark.parametrize(("tokens", "dense", "lines"), [(1500, False, 15), (1501, True, 4)])
def test_long_prompts_have_more_tokens_a_line(tokens: int, dense: bool, lines: int) -> None:
    found = token_map("one", [("span", tokens)])
    assert (found.is_dense, len(found.lines), found.tokens) == (dense, lines, tokens)
    assert found.counts == (("fresh", 0), ("prefix", 0), ("span", tokens), ("fuzzy", 0))


@given(st.lists(st.floats(0, 300), max_size=15))
def test_spread_heights_are_apart_in_order_and_in_bounds(wished: list[float]) -> None:
    heights = spread(wished, LINE, 0, 300)
    order = sorted(range(len(wished)), key=lambda i: wished[i])
    for below, above in pairwise(order):
        assert heights[above] - heights[below] >= LINE - 1e-9
    assert all(-1e-9 <= height <= 300 for height in heights)


def test_heights_with_room_between_them_stay() -> None:
    assert spread([100, 10, 50], LINE, 0, 300) == [100, 10, 50]


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_labels_of_crowded_points_cover_no_point_and_no_label() -> None:
    points = [(200.0, 150.0), (204.0, 152.0), (198.0, 146.0), (203.0, 140.0), (380.0, 150.0)]
    boxes = place_labels(points, [60.0] * 5, (50.0, 40.0, 400.0, 300.0))
    for at, box in enumerate(boxes):
        assert not any(overlap(box, other) for other in boxes[:at])
        assert not any(overlap(box, (x, y, x, y)) for x, y in points)
        assert box[0] >= 50
        assert box[2] <= 400


def test_a_line_that_hides_another_says_so_and_ours_is_in_front() -> None:
    ours = Item("semshare", ((1, 10.0), (2, 20.0)), Style("#D55E00", is_emphasised=True))
    full = Item("full", ((1, 10.1), (2, 20.1)), Style("#000000"))
    other = Item("epic", ((1, 10.0), (2, 25.0)), Style("#000000"))
    lines, note = merge_lines([full, ours, other])
    assert [line.name for line in lines] == ["semshare +1", "epic"]
    assert note == " On the line of semshare: full."


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_is_as_wide_as_a_phone(tmp_path: Path, width: int) -> None:
    page_of(rows_of(rouge_l=0.5, example="a" * 100) + rows_of(500), tmp_path)
    # A window can be no narrower than 500 pixels, a frame can.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="report.html" style="width:{width}px;height:800px;border:0" '
        'onload="const page = this.contentDocument.documentElement;'
        'document.title = `${page.scrollWidth} of ${page.clientWidth}`"></iframe>',
        encoding="utf-8",
    )
    found = subprocess.run(  # noqa: S603 - the browser that was found
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f"<title>{width} of {width}</title>" in found.stdout
