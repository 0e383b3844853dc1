"""Writes a trained policy as a Hugging Face directory.

  saw export --workdir=runs/gdpo_saw --checkpoint=best \
    --output=policies/gdpo_saw

transformers and vLLM open the directory, and so does --config.checkpoint.
"""

import pathlib

from absl import flags

from saw_jax.run import command_line


def define() -> None:
  flags.DEFINE_string("workdir", None, "The run directory.", required=True)
  flags.DEFINE_string(
    "output", None, "Where the policy goes; made if absent.", required=True
  )
  flags.DEFINE_string(
    "checkpoint", "last", "last, best, or the number of a step."
  )
  flags.DEFINE_integer(
    "seed", None, "Of the run's seeds; the first by default."
  )
  flags.DEFINE_enum(
    "dtype",
    "bfloat16",
    ["float32", "bfloat16", "float16"],
    "What the weights are rounded to.",
  )


def main() -> int:
  given = flags.FLAGS
  workdir, output = pathlib.Path(given.workdir), pathlib.Path(given.output)
  if (output / "config.json").exists():
    raise command_line.UsageError(f"--output: there is a model in {output}")

  from saw_jax.models.hub import pretrained
  from saw_jax.models.hub import tokenizer as hub_tokenizer
  from saw_jax.run import build, run_directory
  from saw_jax.run import experiment as experiment_lib
  from saw_jax.training import update

  with command_line.checking_input():
    run, seeds = run_directory.read_config(workdir)
    seed = seeds[0] if given.seed is None else given.seed
    if seed not in seeds:
      raise ValueError(f"--seed={seed}: the run has {seeds}")
    experiment = build.build(run)
    document = None
    if run.checkpoint:
      document = build.open_checkpoint(run).document
    step = build.checkpoint_step(workdir, given.checkpoint)
  step, policy = experiment_lib.restore(
    experiment, len(seeds), workdir, step=step
  )
  params = update.take_seed(policy.lift.fetch(policy.params), seeds.index(seed))
  with command_line.checking_input():
    files = pretrained.save_checkpoint(
      output,
      params,
      experiment.decoder,
      document=document,
      dtype=given.dtype,
    )
  if isinstance(experiment.tokenizer, hub_tokenizer.HubTokenizer):
    experiment.tokenizer.save(output)
  else:
    print("no tokenizer is written: the run has one of saw_jax's own")
  print(f"seed {seed}, step {step}: {len(files)} files in {output}")
  return 0
