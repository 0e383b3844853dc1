"""A small decoder, a task of letters, and batches made of both."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax import algorithms
from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import transcript
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import evaluation, rollouts
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import base
from saw_jax.training import objective, optimizer, parallel
from saw_jax.training.batch import TrainBatch

CONFIG = DecoderConfig(
  vocab_size=259,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_size=8,
  mlp_size=24,
)


class Letters:
  """Rewards the share of one letter, and the share of small letters."""

  name = "letters"
  components = (
    base.Component("letter", 0.0, 1.0),
    base.Component("small", 0.0, 1.0),
  )

  def examples(self, split):
    first = 0 if split == "train" else 1000
    return [
      base.Example(
        key=first + i,
        messages=({"role": "user", "content": "ab"[i % 2] * (1 + i % 3)},),
        reference="ab"[i % 2],
      )
      for i in range(13)
    ]

  def score(self, example, completion):
    count = max(len(completion), 1)
    letter = completion.count(example.reference) / count
    small = sum(c.isascii() and c.islower() for c in completion) / count
    outcome = base.Outcome.RIGHT if letter == 1 else base.Outcome.WRONG
    return base.Score((letter, small), outcome)


def experiment(**changes) -> experiment_lib.Experiment:
  """Makes an experiment on `Letters` that steps in milliseconds."""
  tokenizer = tokenizer_lib.ByteTokenizer()
  task = changes.pop("task", Letters())
  algorithm = changes.pop(
    "algorithm",
    algorithms.AlgorithmConfig(advantage="gdpo", weights="saw"),
  )
  minima = np.array([c.minimum for c in task.components], np.float32)
  made = experiment_lib.Experiment(
    task=task,
    tokenizer=tokenizer,
    decoder=CONFIG,
    params=decoder.init_params(CONFIG, jax.random.key(0)),
    method=algorithms.make_method(algorithm, minima),
    loop=experiment_lib.LoopConfig(
      num_steps=4, prompts_per_step=4, group_size=4, checkpoint_interval=2
    ),
    rollout=rollouts.RolloutConfig(
      max_prompt_tokens=48,
      prompt_multiple=48,
      max_new_tokens=5,
      completion_multiple=5,
    ),
    sampling=SamplingConfig(),
    optimizer=optimizer.OptimizerConfig(learning_rate=1e-2),
    parallel=parallel.ParallelConfig(),
    evaluation=evaluation.EvaluationConfig(
      num_examples=3, batch_size=2, samples=2, interval=2
    ),
    grading=experiment_lib.GradingConfig(num_workers=0),
  )
  sections = {
    name: dataclasses.replace(getattr(made, name), **value)
    for name, value in changes.items()
  }
  return made._replace(**sections)


def batch(rows: int = 8, seed: int = 0, *, old: bool = False) -> TrainBatch:
  """Makes rows of unequal lengths, padded on both sides."""
  rng = np.random.default_rng(seed)
  prompt_size, size = 5, 12
  roles = np.full((rows, size), transcript.PAD, np.int8)
  starts = rng.integers(0, prompt_size - 1, rows).astype(np.int32)
  ends = rng.integers(prompt_size + 1, size + 1, rows)
  for row in range(rows):
    roles[row, starts[row] : prompt_size] = transcript.PROMPT
    roles[row, prompt_size : ends[row]] = transcript.POLICY
  shape = (rows, size - prompt_size)
  near = lambda: jnp.asarray(  # noqa: E731
    -5.5 + 0.3 * rng.standard_normal(shape), jnp.float32
  )
  return TrainBatch(
    tokens=jnp.asarray(rng.integers(0, 259, (rows, size)), jnp.int32),
    roles=jnp.asarray(roles),
    starts=jnp.asarray(starts),
    advantages=jnp.asarray(rng.standard_normal(rows), jnp.float32),
    old_log_probs=near() if old else None,
    behave_log_probs=near(),
    ref_log_probs=near(),
    prompt_size=prompt_size,
  )


def full_objective():
  """Three terms with three denominators' worth of masks, and diagnostics."""
  from saw_jax import losses

  return objective.make_objective(
    objective.make_forward(CONFIG, chunk_size=16),
    {
      "policy": objective.policy(losses.clipped_surrogate_loss),
      "kl": objective.Term(
        objective.kl(losses.kl_k3, aggregate=losses.sequence_mean_token_mean),
        0.1,
      ),
      "entropy": objective.Term(objective.entropy, 0.01),
    },
    [objective.mean_entropy, objective.sampler_mismatch],
  )


def read_document(checkpoint):
  """The JSON document inside the folder of one checkpoint."""
  return json.loads((checkpoint / "document" / "metadata").read_text())
