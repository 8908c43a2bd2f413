"""Texts as data: tokenizers, windows, readers, natural clients, the cache, exports, and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.core.tokens import IGNORED, Tokens
from fedsim.data.text import LEAF, Shakespeare, Text
from fedsim.data.tokenizers import Encoded, make_tokenizer
from fedsim.data.windows import windows
from fedsim.engine.assembly import assemble
from fedsim.models.exported import load
from fedsim.scenario.load import parse

SAYS = {"Ann": ["to be or not to be", "that is the question"], "Bob": ["whether it is nobler", "in the mind to bear"]}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    if file.suffix == ".csv":
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(file))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["csv", "parquet"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rows = [{"who": who, "text": text, "mood": len(text) % 2} for who, texts in SAYS.items() for text in texts]
    write(tmp_path / f"lines.{request.param}", rows)
    return tmp_path / f"lines.{request.param}"


def joined(*texts: list[int]) -> Encoded:
    return Encoded(np.concatenate([np.array(t, dtype=np.uint8) for t in texts]), np.cumsum([0, *map(len, texts)]))


def test_windows_of_every_position() -> None:
    """Each token but the first of its text is a target exactly once where rows do not overlap."""
    found = windows(joined([1, 2, 3, 4, 5], [6], [7, 8]), "every", 3, 3, 0)
    assert found.x.tolist() == [[1, 2, 3], [4, 5, 0], [7, 8, 0]]
    assert found.y is not None
    assert found.y.tolist() == [[2, 3, 4], [5, IGNORED, IGNORED], [8, IGNORED, IGNORED]]
    assert found.text.tolist() == [0, 0, 2]
    assert found.short == 1
    overlapping = windows(joined([1, 2, 3, 4, 5]), "every", 3, 2, 0)
    assert overlapping.x.tolist() == [[1, 2, 3], [3, 4, 5]]


def test_windows_of_the_next_token() -> None:
    found = windows(joined([1, 2, 3, 4, 5], [6], [7, 8]), "next", 3, 1, 0)
    assert found.x.tolist() == [[1, 2, 3], [2, 3, 4], [0, 0, 7]]
    assert found.y is not None
    assert found.y.tolist() == [4, 5, 8]
    assert windows(joined([1, 2, 3, 4, 5, 6]), "next", 3, 2, 0).x.tolist() == [[1, 2, 3], [3, 4, 5]]


def test_windows_of_labels() -> None:
    found = windows(joined([1, 2, 3, 4, 5], [6]), "label", 3, 3, 9)
    assert found.x.tolist() == [[1, 2, 3], [9, 9, 6]]
    assert found.y is None


def test_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(name: str, text: str, **keys: Any) -> list[int]:
        given = {"known": None, "most": None, "padding": None, **keys}
        return [int(i) for i in make_tokenizer(name, ["abba", "The cab, the"], **given).encoded([text]).ids]

    assert ids("byte", "aé") == [97, 195, 169]
    assert ids("char", "ab€z", known="ba") == [1, 0, 2, 2]
    found = make_tokenizer("char", ["abba", "The cab, the"], None, None, None)
    assert found.tokens == (*" ,Tabceht", "<unk>", "<pad>")
    assert (found.size, found.unknown, found.padding, found.found) == (11, 9, 10, True)
    assert make_tokenizer("word", ["The cab, the"], None, 4, None).tokens == ("the", ",", "<unk>", "<pad>")
    assert ids("word", "the CAB!", known=["cab", "the"]) == [1, 0, 2]
    (tmp_path / "fedsim_test_tokens.py").write_text("def pairs(text):\n    return [len(w) for w in text.split()]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ids("fedsim_test_tokens:pairs", "a bb", most=4) == [1, 2]
    for text, key, message in (("aaaa", "vocabulary", "gave the id 4 for row 0; allowed: 0 to 3"),):
        with pytest.raises(InputError, match=message) as caught:
            ids("fedsim_test_tokens:pairs", text, most=4)
        assert caught.value.problems[0].key == key
    for name, keys, key in (
        ("chars", {}, "tokenizer"), ("byte", {"known": "ab"}, "tokens"), ("char", {"most": 5}, "vocabulary"),
        ("char", {"padding": 0}, "padding"), ("char", {"known": "aa"}, "tokens"),
        ("fedsim_test_tokens:pairs", {}, "vocabulary"), ("fedsim_test_tokens:nothing", {"most": 3}, "tokenizer"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            ids(name, "a", **keys)
        assert caught.value.problems[0].key == key


def test_a_table_of_texts(lines: Path, cache: Path) -> None:
    """Language modelling by characters, from either kind of file, with and without the cache."""
    part = Text(path=str(lines), context=8, test_fraction=0.25)
    data = part.load_by("who", None, 0, Path.cwd())
    again = part.load_by("who", None, 0, Path.cwd())
    assert len(list(cache.glob("*.npz"))) == 1
    assert torch.equal(data.train_x, again.train_x)
    assert data.train_x.dtype == torch.uint8
    how = data.about["input"]["tokenizer"]
    letters = how["tokens"]
    assert letters == [*sorted(set("".join(t for texts in SAYS.values() for t in texts))), "<unk>", "<pad>"]
    assert data.tokens == Tokens(len(letters), True, 8, ragged=True)
    assert data.num_classes == len(letters)
    rows = ["".join(letters[i] for i in row if i != how["padding"]) for row in data.train_x.tolist()]
    assert all(any(row in text for texts in SAYS.values() for text in texts) for row in rows)
    for row, targets in zip(data.train_x.tolist(), data.train_y.tolist(), strict=True):
        assert all(t in (row[i + 1], IGNORED) for i, t in enumerate(targets[:-1]))
    assert set(data.ids if data.ids is not None else []) == {"Ann", "Bob"}


def test_labels_of_texts(lines: Path) -> None:
    data = Text(path=str(lines), context=30, target="mood", tokenizer="word").load(None, 0, Path.cwd())
    assert data.tokens is not None
    assert not data.tokens.language
    assert data.tokens.single
    assert data.class_names == ["0", "1"]
    assert (data.train_x[:, 0] == data.about["input"]["tokenizer"]["padding"]).all()  # padded in front


NUMBERS = [10, 2, 0, 1, 11, 2, 10, -3, 0, 1, 11, -3]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_labels_that_are_numbers_are_sorted_as_numbers(kind: str, tmp_path: Path) -> None:
    write(tmp_path / f"t.{kind}", [{"text": f"text {i}", "mood": m} for i, m in enumerate(NUMBERS)])
    data = Text(path=str(tmp_path / f"t.{kind}"), context=8, target="mood", test_fraction=0.5).load(None, 0, Path.cwd())
    assert data.about["target"]["classes"] == ["-3", "0", "1", "2", "10", "11"]
    assert data.about["target"]["labels"] == [-3, 0, 1, 2, 10, 11]


def test_labels_that_only_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "text,mood\n" + "".join(f"hello {i},{m}\n" for i, m in enumerate(["01", "1", "10"] * 4))
    )
    data = Text(path=str(tmp_path / "t.csv"), context=8, target="mood").load(None, 0, Path.cwd())
    assert data.about["target"]["labels"] == ["01", "1", "10"]


def test_classes_that_a_file_names_keep_its_order(tmp_path: Path) -> None:
    import datasets

    rows = {"text": [f"text {i}" for i in range(12)], "mood": [i % 3 for i in range(12)]}
    features = datasets.Features({"text": datasets.Value("string"), "mood": datasets.ClassLabel(names=["z", "b", "a"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "t.parquet"))
    data = Text(path=str(tmp_path / "t.parquet"), context=8, target="mood").load(None, 0, Path.cwd())
    assert data.about["target"]["classes"] == ["z", "b", "a"]


@pytest.mark.parametrize("predict", ["every", "label"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_text_is_a_text(kind: str, predict: str, tmp_path: Path) -> None:
    texts = ["", "some", "text", "here", "", "more"] * 2
    write(tmp_path / f"t.{kind}", [{"text": t, "mood": "ab"[i % 2]} for i, t in enumerate(texts)])
    given: dict[str, Any] = {"path": str(tmp_path / f"t.{kind}"), "context": 4}
    data = Text(**given, **({"target": "mood"} if predict == "label" else {})).load(None, 0, Path.cwd())
    says = "have no token, so that their" if predict == "label" else "have fewer than two tokens"
    assert any(note.startswith("4 texts of ") and says in note for note in data.about["notes"])
    assert len(data.train_x) + len(data.test_x) == (12 if predict == "label" else 8)


def test_a_context_beyond_all_memory_is_refused(lines: Path) -> None:
    with pytest.raises(
        InputError, match=r"rows of 1,000,000,000,000 tokens needs .* allowed: this machine's memory"
    ) as caught:
        Text(path=str(lines), context=10**12).load(None, 0, Path.cwd())
    assert caught.value.problems[0].key == "context"


@pytest.mark.parametrize(
    "name,known,says",
    [
        ("word", "tobe", "found the text 'tobe'; allowed: a list of words"),
        ("word", ["To"], "found 'To', which no text is divided into; allowed: a word in lower case"),
        ("word", ["to be"], "found 'to be', which no text"),
        ("word", ["be", "<pad>"], "found '<pad>'; allowed: other tokens, it comes by itself"),
        ("word", ["be", "be"], "found 'be' twice"),
        ("char", "", "found none"),
        ("char", ["ab"], "found 'ab'; allowed: single characters"),
    ],
)
def test_tokens_that_no_text_could_have(name: str, known: str | list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        make_tokenizer(name, ["a"], known, None, None)
    assert caught.value.problems[0].key == "tokens"


@pytest.mark.parametrize(
    "keys,key,message",
    [
        ({"path": None}, "path", "one of 'path' and 'hub'"),
        ({"text": "txt"}, "text", "no column of .*txt|unknown column.*'txt'"),
        ({"predict": "label"}, "target", "the column with the labels"),
        ({"target": "mood", "predict": "every"}, "target", "every next token is in the text"),
        ({"target": "mood", "predict": "next"}, "target", "found '[01]' in row|"),
        ({"classes": ["a"]}, "classes", "tokens are predicted"),
        ({"target": "mood", "stride": 2}, "stride", "a text is one row"),
        ({"target": "mood", "classes": ["5"]}, "classes", "found label"),
        ({"tokenizer": "fedsim.core.tokens:widened", "vocabulary": 9}, "tokenizer", "failed on row 0"),
    ],
)
def test_refused(lines: Path, keys: dict[str, Any], key: str, message: str) -> None:
    given: dict[str, Any] = {"path": str(lines), "context": 8, **keys}
    if keys.get("predict") == "next":
        given |= {"tokens": "ab"}
    if keys.get("predict") == "next":
        assert Text(**given).load(None, 0, Path.cwd()).num_classes == 4  # digits are <unk>, and one token each
        return
    with pytest.raises(InputError, match=message) as caught:
        Text(**given).load(None, 0, Path.cwd())
    assert caught.value.problems[0].key == key


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,mood,text\n" + "one,a,two\n" * 9)
    with pytest.raises(InputError, match=r"two columns of .*t.csv are called 'text'; allowed: different names"):
        Text(path=str(tmp_path / "t.csv"), context=4).load(None, 0, Path.cwd())
    (tmp_path / "t.csv").write_text("text,text.1\n" + "one,two\n" * 9)
    assert len(Text(path=str(tmp_path / "t.csv"), context=4).load(None, 0, Path.cwd()).train_x)


def test_cells_that_are_no_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "a.csv", [{"a": t, "text": "some text"} for t in ("NA", "", "null")])
    with pytest.raises(InputError, match=r"column 'a' .* no value in row 1"):
        Text(path=str(tmp_path / "a.csv"), target="a").load(None, 0, tmp_path)
    write(tmp_path / "a.parquet", [{"text": t} for t in ("NA", None, "null")])
    with pytest.raises(InputError, match="no value in row 1"):
        Text(path=str(tmp_path / "a.parquet")).load(None, 0, tmp_path)
    write(tmp_path / "b.parquet", [{"text": 1}, {"text": 2}])
    with pytest.raises(InputError, match="holds int in row 0; allowed: texts"):
        Text(path=str(tmp_path / "b.parquet")).load(None, 0, tmp_path)
    write(tmp_path / "c.csv", [{"text": "ab", "y": "cd"}, {"text": "ab", "y": "c"}])
    with pytest.raises(InputError, match=r"found 'cd' in row 0 .* which is 2 tokens"):
        Text(path=str(tmp_path / "c.csv"), target="y", predict="next").load(None, 0, tmp_path)
    (tmp_path / "fedsim_test_short.py").write_text("def ids(text):\n    return [1] * len(text)\n")
    with pytest.raises(InputError, match=r"row 0 .* is shorter than the context of 9") as caught:
        Text(path=str(tmp_path / "c.csv"), tokenizer="fedsim_test_short:ids", vocabulary=5, context=9).load(
            None, 0, tmp_path
        )
    assert caught.value.problems[0].key == "padding"


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows as flwrlabs/shakespeare has them: character_id, x of 80 characters, y the next one."""
    folder = tmp_path_factory.mktemp("roles")
    text = "Now is the winter of our discontent\nMade glorious summer by this sun of York; $ " * 6
    rows = [
        {"character_id": f"PLAY_{'ABC'[i % 3]}", "x": text[3 * i : 3 * i + 80], "y": text[3 * i + 80]}
        for i in range(45)
    ]
    write(folder / "train.parquet", rows[:36])
    write(folder / "test.parquet", rows[36:])
    write(folder / "shakespeare.csv", rows)
    return folder


