"""Writes a page with a won and a lost episode of a run, roles in colours.

  python experiments/show_episodes.py --workdir=runs/paw \
    --out=docs/household_episodes.html

Plays held-out worlds with the policy of the first seed in a run's last
checkpoint.
"""

import pathlib

from absl import flags

from saw_jax.run import command_line

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run directory.", required=True
)
_OUT = flags.DEFINE_string("out", None, "The page.", required=True)
_MODE = flags.DEFINE_enum(
  "mode", "sampled", ["greedy", "sampled"], "How actions are chosen."
)


def main() -> int:
  from experiments import episode_pages
  from saw_jax.run import build, run_directory
  from saw_jax.run import experiment as experiment_lib

  workdir = pathlib.Path(_WORKDIR.value)
  with command_line.checking_input():
    run, seeds = run_directory.read_config(workdir)
    experiment = build.build(run)
    if not experiment.method.per_step:
      raise ValueError(f"{workdir} is not a run of episodes")
  step, policy = experiment_lib.restore(experiment, len(seeds), workdir)
  played = experiment_lib.kind_of(experiment).play(policy, _MODE.value)
  episodes = episode_pages.won_and_lost(
    played.turns[0],
    (played.returns[0] >= experiment.task.max_return).reshape(-1),
  )
  title = f"{experiment.task.name}, {_MODE.value}, after {step} steps"
  path = pathlib.Path(_OUT.value)
  path.write_text(episode_pages.to_html(title, episodes), encoding="utf-8")
  print(f"written to {path}: {', '.join(episodes).lower()}")
  return 0


if __name__ == "__main__":
  command_line.run(main)
