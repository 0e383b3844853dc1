"""What PaW costs: time of a step and memory of an update, as ratios.

  python benchmarks/world_model_cost.py

Trains the tiny household with the base algorithm and with PaW in turn, in one
process and from the same policy, and writes
benchmarks/results/world_model_cost.{json,md}: ratios of the times of a step and
of its update, and of the memory that the compiled update needs beside its
arguments. The policy is untrained, so that all episodes have all their steps
and all rows of the table have the same work but for the observations.
"""

import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import shared  # noqa: E402

REPETITIONS = 4
STEPS = 6
# Name -> row, tokens of a packed row (0: rows are padded), and its base.
ROWS = {
  "grpo": ("grpo", 0, "grpo"),
  "grpo_paw": ("grpo_paw", 0, "grpo"),
  "paw_all": ("paw_all", 0, "grpo"),
  "grpo, packed": ("grpo", 128, "grpo, packed"),
  "grpo_paw, packed": ("grpo_paw", 128, "grpo, packed"),
  "paw_all, packed": ("paw_all", 128, "grpo, packed"),
}


class Stopwatch:
  """Plays and learns step by step, without a run directory."""

  def __init__(self, row: str, pack_length: int):
    from configs.paw import household
    from saw_jax.run import build, experiment, learner, session

    config = household.get_config(f"row={row},scale=tiny")
    config.warm_start.num_steps = 0
    config.loop.pack_length = pack_length
    # Not learning: every step of every row has the same work.
    config.optimizer.learning_rate = 0.0
    self.experiment = build.build(config)
    made = self.experiment
    kind = experiment.kind_of(made)
    self.policy, self.clock = experiment.Policy(made, 1), session.Clock()
    self.learner = learner.Learner(self.policy, [0], self.clock)
    self.workers = kind.open_workers()
    self.source = kind.Source(self.learner, self.workers, None)
    self.step = 0

  def run(self, steps: int) -> list[dict[str, float]]:
    source, found = self.source, []
    for _ in range(steps):
      self.clock.restart()
      scored = source.score(source.generate(self.step), self.step)
      self.batch, _ = source.estimate(scored, self.step)
      self.learner.update(self.batch)
      self.step += 1
      found.append(self.clock.seconds())
    return found

  def memory(self) -> int:
    """Bytes that the compiled update needs beside its arguments."""
    import jax

    from saw_jax.training import objective, optimizer, update

    made = self.experiment
    fn = update.make_update(
      objective.make_objective(
        objective.make_forward(made.decoder, chunk_size=made.loop.chunk_size),
        made.method.terms,
        made.method.diagnostics,
      ),
      optimizer.make_optimizer(made.optimizer, 1),
    )
    one = jax.tree.map(lambda x: x[0], (self.policy.state, self.batch))
    compiled = jax.jit(fn).lower(*one).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def main() -> None:
  watches = {name: Stopwatch(*made[:2]) for name, made in ROWS.items()}
  for watch in watches.values():
    watch.run(2)  # compiles
  seconds = {row: [] for row in ROWS}
  for repetition in range(REPETITIONS):
    for row in shared.order(ROWS, repetition):
      laps = watches[row].run(STEPS)
      seconds[row].append(
        {
          name: float(np.median([lap[name] for lap in laps]))
          for name in ("generate", "update", "step")
        }
      )
  memory = {row: watch.memory() for row, watch in watches.items()}
  rows = {}
  for row, (_, _, base_row) in ROWS.items():
    rows[row] = {"memory": memory[row] / memory[base_row]}
    for name in ("generate", "update", "step"):
      ratios = [
        own[name] / base[name]
        for own, base in zip(seconds[row], seconds[base_row], strict=True)
      ]
      rows[row] |= shared.spread(name, ratios)
    batch = watches[row].batch
    rows[row]["tokens"] = int(np.asarray(batch.valid).sum())
    rows[row]["more"] = rows[row]["tokens"] / rows[base_row]["tokens"]
    read = batch.tokens if batch.packing is None else batch.packing.tokens
    rows[row]["positions"] = int(read.size)
  for watch in watches.values():
    watch.workers.close()
  first, some, whole = (rows[n]["tokens"] for n in tuple(ROWS)[:3])
  shared.write(
    "world_model_cost",
    {"rows": rows, "repetitions": REPETITIONS, "steps": STEPS},
    "What PaW costs, against its base algorithm",
    ["row", "step", "range", "update", "memory of the update", "tokens"]
    + ["positions computed"],
    [
      [
        row,
        f"{found['step']:.2f}",
        shared.between(found["step_range"]),
        f"{found['update']:.2f}",
        f"{found['memory']:.2f}",
        f"{found['more']:.3f}",
        str(found["positions"]),
      ]
      for row, found in rows.items()
    ],
    f"Selecting before appending leaves {(some - first) / (whole - first):.2f} "
    "of the extra tokens. Padded rows are as wide as the longest, so that only "
    "packed ones are the cheaper for it.",
    f"Household at tiny, one seed, {REPETITIONS} repetitions of {STEPS} steps, "
    "in turn; medians of ratios. A row of the paper has thousands of tokens of "
    "prompt and action and its observation is a small part; here it is a "
    "quarter.",
  )


if __name__ == "__main__":
  main()
