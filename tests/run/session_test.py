"""What surrounds the steps of the loop."""

import contextlib
import json
import signal
import time
from concurrent import futures

import numpy as np
import pytest

from saw_jax.run import checkpoint, metrics, session
from saw_jax.run import experiment as experiment_lib
from tests import helpers


@contextlib.contextmanager
def opened(directory, resume_step=None, **changes):
  """A session of one seed."""
  changes.setdefault("evaluation", {"interval": 0})
  made = helpers.experiment(**changes)
  kind, policy = experiment_lib.kind_of(made), experiment_lib.Policy(made, 1)
  with contextlib.ExitStack() as stack:
    evaluator = kind.Evaluator(policy, stack.enter_context(kind.open_workers()))
    clock = session.Clock()
    rest = clock, directory, stack, resume_step
    yield session.Session(evaluator, [3], *rest)


def end_step(one, fault="", pack=lambda step: ({}, {}), skipped=None):
  if one.shows_samples:
    one.show([[{"prompt": "p", "completion": c, "total": None} for c in "ab"]])
  skipped = float(bool(fault)) if skipped is None else skipped
  row = {"reward/total": 0.5, "loss": 0.0, "skipped": skipped}
  one.log([row], 1.0, [fault])
  one.save(pack, one.evaluate())


def steps_in(directory, name="metrics"):
  lines = (directory / f"{name}.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


class TestInterrupt:
  def test_works_outside_the_main_thread(self):
    def body():
      with session.Interrupt() as interrupt:
        return interrupt.requested

    with futures.ThreadPoolExecutor(1) as pool:
      assert pool.submit(body).result() is False

  def test_the_second_ctrl_c_stops_at_once(self):
    with session.Interrupt() as interrupt:
      signal.raise_signal(signal.SIGINT)
      assert interrupt.requested
      with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

  def test_among_several_processes_the_service_says_where(self, monkeypatch):
    told, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(session.jax, "process_count", lambda: 2)
    monkeypatch.setattr(session.hosts, "is_sync_point", lambda n: n == 2)
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
      with session.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM]  # It is still the service's.
        signal.raise_signal(signal.SIGINT)
        assert told == [signal.SIGTERM] * 2
        found = [interrupt.stops() for _ in range(3)]
    finally:
      signal.signal(signal.SIGTERM, before)
    assert found == [False, True, True]


def test_laps_of_one_name_add_up_to_the_step():
  clock = session.Clock()
  for name in ("a", "b", "a"):
    time.sleep(0.01)
    clock.lap(name)
  found = clock.seconds()
  assert found["a"] > found["b"] >= 0.01
  assert found["a"] + found["b"] <= found["step"]
  np.testing.assert_allclose(found["a"] + found["b"], found["step"], atol=5e-3)
  clock.restart()
  assert set(clock.seconds()) == {"step"}


