"""TraPO's labels: some prompts have one; who learns as they do has a vote."""

from collections.abc import Sequence

import jax
import numpy as np

from saw_jax.labels import selection, trajectories
from saw_jax.run.learner import Learner
from saw_jax.run.rollouts import Examples
from saw_jax.run.session import Session

_pass_rates = jax.jit(jax.vmap(trajectories.vote_pass_rates))


class Curves:
  """Pass rates of the prompts of all seeds, one for each visit.

  Those of prompts with a label are `known`. Prompts whose votes were trusted
  are references from then on, with their curve as it was (`chosen`).
  """

  def __init__(self, learner: Learner, session: Session):
    made = learner.made
    self._settings = made.labels.curves
    keys = [example.key for example in made.task.examples("train")]
    count = selection.budget(len(keys), made.labels.label_fraction)
    order = [np.random.default_rng(x).permutation(keys) for x in learner.seeds]
    self.labelled = [set(x[:count].tolist()) for x in order]
    self._steps = max(1, len(keys) // made.loop.prompts_per_step)
    empty = [{"known": {}, "others": {}, "chosen": {}} for _ in learner.seeds]
    # What a checkpoint has; in JSON, keys are text.
    self.of_seeds = [
      {kind: {int(k): x for k, x in of.items()} for kind, of in seed.items()}
      for seed in session.host.get("curves") or empty
    ]

  def select(self, answer_ids, examples: Examples, step: int):
    """Which prompts are asked for their labels, and whose votes count."""
    rates = jax.device_get(_pass_rates(answer_ids)).tolist()
    found = [
      self._select_one(n, [x.key for x in row], rates[n], step)
      for n, row in enumerate(examples)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *found)

  def append(self, examples: Examples, bought, rates: np.ndarray) -> None:
    """Appends the true rates `[N, P]` of the prompts with a label."""
    for n, p in np.argwhere(bought):
      known = self.of_seeds[n]["known"]
      known.setdefault(examples[n][p].key, []).append(float(rates[n, p]))

  def _select_one(
    self, n: int, keys: Sequence[int], rates: Sequence[float], step: int
  ) -> selection.Selection:
    known, curves = self.labelled[n], self.of_seeds[n]
    others, chosen = curves["others"], curves["chosen"]
    left = [key for key in keys if key not in known]
    for key, rate in zip(keys, rates, strict=True):
      if key not in known:
        others.setdefault(key, []).append(rate)
    trusted: set[int] = set()
    if step // self._steps >= self._settings.warm_up:
      trusted = trajectories.trusted_prompts(
        curves["known"] | chosen, others, left, self._settings
      )
    chosen |= {key: list(others[key]) for key in left if key in trusted}
    labelled = np.array([key in known for key in keys])
    gated = np.array([key in trusted for key in keys])
    order = np.argsort(~labelled, kind="stable").astype(np.int32)
    return selection.Selection(labelled, gated, order)
