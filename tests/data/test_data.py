"""Data sets: what is read is what the file holds, and what is wrong with a file is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from data_makers import idx_folder_in, image_folder_in, load, pictures, save_quadratic, write_images

from fedsim.core.errors import InputError
from fedsim.data import cache
from fedsim.data import parquet as data_files
from fedsim.data import sets as data
from fedsim.data.splits import Split, divide, scaled

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDSIM_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def real(name: str) -> Path:
    root = os.environ.get("FEDSIM_DATA")
    if not root:
        pytest.skip("FEDSIM_DATA does not name the folder of real data sets")
    return Path(root) / name


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return image_folder_in(tmp_path)


def test_digits_are_stratified_and_scaled() -> None:
    d = load(HERE, dataset="digits")
    assert d.train_x.shape == (1438, 1, 8, 8)
    assert d.test_x.shape == (359, 1, 8, 8)
    assert (d.train_x.dtype, d.train_y.dtype, d.num_classes) == (torch.float32, torch.int64, 10)
    assert float(d.train_x.max()) == 1.0
    share = np.bincount(d.test_y) / (np.bincount(d.test_y) + np.bincount(d.train_y))
    assert np.abs(share - 0.2).max() < 0.004
    again = load(HERE, dataset="digits", seed=5)
    assert torch.equal(d.test_x, again.test_x)
    both = torch.cat([d.train_x, d.test_x]).reshape(1797, -1) * 16
    from sklearn.datasets import load_digits

    whole = load_digits().data
    assert np.array_equal(both.numpy()[np.lexsort(both.numpy().T)], whole[np.lexsort(whole.T)].astype(np.float32))


def test_digits_are_scikit_learns_wherever_it_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read as scikit-learn reads it; where it is not found, scikit-learn is asked."""
    from sklearn.datasets import load_digits

    whole = load_digits()
    read = data._digits.__wrapped__()
    monkeypatch.setattr(data, "find_spec", lambda name: None)  # noqa: ARG005
    for images, target in (read, data._digits.__wrapped__()):
        assert (images.dtype, target.dtype) == (whole.images.dtype, whole.target.dtype)
        assert np.array_equal(images, whole.images)
        assert np.array_equal(target, whole.target)


def test_named_set_from_parquet_holds_the_pixels(image_folder: Path) -> None:
    d = load(image_folder.parent, dataset="mnist", path="images", normalize="none")
    expected = np.concatenate([pictures(6), pictures(2, seed=1)])[:, None]
    assert np.array_equal(d.train_x.numpy(), expected)
    assert d.train_y.tolist() == [0, 1, 2, 0, 1, 2, 9, 0]
    assert (len(d.test_y), d.num_classes) == (3, 10)
    standard = load(image_folder, dataset="mnist", path=str(image_folder))
    assert torch.allclose(standard.train_x, (d.train_x / 255 - 0.1307) / 0.3081, atol=1e-6)


def test_colour_images_are_channels_first(tmp_path: Path) -> None:
    images = pictures(4, (3, 5, 3))
    for split in ("train", "test"):
        write_images(tmp_path / f"{split}.parquet", list(images), [0, 1, 2, 3], image="img")
    d = load(tmp_path, dataset="cifar10", path=".", normalize="unit")
    assert np.allclose(d.train_x.numpy(), images.transpose(0, 3, 1, 2) / 255)


def test_cifar100_has_its_fine_labels_and_published_statistics(tmp_path: Path) -> None:
    images, labels = pictures(6, (32, 32, 3)), [0, 99, 42, 7, 13, 99]
    write_images(tmp_path / "train-00000.parquet", list(images), labels, image="img", label="fine_label")
    write_images(tmp_path / "test.parquet", list(images[:2]), labels[:2], image="img", label="fine_label")
    d = load(tmp_path, dataset="cifar100", path=".")
    assert (d.train_x.shape, d.test_x.shape, d.num_classes) == ((6, 3, 32, 32), (2, 3, 32, 32), 100)
    assert d.train_y.tolist() == labels
    mean, std = np.array([0.5071, 0.4865, 0.4409]), np.array([0.2673, 0.2564, 0.2762])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert np.allclose(d.train_x.numpy(), expected, atol=1e-5)
    write_images(tmp_path / "test.parquet", list(images[:2]), [0, 100], image="img", label="fine_label")
    with pytest.raises(InputError, match="found label 100 with 100 classes; allowed: 0 to 99"):
        load(tmp_path, dataset="cifar100", path=".")


