"""What a small YAML file may ask for is checked before it is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.core.documents import MOST_BYTES, Document, override, read_yaml
from fedsim.core.errors import InputError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join(9 * [f'*a{i - 1}'])}]}}\n" for i in range(1, 10))

REFUSED = [
    (LAUGHS, None, "aliases repeat .* values, allowed: at most 100,000"),
    (MERGES, None, "aliases repeat .* values, allowed: at most 100,000"),
    (f"t: &t {'x' * 10**6}\nl: [{', '.join(50 * ['*t'])}]\n", None, "aliases repeat"),
    ("a: " + 101 * "[" + 101 * "]" + "\n", None, "nested too deeply .allowed: 100 levels"),
    ("a: " + 100_000 * "[", None, "nested too deeply"),
    ("a: 1\nb: !!bool maybe\n", 2, "found maybe, which is no bool"),
    ("b: !!int many\n", 1, "found many, which is no int"),
    ("b: !!float many\n", 1, "found many, which is no float"),
    ("b: !!timestamp soon\n", 1, "found the type !!timestamp, allowed: null, bool"),
    ("b: !!set {c}\n", 1, "found the type !!set"),
    ("b: !!binary eHg=\n", 1, "found the type !!binary"),
    (f"b: {'9' * 4000}\n", 1, "found a whole number of 4,000 digits, allowed: 64 bits"),
    (f"b: {'9' * 10_000}\n", 1, "found a whole number of 10,000 digits"),
    (f"b: [1, -{2**63 + 1}]\n", 1, "allowed: 64 bits"),
    ("b: 1e999\n", 1, "found 1e999, larger than any number"),
]


@pytest.mark.parametrize(("text", "line", "words"), REFUSED, ids=[words[:30] for _, _, words in REFUSED])
def test_refused_with_its_line(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_yaml(path)
    problem = caught.value.problems[0]
    assert (problem.file, problem.line) == (str(path), line)
    assert len(problem.message) < 300


@pytest.mark.parametrize("text", ["!!bool maybe", "9" * 4000, "[" * 5000, "1e999"], ids=["tag", "int", "deep", "float"])
def test_settings_are_checked_alike(text: str) -> None:
    with pytest.raises(InputError, match="not valid YAML") as caught:
        override(Document({}), [f"run.rounds={text}"])
    assert caught.value.problems[0].key == "run.rounds"
    assert len(str(caught.value)) < 400


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="too large, allowed: at most 16 MiB"):
        read_yaml(path)


def test_what_a_scenario_needs_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    law = ", ".join(["0.5"] * 20_000)
    path.write_bytes(
        f"a: &a [{law}]\r\nb: *a\r\nc: {2**64 - 1}\r\nd: -{2**63}\r\ne: .inf\r\nf: {'[' * 99}{']' * 99}\r\n".encode()
    )
    values = read_yaml(path).values
    assert values["a"] == values["b"] == [0.5] * 20_000
    assert (values["c"], values["d"], values["e"]) == (2**64 - 1, -(2**63), float("inf"))


def test_aliases_do_not_take_the_machine(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(LAUGHS)
    code = (
        "import sys\n"
        "def peak():\n    return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "from fedsim.core.documents import read_yaml\n"
        "from fedsim.core.errors import InputError\n"
        "before = peak()\n"
        "try:\n    read_yaml(sys.argv[1])\nexcept InputError:\n"
        "    print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.yaml")], capture_output=True, text=True, timeout=240, check=True
    )
    assert int(done.stdout) < 20_000  # KiB
