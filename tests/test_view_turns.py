"""Who computes when: bands of pictures, one after another, and the steps of a training."""

from __future__ import annotations

import threading

import pytest

from nerfcli.view.turns import Turns

WAIT = 30.0  # seconds, after which a thread counts as stuck


class Painting(threading.Thread):
    """Takes turns until it is stopped; notes each band."""

    def __init__(self, turns: Turns, notes: list[str]) -> None:
        super().__init__(daemon=True)
        self.turns, self.notes, self.is_open = turns, notes, True
        self.first = threading.Event()

    def run(self) -> None:
        while self.is_open:
            with self.turns.band():
                self.notes.append("band")
                self.first.set()


def test_two_never_paint_at_once() -> None:
    turns, inside, most = Turns(), [], []

    def paint() -> None:
        for _ in range(50):
            with turns.band():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=paint) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert len(most) == 200 and max(most) == 1


def test_between_two_steps_there_is_one_band_at_most() -> None:
    turns, notes = Turns(share=1e9), []  # no debt
    paintings = [Painting(turns, notes) for _ in range(3)]
    with turns.training():
        for painting in paintings:
            painting.start()
        n_bands = 0
        while n_bands < 20:
            notes.append("step")
            n_bands += turns.give_way()
        for painting in paintings:
            painting.is_open = False
    for painting in paintings:
        painting.join(WAIT)
        assert not painting.is_alive()
    steps = [i for i, note in enumerate(notes) if note == "step"]
    between = [b - a - 1 for a, b in zip(steps, steps[1:], strict=False)]
    assert sum(between) >= 19 and max(between) == 1


def test_without_a_share_nobody_is_let_in() -> None:
    turns, notes = Turns(share=0.0), []
    painting = Painting(turns, notes)
    with turns.band():
        pass  # leaves a debt
    with turns.training():
        painting.start()
        assert not any(turns.give_way() for _ in range(1000))
        assert not notes
        painting.is_open = False
    painting.join(WAIT)
    assert not painting.is_alive()


def test_a_training_that_fails_leaves_the_turn() -> None:
    turns, notes = Turns(), []
    with pytest.raises(ValueError), turns.training():
        raise ValueError
    painting = Painting(turns, notes)
    painting.start()
    assert painting.first.wait(WAIT)
    painting.is_open = False
    painting.join(WAIT)


def test_a_band_that_fails_leaves_the_turn() -> None:
    turns = Turns()
    with pytest.raises(ValueError), turns.band():
        raise ValueError
    with turns.training():
        assert not turns.give_way()
