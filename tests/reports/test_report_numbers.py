"""What a report is made of: numbers as text, means over seeds, axes and legends."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedsim.engine.run_directory import bests
from fedsim.figures.curves import Line, Panel, grid_figure, panel_figure
from fedsim.figures.html import inline_svg
from fedsim.reports.groups import Record, mean_std
from fedsim.reports.numbers import number, spread


def test_mean_and_std_are_numpys():
    values = [0.1, 0.4, 0.9]
    assert mean_std(values) == (np.mean(values), np.std(values, ddof=1))
    mean, std = mean_std([2.0])
    assert mean == 2.0
    assert np.isnan(std)


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (0.5, "test_accuracy", "0.5000"), (1234567, "gradients", "1,234,567"), (1.5e6, "bytes_sent", "1.5 MB"),
        (12, "bytes_sent", "12 B"), (float("nan"), "", "–"), (0.00012346, "", "0.0001235"),
    ],
)  # fmt: skip
def test_numbers(value, key, text):
    assert number(float(value), key) == text


def test_spread_shows_zero_for_a_metric_and_hides_it_for_a_cost():
    assert spread(0.5, 0.0, "test_accuracy") == "0.5000 ± 0.0000"
    assert spread(30.0, 0.0, "round") == "30"
    assert spread(1.23456, 0.0345678, "test_loss") == "1.235 ± 0.035"


def test_an_axis_over_less_than_a_decade_has_numbers():
    line = Line(0, np.arange(3.0), np.array([0.021, 0.024, 0.028]))
    svg = inline_svg(panel_figure(Panel("p", "round", "distance", [line], log=True), 1), "p", "alt")
    assert re.search(r">0\.02\d*<", svg)


def test_the_grid_has_one_legend_for_all_and_hides_nothing():
    lines = [Line(i, np.arange(3.0), np.arange(3.0) + i) for i in range(3)]
    labels = ["_hidden", "$math{", "plain"]
    figure = grid_figure([[Panel("a", "round", "y", lines)], [Panel("b", "round", "y", lines[:1])] * 2], labels)
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_hidden", r"\$math{", "plain"]
    figure.canvas.draw()  # a label read as a formula would fail here


def test_the_mean_of_the_last_ten_leaves_out_what_was_before(tmp_path):
    values = [0.1, 0.9, *np.linspace(0.5, 0.6, 10).tolist()]
    rows = [{"round": i, "test_accuracy": v} for i, v in enumerate(values)]
    record = Record(tmp_path, {}, "", rows, True)
    assert record.tail("test_accuracy") == pytest.approx(np.mean(values[-10:]))
    assert record.best("test_accuracy") == (0.9, 1)
    assert bests(rows) == {
        "test_accuracy_best": 0.9,
        "test_accuracy_mean_of_last_10": pytest.approx(np.mean(values[-10:])),
    }
    assert np.isnan(
        Record(tmp_path, {}, "", [*rows, {"round": 13, "test_accuracy": None}], False).tail("test_accuracy")
    )
