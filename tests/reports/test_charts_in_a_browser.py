"""Reports as a browser shows them: one Chromium for all tests here, on pages of made-up numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from browser import FOUND, Browser

from fedsim.figures.charts import charts
from fedsim.figures.curves import Line, Panel
from fedsim.figures.html import page
from fedsim.reports.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(FOUND is None, reason="no Chromium: install the distribution's package chromium"),
]

FIRST = "document.querySelector('figure.chart')"
ROUNDS = 5


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


def made_up(folder: Path, name: str, seed: int, rounds: int = ROUNDS) -> None:
    """A run directory: accuracy rises by a tenth per round, of seed 1 from 0.02 higher."""
    folder.mkdir(parents=True)
    scenario = {"name": name, "seed": seed, "algorithm": {"name": name}, "run": {"rounds": ROUNDS}}
    (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario))
    rows = [
        {"round": k, "time": 2.0 * k, "bytes_sent": 1_000_000 * k, "gradients": 64 * k,
         "test_accuracy": 0.1 + 0.1 * k + 0.02 * seed, "consensus_distance": 10.0**-k}
        for k in range(rounds + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups, one of two seeds and one that is unfinished and has a name that is no HTML."""
    home = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        made_up(home / f"plain{seed}", "plain", seed)
    made_up(home / "strange", "<b>strange</b> & co", 0, rounds=3)
    return write_report(home)


@pytest.fixture
def shown(browser: Browser, report: Path) -> Iterator[Browser]:
    """The report on a wide screen; its console says nothing, whatever a test does to it."""
    browser.open(report)
    yield browser
    assert browser.complaints == []
    assert browser.asked_for() == []


def cells(browser: Browser, figure: str = FIRST) -> list[list[str]]:
    found: list[list[str]] = browser.ask(
        f"[...{figure}.querySelector('.values').rows].map((row) => [...row.cells].map((c) => c.innerText.trim()))"
    )
    return found


def picture(browser: Browser, figure: str = FIRST) -> str:
    return str(browser.ask(f"{figure}.querySelector('canvas').toDataURL()"))


def choice(name: str, figure: str = FIRST) -> str:
    return f"[...{figure}.querySelectorAll('.axes label')].find((label) => label.innerText === '{name}')"


def button(text: str, figure: str = FIRST) -> str:
    return f"[...{figure}.querySelectorAll('button')].find((one) => one.innerText.includes('{text}'))"


def test_every_chart_is_drawn_and_nothing_is_asked_for(shown: Browser) -> None:
    assert shown.ask("document.querySelectorAll('figure.chart').length") == 2
    assert shown.ask("document.querySelectorAll('figure.chart.live canvas').length") == 2
    assert shown.ask(f"getComputedStyle({FIRST}.querySelector('.still')).display") == "none"
    assert shown.ask("document.querySelectorAll('.values b').length") == 0
    assert cells(shown) == [
        ["", "at the end", "lowest to highest"], ["plain", "0.61", "0.6 to 0.62"], ["<b>strange</b> & co", "0.4", ""],
    ]  # fmt: skip


def test_the_axis_is_chosen(shown: Browser) -> None:
    names = shown.ask(f"[...{FIRST}.querySelectorAll('.axes label')].map((label) => label.innerText)")
    assert names == ["round", "virtual time", "bytes sent", "sample gradients"]
    before = picture(shown)
    shown.click(choice("bytes sent"))
    assert picture(shown) != before
    shown.point(f"{FIRST}.querySelector('.u-over')", 0.41, 0.5)
    assert cells(shown)[0][1] == "bytes sent 2 MB"
    shown.click(choice("round"))
    shown.point(f"{FIRST}.querySelector('.u-over')", 0.41, 0.5)
    assert cells(shown)[0][1] == "round 2"


def test_values_are_those_under_the_pointer(shown: Browser) -> None:
    over = f"{FIRST}.querySelector('.u-over')"
    shown.point(over, 0.59, 0.5)
    assert cells(shown) == [
        ["", "round 3", "lowest to highest"], ["plain", "0.41", "0.4 to 0.42"], ["<b>strange</b> & co", "0.4", ""],
    ]  # fmt: skip
    shown.point(over, 0.99, 0.5)
    assert [row[1] for row in cells(shown)] == ["round 5", "0.61", "–"]  # the other one ended in round 3
    shown.point("document.querySelector('h1')", 0.5, 0.5)
    assert cells(shown)[0][1] == "at the end"


def test_arrow_keys_move_from_point_to_point(shown: Browser) -> None:
    shown.ask(f"{FIRST}.querySelector('.drawn').focus()")
    for _ in range(2):
        shown.press("ArrowRight")
    assert cells(shown)[0][1] == "round 1"
    shown.press("ArrowLeft")
    assert [row[1] for row in cells(shown)] == ["round 0", "0.11", "0.1"]