def shakespeare(path: Path, model: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "shakespeare", "path": str(path), **data},
        "model": model,
        "algorithm": {"name": "fedavg", "lr": 0.5, "local_epochs": 1, "batch_size": 8},
        "run": {"rounds": 2},
    }


def test_shakespeare_by_role(roles: Path, tmp_path: Path) -> None:
    assert len(set(LEAF)) == len(LEAF) == 80
    model = {"name": "char_lstm", "hidden": 8}
    run = fedsim.run(shakespeare(roles, model), out=tmp_path / "run")
    row = run.metrics.iloc[-1]
    assert row["perplexity"] == pytest.approx(np.exp(row["test_loss"]))
    resolved = (tmp_path / "run" / "scenario.yaml").read_text()
    assert "partition_by: character_id" in resolved
    made = assemble(parse(shakespeare(roles, model)))
    assert made.about is not None
    assert made.about["clients"]["names"] == ["PLAY_A", "PLAY_B", "PLAY_C"]
    assert made.about["input"]["vocabulary"] == 82
    assert any("<unk>" in note for note in made.about["notes"])  # the $
    task: Any = made.task
    assert task.num_classes == 82
    assert "".join(LEAF[i] for i in task.inputs[0, :77].tolist()).startswith("Now is the winter")
    assert LEAF[int(task.targets[0])] == "N"  # character 80 of the text
    assert assemble(parse(shakespeare(roles, model, clients=4))).task.num_clients == 4  # iid where somebody asks
    run.export(tmp_path / "model.pt")
    model_there = load(tmp_path / "model.pt")
    text = ("Now is the winter of our discontent\n" * 3)[:80]
    found = model_there.predict([text, "short"])
    assert len(found) == 2
    assert all(isinstance(c, str) for c in found)
    inside = run.model().eval()(torch.tensor([model_there.ids(text)]))
    assert torch.allclose(model_there.outputs([text]), inside, atol=1e-6)


