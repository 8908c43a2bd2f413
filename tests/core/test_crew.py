"""Threads that share work: results in order, errors, and what each thread finds."""

from __future__ import annotations

import pickle
import threading
import time
from functools import partial

import pytest
import torch

from fedsim.core import crew


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_in_the_order_of_the_jobs(threads: int) -> None:
    def job(i: int) -> int:
        time.sleep(0.001 * (7 - i % 7))
        return i * i

    with crew.working(threads):
        assert crew.each([partial(job, i) for i in range(40)]) == [i * i for i in range(40)]


def test_several_threads_take_part_each_with_one_thread_of_torch() -> None:
    meet = threading.Barrier(3, timeout=240)

    def job() -> tuple[int, int]:
        meet.wait()  # passes only if three threads are at work at once
        return threading.get_ident(), torch.get_num_threads()

    with crew.working(3):
        found = crew.each([job] * 3)
    assert len({ident for ident, _ in found}) == 3
    assert {threads for _, threads in found} == {1}


def test_within_a_job_its_thread_does_everything() -> None:
    def job() -> bool:
        return set(crew.each([threading.get_ident] * 4)) == {threading.get_ident()}

    with crew.working(2):
        assert all(crew.each([job] * 6))


def test_the_error_of_the_first_that_raised_is_raised_and_the_crew_goes_on() -> None:
    done = []

    def job(i: int) -> None:
        if i >= 3:
            raise ValueError(i)
        done.append(i)

    with crew.working(2):
        with pytest.raises(ValueError, match=r"^[34]$"):
            crew.each([partial(job, i) for i in range(1000)])
        assert sorted(done) == [0, 1, 2]
        assert crew.each([partial(int, i) for i in range(9)]) == list(range(9))


def test_a_job_finds_the_callers_gradient_mode() -> None:
    with crew.working(2):
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                assert crew.each([torch.is_grad_enabled] * 8) == [enabled] * 8


def test_torchs_own_number_is_back_afterwards() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with crew.working(2):
            assert (torch.get_num_threads(), crew.size()) == (1, 2)
            with crew.working():
                assert crew.size() == 2  # as was settled on
            crew.each([int] * 4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_portions_go_by_size_and_cover_all_rows() -> None:
    assert crew.portions(100, crew.PORTION) == [slice(0, 100)]
    parts = crew.portions(100, 7 * crew.PORTION)
    assert len(parts) == 7
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(100))
    assert crew.portions(3, 100 * crew.PORTION) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert crew.portions(0, 0) == [slice(0, 0)]


def test_moving_numbers_is_shared_among_the_threads_that_there_are() -> None:
    whole, large = [slice(0, 100)], 100 * crew.SHARE
    with crew.working(1):
        assert crew.shares(100, large) == whole
    with crew.working(3):
        assert len(crew.shares(100, large)) == 6
        assert crew.shares(100, crew.SHARE) == whole
        assert crew.each([lambda: crew.shares(100, large)] * 2) == [whole, whole]  # no crew within a job


def test_only_one_of_several_jobs_is_not_free() -> None:
    for threads in (1, 2):
        with crew.working(threads):
            assert crew.free()
            assert crew.each([crew.free]) == [True]
            assert crew.each([crew.free] * 4) == [False] * 4


def test_every_thread_has_its_own_copy() -> None:
    meet = threading.Barrier(2, timeout=240)
    own = crew.Own([1], [2])

    def job() -> list[int]:
        meet.wait()
        return own.get()

    with crew.working(2):
        mine, theirs = sorted(crew.each([job] * 2))
    assert mine is own.thing
    assert theirs == [2]
    assert pickle.loads(pickle.dumps(own)).get() == [1]


# --- a job beside ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_job_beside_gives_what_it_returns(threads: int) -> None:
    with crew.working(threads):
        found = [crew.beside(partial(pow, i, 2)) for i in range(20)]
        assert crew.each([partial(int, i) for i in range(9)]) == list(range(9))
        assert [result() for result in found] == [i * i for i in range(20)]


def test_a_free_thread_does_it_while_the_caller_goes_on() -> None:
    began, told = threading.Event(), threading.Event()

    def job() -> tuple[int, int]:
        began.set()
        assert told.wait(240)
        return threading.get_ident(), torch.get_num_threads()

    with crew.working(2):
        result = crew.beside(job)
        assert began.wait(240)  # nobody has asked for the result yet
        told.set()
        ident, threads = result()
    assert (ident != threading.get_ident(), threads) == (True, 1)


def test_where_nobody_is_free_the_caller_does_it() -> None:
    told = threading.Event()
    with crew.working(2):
        crew.each([partial(int, 1)] * 2)  # there is a thread to be busy, and others may be left of other work
        busy = [crew.beside(partial(told.wait, 240)) for _ in range(crew._crew.helpers)]
        result = crew.beside(threading.get_ident)
        assert result() == threading.get_ident()
        told.set()
        assert [wait() for wait in busy] == [True] * len(busy)
    with crew.working(1):
        assert crew.beside(threading.get_ident)() == threading.get_ident()


def test_its_error_is_raised_where_its_result_is_asked_for() -> None:
    with crew.working(2):
        result = crew.beside(partial(int, "no number"))
        with pytest.raises(ValueError, match="no number"):
            result()
        assert crew.each([partial(int, i) for i in range(5)]) == list(range(5))


def test_a_job_that_waits_for_one_beside_still_has_no_crew() -> None:
    def job() -> tuple[bool, bool]:
        before = crew.free()
        crew.beside(partial(int, 1))()
        return before, crew.free()

    with crew.working(2):
        assert crew.each([job] * 4) == [(False, False)] * 4
        assert crew.free()


def test_within_operators_the_caller_does_everything_with_all_threads() -> None:
    def job() -> tuple[int, int]:
        return threading.get_ident(), torch.get_num_threads()

    before = torch.get_num_threads()
    with crew.working(2):
        with crew.working(3, within=True):
            assert (crew.size(), crew.free()) == (3, False)
            assert crew.each([job] * 4) == [(threading.get_ident(), 3)] * 4
            assert crew.beside(job)() == (threading.get_ident(), 3)
            assert crew.shares(1000, 2**30) == [slice(0, 1000)]
        assert (torch.get_num_threads(), crew.size(), crew.free()) == (1, 2, True)
    assert torch.get_num_threads() == before
