"""The notebooks of the documentation: a real kernel executes them, and their text says what comes out."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")
by_name = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def stored(notebook: Path) -> Any:
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install -e '.[test]'")
    return nbformat.read(notebook, as_version=4)


def words(cell: Any) -> str:
    """What a code cell shows that is text."""
    return "\n".join(
        output.get("text")
        or "\n".join(str(data) for kind, data in sorted(output.data.items()) if kind.startswith("text/"))
        for output in cell.outputs
    )


def said(cell: Any) -> list[str]:
    """The numbers in the prose of a Markdown cell: not those of code, links and names of papers."""
    return _NUMBER.findall(re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", cell.source))


def unfounded(cells: list[Any]) -> list[str]:
    """Numbers of the prose that neither a cell above it nor (whole ones) the code near it has."""
    wrong = []
    for at, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        before = [c for c in cells[:at] if c.cell_type == "code"][-2:]
        found = set(_NUMBER.findall("\n".join(words(c) for c in before)))
        code = set(_NUMBER.findall("\n".join(c.source for c in cells[max(at - 2, 0) : at + 2])))
        known = found | {number for number in code if "." not in number} | {"0", "1"}
        wrong += [f"{number}: {cell.source}" for number in said(cell) if number not in known]
    return wrong


@pytest.fixture(scope="module")
def execute() -> Callable[..., Any]:
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[test]'")
    found: Callable[..., Any] = runpy.run_path(str(FOLDER / "execute.py"))["executed"]
    return found


@pytest.mark.slow
@by_name
def test_a_notebook_runs_and_its_text_is_true(notebook: Path, execute: Callable[..., Any], tmp_path: Path) -> None:
    from nbclient import NotebookClient

    bars: list[list[str]] = []

    class Watching(NotebookClient):  # type: ignore[misc]
        """A client that keeps what a front end would draw, message by message."""

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            page = msg["content"].get("data", {}).get("text/html", "")
            if msg["msg_type"] == "display_data" and "<progress" in page:
                bars.append([])
            if "<progress" in page:
                bars[-1].append(page)
            return super().process_message(msg, cell, cell_index)

    fresh = execute(notebook, tmp_path, Watching)
    assert unfounded(fresh.cells) == []
    again = f"python docs/notebooks/execute.py {notebook.stem}"
    for old, new in zip(stored(notebook).cells, fresh.cells, strict=True):
        if new.cell_type == "code":
            assert words(old) == words(new), again
            pictures = [["image/png" in o.get("data", {}) for o in c.outputs] for c in (old, new)]
            assert pictures[0] == pictures[1], again
    assert len(bars) == len(list(tmp_path.glob("runs/*/metrics.jsonl"))) > 0
    for drawn in bars:  # it moves while the run goes on, and ends full
        assert len(drawn) >= 3
        assert re.search(r'value="0" max="\d+"', drawn[0])
        assert re.search(r'value="(\d+)" max="\1"', drawn[-1])


@by_name
def test_a_stored_notebook_is_whole_and_names_no_machine(notebook: Path) -> None:
    found = stored(notebook)
    code = [cell for cell in found.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert found.metadata.kernelspec.name == "python3"
    shown = "\n".join(map(words, code))
    assert re.findall(r"(?:^|[\s'\"(])/(?:home|root|tmp|usr|work|opt|Users)\b.*|0x[0-9a-f]{8,}", shown) == []
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    for cell in code:
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        assert drawn == bool(re.search(r"\.plot\(|plt\.show", cell.source)), cell.source
    assert [line for cell in found.cells for line in cell.source.splitlines() if len(line) > 120] == []
    assert sum(len(said(cell)) for cell in found.cells if cell.cell_type == "markdown") >= 4
    assert unfounded(found.cells) == []
    assert notebook.stat().st_size < 400_000


@by_name
def test_a_wrong_number_in_the_text_is_found(notebook: Path) -> None:
    """The comparison above sees each of the numbers that have a point."""
    found = stored(notebook)
    for cell in found.cells:
        if cell.cell_type == "markdown":
            for number in said(cell):
                if "." in number:
                    right, cell.source = cell.source, cell.source.replace(number, number + "7")
                    assert unfounded(found.cells), number
                    cell.source = right


@pytest.mark.slow
def test_a_notebook_shows_a_mistake_as_a_sentence(execute: Callable[..., Any], tmp_path: Path) -> None:
    """And what a cell raises ends the execution; somebody's own error keeps its traceback."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    (tmp_path / "broken_part.py").write_text("def part():\n    pass\n\n\n1 / 0\n", encoding="utf-8")
    shown = []
    scenario = {"data": {"dataset": "digits"}, "model": {"name": "linear"}, "algorithm": {"name": "fedagv"}}
    for wrong in (f"fedsim.run({scenario})", "fedsim.check('broken_part:part')"):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"import fedsim\n{wrong}")])
        nbformat.write(book, tmp_path / "wrong.ipynb")
        with pytest.raises(CellExecutionError) as caught:
            execute(tmp_path / "wrong.ipynb", tmp_path)
        shown.append(caught.value.traceback.rpartition("------------------")[2].strip())
    sentence, own = shown
    assert sentence.startswith("InputError: algorithm.name: unknown algorithm 'fedagv'")
    assert "did you mean 'fedavg'" in sentence
    assert "\n" not in sentence
    assert "ZeroDivisionError" in own
    assert 'broken_part.py", line 5' in own
    assert "\nInputError: " in own
