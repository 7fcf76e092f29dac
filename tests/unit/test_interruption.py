"""Signals: the first one asks, at once or when it can be heeded; the second one ends the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from hftransfer import interruption
from hftransfer.interruption import SIGNALS, Interrupted


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def in_child(action: Callable[[], None]) -> int:
    """How a child ends that does this: its status, or less than 0 for the signal that ended it."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(99)


@pytest.mark.parametrize("name", SIGNALS)
def test_where_nothing_can_be_lost_it_ends_at_once(name: str) -> None:
    handlers = [signal.getsignal(getattr(signal, each)) for each in SIGNALS]
    with pytest.raises(Interrupted, match=f"{name} before the first step"), interruption.watched():
        send(name)
    assert [signal.getsignal(getattr(signal, each)) for each in SIGNALS] == handlers
    assert not interruption.requested()


def test_what_is_held_ends_where_it_asks() -> None:
    with interruption.watched(), interruption.held():
        interruption.stop_if_requested()
        send("SIGUSR1")
        assert interruption.requested()
        with pytest.raises(Interrupted, match="SIGUSR1"):
            interruption.stop_if_requested()
    assert not interruption.requested()


def test_no_handler_of_errors_takes_it_for_one() -> None:
    assert not issubclass(Interrupted, Exception)


def test_the_second_signal_ends_the_process() -> None:
    def twice() -> None:
        with interruption.watched(), interruption.held():
            send("SIGTERM")
            send("SIGTERM")
            time.sleep(5)

    assert in_child(twice) == -signal.SIGTERM


def test_in_a_notebook_the_second_one_ends_the_cell_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)

    def twice(name: str) -> None:
        with interruption.watched(), interruption.held():
            send(name)
            send(name)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt) as caught:
        twice("SIGINT")
    assert not isinstance(caught.value, Interrupted)
    assert in_child(lambda: twice("SIGTERM")) == -signal.SIGTERM


def test_a_launcher_may_repeat_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")

    def repeated() -> None:
        with interruption.watched(), interruption.held():
            send("SIGTERM")
            send("SIGTERM")

    def later() -> None:
        monkeypatch.setattr(interruption, "REPEATED_SECONDS", 0.0)
        repeated()

    assert in_child(repeated) == 0
    assert in_child(later) == -signal.SIGTERM


def test_an_inner_context_changes_nothing_and_threads_cannot_listen() -> None:
    with interruption.watched():
        handler = signal.getsignal(signal.SIGTERM)
        with interruption.watched():
            pass
        assert signal.getsignal(signal.SIGTERM) is handler
    found = []

    def listen() -> None:
        with interruption.watched():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