def test_hub_format_finds_the_image_column(image_folder: Path) -> None:
    d = load(image_folder, dataset="hub", hub="me/mine", path=".", normalize="unit", limit=5)
    assert (d.train_x.shape, d.test_x.shape, d.num_classes) == ((5, 1, 5, 4), (3, 1, 5, 4), 4)
    assert (d.class_names, d.train_y.tolist()) == (["0", "1", "2", "9"], [0, 1, 2, 0, 1])
    ten = load(image_folder, dataset="hub", hub="me/mine", path=".", num_classes=10)
    assert (ten.num_classes, ten.train_y.tolist()) == (10, [0, 1, 2, 0, 1, 2, 9, 0])
    assert np.allclose(d.train_x.numpy()[:, 0], pictures(6)[:5] / 255)


def test_parquet_features_are_standardised_by_the_train_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"a": rng.normal(3, 2, 50), "b": rng.normal(-1, 9, 50), "c": 7.0, "y": rng.normal(size=50)}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    d = load(tmp_path, dataset="parquet", path="t.parquet", target="y", test_fraction=0.3)
    assert (d.train_x.shape, d.test_x.shape, d.num_classes) == ((35, 3), (15, 3), None)
    assert d.train_y.dtype == torch.float32
    x = d.train_x.numpy()
    assert np.allclose(x.mean(0), 0, atol=1e-6)
    assert np.allclose(x.std(0), [1, 1, 0], atol=1e-5)
    train = frame[frame.y.astype(np.float32).isin(d.train_y.numpy())]
    assert np.allclose(x[:, 0], (train.a - train.a.mean()) / train.a.std(ddof=0), atol=1e-5)
    unit = load(tmp_path, dataset="parquet", path="t.parquet", target="y", features=["b"], normalize="unit")
    assert unit.train_x.shape == (40, 1)
    assert (float(unit.train_x.min()), float(unit.train_x.max())) == (0.0, 1.0)


def test_csv_text_labels_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i * 2},{'dog' if i % 2 else 'cat'}\n" for i in range(20))
    (tmp_path / "pets.csv").write_text("u,v,kind\n" + rows)
    d = load(tmp_path, dataset="csv", path="pets.csv", target="kind", normalize="none")
    assert d.num_classes == 2
    assert np.array_equal(d.train_y.numpy(), d.train_x[:, 0].numpy() % 2)
    assert len(d.test_y) == 4
    assert int(d.test_y.sum()) == 2


def test_csv_integers_as_regression(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("u,y\n" + "".join(f"{i},{i * i}\n" for i in range(10)))
    d = load(tmp_path, dataset="csv", path="n.csv", target="y", task="regression", normalize="none")
    assert (d.num_classes, d.train_y.dtype) == (None, torch.float32)
    assert torch.equal(d.train_y, d.train_x[:, 0] ** 2)


def test_idx(tmp_path: Path) -> None:
    d = load(idx_folder_in(tmp_path).parent, dataset="idx", path="idx", normalize="none")
    assert np.array_equal(d.train_x.numpy()[:, 0], pictures(6))
    assert (d.train_y.tolist(), d.test_y.tolist(), d.num_classes) == ([0, 1, 2, 0, 1, 2], [0, 1, 2, 0], 3)


def test_npz_keeps_shapes_and_values(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(9, 2, 3)), np.random.default_rng(1).normal(size=(9, 2))
    np.savez(tmp_path / "d.npz", x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])
    d = load(tmp_path, dataset="npz", path="d.npz")
    assert np.array_equal(d.train_x.numpy(), x[:6].astype(np.float32))
    assert np.array_equal(d.test_y.numpy(), y[6:].astype(np.float32))
    assert d.num_classes is None


def test_synthetic_is_divided_and_follows_its_definition(tmp_path: Path) -> None:
    d = load(tmp_path, clients=40, dataset="synthetic", alpha=1.0, beta=1.0, max_samples=400)
    sizes = np.array([len(rows) for rows in d.clients])
    assert np.array_equal(np.concatenate(d.clients), np.arange(len(d.train_y)))
    assert sizes.min() >= int(0.9 * 50)
    assert sizes.max() <= 360
    assert d.train_x.shape[1:] == (60,)
    assert set(d.train_y.tolist()) <= set(range(10))
    within = np.concatenate([d.train_x[rows].numpy() - d.train_x[rows].numpy().mean(0) for rows in d.clients])
    variance = within.var(axis=0) * len(within) / (len(within) - 40)
    assert np.allclose(variance, np.arange(1, 61) ** -1.2, rtol=0.12)
    fewer = load(tmp_path, clients=3, dataset="synthetic", alpha=1.0, beta=1.0, max_samples=400)
    assert torch.equal(fewer.train_x, d.train_x[: len(fewer.train_x)])
    other = load(tmp_path, clients=3, seed=1, dataset="synthetic", alpha=1.0, beta=1.0, max_samples=400)
    assert not torch.equal(other.train_x[:40], fewer.train_x[:40])