def test_shakespeare_at_every_position(roles: Path, tmp_path: Path) -> None:
    model = {"name": "transformer", "width": 8, "heads": 2, "layers": 1}
    data = Shakespeare(path=str(roles / "shakespeare.csv"), predict="every").load_by("character_id", None, 0, roles)
    assert data.train_y.shape[1] == data.train_x.shape[1] == 80
    assert torch.equal(data.train_y[:, :-1], data.train_x[:, 1:].long())
    last = Shakespeare(path=str(roles / "shakespeare.csv")).load_by("character_id", None, 0, roles)
    assert torch.equal(torch.sort(last.train_y).values, torch.sort(data.train_y[:, -1]).values)
    run = fedsim.run(shakespeare(roles, model, predict="every"), out=tmp_path / "every")
    for name in ("model.pt", "model.pt2"):
        run.export(tmp_path / name)
        there = load(tmp_path / name)
        found = there.predict(["Now is", long := "Now is the winter. " * 5])
        assert [len(row) for row in found] == [6, 80]  # what comes after a text's end follows its last token
        assert torch.equal(there.outputs([long]), there.outputs([long[-80:]]))
        ids = torch.tensor([there.ids("Now is")])
        assert len(there.predict(ids.roll(74, 1))[0]) == 6  # padding in front, as others give ids
        front = there.outputs(ids.roll(74, 1)).argmax(-1)[0, -6:].tolist()
        assert there.predict(ids.roll(74, 1)) == [[there.labels[i] for i in front]]


