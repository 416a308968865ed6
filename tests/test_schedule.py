"""The learning rate over a run, and runs by wall-clock time."""

from __future__ import annotations

import pytest

from nerfcli.core.config import TrainConfig
from nerfcli.engine.schedule import Budget, budget_at, learning_rate


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


@pytest.mark.parametrize(
    "seconds_per_step",
    [
        lambda s: 1.0 if s < 2 else 0.05,  # a slow start, which does not count
        lambda s: 0.05 if s < 300 else 0.1,
        lambda s: 0.05 if s < 700 else 0.1,  # slower in the second half
        lambda s: 0.05 if s < 1000 else 0.1,  # and in the last tenth
        lambda s: 0.1 if s < 450 else 0.05,
        lambda s: 0.05 * (1 - s / 3000),  # ever faster
        lambda s: 0.05 * (1 + (s % 16 == 0)),  # occupancy updates
    ],
)
@pytest.mark.parametrize("seconds", [60.0, 1200.0])
def test_it_ends_on_time_whatever_the_speed_does(seconds: float, seconds_per_step):
    pace = seconds / 60.0  # the same story, told slower
    _, elapsed, _ = run_by_time(Budget(seconds=seconds), lambda s: pace * seconds_per_step(s))
    # the last plan is for 1 to 2 s, at a rate that may be half or double; plus half a step
    assert elapsed == pytest.approx(seconds, abs=1.0 + 0.05 * pace)


def test_the_share_reaches_one_without_a_jump():
    """The learning rate follows the share: it must not end high when the machine slows down."""
    budget, step, elapsed, shares = Budget(seconds=60.0), 0, 0.0, [0.0]
    while not budget.done(step):
        shares.append(budget.progress(step, elapsed))
        elapsed += 0.05 if elapsed < 40 else 0.15
        step += 1
        budget.tick(step, elapsed)
    assert shares[-1] > 0.97
    assert max(b - a for a, b in zip(shares, shares[1:], strict=False)) < 0.25


def test_a_step_longer_than_the_budget_still_ends():
    step, _, _ = run_by_time(Budget(seconds=1.0), lambda s: 5.0)
    assert step <= 2


def interrupted(until: float) -> Budget:
    """A budget of 10 s at ten steps a second, stopped after `until` seconds."""
    budget = Budget(seconds=10.0)
    for step in range(1, round(10 * until) + 1):
        budget.tick(step, step * 0.1)
    return Budget(seconds=10.0).resumed(budget.state(), round(10 * until), until)


def test_stopped_in_its_second_half_a_run_keeps_its_length():
    """Whatever the clock says then: the same checkpoint always gives the same end."""
    again = interrupted(6.0)
    total = again.total_steps
    assert total == pytest.approx(100, abs=1)
    again.start(60, 6.0)
    for step in range(61, total + 1):
        again.tick(step, 6.0 + 3.0 * (step - 60))
    assert (again.total_steps, again.done(total)) == (total, True)
    assert again.progress(50, 0.0) == 50 / total


def test_stopped_in_its_first_half_it_still_ends_on_time():
    again = interrupted(3.0)
    again.start(30, 3.0)
    step, elapsed = 30, 3.0
    while not again.done(step):
        step, elapsed = step + 1, elapsed + 0.2  # another machine
        again.tick(step, elapsed)
    assert elapsed == pytest.approx(10.0, abs=1.0)


def test_a_run_by_steps_does_not_look_at_the_clock():
    budget = Budget(total_steps=20)
    for step in range(1, 21):
        assert not budget.done(step - 1)
        budget.tick(step, 100.0 * step)
    assert budget.done(20) and budget.state() == {"total_steps": 20, "n_plans": 0, "seconds": 0.0}


def test_the_first_plan_leaves_the_warm_up_out():
    _, _, totals = run_by_time(Budget(seconds=60.0), lambda s: 1.0 if s < 2 else 0.05)
    assert totals[1] == pytest.approx(1162, abs=2)  # 2 slow steps, 58 s of 20 a second


