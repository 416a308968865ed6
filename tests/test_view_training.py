"""A viewer of a run that trains: whose turn it is, what pages may ask for, and every end."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_loop import Asynchronous, config_of

from conftest import SMALL, Call
from nerfcli import backends
from nerfcli.backends.base import Backend
from nerfcli.core.config import TrainConfig
from nerfcli.core.errors import CannotWrite, NerfError
from nerfcli.core.progress import Progress
from nerfcli.core.signals import Interrupted
from nerfcli.engine import train
from nerfcli.engine.loop import Loop
from nerfcli.engine.recovery import Collapsed
from nerfcli.engine.runs import Run
from nerfcli.engine.schedule import Clock
from nerfcli.scenes import load_scene
from nerfcli.view import painter as painting
from nerfcli.view.look import Look
from nerfcli.view.painter import Painter, Picture
from nerfcli.view.training import MOST_POINTS, Curves, TrainingSource
from nerfcli.view.training_panel import curves_of, describe
from nerfcli.view.turns import IDLE_SHARE, Turns

WAIT = 60.0  # seconds, after which a thread counts as stuck
NO_DEBT = 1e9  # a share by which a band is let in wherever one waits


class Watched:
    """A loop with a viewer's source, and pages that ask for a new picture after each one."""

    def __init__(self, ball: Path, folder: Path, steps: int, ops: Backend | None = None) -> None:
        config = replace(config_of("hashgrid"), train=TrainConfig(steps=steps))
        ready = train.prepare(load_scene(ball), config)
        self.run = Run.create(folder, ready.config, ready.scene.to_json())
        ops = backends.select("torch", "cpu").backend if ops is None else ops
        self.said: list[str] = []
        progress: Any = SimpleNamespace(note=self.said.append, update=lambda *_, **__: None)
        self.loop = train.start(ready, self.run, ops, "cpu", progress)
        self.stop: Any = SimpleNamespace(received=None)
        self.turns = Turns(NO_DEBT)
        self.source = TrainingSource(
            ready.scene, self.turns, lambda: self.stop.received is not None
        )
        self.notes: list[str] = []
        self.faults: queue.Queue[str] = queue.Queue()
        self.painters: list[Painter] = []

    def _open_pages(self, n: int) -> None:
        """So many pages; each asks for another picture as soon as it got one."""
        for i in range(n):
            self.painters.append(painter := Painter([self.source], self._show(i), self.faults.put))
            painter.look_at(Look(self.source.scene.cameras[[i % 8]].scaled(0.5)))
            painter.start()

    def _close_pages(self) -> None:
        for painter in self.painters:
            painter.stop()
        for painter in self.painters:
            painter.join()
            assert not painter._thread.is_alive()

    def _show(self, i: int) -> Callable[[Picture], None]:
        def show(picture: Picture) -> None:
            self.notes.append("picture")
            painter = self.painters[i]
            look = painter._look
            assert look is not None and picture.is_final
            painter.look_at(look)

        return show

    def go(
        self, *callbacks: Callable[[Loop], None], n_pages: int = 0, waits: bool = True
    ) -> dict[str, Any]:
        """Train, with these called before the source's own; leave no thread behind.

        waits: after each step, till somebody wants a band: so nothing depends on timing.
        """

        def note(loop: Loop) -> None:
            self.notes.append("step")

        def wait(loop: Loop) -> None:
            if waits and any(painter.is_open for painter in self.painters):
                until(lambda: self.turns._waiting or not self.faults.empty())
                assert self.faults.empty(), self.faults.get()

        self.loop.callbacks = (note, *callbacks, wait, self.source.after_step)
        with ExitStack() as after, self.turns.training():
            after.callback(self._close_pages)
            self._open_pages(n_pages)
            return self.loop.go(self.stop)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0002)


