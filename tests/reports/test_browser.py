"""The page of a report, in a real browser: what a reader sees, clicks and types."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trebuchet as tb

from .. import specimens
from .synthetic import EVIL, above, negative, over, runs

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the path")
WAIT = 60_000  # milliseconds: other work may have the machine


class Reader:
    """One page, opened from its file, with everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("request", self._request)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=yes]", timeout=WAIT)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.wrong.append(request.url)

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, condition: str) -> None:
        """Until it is true; asked from here, since the page's own policy lets nobody evaluate."""
        for _ in range(WAIT // 50):
            if self.ask(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(condition)

    def pressed(self) -> list[int]:
        """The columns of the phase bar that are chosen."""
        return list(
            self.ask(
                "[...document.querySelectorAll('.bar button')]"
                ".flatMap((b, i) => b.getAttribute('aria-pressed') === 'true' ? [i] : [])"
            )
        )

    def rates_drawn(self) -> list[int]:
        """Rates whose traces are not faint."""
        found = self.ask(
            "(() => { const runs = JSON.parse(document.getElementById('data').textContent)[0];"
            "const lines = document.querySelector('.steps').data"
            ".filter((d) => d.mode === 'lines' && d.opacity === 1);"
            "const found = lines.flatMap((d) => d.customdata.filter((i) => i !== null))"
            ".map((i) => runs.rate[i]); return [...new Set(found)].sort((a, b) => a - b); })()"
        )
        return list(found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # A root user, as in a container, has no sandbox; shared memory is small there too.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        running = driver.chromium.launch(executable_path=BROWSER, args=arguments, timeout=2 * WAIT)
        yield running
        running.close()


@pytest.fixture(scope="module")
def opened(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Reader]]:
    """Each page is written and opened once, in the dark; who changes it puts it back."""
    folder = tmp_path_factory.mktemp("pages")
    readers: dict[str, Reader] = {}

    def open_(name: str) -> Reader:
        if name not in readers:
            path = tb.report(*RESULTS[name](), path=folder / f"{name}.html", title=TITLES.get(name))
            readers[name] = Reader(browser, path, color_scheme="dark")
        return readers[name]

    yield open_
    for reader in readers.values():
        reader.context.close()


RESULTS: dict[str, Callable[[], list[Any]]] = {
    "sweep": lambda: [runs()],
    "evil": lambda: [over(runs(model=EVIL, loss=EVIL, optimizer=EVIL), EVIL, [EVIL, "b"])],
    "odd": lambda: [negative(), above(), runs(rates=1, seeds=1)],
    "several": lambda: [
        specimens.scan(), over(runs(), "width", [16, 64]), specimens.figure(), specimens.top(),
    ],
}  # fmt: skip
TITLES = {"evil": EVIL}


@pytest.fixture
def sweep(opened: Callable[[str], Reader]) -> Iterator[Reader]:
    reader = opened("sweep")
    yield reader
    reader.page.keyboard.press("Escape")
    assert reader.wrong == []


@pytest.mark.parametrize("name", list(RESULTS))
def test_pages_load_without_a_fault_and_fit_the_screen(
    opened: Callable[[str], Reader], name: str
) -> None:
    reader = opened(name)
    for width in (375, 1200):
        reader.page.set_viewport_size({"width": width, "height": 800})
        reader.wait(f"document.documentElement.scrollWidth <= {width}")
    charts = reader.ask(
        "[...document.querySelectorAll('.chart')].map((c) => (c.data || []).length)"
    )
    assert charts
    assert min(charts) >= 1
    assert reader.wrong == []


def test_hovering_over_a_trace_tells_rate_seed_phase_step_and_loss(sweep: Reader) -> None:
    sweep.page.locator(".steps").scroll_into_view_if_needed()
    x, y = sweep.ask(
        "(() => { const chart = document.querySelector('.steps');"
        "const line = chart.data.find((d) => d.mode === 'lines' && d.text[3].includes('lazy'));"
        "const { xaxis, yaxis } = chart._fullLayout; const box = chart.getBoundingClientRect();"
        "return [box.left + xaxis._offset + xaxis.d2p(line.x[3]),"
        " box.top + yaxis._offset + yaxis.d2p(line.y[3])]; })()"
    )
    sweep.page.mouse.move(x - 3, y - 3)
    sweep.page.mouse.move(x, y)
    sweep.page.wait_for_selector(".steps .hoverlayer .hovertext", state="attached")
    told = sweep.page.locator(".steps .hoverlayer .hovertext").first.text_content()
    for word in ("η = ", "ηλ₀ = ", "seed ", "lazy", "step ", "loss "):
        assert word in told


def test_a_click_on_a_rate_picks_its_traces_and_again_or_escape_gives_all_back(
    sweep: Reader,
) -> None:
    everything = sweep.rates_drawn()
    assert everything == list(range(9))
    column = sweep.page.locator(".bar button").nth(5)
    column.click()
    assert sweep.pressed() == [5]
    assert sweep.rates_drawn() == [5]
    assert "3 catapult" in sweep.page.locator(".picked").inner_text()
    column.click()
    assert (sweep.pressed(), sweep.rates_drawn()) == ([], everything)
    column.click()
    sweep.page.keyboard.press("Escape")
    assert (sweep.pressed(), sweep.rates_drawn()) == ([], everything)


def test_the_bar_is_for_the_keyboard_too(sweep: Reader) -> None:
    sweep.page.locator(".bar button").first.focus()
    sweep.page.keyboard.press("ArrowRight")
    sweep.page.keyboard.press("ArrowRight")
    sweep.page.keyboard.press("Enter")
    assert sweep.pressed() == [2]
    assert sweep.rates_drawn() == [2]
    label = sweep.page.locator(".bar button").nth(2).get_attribute("aria-label")
    assert label == "η = 0.595: 3 lazy"
    sweep.page.keyboard.press("End")
    sweep.page.keyboard.press("Space")
    assert sweep.pressed() == [8]


def test_a_heading_sorts_the_table_up_and_down_and_missing_numbers_come_last(
    sweep: Reader,
) -> None:
    def column(index: int) -> list[str]:
        cells = f"(r) => r.cells[{index}].innerText"
        return list(sweep.ask(f"[...document.querySelectorAll('tbody tr')].map({cells})"))

    rates = column(0)
    head = sweep.page.locator("th button").first
    head.focus()
    sweep.page.keyboard.press("Enter")
    assert column(0) == rates
    assert sweep.page.locator("th").first.get_attribute("aria-sort") == "ascending"
    sweep.page.keyboard.press("Enter")
    assert column(0) == rates[::-1]
    assert sweep.page.locator("th").first.get_attribute("aria-sort") == "descending"


def test_axes_are_logarithmic_or_linear_by_a_button(sweep: Reader) -> None:
    for chart, axis, name in (
        ("steps", "yaxis", "values"), ("steps", "xaxis", "steps"), ("against", "yaxis", "loss"),
    ):  # fmt: skip
        group = sweep.page.locator(f".{chart}-buttons").get_by_role("group", name=name)
        for scale in ("linear", "log"):
            group.get_by_role("button", name=scale).click()
            sweep.wait(f"document.querySelector('.{chart}').layout.{axis}.type === '{scale}'")


def test_every_axis_rises_whatever_the_losses_are(opened: Callable[[str], Reader]) -> None:
    ranges = (
        "[...document.querySelectorAll('.against, .steps')]"
        ".map((c) => [c._fullLayout.yaxis.range, c._fullLayout.xaxis.range]).flat()"
    )
    for name in ("sweep", "several", "odd"):
        for low, high in opened(name).ask(ranges):
            assert low < high


def test_an_axis_has_a_diagram_and_a_choice_of_its_values(
    opened: Callable[[str], Reader],
) -> None:
    reader = opened("several")
    shape = reader.ask(
        "(() => { const z = document.querySelector('.diagram').data[0].z;"
        "return [z.length, z[0].length]; })()"
    )
    assert shape == [2, 9]
    shown = "document.querySelectorAll('.steps')[1].data.flatMap((d) => d.text || [])"
    assert reader.ask(f"{shown}.some((t) => t && t.includes('width 16'))")
    reader.page.locator(".axes select").select_option("1")
    reader.wait(f"{shown}.some((t) => t && t.includes('width 64'))")
    assert not reader.ask(f"{shown}.some((t) => t && t.includes('width 16'))")
    assert reader.wrong == []


def test_names_that_are_markup_stay_text(opened: Callable[[str], Reader]) -> None:
    reader = opened("evil")
    assert reader.page.title() == EVIL
    assert reader.page.locator("h1").inner_text() == EVIL
    assert reader.page.locator("main img").count() == 0
    reader.page.locator(".bar button").nth(3).click()
    assert EVIL in reader.ask("document.querySelector('.axes label').innerText")
    assert "<script" in reader.page.locator(".diagram").inner_text()
    assert reader.ask("window.hacked") is None
    assert reader.wrong == []


def test_dark_and_light_follow_the_reader_and_the_button(sweep: Reader) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.querySelector('.steps').layout.font.color"
    dark = sweep.ask(ground), sweep.ask(ink)
    sweep.page.emulate_media(color_scheme="light")
    sweep.wait(f"{ground} === 'rgb(255, 255, 255)' && {ink} !== '{dark[1]}'")
    sweep.page.emulate_media(color_scheme="dark")
    sweep.wait(f"{ground} === '{dark[0]}' && {ink} === '{dark[1]}'")
    sweep.page.locator("#theme").click()
    assert sweep.ask(ground) == "rgb(255, 255, 255)"
    assert sweep.ask(ink) != dark[1]
    sweep.page.locator("#theme").click()
    assert (sweep.ask(ground), sweep.ask(ink)) == dark


def test_without_scripts_numbers_and_words_are_there(browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(specimens.scan().report(tmp_path / "scan.html").as_uri())
    assert page.locator("tbody tr").count() == len(specimens.scan().table)
    assert page.locator("noscript").is_visible()
    context.close()
