"""The learning rate over a run, and runs by wall-clock time."""

from __future__ import annotations

import pytest

from nerfcli.config import TrainConfig
from nerfcli.schedule import Budget, learning_rate


def test_exponential_decay_over_the_whole_run_without_hold():
    train = TrainConfig(lr=5e-4, lr_final=0.1)
    rates = [learning_rate(s, s / 100, train, hold=0.0) for s in (0, 50, 100)]
    assert rates == pytest.approx([5e-4, 5e-4 * 0.1**0.5, 5e-5])


def test_the_peak_holds_then_falls_to_its_final_share():
    train = TrainConfig(lr=1e-2, lr_final=0.02)
    assert learning_rate(10, 0.3, train, hold=0.3) == pytest.approx(1e-2)
    assert learning_rate(10, 0.65, train, hold=0.3) == pytest.approx(1e-2 * 0.02**0.5)
    assert learning_rate(10, 1.0, train, hold=0.3) == pytest.approx(2e-4)


def test_warm_up_is_linear():
    train = TrainConfig(lr=1.0, lr_final=1.0, lr_warmup=10)
    assert [learning_rate(s, 0.0, train, 0.0) for s in (0, 4, 9, 50)] == [0.1, 0.5, 1.0, 1.0]


def run_by_time(budget: Budget, seconds_per_step) -> tuple[int, float, list[int]]:
    """Drive a budget with a fake clock; returns steps, time and the totals that were set."""
    step, elapsed, totals = 0, 0.0, []
    while not budget.done(step):
        elapsed += seconds_per_step(step)
        step += 1
        budget.tick(step, elapsed)
        if not totals or budget.total_steps != totals[-1]:
            totals.append(budget.total_steps)
        assert step < 100_000
    return step, elapsed, totals


def test_a_run_by_time_ends_on_time():
    step, elapsed, _ = run_by_time(Budget(seconds=60.0), lambda s: 0.05)
    assert elapsed == pytest.approx(60.0, abs=0.06)
    assert step == pytest.approx(1200, abs=1)


def test_a_slow_start_does_not_count_and_a_change_of_speed_is_noticed():
    slow_start = run_by_time(Budget(seconds=60.0), lambda s: 1.0 if s < 2 else 0.05)
    assert slow_start[1] == pytest.approx(60.0, abs=0.5)
    slower_later = run_by_time(Budget(seconds=60.0), lambda s: 0.05 if s < 300 else 0.1)
    assert slower_later[1] == pytest.approx(60.0, abs=1.0)


def test_after_the_last_plan_the_length_is_fixed():
    budget = Budget(seconds=10.0)
    run_by_time(budget, lambda s: 0.1 if s < 60 else 0.5)  # slows down after half of the time
    assert budget.n_plans == 3
    assert budget.total_steps == pytest.approx(100, abs=1)


def test_a_step_longer_than_the_budget_still_ends():
    step, _, _ = run_by_time(Budget(seconds=1.0), lambda s: 5.0)
    assert step <= 2


def test_a_resumed_budget_goes_on_with_its_plan():
    budget = Budget(seconds=10.0)
    for step in range(1, 60):
        budget.tick(step, step * 0.1)
    again = Budget(seconds=10.0, **budget.state())
    again.tick(60, 100.0)
    assert again.total_steps == budget.total_steps > 0
    assert again.progress(50, 0.0) == 50 / budget.total_steps