def lengthened(step: int, elapsed: float, before: TrainConfig, after: TrainConfig) -> Budget:
    """A finished run of length `before` that is given the length `after`."""
    total = before.steps or step
    plans = 0 if before.steps else 3
    kept = {"total_steps": total, "n_plans": plans, "seconds": Budget.of(before).seconds}
    return budget_at(after, before, {"step": step, "seconds": elapsed, "budget": kept})


def by_time(seconds: float) -> TrainConfig:
    return TrainConfig(minutes=seconds / 60)


def test_more_steps_are_a_smaller_share_and_a_higher_rate():
    train = TrainConfig(steps=600, lr=1e-2, lr_final=0.02)
    longer = lengthened(600, 30.0, train, TrainConfig(steps=1200))
    assert (longer.done(600), longer.progress(600, 30.0)) == (False, 0.5)
    rates = [learning_rate(600, share, train, hold=0.3) for share in (1.0, 0.5)]
    assert rates == pytest.approx([2e-4, 1e-2 * 0.02 ** (0.2 / 0.7)])


@pytest.mark.parametrize("length", [TrainConfig(steps=600), TrainConfig(steps=20), by_time(20)])
def test_a_length_behind_the_run_is_reached(length: TrainConfig):
    assert lengthened(600, 30.0, TrainConfig(steps=600), length).done(600)


@pytest.mark.parametrize("before", [TrainConfig(steps=600), by_time(30)])
@pytest.mark.parametrize("seconds", [31.5, 33.0, 40.0, 60.0, 600.0])
def test_more_time_ends_on_time_on_another_machine_too(before: TrainConfig, seconds: float):
    budget = lengthened(600, 30.0, before, by_time(seconds))
    assert budget.progress(600, 30.0) == pytest.approx(30 / seconds, rel=2e-3)
    budget.start(600, 30.0)
    step, elapsed = 600, 30.0
    while not budget.done(step):
        step, elapsed = step + 1, elapsed + 0.1  # half the speed of before
        budget.tick(step, elapsed)
    # in the last stretch there is no new plan: 1.5 s are then 3 s
    assert elapsed == pytest.approx(seconds, abs=1.6)


def test_the_end_of_a_run_by_time_is_within_a_second_of_it():
    """So that a script's earlier command, given again, has nothing to do."""
    assert lengthened(600, 59.4, by_time(300), by_time(60)).done(600)
    assert not lengthened(600, 58.0, by_time(300), by_time(60)).done(600)
    assert not lengthened(6, 0.5, TrainConfig(steps=6), by_time(0.6)).done(6)


def test_a_run_by_time_takes_a_number_of_steps():
    budget = lengthened(600, 30.0, by_time(30), TrainConfig(steps=1000))
    assert (budget.total_steps, budget.seconds) == (1000, 0.0)


def test_stopped_before_its_first_step_a_run_takes_any_length():
    kept = {"total_steps": 0, "n_plans": 0, "seconds": 60.0}
    state = {"step": 0, "seconds": 0.3, "budget": kept}
    step, elapsed, _ = run_by_time(budget_at(by_time(20), by_time(60), state), lambda s: 0.05)
    assert elapsed == pytest.approx(20.0, abs=0.1)


def test_checkpoints_that_do_not_state_their_length_have_that_of_the_run():
    state = {"step": 600, "seconds": 30.0, "budget": {"total_steps": 600, "n_plans": 4}}
    assert budget_at(by_time(30), by_time(30), state).done(600)
    assert not budget_at(by_time(60), by_time(30), state).done(600)


def test_a_slow_first_step_does_not_count_for_the_rate():
    budget = lengthened(600, 30.0, by_time(30), by_time(100))
    budget.start(600, 30.0)
    budget.tick(601, 32.0)
    assert budget.progress(601, 32.0) == pytest.approx(601 / 2000)