def test_a_group_is_hidden_and_shown_again(shown: Browser) -> None:
    before = picture(shown)
    shown.click(button("plain"))
    assert picture(shown) != before
    assert shown.ask(f"{button('plain')}.getAttribute('aria-pressed')") == "false"
    shown.click(button("plain"))
    shown.point("document.querySelector('h1')", 0.5, 0.5)
    assert picture(shown) == before


def test_the_numbers_are_downloaded(shown: Browser) -> None:
    shown.click(choice("virtual time"))
    file = shown.download(button("CSV"))
    assert file.name == "progress-test-accuracy-virtual-time.csv"
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    plain = [row for row in rows if row["group"] == "plain"]
    assert [float(row["virtual time"]) for row in plain] == [0, 2, 4, 6, 8, 10]
    assert [float(row["test accuracy"]) for row in plain] == pytest.approx([0.11 + 0.1 * k for k in range(6)])
    assert [float(row["highest"]) for row in plain] == pytest.approx([0.12 + 0.1 * k for k in range(6)])
    strange = [row for row in rows if row["group"] == "<b>strange</b> & co"]
    assert [row["finished"] for row in strange] == ["no"] * 4
    assert len(rows) == len(plain) + len(strange)


def test_the_picture_is_downloaded(shown: Browser) -> None:
    tree = ElementTree.parse(shown.download(button("SVG"))).getroot()
    space = "{http://www.w3.org/2000/svg}"
    text = [one.text for one in tree.iter(f"{space}text")]
    assert {"test accuracy", "round", "plain", "<b>strange</b> & co", "0", "5", "0.2", "0.6"} <= set(text)
    area = tree.find(f"{space}g")
    assert area is not None
    assert [len(list(area.iter(space + kind))) for kind in ("polygon", "path")] == [1, 2]
    lines = [str(path.get("d")) for path in area.iter(f"{space}path")]
    assert [line.count("L") for line in lines] == [5, 3]


def test_a_logarithmic_axis_has_powers_of_ten(shown: Browser) -> None:
    second = "document.querySelectorAll('figure.chart')[1]"
    tree = ElementTree.parse(shown.download(button("SVG", second))).getroot()
    text = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"0.1", "0.01", "0.001"} <= set(text)  # the consensus distance begins after round 0


def test_dark_and_light(browser: Browser, report: Path) -> None:
    browser.open(report, scheme="dark")
    dark, ground = picture(browser), browser.ask("getComputedStyle(document.body).backgroundColor")
    assert sum(int(v) for v in ground[4:-1].split(",")) < 150
    browser.prefer("light")
    browser.settle()
    assert picture(browser) != dark  # drawn again in the other colours
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.complaints == []


def test_a_phone_needs_no_scrolling_sideways(browser: Browser, report: Path) -> None:
    browser.open(report, width=390, height=844)
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    assert 200 < browser.ask(f"{FIRST}.querySelector('canvas').getBoundingClientRect().width") <= 390
    assert browser.complaints == []


def test_points_of_a_cloud_have_their_own_values(browser: Browser, tmp_path: Path) -> None:
    x = np.array([1.0, 3.0, 3.0, 100.0])  # two points above each other
    cloud = Panel("c", "training rows", "accuracy", [Line(0, x, np.array([0.2, 0.4, 0.6, 0.8]), cloud=True)])
    share = Panel("s", "share", "accuracy", [Line(0, np.array([0.5]), np.array([0.25]))])
    file = tmp_path / "cloud.html"
    file.write_text(page("clouds", charts("made", [share, cloud], ["all"])), encoding="utf-8")
    browser.open(file)
    assert [row[1] for row in cells(browser)] == ["at the end", "0.25"]
    browser.click(choice("training rows"))
    assert [row[1] for row in cells(browser)] == ["points", "4"]
    found = set()
    over = f"{FIRST}.querySelector('.u-over')"
    for down in (0.25, 0.35, 0.65):
        browser.point(over, 0.5 * np.log10(3) + 0.03, down)
        found.add(tuple(row[1] for row in cells(browser)))
    assert ("training rows 3", "0.6") in found
    assert ("training rows 3", "0.4") in found
    assert browser.complaints == []


def test_damage_leaves_the_still_picture(browser: Browser, report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    file = tmp_path / "damaged.html"
    file.write_text(text.replace('"pool":[[', '"pool":[[oops', 1), encoding="utf-8")
    browser.open(file)
    assert browser.ask("document.querySelectorAll('figure.chart.live').length") == 1
    assert browser.ask(f"getComputedStyle({FIRST}.querySelector('.still')).display") == "block"
    assert any("JSON" in said for said in browser.complaints)
    assert isinstance(charts("none", [], []), list)


def test_a_name_ends_no_script() -> None:
    line = Line(0, np.arange(3.0), np.arange(3.0))
    made: Any = charts("x", [Panel("p", "round", "y", [line])], ["</script><script>alert(1)"])
    assert str(made[0]).count("<script") == 1
    assert "alert(1)" in str(made[0])
