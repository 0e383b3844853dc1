"""What surrounds the steps of every loop."""

import json
import signal
import threading
import time

import numpy as np
import pytest

from saw_jax.run import learner, session
from tests import helpers


class Still(learner.Learner):
  """Learns nothing, and evaluates nothing."""


def open_session(directory, **changes):
  changes.setdefault("evaluation", {"interval": 0})
  made = helpers.experiment(**changes)
  return session.Session(Still(made, 1), [3], directory=directory)


def row(loss=0.0):
  return {"reward/total": 0.5, "loss": loss}


def steps_in(directory):
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


class TestInterrupt:
  def test_works_outside_the_main_thread(self):
    errors = []

    def body():
      try:
        with session.Interrupt() as interrupt:
          assert not interrupt.requested
      except Exception as error:
        errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert not errors

  def test_the_second_ctrl_c_stops_at_once(self):
    with session.Interrupt() as interrupt:
      signal.raise_signal(signal.SIGINT)
      assert interrupt.requested
      with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class TestClock:
  def test_laps_of_one_name_add_up_to_the_step(self):
    clock = session.Clock()
    for name in ("a", "b", "a"):
      time.sleep(0.01)
      clock.lap(name)
    found = clock.seconds()
    assert found["a"] > found["b"] >= 0.01
    assert found["a"] + found["b"] <= found["step"]
    np.testing.assert_allclose(
      found["a"] + found["b"], found["step"], atol=5e-3
    )


class TestSession:
  def test_counts_saves_and_goes_on_with_what_the_loop_packed(self, tmp_path):
    queue = np.arange(6, dtype=np.int32).reshape(2, 3)
    fields = {"num_steps": 4, "checkpoint_interval": 2}
    with open_session(tmp_path, loop=fields) as opened:
      assert (opened.step, opened.host, opened.arrays) == (0, {}, {})
      for _ in range(3):
        opened.end_step(
          [row()],
          session.Clock(),
          tokens=1.0,
          pack=lambda: ({"next": 7}, {"queue": queue}),
        )
    assert steps_in(tmp_path) == [0, 1, 2]
    with open_session(tmp_path, loop=fields) as opened:
      assert opened.step == 2
      assert opened.host["next"] == 7
      np.testing.assert_array_equal(opened.arrays["queue"], queue)
      # Step 2 was not saved: it is about to be done again.
      assert steps_in(tmp_path) == [0, 1]
      opened.end_step([row()], session.Clock(), tokens=1.0)
      assert opened.goes_on
      opened.end_step([row()], session.Clock(), tokens=1.0)
      assert not opened.goes_on
    assert steps_in(tmp_path) == [0, 1, 2, 3]

  @pytest.mark.parametrize("skip", [True, False])
  def test_a_loss_that_is_not_finite(self, tmp_path, skip):
    fields = {"skip_nonfinite": skip, "checkpoint_interval": 0}
    with open_session(tmp_path, loop=fields) as opened:
      if skip:
        opened.end_step([row(np.nan)], session.Clock(), tokens=1.0)
        assert opened.step == 1
      else:
        with pytest.raises(FloatingPointError, match="seed 3 is nan at step 0"):
          opened.end_step([row(np.nan)], session.Clock(), tokens=1.0)

  def test_an_interrupt_saves_and_ends(self, tmp_path):
    with open_session(tmp_path, loop={"checkpoint_interval": 0}) as opened:
      signal.raise_signal(signal.SIGINT)
      assert opened.goes_on, "a step that has begun is ended"
      opened.end_step([row()], session.Clock(), tokens=1.0)
      assert not opened.goes_on
      assert opened.result() == session.Result(False, 1, [])
    with open_session(tmp_path) as opened:
      assert opened.step == 1
