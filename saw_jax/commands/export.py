"""Writes a trained policy as a Hugging Face directory.

  saw export --workdir=runs/gdpo_saw --checkpoint=best \
    --output=policies/gdpo_saw

transformers and vLLM open the directory, and so does --config.checkpoint.
"""

import os
from typing import Any

from absl import flags

from saw_jax.run import command_line, store


def main() -> int:
  given = flags.FLAGS
  how = {name: given[name].value for name in ("checkpoint", "seed", "dtype")}
  export(given.workdir, given.output, **how)
  return 0


def export(
  directory: str | os.PathLike,
  output: str | os.PathLike,
  *,
  checkpoint: str | int = "last",
  seed: int | None = None,
  dtype: str = "bfloat16",
  task: Any = None,
  config: Any = None,
) -> None:
  """Writes a policy; `task` and `config` are as for `evaluate.evaluate`."""
  output = store.folder_of(output, "--output")
  if (output / "config.json").exists():
    raise command_line.UsageError(f"--output: there is a model in {output}")

  from saw_jax.models.hub import pretrained
  from saw_jax.run import build

  with command_line.checking_input():
    run, experiment, seed, step, params = build.read_policy(
      store.local(directory), checkpoint, seed, task=task, config=config
    )
    document = build.open_checkpoint(run).document if run.checkpoint else None
    files = pretrained.save_checkpoint(
      output, params, experiment.decoder, document=document, dtype=dtype
    )
  experiment.tokenizer.save(output)
  print(f"seed {seed}, step {step}: {len(files)} files in {output}")
