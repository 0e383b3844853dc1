"""Four methods in one run: stale responses, labels, weights, observations."""

import pytest

from saw_jax import algorithms
from saw_jax.run import loop
from tests import helpers
from tests.run.labelling_test import PROBE, Guesses, purchases


class World(Guesses):
  """Guesses whose world says the last letter back."""

  def observe(self, example, completion):
    return completion[-1:] * 2


def experiment(poisoned=(), **labels):
  return helpers.experiment(
    task=World(poisoned),
    algorithm=dict(
      advantage="gdpo",
      weights="saw",
      loss="asympo",
      aggregate="sequence_mean_token_mean",
      world_model=algorithms.WorldModelConfig("clipped_absolute_error"),
    ),
    asynchronous={"protocol": "fixed_lag", "lag": 2},
    labels=dict(method="care", gate="probe", warm_up=1)
    | dict(label_fraction=0.25, probe=PROBE, **labels),
    episodes={"max_observation_tokens": 2},
    evaluation={"interval": 0, "samples": 0},
  )


@pytest.mark.slow
def test_it_resumes_bitwise_and_no_truth_that_was_not_bought_reaches_it(
  tmp_path,
):
  def train(name, poisoned, resume_step=None, **labels):
    made, directory = experiment(poisoned, **labels), tmp_path / name
    loop.train(made, [0, 1], directory=directory, resume_step=resume_step)
    return directory, helpers.curves(directory)

  whole, expected = train("whole", ())
  bought = {p.prompt_id for p in purchases(whole)}
  others = {e.key for e in World().examples("train")} - bought
  train("others", others, audit=False)
  found, curves = train("others", others, resume_step=2, audit=False)
  audited = expected.keys() - curves.keys()
  assert "audit/correct" in audited and "probe/vote/loss" in curves
  helpers.assert_same_run(whole, found, *audited)
  assert len(purchases(found)) == 8  # nothing is paid twice
  # The check sees a truth that does reach it: that of a bought prompt.
  _, curves = train("bought", bought)
  name = "probe/vote/loss"
  assert (curves[name] != expected[name]).any()