def test_lists_of_token_ids_in_parquet(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).integers(0, 300, (20, 6))
    write(tmp_path / "ids.parquet", [{"x": row[:5].tolist(), "y": row[1:].tolist()} for row in draw])
    scenario = shakespeare(tmp_path, {"name": "char_lstm", "hidden": 4}) | {
        "data": {
            "dataset": "parquet", "path": str(tmp_path / "ids.parquet"), "target": "y", "task": "tokens", "clients": 2
        }
    }  # fmt: skip
    task: Any = assemble(parse(scenario)).task
    assert task.inputs.dtype == torch.int16
    assert task.num_classes == int(draw.max()) + 1
    assert task.tokens.positions == 5


def test_without_a_network_the_hub_is_not_there() -> None:
    for section in ({"dataset": "shakespeare"}, {"dataset": "text", "hub": "flwrlabs/shakespeare", "text": "x"}):
        with pytest.raises(InputError, match="cannot load 'flwrlabs/shakespeare' from the hub") as caught:
            assemble(parse(shakespeare(Path(), {"name": "char_lstm"}) | {"data": section}))
        assert caught.value.problems[0].key == "data.path"


def test_femnist_by_writer(tmp_path: Path) -> None:
    """Rows as flwrlabs/femnist has them: image, writer_id, hsf_id, character."""
    import datasets
    from PIL import Image

    random, rows = np.random.default_rng(0), []
    for i in range(20):
        stream = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (28, 28), dtype=np.uint8)).save(stream, "PNG")
        image = {"bytes": stream.getvalue(), "path": None}
        rows.append({"image": image, "writer_id": f"f{i % 4:04d}_10", "hsf_id": 0, "character": i % 62})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "writer_id": datasets.Value("string"),
            "hsf_id": datasets.Value("int64"),
            "character": datasets.ClassLabel(num_classes=62),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "train.parquet"))
    scenario = shakespeare(tmp_path, {"name": "linear"}) | {"data": {"dataset": "femnist", "path": str(tmp_path)}}
    task: Any = assemble(parse(scenario)).task
    assert task.num_clients == 4
    assert task.num_classes == 62
    assert task.inputs.shape == (16, 1, 28, 28)
    assert len(task.test_inputs) == 4  # a fifth of each writer's
