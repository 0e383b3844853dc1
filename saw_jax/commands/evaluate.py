"""Evaluates the policies of a run on held-out examples.

  saw evaluate --workdir=runs/gdpo_saw --checkpoint=best

Prints greedy and sampled scores of every seed with 95 % intervals over
examples, and writes them to evaluation.json in the run directory; with
--checkpoint=start, those of the policy before training, and writes them to
evaluation_start.json. --split names another split or a benchmark of the task,
whose scores are written to a file of that name:

  saw evaluate --workdir=RUN --split=bfcl --examples=5000

writes evaluation_bfcl.json. Earlier scores that differ are kept beside it, as
evaluation_bfcl_1.json.

--engine=http://localhost:8000 has a server of vLLM or SGLang sample
(docs/rollouts.md), of runs of one seed. Tables have what
config.evaluation.benchmarks names, which a run scores at its end.
"""

import math
import os
from typing import Any

from absl import flags

from saw_jax.run import command_line


def main() -> int:
  given = flags.FLAGS
  names = ("checkpoint", "examples", "samples", "split", "engine")
  evaluate(given.workdir, **{name: given[name].value for name in names})
  return 0


def evaluate(
  directory: str | os.PathLike,
  *,
  checkpoint: str | int = "last",
  examples: int | None = None,
  samples: int | None = None,
  split: str | None = None,
  engine: str = "",
  task: Any = None,
  config: Any = None,
) -> dict[str, Any]:
  """Prints, writes and returns the scores of each seed; see `saw evaluate`."""
  from saw_jax.reporting import statistics
  from saw_jax.run import build, evaluation, metrics, run_directory, store
  from saw_jax.run import config as config_lib
  from saw_jax.run import experiment as experiment_lib

  with command_line.checking_input():
    workdir = store.local(directory)
    run, seeds = run_directory.read_config(workdir, config)
    run_directory.tell_changes(workdir)
    given = {"num_examples": examples, "samples": samples, "split": split}
    for name, value in given.items():
      if value is not None:
        run = config_lib.replace(run, f"evaluation.{name}", value)
    run = config_lib.replace(run, "rollout.engine", engine)
    is_start = checkpoint == "start"
    step = 0 if is_start else build.checkpoint_step(workdir, str(checkpoint))
    experiment = build.build(run, task=task)
    held_out = run.evaluation.split, run.evaluation.num_examples
    experiment_lib.kind_of(experiment).count_examples(*held_out)
  if is_start:
    policy = experiment_lib.Policy(experiment, len(seeds))
  else:
    where = len(seeds), workdir
    step, policy = experiment_lib.restore(experiment, *where, step=step)
  results = experiment_lib.evaluate(policy)

  document, lines = {"step": step, "seeds": []}, []
  for index, seed in enumerate(seeds):
    entry = {"seed": seed}
    for mode, result in results.items():
      entry[mode] = {}
      lines.append(f"seed {seed}, step {step}, {mode}:")
      parts = experiment.task.components
      figures = evaluation.per_example(result, index, parts)
      if mode == "sampled":
        figures |= evaluation.at_k(result, index)
      for name, per_example in figures.items():
        size = len(per_example)
        if not size:
          nothing = statistics.Summary(*[math.nan] * 4, 0)
          entry[mode][name] = nothing._asdict()
          lines.append(f"  {name:<12} nothing was scored")
          continue
        found = statistics.summarise(per_example)
        entry[mode][name] = found._asdict()
        between = f"[{found.low:.3f}, {found.high:.3f}]"
        said = f"{between}  over {size} examples" if size > 1 else "one example"
        lines.append(f"  {name:<12} {found.mean:7.3f}  {said}")
      # A benchmark may have averages of its own, such as by category.
      if hasattr(experiment.task, "averages"):
        asked = experiment.task.examples(run.evaluation.split)
        asked = policy.encoder.keep(asked)[: len(figures["right"])]
        if found := experiment.task.averages(asked, figures["right"]):
          entry[f"{mode}_averages"] = found
        lines += [f"  {name:<28} {x:7.3f}" for name, x in found.items()]
    document["seeds"].append(entry)
  name = "evaluation_start" if is_start else "evaluation"
  name += "" if split is None else f"_{split}"
  path = workdir / f"{name}.json"
  text = metrics.to_json(document, indent=2) + "\n"
  if path.exists() and path.read_text() != text:
    kept = run_directory.set_aside(path)
    store.of(workdir).keep(kept)
    lines.append(f"the scores that were there are in {store.named(kept)}")
  metrics.write_text(path, text)
  store.of(workdir).keep(path)
  print("\n".join([*lines, f"written to {store.named(path)}"]))
  return document
