"""Makes docs/gallery/ from what reproductions found: python docs/gallery.py [FOLDER...]

Every file docs/gallery/results/NAME-DATA.json is the results.json of one `fedsim reproduce NAME --on DATA`. The pages
are made from these and from reproductions/NAME.yaml, and so are the figures. Results in FOLDERs, where such commands
left them, are taken in first.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from fedsim.sweeps.reproduced.files import Reproduction, read
from fedsim.sweeps.reproduced.page import figure, headline, page, verdicts

DOCS = Path(__file__).parent
PLACE = DOCS / "gallery"
FOLDER = DOCS.parent / "reproductions"
HEAD = """\
# Reproduced results

```bash
fedsim reproduce                    # what there is, how long it takes, and what it needs
fedsim reproduce dspodfl            # runs it, and writes a page like those here
fedsim reproduce dspodfl --quick    # in seconds: to see that it runs
```

Each of these takes a result of a paper, scales it down to minutes of one core, and says whether the paper's claims come
out. Where one does not, the page says so, and why. `docs/gallery/results` has the numbers, `python docs/gallery.py`
makes these pages and figures from them.
"""
TAIL = """
## Options

* `--on NAME`: which of its data; the first is the default, and needs no download
* `--data DIR`: the folder of the data, where a result is for data that may be read from one
* `--quick`: few rounds and one seed; nothing that comes out says anything about the paper
* `--set KEY=VALUE`: a key of every run's scenario
* `--out DIR`: where the page, the figure, `results.json` and the runs go; default `reproduced/NAME-DATA`
* `--resume`: keep runs that are finished, and continue the others

`fedsim report DIR/runs` makes the report of the runs themselves.

## A reproduction of your own

A reproduction is a file:

```yaml
# my.yaml
name: my-result
paper:
  title: The paper's title
  where: Conference, year
  arxiv: "2402.03448"
  result: Table 1
  claim: What the paper says.
  scaled: What is smaller here, and why.
sweep:                                    # a sweep, or the file of one
  scenario: scenarios/quickstart.yaml     # relative to this file
  cases:
    fedavg: {}
    fedprox: {algorithm.name: fedprox, algorithm.mu: 0.1}
  grid: {seed: [0, 1, 2]}
data:
  digits: {title: "scikit-learn's digits", minutes: 1, set: {}}
quick: {run.rounds: 2}
quantities:
  rounds: {words: rounds to 80 %, take: first, of: test_accuracy, target: 0.8, at: round, better: lower}
figure: {x: round, y: test_accuracy}
checks:
  - {says: FedProx needs fewer rounds than FedAvg, of: rounds, best: fedprox, than: [fedavg]}
```

```bash
fedsim reproduce my.yaml
```

* `sweep`: a [sweep](../runs.md#sweeps); its cases, and its axes but for `seed`, are the rows that are compared
* `data`: choices of data. Each has a `title`, `minutes` and `needs`, `path: true` where `--data` may name a folder,
  changes of all runs (`set`) or of a case (`cases`), and `differs`, the text about where the result differs
* `quick`: changes with which a run takes a second or two
* `quantities`: numbers of each run. `take` is `first` (the column `at` where `of` reaches `target`), `last`, `best`,
  `mean` or `spread` (of the last quarter, counted by the column `along`); `better` is `lower` or `higher`; `paper` has
  the paper's numbers by row; `against` is the row by whose number all are divided
* `checks`: claims. `best` is a row that is better than those of `than` (default: all others), at least by the factor
  `by`; or `near` has numbers by row that are met up to the share `within`

A claim holds if it does for the medians over the seeds; the page also says for how many seeds alone. A run that never
reaches its target, or fails, counts as the worst.
"""


def results() -> dict[str, dict[str, dict[str, Any]]]:
    """The committed results, by reproduction and choice of data."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for file in sorted((PLACE / "results").glob("*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(one["name"], {})[one["data"]] = one
    return found


def pages() -> dict[str, str]:
    """The texts of the pages, by their file's name."""
    made, told = {}, []
    found = results()
    for file in sorted(FOLDER.glob("*.yaml")):
        one, _ = read(file)
        of = {on: found[one.name][on] for on in one.data if on in found.get(one.name, {})}
        told += _entries(one, of)
        if of:
            name = one.name
            link = f"[reproductions/{file.name}](../../reproductions/{file.name})"
            made[f"{name}.md"] = page(one, of, lambda on, name=name: f"images/{name}-{on}.png", link)
    return {"index.md": "\n".join([HEAD, "## Results\n", *told, TAIL]).replace("\n\n\n", "\n\n"), **made}


def _entries(one: Reproduction, found: dict[str, dict[str, Any]]) -> list[str]:
    name = f"[{one.name}]({one.name}.md)" if found else one.name
    lines = textwrap.wrap(f"**{name}**: {one.paper.result} (arXiv {one.paper.arxiv})", 118, break_on_hyphens=False)
    lines.append("")
    for on, choice in one.data.items():
        of = found.get(on)
        said = f"{headline(verdicts(one, of)).rstrip('.')}; {of['seconds']:,.0f} seconds" if of else "not run yet"
        lines.append(f"* `{on}` ({choice.title}): {said}")
    return [*lines, ""]


def take_in(folder: Path) -> None:
    """Copy a folder's results into the gallery, unless they are of a quick run or of changed keys."""
    text = (folder / "results.json").read_text(encoding="utf-8")
    one = json.loads(text)
    if one["quick"] or one["settings"]:
        sys.exit(f"{folder}: found a run with --quick or --set; allowed: a reproduction as its file has it")
    (PLACE / "results" / f"{one['name']}-{one['data']}.json").write_text(text, encoding="utf-8")


def main() -> None:
    for folder in sys.argv[1:]:
        take_in(Path(folder))
    (PLACE / "images").mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (PLACE / name).write_text(text, encoding="utf-8")
    for name, of in results().items():
        one, _ = read(FOLDER / f"{name}.yaml")
        for on, found in of.items():
            figure(one, found).savefig(PLACE / "images" / f"{name}-{on}.png", dpi=110)


if __name__ == "__main__":
    main()
