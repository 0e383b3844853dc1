import numpy as np

from saw_jax.run import answers, rollouts
from tests import helpers
from tests.run.labelling_test import Guesses


def test_a_policy_judges_each_response_with_a_key_of_its_own(monkeypatch):
  made = helpers.experiment(
    task=Guesses(),
    labels={
      "method": "self_verification",
      "verify_new_tokens": 3,
      "verify_prompt_tokens": 48,
    },
  )
  verify = answers.make_verifier(
    helpers.make_learner(made).policy,
    made.task,
    rollouts.Encoder(made.tokenizer, made.rollout),
    made.sampling,
    made.labels,
    [0],
    4,
  )
  seen = []
  monkeypatch.setattr(
    answers.self_verification,
    "read_verdict",
    lambda text: seen.append(text) or float(len(seen) % 2),
  )
  found = verify([Guesses().examples("train")[:2]], ["same"] * 8, 0)
  np.testing.assert_array_equal(found, np.tile([1, 0, 1, 0], (1, 2, 1)))
  # The same question, and other verdicts: a key is a function of the row.
  assert len(set(seen)) > 4
