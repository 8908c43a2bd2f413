"""Reading YAML: the scalars of YAML 1.2, the line of every key, and where changed values came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.documents import Document, change, override, read_yaml
from fedsim.core.errors import InputError, Problem


def read(folder: Path, text: str) -> Document:
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return read_yaml(folder / "x.yaml")


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("2.", 2.0),
        (".inf", float("inf")),
        ("10", 10),
        ("-7", -7),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("2020-99-99", "2020-99-99"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("e5", "e5"),
    ],
)
def test_scalars(text: str, value: Any, tmp_path: Path) -> None:
    found = read(tmp_path, f"a: {text}\n").values["a"]
    assert found == value
    assert type(found) is type(value)
    assert override(Document({}), [f"a={text}"]).values == {"a": value}


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    text = "a:\n  b: 1\n\n  c:\n    - x\n    - {d: 2}\ne.f: [1,\n  2]\n"
    assert read(tmp_path, text).lines == {
        "a": 1, "a.b": 2, "a.c": 4, "a.c.0": 5, "a.c.1": 6, "a.c.1.d": 6, "e.f": 7, "e.f.0": 7, "e.f.1": 8,
    }  # fmt: skip


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    document = read(tmp_path, "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n")
    assert document.values == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}


def place(document: Document, key: str | None) -> tuple[str | None, int | None]:
    problem = document.locate(InputError("wrong", key=key)).problems[0]
    return problem.file and Path(problem.file).name, problem.line


def test_a_problem_is_located_at_its_key_or_the_nearest_key_above(tmp_path: Path) -> None:
    document = read(tmp_path, "a:\n  b: 1\n")
    assert place(document, "a.b") == ("x.yaml", 2)
    assert place(document, "a.missing") == ("x.yaml", 1)
    assert place(document, "missing") == ("x.yaml", None)
    assert place(document, None) == ("x.yaml", None)
    assert place(Document({"a": 1}), "a") == (None, None)


def test_a_problem_with_a_file_of_its_own_keeps_it(tmp_path: Path) -> None:
    error = InputError([Problem("wrong", "a", "data.csv", 7)])
    assert read(tmp_path, "a: 1\n").locate(error).problems == error.problems


def test_overrides_make_replace_and_are_where_their_problems_are(tmp_path: Path) -> None:
    original = read(tmp_path, "a:\n  b: 1\n  c: {d: 2}\ng:\n")
    document = override(original, ["a.c={e: 3}", "new.x.y=[1, z]", "g.h=1"])
    assert document.values == {"a": {"b": 1, "c": {"e": 3}}, "new": {"x": {"y": [1, "z"]}}, "g": {"h": 1}}
    assert original.values == {"a": {"b": 1, "c": {"d": 2}}, "g": None}
    for key in ("a.c", "a.c.e", "a.c.d", "new.x.y.0", "new", "new.x"):
        assert place(document, key) == ("--set", None), key
    for key, line in (("a", 1), ("a.b", 2), ("g", 4)):
        assert place(document, key) == ("x.yaml", line), key


def test_the_last_change_decides_where_a_value_came_from(tmp_path: Path) -> None:
    document = override(read(tmp_path, "a: {b: 1}\n"), ["a.b=2"])
    document = change(document, "a", {"b": 3}, ("sweep.yaml", 4))
    assert place(document, "a.b") == ("sweep.yaml", 4)
    assert place(override(document, ["a.b=5"]), "a.b") == ("--set", None)


keys = st.text("abc", min_size=1, max_size=2)
values = st.recursive(st.integers() | st.booleans() | st.none(), lambda v: st.dictionaries(keys, v, max_size=3))


@given(st.dictionaries(keys, values, max_size=3), st.lists(keys, min_size=1, max_size=3), values)
def test_change_sets_one_key_and_touches_nothing_else(before: dict[str, Any], path: list[str], value: Any) -> None:
    copy, document, dotted = repr(before), Document(before), ".".join(path)
    inner: Any = before
    for key in path[:-1]:
        inner = {} if inner.get(key) is None else inner[key]
        if not isinstance(inner, dict):
            with pytest.raises(InputError, match="not a mapping with a key"):
                change(document, dotted, value, ("--set", None))
            return
    after, old = change(document, dotted, value, ("--set", None)).values, before
    assert repr(before) == copy
    for key in path[:-1]:
        assert {k: v for k, v in after.items() if k != key} == {k: v for k, v in old.items() if k != key}
        after, old = after[key], old.get(key) or {}
    assert after == {**old, path[-1]: value}