def ensure_free(turns: Turns) -> None:
    """Whoever wants a band gets it: the training has left the turn."""

    def paint() -> None:
        with turns.band():
            pass

    thread = threading.Thread(target=paint, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive()


def checkpoint(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def ops_of(name: str) -> Backend:
    return Asynchronous() if name == "graph" else backends.select(name, "cpu").backend


@pytest.mark.parametrize("name", ["torch", "cpu", "graph"])
def test_a_page_that_paints_changes_no_bit(ball: Path, tmp_path: Path, name: str) -> None:
    if name == "cpu" and backends.why_unavailable("cpu", "cpu"):
        pytest.skip("the CPU kernels are not built")
    Watched(ball, tmp_path / "alone", 30, ops_of(name)).go()
    watched = Watched(ball, tmp_path / "watched", 30, ops_of(name))
    watched.go(n_pages=1)
    assert watched.notes.count("picture") >= 29 and watched.faults.empty()
    assert watched.source.version == 30
    alone = checkpoint(tmp_path / "alone")
    assert len(alone) >= 2 and checkpoint(tmp_path / "watched") == alone


def test_ten_pages_get_one_band_between_two_steps(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, paint = Watched(ball, tmp_path / "run", 8), painting.paint_rows

    def noted(*args: Any) -> Any:
        watched.notes.append("band")
        return paint(*args)

    monkeypatch.setattr(painting, "paint_rows", noted)
    watched.go(n_pages=10)
    events = [note for note in watched.notes if note != "picture"]
    steps = [i for i, note in enumerate(events) if note == "step"]
    assert len(steps) == 8
    assert [b - a - 1 for a, b in zip(steps, steps[1:], strict=False)] == [1] * 7


def test_a_page_that_vanishes_within_a_band_leaves_the_turn(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, paint = Watched(ball, tmp_path / "run", 8), painting.paint_rows

    def vanishing(*args: Any) -> Any:
        watched.painters[0].stop()
        return paint(*args)

    monkeypatch.setattr(painting, "paint_rows", vanishing)
    assert watched.go(n_pages=1)["steps"] == 8
    ensure_free(watched.turns)


def test_a_renderer_that_raises_does_not_harm_the_training(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> Any:
        raise RuntimeError("no picture")

    watched = Watched(ball, tmp_path / "run", 6)
    monkeypatch.setattr(painting, "paint_rows", failing)
    assert watched.go(n_pages=2, waits=False)["steps"] == 6
    assert "no picture" in watched.faults.get(timeout=WAIT)
    ensure_free(watched.turns)


class Ends:
    """Ways in which a training ends, each at its second step."""

    @staticmethod
    def budget(watched: Watched) -> None: ...

    @staticmethod
    def signal(watched: Watched) -> None:
        watched.stop.received = 15

    @staticmethod
    def signal_while_paused(watched: Watched) -> None:
        watched.source.pause(True)
        threading.Timer(0.0, lambda: setattr(watched.stop, "received", 15)).start()

    @staticmethod
    def target(watched: Watched) -> None:
        watched.loop.is_good_enough = True

    @staticmethod
    def viewer(watched: Watched) -> None:
        watched.source.end()

    @staticmethod
    def viewer_while_paused(watched: Watched) -> None:
        watched.source.pause(True)
        threading.Timer(0.0, watched.source.end).start()

    @staticmethod
    def error(watched: Watched) -> None:
        raise NerfError("no more")

    @staticmethod
    def bug(watched: Watched) -> None:
        raise ZeroDivisionError

    @staticmethod
    def second_signal(watched: Watched) -> None:
        raise Interrupted(2)


@pytest.mark.parametrize("end", [name for name in vars(Ends) if name[0] != "_"])
def test_however_a_training_ends_it_leaves_the_turn(ball: Path, tmp_path: Path, end: str) -> None:
    watched = Watched(ball, tmp_path / "run", 4)

    def at_second(loop: Loop) -> None:
        if loop.step == 2:
            getattr(Ends, end)(watched)

    summary: dict[str, Any] = {"ended_by": None}
    with suppress(NerfError, ZeroDivisionError, Interrupted):
        summary = watched.go(at_second, n_pages=2)
    ensure_free(watched.turns)
    expected = {"budget": "steps", "error": None, "bug": None, "second_signal": None}
    assert summary["ended_by"] == expected.get(end, end.split("_")[0])
    if summary["ended_by"] is not None:
        steps = 4 if end == "budget" else 2
        assert watched.run.state["step"] == steps == summary["steps"]
        assert watched.run.state["finished"] == (end == "budget")


def test_a_signal_that_breaks_in_while_a_band_has_the_turn_takes_it_from_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, inside, may_end = Turns(NO_DEBT), threading.Event(), threading.Event()

    def paint() -> None:
        with turns.band():
            inside.set()
            assert may_end.wait(WAIT)

    thread = threading.Thread(target=paint, daemon=True)
    with pytest.raises(Interrupted), turns.training():
        thread.start()
        until(lambda: turns._waiting)

        def interrupted(condition: Callable[[], bool]) -> None:
            while not inside.is_set():
                turns._changed.wait(0.001)
            raise Interrupted(2)

        monkeypatch.setattr(turns._changed, "wait_for", interrupted)
        try:
            turns.give_way()
        finally:
            monkeypatch.undo()
    other = threading.Thread(target=lambda: ensure_free(turns), daemon=True)
    other.start()
    until(lambda: turns._waiting)
    assert turns._waiting  # the band under way still has the turn
    may_end.set()
    other.join(WAIT)
    thread.join(WAIT)
    assert not other.is_alive() and not thread.is_alive()


def test_the_source_follows_a_run_that_begins_again(ball: Path, tmp_path: Path) -> None:
    watched = Watched(ball, tmp_path / "run", 5)
    first = watched.loop.trainer

    def collapse(loop: Loop) -> None:
        if loop.step == 3 and not loop.setbacks:
            raise Collapsed("nothing is shown")

    assert watched.go(collapse, n_pages=1)["steps"] == 5
    last = watched.loop.trainer
    assert last is not first
    shown, own = watched.source.model().field.state(), last.model_state()
    assert shown and all(shown[name] is own[name] or shown[name].equal(own[name]) for name in shown)
    assert watched.source.version == 2 + 5  # the steps before it, and all of the second time


def test_a_model_is_made_once_a_step(ball: Path, tmp_path: Path) -> None:
    watched, models = Watched(ball, tmp_path / "run", 3), []

    def look(loop: Loop) -> None:
        models.append((watched.source.model(), watched.source.model()))

    watched.loop.callbacks = (watched.source.after_step, look)
    watched.loop.go(watched.stop)
    assert all(a is b for a, b in models) and len({id(a) for a, _ in models}) == 3


def test_a_paused_training_leaves_all_turns_to_the_pictures(ball: Path, tmp_path: Path) -> None:
    watched = Watched(ball, tmp_path / "run", 4)
    during: list[list[str]] = []

    def watch() -> None:
        begin = len(watched.notes)
        until(lambda: watched.notes[begin:].count("picture") > 20)
        during.append(watched.notes[begin:])
        assert "*paused*" in describe(watched.source)
        watched.source.pause(False)

    threads = []

    def pause(loop: Loop) -> None:
        if loop.step == 2:
            watched.source.pause(True)
            threads.append(threading.Thread(target=watch, daemon=True))
            threads[0].start()

    assert watched.go(pause, n_pages=1)["steps"] == 4
    threads[0].join(WAIT)
    assert during and "step" not in during[0]
    assert [line for line in watched.said if "paused" in line]


def test_the_clock_of_a_run_leaves_out_its_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("nerfcli.engine.schedule.time.perf_counter", lambda: now[0])
    clock = Clock(5.0, now[0])
    now[0] += 2.0
    with clock.paused():
        now[0] += 1000.0
    now[0] += 1.0
    assert clock.elapsed() == 8.0


def test_a_page_may_ask_for_a_checkpoint(ball: Path, tmp_path: Path) -> None:
    watched, saved = Watched(ball, tmp_path / "run", 4), []

    def ask(loop: Loop) -> None:
        saved.append(watched.source.saved)
        if loop.step == 2:
            watched.source.save()

    watched.go(ask)
    assert saved == [None, None, 2, 2]


def test_a_checkpoint_that_the_disk_refuses_ends_nothing(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, save = Watched(ball, tmp_path / "run", 3), Run.save_checkpoint

    def refusing(run: Run, *args: Any) -> None:
        if watched.loop.step == 2:
            raise CannotWrite("the disk is full.")
        save(run, *args)

    monkeypatch.setattr(Run, "save_checkpoint", refusing)
    assert watched.go(lambda loop: watched.source.save())["steps"] == 3
    assert any("the disk is full" in line for line in watched.said)


def test_pages_at_rest_share_a_small_part_of_a_training() -> None:
    turns = Turns()
    with turns.painting():
        assert turns.rest_after(0.3) == 0.0  # nothing trains
        with turns.training():
            alone = turns.rest_after(0.3)
            assert alone == pytest.approx(0.3 / IDLE_SHARE) and IDLE_SHARE < 0.02
            with turns.painting(), turns.painting():
                assert turns.rest_after(0.3) == pytest.approx(3 * alone)
            with turns.paused():
                assert turns.rest_after(0.3) == 0.0
            assert turns.rest_after(0.3) == alone


def test_a_picture_at_rest_is_painted_anew_when_its_cost_is_paid(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a step each time, so that the page cannot have seen the field before."""
    watched, shown = Watched(ball, tmp_path / "run", 6), []
    monkeypatch.setattr(painting, "FRESH", 0.001)
    look = Look(watched.source.scene.cameras[[0]].scaled(0.5))
    painter = Painter([watched.source], shown.append, watched.faults.put)
    asked: list[float] = []

    def rest_after(cost: float) -> float:
        asked.append(cost)
        return 0.0 if watched.loop.step >= 5 else 1e9

    monkeypatch.setattr(watched.turns, "rest_after", rest_after)
    watched._open_pages = lambda n: (painter.look_at(look), painter.start())[1]  # type: ignore

    def wait(loop: Loop) -> None:
        n = len(asked)
        if loop.step == 1 or loop.step == 6:
            until(lambda: watched.turns._waiting)
        elif loop.step < 5:
            until(lambda: len(asked) > n + 1)  # it looked at the new field, and left it

    watched.painters.append(painter)
    watched.go(wait, waits=False)
    assert len(shown) >= 2 and asked[0] > 0.0  # first and when it was due


def test_curves_have_few_points_and_go_back_with_the_run() -> None:
    curves = Curves()
    for step in range(50, 50 * 3000, 50):
        curves.add({"step": step, "psnr": 20.0, "loss": 0.1})
    steps = [point[0] for point in curves.points]
    assert MOST_POINTS / 2 <= len(steps) <= MOST_POINTS and steps[-1] > 50 * 2900
    assert len({b - a for a, b in zip(steps, steps[1:], strict=False)}) == 1
    curves = Curves()
    for step in (50, 100, 150, 100):
        curves.add({"step": step, "psnr": 20.0 + step, "loss": 0.1})
    assert curves_of(curves)["PSNR"][0].tolist() == [50, 100]


def test_a_resumed_run_shows_the_curves_of_its_earlier_part(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nerfcli.engine.loop.METRICS_EVERY", 2)
    watched = Watched(ball, tmp_path / "run", 4)
    watched.go()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ps')  # a crash
    config = replace(watched.run.config, train=replace(watched.run.config.train, steps=8))
    ready = train.prepare(load_scene(ball), config, resumed=True)
    run, quiet = Run.open(tmp_path / "run"), Progress("quiet", None, "step", "train")
    ops = backends.select("torch", "cpu").backend
    again = train.start(ready, run, ops, "cpu", quiet, resume=True)
    source = TrainingSource(ready.scene, Turns(), lambda: False)
    again.callbacks = (source.after_step,)
    again.go(watched.stop)
    assert [point[0] for point in source.curves.points] == [2, 4, 6, 8]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6, 8]


def test_numbers_of_a_training(ball: Path, tmp_path: Path) -> None:
    watched = Watched(ball, tmp_path / "run", 3)
    assert describe(watched.source) == "It begins."
    watched.go(Loop.show)
    text = describe(watched.source)
    assert text.startswith("**Step 3** of 3, 0:0") and "dB on training rays" in text
    assert "rays/s" in text and "saved at step 3" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--view-port", 9000), "--view-port belongs to --view"),
        (("--view-token", "x"), "--view-token belongs to --view"),
        (("--view", "--devices", 2), "--view shows a training of one process"),
        (("--view", "--dry-run"), "--dry-run has none"),
        (("--view", "--view-port", 99999), "--view-port"),
        (("--view", "--view-host", "192.0.2.1"), "no such address"),
    ],
)
def test_what_cannot_be_shown_is_refused_at_once(
    call: Call, flags: tuple[Any, ...], message: str
) -> None:
    pytest.importorskip("viser")
    done = call("train", "no-scene", *flags)
    assert done.code == 2 and message in done.err


def test_a_port_in_use_is_refused_before_any_work(call: Call) -> None:
    pytest.importorskip("viser")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = call("train", "no-scene", "--view", "--view-port", port)
    assert done.code == 2 and f"port {port} is taken" in done.err


def test_a_run_with_a_viewer_ends_as_any_other(call: Call, ball: Path) -> None:
    pytest.importorskip("viser")
    done = call(
        *("train", ball, "--out", "r", "--steps", 4, "--view", "--backend", "torch"),
        *("--device", "cpu", "--json", *SMALL),
    )
    assert (done.code, done.value["ended_by"]) == (0, "steps"), done.err
    assert "open http://127.0.0.1:" in done.err and "nerf view r shows the run" in done.err
    assert not [t for t in threading.enumerate() if t.name in ("painter", "training panel")]
