"""Evaluates the policies of a run on held-out examples.

  python experiments/evaluate.py --workdir=runs/gdpo_saw --checkpoint=best

Prints greedy and sampled scores of every seed with 95 % intervals over
examples, and writes them to evaluation.json in the run directory; with
--checkpoint=start, those of the policy before training, and writes them to
evaluation_start.json. --split names another split or a benchmark of the task,
whose scores are written to a file of that name:

  python experiments/evaluate.py --workdir=RUN --split=bfcl --examples=5000

writes evaluation_bfcl.json. Tables have what config.evaluation.benchmarks
names, which a run scores at its end.
"""

import json
import pathlib

from absl import flags

from saw_jax.run import command_line

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run directory.", required=True
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "last", "last, best, start, or the number of a step."
)
_EXAMPLES = flags.DEFINE_integer(
  "examples", None, "Number of examples; the config's by default.", 1
)
_SAMPLES = flags.DEFINE_integer(
  "samples", None, "Samples per example; the config's by default.", 1
)
_SPLIT = flags.DEFINE_string("split", None, "Split; the config's by default.")


def averages(task, options, right) -> dict[str, float]:
  """What a benchmark averages in a way of its own, such as by category."""
  if not hasattr(task, "averages"):
    return {}
  examples = task.examples(options.split)[: len(right)]
  return task.averages(examples, right)


def main() -> int:
  from saw_jax.reporting import statistics
  from saw_jax.run import build, config, evaluation, run_directory
  from saw_jax.run import experiment as experiment_lib

  workdir = pathlib.Path(_WORKDIR.value)
  with command_line.checking_input():
    run, seeds = run_directory.read_config(workdir)
    for name, value in (
      ("num_examples", _EXAMPLES.value),
      ("samples", _SAMPLES.value),
      ("split", _SPLIT.value),
    ):
      if value is not None:
        run = config.replace(run, f"evaluation.{name}", value)
    experiment = build.build(run)
    is_start = _CHECKPOINT.value == "start"
    step = 0 if is_start else build.checkpoint_step(workdir, _CHECKPOINT.value)
  if is_start:
    policy = experiment_lib.Policy(experiment, len(seeds))
  else:
    step, policy = experiment_lib.restore(
      experiment, len(seeds), workdir, step=step
    )
  results = experiment_lib.evaluate(policy)

  document = {"step": step, "seeds": []}
  for index, seed in enumerate(seeds):
    entry = {"seed": seed}
    for mode, result in results.items():
      entry[mode] = {}
      print(f"seed {seed}, step {step}, {mode}:")
      figures = evaluation.per_example(
        result, index, experiment.task.components
      )
      if mode == "sampled":
        figures |= evaluation.at_k(result, index)
      for name, per_example in figures.items():
        found = statistics.summarise(per_example)
        entry[mode][name] = found._asdict()
        print(
          f"  {name:<12} {found.mean:7.3f}  [{found.low:.3f}, {found.high:.3f}]"
          f"  over {len(per_example)} examples"
        )
      found = averages(experiment.task, run.evaluation, figures["right"])
      if found:
        entry[f"{mode}_averages"] = found
      for name, value in found.items():
        print(f"  {name:<28} {value:7.3f}")
    document["seeds"].append(entry)
  name = "evaluation_start" if is_start else "evaluation"
  if _SPLIT.value is not None:
    name += f"_{_SPLIT.value}"
  path = workdir / f"{name}.json"
  path.write_text(json.dumps(document, indent=2) + "\n")
  print(f"written to {path}")
  return 0


if __name__ == "__main__":
  command_line.run(main)
