"""Writes a page with a won and a lost episode of a run, roles in colours.

  python experiments/show_episodes.py --workdir=runs/paw \
    --out=docs/household_episodes.html

Plays held-out worlds with the policy of the first seed in a run's last
checkpoint.
"""

import pathlib

import ml_collections
import numpy as np
from absl import flags

from experiments import command_line

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run directory.", required=True
)
_OUT = flags.DEFINE_string("out", None, "The page.", required=True)
_MODE = flags.DEFINE_enum(
  "mode", "sampled", ["greedy", "sampled"], "How actions are chosen."
)


def main() -> int:
  from experiments import build
  from saw_jax.reporting import transcripts
  from saw_jax.training import experiment as experiment_lib
  from saw_jax.training import rollouts, run_directory

  workdir = pathlib.Path(_WORKDIR.value)
  values = run_directory.read_run(workdir)["config"]
  seeds = values.pop("seeds")
  with command_line.checking_input():
    experiment = build.build(ml_collections.ConfigDict(values))
    if not experiment.method.per_step:
      raise ValueError(f"{workdir} is not a run of episodes")
  lift, found = experiment_lib.restore(experiment, len(seeds), workdir)
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  evaluator = experiment_lib.make_evaluator(experiment, lift, encoder)
  with experiment_lib.open_workers(experiment) as pool:
    played = evaluator.play(
      _MODE.value, found.state.params, pool, num_seeds=len(seeds)
    )
  returns = played.returns[0].reshape(-1)
  episodes = []
  for name, right in (("Won", True), ("Lost", False)):
    chosen = np.flatnonzero((returns >= experiment.task.max_return) == right)
    if chosen.size:
      turns = played.turns[0][chosen[0]]
      episodes.append(
        transcripts.Episode(
          f"{name}, in {len(turns)} steps", [_step(turn) for turn in turns]
        )
      )
  title = f"{experiment.task.name}, {_MODE.value}, after {found.step} steps"
  path = pathlib.Path(_OUT.value)
  path.write_text(transcripts.to_html(title, episodes), encoding="utf-8")
  print(f"written to {path}: {', '.join(e.title.lower() for e in episodes)}")
  return 0


def _step(turn):
  from saw_jax.reporting.transcripts import Segment, Step

  reward = f"reward {turn.reward:g}"
  return Step(
    [
      Segment("prompt", turn.prompt),
      Segment("glue", "\n"),
      Segment("policy", turn.reply or " "),
      Segment("glue", "\n"),
      Segment("observation", turn.observation),
    ],
    reward if turn.valid else f"{reward}, the reply did not parse",
  )


if __name__ == "__main__":
  command_line.run(main)
