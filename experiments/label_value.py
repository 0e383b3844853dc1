"""What one label buys: the claim of the Corrective Advantage Gap itself.

  python experiments/label_value.py --prompts=512 --out=results/care/value/tiny

From one policy, each prompt is learned from alone, once by its vote and once by
its label; the label's value is how much better the second policy is on held-out
problems, sampled with the same keys. Updates are plain gradient steps, since
Adam's first one has the same length whatever the gap. Prompts whose gap is 0
have the same update twice, and are not tried.

Writes values.csv (a prompt a line), table.md, and value.png.
"""

import csv
import dataclasses
import math
import pathlib
from typing import Any

from absl import flags

from saw_jax.run import command_line, config

_CONFIG = flags.DEFINE_string("config", "care/confident:row=truth", "A config.")
_PROMPTS = flags.DEFINE_integer("prompts", 512, "Prompts to look at.", 2)
_AT_ONCE = flags.DEFINE_integer("at_once", 32, "Policies in one program.", 1)
_RATE = flags.DEFINE_float("rate", 0.1, "Of the gradient step.")
_STARTS = flags.DEFINE_list("starts", ["0"], "Seeds of the supervised start.")
_OUT = flags.DEFINE_string("out", "runs/label_value", "Folder of the results.")


def main() -> None:
  from experiments import label_value_table

  folder, rows = pathlib.Path(_OUT.value), []
  folder.mkdir(parents=True, exist_ok=True)
  for start in map(int, _STARTS.value):
    with command_line.checking_input():
      chosen = config.load(_CONFIG.value)
    rows += _values(chosen, start)
    with open(folder / "values.csv", "w", newline="", encoding="utf-8") as file:
      writer = csv.DictWriter(file, rows[0], lineterminator="\n")
      writer.writeheader()
      writer.writerows(rows)
  (folder / "table.md").write_text(label_value_table.table(rows), "utf-8")
  label_value_table.draw(rows).savefig(folder / "value.png")
  print(folder / "table.md")


def _values(chosen: Any, start: int) -> list[dict[str, float]]:
  """The value of each prompt's label, and what it might be guessed by."""
  import jax
  import numpy as np

  from saw_jax.labels import gap, voting
  from saw_jax.run import build, experiment, rollouts
  from saw_jax.run.learner import Learner
  from saw_jax.run.policy import Policy
  from saw_jax.run.session import Clock
  from saw_jax.tasks import data

  chosen.loop.update(prompts_per_step=1, num_microbatches=1)
  if start:
    chosen.warm_start.options.update(seed=start)
  made = build.build(chosen)
  # Adam with a large eps is a plain gradient step, of rate / eps.
  descent = {"learning_rate": _RATE.value * 1e3, "eps": 1e3}
  descent = dataclasses.replace(made.optimizer, **descent, clip_norm=math.inf)
  made = made._replace(optimizer=descent)
  size, group_size, task = _AT_ONCE.value, made.loop.group_size, made.task
  policy = Policy(made, size)
  learner = Learner(policy, [start] * size, Clock())
  generate = policy.make_generate(made.sampling, group_size)
  first, kind = jax.device_get(policy.state), experiment.kind_of(made)
  examples = task.examples("train")[: _PROMPTS.value]
  found = []

  def sample(some):
    """Groups of a prompt for each policy: scores, and votes."""
    keys = rollouts.example_keys([start] * size, 0, some, group_size)
    encoder = policy.encoder
    sampled = rollouts.sample(
      generate, policy.params, some, keys, encoder=encoder
    )
    scores, texts = rollouts.score(sampled, some, grader, encoder), []
    for n, (example,) in enumerate(some):
      group = scores.completions[n * group_size : (n + 1) * group_size]
      texts.append([task.answer_key(text, example) for text in group])
    return sampled, scores, voting.majority_vote(data.answer_ids(texts))

  def held_out(sampled, scores, rewards) -> np.ndarray:
    """How good each policy is after one update by these rewards `[N, G]`."""
    batch, _ = learner.prepare(sampled)
    rewards = rewards[:, None, :, None].astype(np.float32)
    given = scores._replace(rewards=rewards, scored=np.ones_like(rewards, bool))
    learner.update(learner.estimate(batch, given)[0])
    right = evaluator.run("sampled")["right"].mean((1, 2))
    policy.state = policy.lift.place(first)
    return right

  with kind.open_workers() as grader:
    evaluator = kind.Evaluator(policy, grader)
    for some in _batches(examples, size):
      _, scores, votes = sample(some)
      true = scores.rewards[:, 0, :, 0]
      figures = {
        "gap": gap.corrective_advantage_gap(1.0 * votes.for_winner, true),
        "entropy": voting.vote_entropy(votes),
        "margin": voting.vote_margin(votes),
        "right": true.mean(-1),
      }
      for n, (example,) in enumerate(some):
        row = {name: round(float(x[n]), 6) for name, x in figures.items()}
        found.append({"start": start, "prompt": example.key, **row})
    found = found[: len(examples)]
    # Where the gap is 0 both updates are the same.
    tried = [n for n, row in enumerate(found) if row["gap"]]
    values = []
    for some in _batches([examples[n] for n in tried], size):
      sampled, scores, votes = sample(some)
      by_vote = held_out(sampled, scores, np.asarray(votes.for_winner))
      by_label = held_out(sampled, scores, scores.rewards[:, 0, :, 0])
      values += (by_label - by_vote).tolist()
      print(f"start {start}: {len(values)} of {len(tried)} labels", flush=True)
  for row in found:
    row["value"] = 0.0
  for n, value in zip(tried, values, strict=False):
    found[n]["value"] = round(value, 6)
  return found


def _batches(examples, size):
  """Lists of one example a policy, the last one filled up with the first."""
  for begin in range(0, len(examples), size):
    some = list(examples[begin : begin + size])
    yield [[x] for x in some + some[:1] * (size - len(some))]


if __name__ == "__main__":
  command_line.run(main)
