"""The ledger: written before every release, per client, refused past the budget."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedsim.core.errors import RunError
from fedsim.privacy.accounting import Release, epsilon
from fedsim.privacy.clipping import max_coefficient, sensitivity
from fedsim.privacy.ledger import BudgetExceeded, Claim, PrivacyLedger

CLAIM = Claim("example", "replace-one", "central", "against everybody", "none")
A, B = Release("a", 4.0), Release("b", 9.0)
DELTA = 1e-5


def ledger(**keys: object) -> PrivacyLedger:
    return PrivacyLedger(CLAIM, DELTA, 5, **keys)  # type: ignore[arg-type]


def test_what_everybody_takes_part_in_adds_up() -> None:
    book = ledger()
    assert book.epsilon() == 0.0
    book.append(A)
    book.append(A, 3)
    book.append(B, 2)
    assert book.epsilon() == epsilon({A: 4, B: 2}, DELTA)
    assert [(r["kind"], r["count"]) for r in book.report()["releases"]] == [("a", 4), ("b", 2)]


def test_epsilon_is_that_of_the_client_who_spent_most() -> None:
    book = ledger()
    book.append(A, 2)
    book.append(A, clients=np.array([1, 3]))
    book.append(B, np.array([1, 7]), clients=np.array([3, 4]))
    worst = max(({A: 3, B: 0}, {A: 3, B: 1}, {A: 2, B: 7}), key=lambda p: epsilon(p, DELTA))
    assert book.epsilon() == pytest.approx(epsilon(worst, DELTA), rel=1e-12)
    sampled = Release("s", 1.0, 0.1)
    book.append(sampled, np.array([5, 2]), clients=np.array([0, 4]))
    expected = max(epsilon({A: 2, sampled: 5}, DELTA), epsilon({A: 2, B: 7, sampled: 2}, DELTA))
    assert book.epsilon() == pytest.approx(expected, rel=1e-9)


def test_over_spending_is_refused_before_the_release() -> None:
    budget = epsilon({A: 3}, DELTA)
    book = ledger(budget=budget)
    book.append(A, 3)
    with pytest.raises(BudgetExceeded, match=r"budget is used up.*Nothing was released"):
        book.append(Release("a", 400.0))
    assert issubclass(BudgetExceeded, RunError)
    assert book.epsilon() == budget
    one = ledger(budget=budget)
    one.append(A, 3, clients=np.array([2]))
    one.append(A, 3, clients=np.array([1]))
    with pytest.raises(BudgetExceeded):
        one.append(A, clients=np.array([0, 2]))
    one.append(A, clients=np.array([0]))


def test_what_was_planned_needs_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = epsilon({A: 5}, DELTA)
    book = ledger(budget=budget, planned={A: 5})
    with monkeypatch.context() as patch:
        patch.setattr("fedsim.privacy.ledger.epsilon", lambda *_: pytest.fail("computed an epsilon"))
        for _ in range(5):
            book.append(A)
    with pytest.raises(BudgetExceeded):
        book.append(A)


def test_it_survives_a_checkpoint() -> None:
    book = ledger(budget=10.0)
    book.append(A, 2)
    book.append(Release("s", 1.5, 0.1), np.array([3, 4]), clients=np.array([0, 4]))
    again = ledger(budget=10.0)
    again.load(json.loads(json.dumps(book.save())))
    assert again.epsilon() == book.epsilon()
    assert again.save() == book.save()
    with pytest.raises(BudgetExceeded):
        ledger(budget=0.1).load(book.save())


def test_sensitivities() -> None:
    sizes, uniform = np.array([10, 20, 70]), np.full(3, 1 / 3)
    assert max_coefficient(uniform, sizes) == pytest.approx(1 / 30)
    assert max_coefficient(sizes / 100, sizes) == pytest.approx(1 / 100)
    assert max_coefficient(sizes / 100) == pytest.approx(0.7)
    assert sensitivity(3.0, 0.1, "replace-one") == pytest.approx(0.6)
    assert sensitivity(3.0, 0.1, "add-remove") == pytest.approx(0.3)
