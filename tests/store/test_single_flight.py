from __future__ import annotations

import threading
import time
from contextlib import suppress

import pytest

from flmm_detseg.store.single_flight import SingleFlight


def test_one_thread_computes_and_the_others_find_its_value():
    flights = SingleFlight(None, None, timeout_s=10)
    values: list[int] = []
    found: list[int] = []

    def work() -> None:
        with flights.enter("name") as flight:
            if flight.leader:
                time.sleep(0.1)
                values.append(1)
        found.append(len(values))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [1]
    assert found == [1] * 8


def test_other_names_do_not_wait():
    flights = SingleFlight(None, None, timeout_s=10)
    with flights.enter("a") as first, flights.enter("b") as second:
        assert first.leader
        assert second.leader


def test_who_comes_after_a_computation_matches_again():
    flights = SingleFlight(None, None, timeout_s=10)
    with flights.enter("name") as flight:
        assert flight.leader
    with flights.enter("name") as flight:
        assert not flight.leader
    with suppress(RuntimeError), flights.enter("other"):
        raise RuntimeError
    with flights.enter("other") as flight:
        assert flight.leader


def test_after_a_failure_another_one_leads():
    flights = SingleFlight(None, None, timeout_s=10)
    entered, leaders = threading.Event(), []

    def fail() -> None:
        with suppress(RuntimeError), flights.enter("name"):
            entered.set()
            time.sleep(0.1)
            raise RuntimeError

    def work() -> None:
        entered.wait()
        with flights.enter("name") as flight:
            leaders.append(flight.leader)

    threads = [threading.Thread(target=fail), threading.Thread(target=work), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in leaders


def test_waiting_ends():
    flights = SingleFlight(None, None, timeout_s=0.05)
    done = threading.Event()

    def hang() -> None:
        with flights.enter("name"):
            done.wait(5)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.02)
    with flights.enter("name") as flight:
        assert flight.leader
    done.set()
    thread.join()


def test_lease_of_another_process_is_waited_for_and_given_back():
    answers = iter([False, False, True])
    released: list[str] = []
    flights = SingleFlight(lambda name: next(answers), released.append, timeout_s=5)
    with flights.enter("name") as flight:
        # Somebody else had it: its value is there now.
        assert not flight.leader
        assert not released
    assert released == ["name"]


def test_lease_is_renewed_for_as_long_as_the_computation_goes_on():
    renewed: list[str] = []
    released: list[int] = []
    flights = SingleFlight(
        lambda name: True,
        lambda name: released.append(len(renewed)),
        timeout_s=5,
        renew=renewed.append,
        renew_s=0.02,
    )
    with flights.enter("name"):
        deadline = time.monotonic() + 10
        while len(renewed) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(renewed) == {"name"}
    assert len(renewed) >= 3
    # None comes after the release.
    time.sleep(0.1)
    assert released == [len(renewed)]


def test_lease_that_is_never_free_ends_in_computing():
    flights = SingleFlight(lambda name: False, lambda name: pytest.fail("not ours"), timeout_s=0.05)
    with flights.enter("name") as flight:
        assert flight.leader