def test_synthetic_heterogeneity_grows_with_alpha_and_beta(tmp_path: Path) -> None:
    def spread(beta: float, **more: Any) -> float:
        d = load(tmp_path, clients=60, dataset="synthetic", alpha=1.0, beta=beta, max_samples=60, **more)
        return float(np.std([d.train_x[rows].mean() for rows in d.clients]))

    assert spread(4.0) > 3 * spread(0.1)


def test_synthetic_iid_has_one_model(tmp_path: Path) -> None:
    d = load(tmp_path, clients=20, dataset="synthetic", iid=True, max_samples=500)
    from sklearn.linear_model import LogisticRegression

    half = np.concatenate(d.clients[:10])
    rest = np.concatenate(d.clients[10:])
    model = LogisticRegression(max_iter=300).fit(d.train_x[half].numpy(), d.train_y[half].numpy())
    assert model.score(d.train_x[rest].numpy(), d.train_y[rest].numpy()) > 0.8


def test_quadratic(tmp_path: Path) -> None:
    q = load(save_quadratic(tmp_path), dataset="quadratic", file="q.npz", noise=0.5)
    assert isinstance(q, data.Quadratic)
    assert q.A.dtype == q.p.dtype == torch.float64
    assert (q.A.shape, q.x0.tolist(), q.p.tolist(), q.noise) == ((3, 2, 2), [0.0, 0.0], [1 / 3] * 3, 0.5)
    weighted = load(
        save_quadratic(tmp_path, A=np.ones((3, 2)), p=np.array([1, 1, 2])), 3, dataset="quadratic", file="q.npz"
    )
    assert (weighted.A.shape, weighted.p.tolist()) == ((3, 2), [0.25, 0.25, 0.5])


def test_divide_is_a_partition_of_rows() -> None:
    y = np.repeat([0, 1, 2], [50, 30, 20])
    train, test = divide(Split(np.arange(100)[:, None], y, 3), 0.3)
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(100))
    assert np.bincount(test.y).tolist() == [15, 9, 6]


def test_scaled_leaves_its_input_alone() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    before = x.copy()
    scaled(x, x, "standard", None, None)
    assert np.array_equal(x, before)


def test_decoded_images_are_cached(image_folder: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(image_folder, dataset="mnist", path=".")
    assert len(list(private_cache.iterdir())) == 2

    def never(*_: Any) -> Any:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(data_files, "decode_images", never)
        assert torch.equal(load(image_folder, dataset="mnist", path=".").train_x, first.train_x)
        write_images(image_folder / "test.parquet", list(pictures(3, seed=7)), [0, 1, 2])
        with pytest.raises(AssertionError, match="decoded again"):
            load(image_folder, dataset="mnist", path=".")
        patch.setenv("FEDSIM_CACHE", "off")
        with pytest.raises(AssertionError, match="decoded again"):
            load(image_folder, dataset="mnist", path=".")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:0], lambda b: b[:200] + b"\xff" + b[201:]])
def test_damaged_cache_is_rebuilt(image_folder: Path, private_cache: Path, damage: Any) -> None:
    first = load(image_folder, dataset="mnist", path=".")
    for file in private_cache.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    damaged = {f.name: f.read_bytes() for f in private_cache.iterdir()}
    again = load(image_folder, dataset="mnist", path=".")
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_x, again.test_x)
    assert all(f.read_bytes() != damaged[f.name] for f in private_cache.iterdir())


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "fedsim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "fedsim"


def test_a_cache_that_cannot_be_written_costs_only_time(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(image_folder / "test.parquet" / "below-a-file"))
    assert len(load(image_folder, dataset="mnist", path=".").train_y) == 8


def test_real_mnist() -> None:
    d = load(real("mnist"), dataset="mnist", path=".")
    assert (d.train_x.shape, d.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert abs(float(d.train_x.mean())) < 0.01
    assert abs(float(d.train_x.std()) - 1) < 0.01


def test_real_california_housing() -> None:
    d = load(real("california_housing"), dataset="parquet", path=".", target="MedHouseVal")
    assert (d.train_x.shape[1], d.num_classes, len(d.train_y) + len(d.test_y)) == (8, None, 20_433)
