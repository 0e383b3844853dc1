import numpy as np

from saw_jax.run import answers, groups, labelling
from saw_jax.tasks.workers.grading import Grader
from tests import helpers
from tests.run import labelling_test
from tests.run.labelling_test import TEXTS, Guesses

EXAMPLES = [Guesses().examples("train")[:2]]


def test_the_truth_is_scored_once():
  made = helpers.experiment(task=Guesses())
  with Grader(made.task, num_workers=0, limit_s=1.0) as grader:
    one = answers.Answers(helpers.make_learner(made), grader, helpers.begun())
    drawn = groups.Drawn(labelling_test.say(TEXTS), EXAMPLES, None, [{}])
    _, early, _ = one.score(drawn, 0)
    assert early.rewards[0, ..., 0].tolist() == labelling_test.TRUTH_OF_0
    assert one.score(drawn._replace(early=early), 0)[1] is early
  assert one.finish([{}], 0) == [{}] and one.pack(0) == ({}, {})


def test_a_policy_judges_each_response_with_a_key_of_its_own(monkeypatch):
  labels = {"verify_new_tokens": 3, "verify_prompt_tokens": 48}
  labels["method"] = "self_verification"
  made = helpers.experiment(task=Guesses(), labels=labels)
  seen = []
  monkeypatch.setattr(
    labelling.self_verification,
    "read_verdict",
    lambda text: seen.append(text) or float(len(seen) % 2),
  )
  one = labelling.OwnRewards(helpers.make_learner(made), None)
  found = one._verdicts(EXAMPLES, ["same"] * 8, 0)
  np.testing.assert_array_equal(found, np.tile([1, 0, 1, 0], (1, 2, 1)))
  # The same question, and other verdicts: a key is a function of the row.
  assert len(set(seen)) > 4
