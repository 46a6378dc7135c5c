"""The page of a report, read without a browser."""

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import trebuchet as tb
from trebuchet.errors import InputError
from trebuchet.reports import door

from .. import specimens
from .synthetic import EVIL, over, runs

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds, and what is wrong with its markup."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts: dict[str, str] = {}
        self.feed(self.source)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        self.faults += [f"two of id {name}" for name in set(ids) if ids.count(name) > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len({name for name, _ in attrs}) < len(attrs):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            key = self.tags[-1][1].get("id") or "code"
            self.scripts[key] = self.scripts.get(key, "") + data
        elif self.open and self.open[-1] != "style":
            self.texts.setdefault(self.open[-1], []).append(data)

    def text(self, tag: str | None = None) -> str:
        """Everything readable, or that in one kind of element."""
        chosen = self.texts.values() if tag is None else [self.texts.get(tag, [])]
        return " ".join(" ".join(part) for part in chosen)

    def data(self) -> Any:
        """What the pictures are drawn from; not JSON where there is NaN in it."""

        def refuse(word: str) -> None:
            raise AssertionError(word)

        return json.loads(self.scripts["data"], parse_constant=refuse)


def written(tmp_path: Path, *results: Any, **options: Any) -> Page:
    """The page of some results."""
    path = tb.report(*results, path=tmp_path / "page.html", overwrite=True, **options)
    assert path.stat().st_size < 5_000_000
    page = Page(path)
    assert page.faults == []
    return page


KINDS: dict[str, Callable[[], Any]] = {
    "scan": specimens.scan,
    "scan as a dataset": lambda: specimens.scan().to_dataset(),
    "sweep": specimens.runs,
    "sweep without labels": lambda: specimens.runs().drop_vars("phase"),
    "sweep with an axis": lambda: over(runs(), "width", [16, 64]),
    "sweep with two axes": lambda: over(over(runs(rates=3), "width", [16, 64]), "depth", [1, 2, 3]),
    "figure": specimens.figure,
    "top eigenvalue": specimens.top,
    "top eigenvalue as a dataset": lambda: specimens.top().to_dataset(),
}
"""A result of every kind that can be on a page, as it comes and as it is saved."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_result_has_question_answer_and_code(kind: str, tmp_path: Path) -> None:
    page = written(tmp_path, KINDS[kind]())
    told = page.text()
    for heading in ("What was asked", "Do it again", "Settings", "Versions and machine"):
        assert heading in told
    assert kind.split()[0] in page.text("p")
    compile(page.text("code").replace("…", "None"), "code", "exec")
    assert "trebuchet 0" in told
    assert "torch" in told


def test_several_results_are_on_one_page_with_a_list_of_them(tmp_path: Path) -> None:
    page = written(tmp_path, *(make() for make in KINDS.values()), title="All of it")
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["#results", *(f"#result-{n + 1}" for n in range(len(KINDS)))]
    assert page.text("title") == "All of it"


def test_a_scan_says_rate_interval_phase_and_reason(tmp_path: Path) -> None:
    scan = specimens.scan()
    told = written(tmp_path, scan).text()
    s = scan.suggestion
    assert scan.suggestion.reason in told
    assert str(s.phase) in told
    assert ("✓ reliable" in told) == s.reliable
    assert ("⚠ not reliable" in told) != s.reliable


def test_a_sweep_says_how_many_runs_of_each_phase_and_where_they_change(tmp_path: Path) -> None:
    told = " ".join(written(tmp_path, runs()).text().split())
    assert "27 runs: 12 lazy, 9 catapult, 6 divergent" in told
    assert "The loss first rises at η 0.917 to 1.41. Training ends at η 3.36 to 5.19." in told


def test_names_of_others_are_text_wherever_they_are(tmp_path: Path) -> None:
    ds = over(runs(model=EVIL, loss=EVIL, optimizer=EVIL, note=EVIL), EVIL, [EVIL, "b"])
    page = written(tmp_path, ds, title=EVIL)
    assert page.text("title").strip() == EVIL
    assert page.text("h1").strip() == EVIL
    assert {tag for tag, attrs in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "div", "h1", "p", "button",
        "main", "section", "h2", "h3", "span", "dl", "dt", "dd", "noscript", "table", "thead",
        "tr", "th", "tbody", "td", "details", "summary", "ul", "li", "pre", "code", "footer",
        "script",
    }  # fmt: skip
    assert sum(tag == "script" for tag, _ in page.tags) == 5
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.data()[0]["axes"] == [{"name": EVIL, "values": [EVIL, "b"]}]
    assert "<" not in page.scripts["data"]


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = written(tmp_path, *(make() for make in KINDS.values()))
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
    policy = next(attrs for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert str(policy["content"]).startswith("default-src 'none'")
    own = page.source.replace(page.scripts["plotly"], "")
    assert not re.search(r"https?://|@import|url\(", own)


def test_plotly_is_inside_whole(tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    packed = written(tmp_path, runs()).scripts["plotly"]
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert written(tmp_path, specimens.top()).scripts.get("plotly", "") == ""


def test_thinned_traces_keep_ends_and_peaks_and_say_so(tmp_path: Path) -> None:
    ds = runs(rates=40, seeds=8, steps=3000)
    peak = ds["loss"].values.copy()
    peak[20, 3, 1234] = 777.0
    page = written(tmp_path, ds.assign(loss=(ds["loss"].dims, peak)))
    (data,) = page.data()
    at, values = data["traces"]["loss"]["runs"][20 * 8 + 3]
    assert len(at) < 500
    assert values[at.index(1234)] == 777.0
    assert at[0] == 0
    assert data["step"][at[-1]] == 3000
    assert "each trace is thinned" in page.text()
    assert "thinned" not in written(tmp_path, runs()).text()


def test_a_page_of_very_many_runs_is_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    page = written(tmp_path, runs(rates=400, seeds=30, steps=20))
    assert "12000 runs" in page.text()
    assert "drawn are" in page.text()
    assert len(page.data()[0]["rate"]) <= 3100


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_BYTES", 100_000)
    with pytest.raises(InputError, match="fit into a page"):
        tb.report(runs(), path=tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_beyond_the_paper_has_its_question_and_picture(tmp_path: Path) -> None:
    from trebuchet.paper.beyond import EXPERIMENTS

    found = EXPERIMENTS["ceiling"].run(quick=True, progress=False)
    page = written(tmp_path, found)
    assert EXPERIMENTS["ceiling"].question in page.text()
    assert any(tag == "img" for tag, _ in page.tags)


def test_runs_without_traces_and_without_model_are_drawn_as_far_as_they_go(tmp_path: Path) -> None:
    ds = runs().drop_dims("step")
    ds.attrs = {}
    page = written(tmp_path, ds)
    assert page.data()[0]["traces"] == {}
    assert "Every run, step by step" not in page.text()


def test_losses_that_are_not_finite_or_negative_are_no_obstacle(tmp_path: Path) -> None:
    ds = runs()
    bad = ds.assign(
        loss=-ds["loss"], loss_final=ds["loss_final"] * np.nan, loss_first=-ds["loss"][..., 0]
    )
    written(tmp_path, bad)
    nothing = ds.assign(loss=ds["loss"] * np.nan)
    written(tmp_path, nothing)


def test_the_methods_are_the_function(tmp_path: Path) -> None:
    scan, figure = specimens.scan(), specimens.figure()
    assert scan.report(tmp_path / "a.html", title="A") == tmp_path / "a.html"
    assert Page(tmp_path / "a.html").text("title") == "A"
    figure.report(tmp_path / "b" / "c.html")
    assert "Figure 6" in Page(tmp_path / "b" / "c.html").text("title")
    with pytest.raises(InputError, match="overwrite=True"):
        scan.report(tmp_path / "a.html")
    scan.report(tmp_path / "a.html", overwrite=True)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "got none"),
        ([3], "expected scans, runs"),
        ([xr.Dataset({"a": 1})], "expected scans, runs"),
        ([[1, 2]], "expected scans, runs"),
    ],
    ids=["none", "a number", "another dataset", "a list"],
)
def test_what_is_no_result_is_refused(results: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        tb.report(*results, path=tmp_path / "page.html")
    with pytest.raises(InputError, match="is a folder"):
        tb.report(runs(), path=tmp_path)


def test_the_code_says_how_the_runs_were_made(tmp_path: Path) -> None:
    code = written(tmp_path, over(runs(), "width", [16, 64])).text("code")
    assert 'tb.Problem(make, "mse", data, "adam", batch_size=8)' in code
    assert "np.geomspace(0.25, 8.0, 9)" in code
    assert "axes={'width': [16, 64]}" in code
    assert "def make(seed, width):" in code
    observed = runs().assign(test_loss_final=runs().loss_final, accuracy=runs().loss)
    code = written(tmp_path, observed).text("code")
    assert "test=…" in code
    assert 'observables=["accuracy"]' in code
    own = written(tmp_path, runs(loss="my loss", optimizer="Mine(\n1)")).text("code")
    assert "loss = …  # my loss" in own
    assert "optimizer = …  # Mine( 1)" in own


def test_importing_trebuchet_imports_neither_plotly_nor_jinja() -> None:
    told = "import sys, trebuchet as tb; tb.report; print({'plotly', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