class TestSession:
  def test_counts_saves_and_goes_on_with_what_was_packed(self, tmp_path):
    queue = np.arange(6, dtype=np.int32).reshape(2, 3)
    fields = {"num_steps": 4, "checkpoint_interval": 2}
    with opened(tmp_path, loop=fields) as one:
      assert (one.step, one.host, one.arrays) == (0, {}, {})
      for _ in range(3):
        end_step(one, pack=lambda step: ({"next": step}, {"queue": queue}))
    assert steps_in(tmp_path) == [0, 1, 2]
    assert steps_in(tmp_path, "completions") == [0, 0]
    with opened(tmp_path, loop=fields) as one:
      assert one.step == one.host["next"] == 2
      np.testing.assert_array_equal(one.arrays["queue"], queue)
      # Step 2 was not saved: it is about to be done again.
      assert steps_in(tmp_path) == [0, 1]
      end_step(one)
      assert one.goes_on
      end_step(one)
      assert not one.goes_on
    assert steps_in(tmp_path) == [0, 1, 2, 3]
    assert steps_in(tmp_path, "completions") == [0, 0, 3, 3]

  def test_who_goes_back_replaces_the_damaged_checkpoint(self, tmp_path):
    fields = {"loop": {"num_steps": 4, "checkpoint_interval": 2}}
    with opened(tmp_path, **fields) as one:
      for _ in range(4):
        end_step(one)
    (tmp_path / "final.json").write_text("[]")
    last = tmp_path / "checkpoints" / "4" / "state"
    helpers.halve(helpers.largest_file(last))
    with pytest.raises(checkpoint.CheckpointError, match="--resume_step=2"):
      opened(tmp_path, **fields).__enter__()
    with opened(tmp_path, 2, **fields) as one:
      assert one.step == 2 and steps_in(tmp_path) == [0, 1]
      assert not (tmp_path / "final.json").exists()
      for _ in range(2):
        end_step(one)
    with opened(tmp_path, **fields) as one:
      assert one.step == 4

  def test_a_step_that_is_repeated_shows_its_completions_once(self, tmp_path):
    fields = {"evaluation": {"interval": 1, "num_examples": 2}}
    with opened(tmp_path, **fields) as one:
      for _ in range(3):  # The last is not saved.
        end_step(one)
    with opened(tmp_path, **fields) as one:
      assert steps_in(tmp_path, "completions") == [0, 0, 1, 1]
      end_step(one)
    rows = list(metrics.read_lines(tmp_path / "completions.jsonl"))
    assert [(row["step"], row["completion"]) for row in rows[-2:]] == [
      (2, "a"),
      (2, "b"),
    ]
    assert {row["seed"] for row in rows} == {3}
    text = (tmp_path / "completions.jsonl").read_text()
    assert '"total": null' in text and "NaN" not in text

  def test_the_page_says_how_a_run_ended(self, tmp_path):
    def page():
      return (tmp_path / "run.html").read_text()

    with pytest.raises(FloatingPointError), opened(tmp_path) as one:
      assert "step 0 of 4" in page()
      end_step(one, "the loss is nan")
    assert "error: step 0 of seed 3: the loss is nan" in page()
    with opened(tmp_path) as one:
      while one.goes_on:
        end_step(one)
      one.result()
    assert "<b>finished</b>" in page() and "step 4 of 4" in page()

  def test_more_steps_in_a_row_than_may_be_skipped(self, tmp_path):
    fields = dict(skip_nonfinite=True, max_skipped=2, checkpoint_interval=1)
    with opened(tmp_path, loop=fields | {"num_steps": 9}) as one:
      # One of several updates, or a good step between them, is no such run.
      for skipped in (1, 1, 0.5, 1, 0, 1):
        end_step(one, "bad" * bool(skipped), skipped=skipped)
      assert one.step == 6
    with opened(tmp_path, loop=fields | {"num_steps": 9}) as one:
      end_step(one, "bad")  # The second: the first was before the resumption.
      word = r"step 7 of seed 3: bad; 3 steps in a row .* steps \[6, 7\]"
      with pytest.raises(FloatingPointError, match=word):
        end_step(one, "bad")

  def test_an_interrupt_saves_and_ends(self, tmp_path):
    with opened(tmp_path, loop={"checkpoint_interval": 0}) as one:
      signal.raise_signal(signal.SIGINT)
      assert one.goes_on, "a step that has begun is ended"
      end_step(one)
      assert not one.goes_on
      assert one.result() == session.Result(False, 1, [])
    with opened(tmp_path) as one:
      assert one.step == 1

  @pytest.mark.parametrize(
    ("interval", "expected"), [(0, [4]), (2, [0, 2, 4]), (3, [0, 3, 4])]
  )
  def test_evaluates_at_intervals_and_last(self, tmp_path, interval, expected):
    fields = {"interval": interval, "num_examples": 2}
    with opened(tmp_path, evaluation=fields) as one:
      one.evaluate()
      while one.goes_on:
        end_step(one)
    assert steps_in(tmp_path, "evals") == expected


class Averaging(helpers.Letters):
  """Averages even and odd examples apart, as BFCL does its categories."""

  def averages(self, examples, right):
    keys = np.array([example.key for example in examples])
    odd, even = (float(right[keys % 2 == k].mean()) for k in (1, 0))
    return {"even": even, "odd": odd}


def test_a_run_has_benchmarks_in_its_final_scores(tmp_path):
  fields = dict(interval=0, num_examples=13, batch_size=13)
  fields["benchmarks"] = {"test": 2, "train": 0}
  options = dict(task=Averaging(), evaluation=fields, loop={"num_steps": 1})
  with opened(tmp_path, **options) as one:
    end_step(one)
    # Killed before the second part: the scores so far are kept.
    signal.raise_signal(signal.SIGINT)
    assert not one.result().finished
  assert not (tmp_path / "final.json").exists()
  before = json.loads((tmp_path / "benchmarks.json").read_text())
  assert list(before["scores"]) == ["test/greedy"]

  with opened(tmp_path, **options) as one:
    assert one.step == 1 and not one.goes_on
    result = one.result()
  assert result.finished
  (final,) = json.loads((tmp_path / "final.json").read_text())
  assert final == result.final[0]
  # The same examples under the same keys are the same answers.
  for mode in ("greedy", "sampled"):
    assert final[f"test/{mode}"] == final[mode]
  assert {"even", "odd", "mean@2", "pass@2"} <= final["sampled"].keys()
  assert "train/sampled" not in final
  for name in ("right", "even", "letter"):
    wanted = (final["test/greedy"][name] + final["train/greedy"][name]) / 2
    assert final["benchmarks/greedy"][name] == pytest.approx(wanted)
