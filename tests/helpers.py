"""A small decoder, a task of letters, and batches made of both."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from saw_jax import algorithms, naming
from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import transcript
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import learner, sections, session
from saw_jax.tasks import base
from saw_jax.training import batch as batch_lib
from saw_jax.training import objective, optimizer, parallel
from saw_jax.training.batch import TrainBatch

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = DecoderConfig(
  vocab_size=259,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_size=8,
  mlp_size=24,
)


def golden(name):
  """The vectors of another implementation, see tests/golden/README.md."""
  path = ROOT / "tests" / "golden" / f"{name}.json"
  return json.loads(path.read_text())


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens, positions=None, valid=None):
  """By the whole decoder; of full rows, unless told where their tokens are."""
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    valid = positions >= 0
  hidden, _ = decoder.Decoder(config).apply(
    {"params": params}, tokens, positions, valid
  )
  return hidden @ decoder.head_kernel(params, config)


@contextlib.contextmanager
def lacking(extra, *modules):
  """Inside, modules are not installed, and the error names the extra."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(
      pytest.raises(ImportError, match=re.escape(f"saw_jax[{extra}]"))
    )
    for name in modules:
      stack.enter_context(naming.standing_in(name, None))
    yield


def over_devices(f, *arrays, joined=True):
  """Calls `f` with its rows on four devices; gives rows, or what all have."""
  axes = (jax.sharding.AxisType.Auto,)
  lifted = jax.shard_map(
    functools.partial(f, axis_name="data"),
    mesh=jax.make_mesh((4,), ("data",), axis_types=axes),
    in_specs=PartitionSpec("data"),
    out_specs=PartitionSpec("data") if joined else PartitionSpec(),
  )
  return jax.jit(lifted)(*arrays)


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


@functools.cache
def start():
  """Parameters that many tests begin with."""
  return decoder.init_params(CONFIG, jax.random.key(0))


def experiment(**changes) -> sections.Experiment:
  """Makes an experiment on `Letters` that steps in milliseconds."""
  tokenizer = tokenizer_lib.ByteTokenizer()
  task = changes.pop("task", Letters())
  algorithm = changes.pop("algorithm", {"advantage": "gdpo", "weights": "saw"})
  if isinstance(algorithm, dict):
    algorithm = algorithms.AlgorithmConfig(**algorithm)
  ends = np.array([(c.minimum, c.maximum) for c in task.components])
  made = sections.Experiment(
    task=task,
    tokenizer=tokenizer,
    decoder=CONFIG,
    params=start(),
    method=algorithms.make_method(algorithm, *ends.T),
    loop=sections.LoopConfig(
      num_steps=4, prompts_per_step=4, group_size=4, checkpoint_interval=2
    ),
    rollout=sections.RolloutConfig(
      max_prompt_tokens=48,
      prompt_multiple=48,
      max_new_tokens=5,
      completion_multiple=5,
    ),
    sampling=SamplingConfig(),
    optimizer=optimizer.OptimizerConfig(learning_rate=1e-2),
    parallel=parallel.ParallelConfig(),
    evaluation=sections.EvaluationConfig(
      num_examples=3, batch_size=2, samples=2, interval=2
    ),
    grading=sections.GradingConfig(num_workers=0),
  )
  changed = {
    name: dataclasses.replace(getattr(made, name), **value)
    if isinstance(value, dict) and name != "params"
    else value
    for name, value in changes.items()
  }
  return made._replace(**changed)


def stack_layers(params):
  """Turns the entries `layer_i` of an unrolled decoder into one, `layers`."""
  names = [name for name in params if name.startswith("layer_")]
  layers = [params[f"layer_{i}"] for i in range(len(names))]
  rest = {name: x for name, x in params.items() if name not in names}
  return rest | {"layers": jax.tree.map(lambda *xs: jnp.stack(xs), *layers)}


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


def transcript_of(rows, width, prompts=None, *, prompt_size=2, pad_id=0):
  """Rows `[N][B]` of tokens that a policy chose, behind prompts `[N][B]`."""
  shape = (len(rows), len(rows[0]))
  tokens = np.full((*shape, prompt_size + width), pad_id, np.int32)
  roles = np.full(tokens.shape, transcript.PAD, np.int8)
  starts, ends = np.zeros((2, *shape), np.int32)
  for n, b in np.ndindex(*shape):
    prompt = prompts[n][b] if prompts else [97] * prompt_size
    first, last = prompt_size - len(prompt), prompt_size + len(rows[n][b])
    starts[n, b], ends[n, b] = first, last
    tokens[n, b, first:last] = [*prompt, *rows[n][b]]
    roles[n, b, first:prompt_size] = transcript.PROMPT
    roles[n, b, prompt_size:last] = transcript.POLICY
  return transcript.Transcript(
    tokens=tokens,
    roles=roles,
    starts=starts,
    ends=ends,
    behave_log_probs=-np.arange(
      roles[..., prompt_size:].size, dtype=np.float32
    ).reshape(*shape, width),
    group_ids=np.zeros(shape, np.int32),
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


def largest_file(folder):
  """That of a checkpoint which holds its arrays."""
  files = filter(pathlib.Path.is_file, folder.rglob("*"))
  return max(files, key=lambda path: path.stat().st_size)


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path, place=None):
  data = bytearray(path.read_bytes())
  data[len(data) // 2 if place is None else place] ^= 0xFF
  path.write_bytes(data)


def fingerprints(directory):
  """Checksums of all arrays in the last checkpoint."""
  folder = directory / "checkpoints"
  last = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
  return read_document(folder / str(last))["fingerprints"]


def curves(directory, *but):
  """Everything that was logged, but for what the clock says."""
  but = ("seconds/", "tokens_per_second", "compilations", *but)
  lines = (directory / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  seeds = list(dict.fromkeys(row["seed"] for row in rows))
  return {
    name: np.array(
      [[r[name] for r in rows if r["seed"] == seed] for seed in seeds]
    )
    for name in rows[0]
    if name not in ("step", "seed") and not name.startswith(but)
  }


def assert_equal_curves(a, b):
  assert a.keys() == b.keys()
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)


def assert_same_run(a, b, *but):
  """Two directories hold the same run, but for the clock."""
  assert_equal_curves(curves(a, *but), curves(b, *but))
  for name in ("final.json", "evals.csv"):
    assert (a / name).read_text() == (b / name).read_text()
  assert fingerprints(a) == fingerprints(b)


class Stops(Letters):
  """Asks for an interrupt at its n-th score, from whichever thread scores."""

  def __init__(self, calls):
    self.calls = calls

  def score(self, example, completion):
    self.calls -= 1
    if self.calls == 0:
      signal.raise_signal(signal.SIGINT)
    return super().score(example, completion)


def make_learner(made, seeds=(0,)):
  """A learner of an experiment that has just begun."""
  policy = experiment_lib.Policy(made, len(seeds))
  return learner.Learner(policy, seeds, session.Clock())


def apart(policy, sampled):
  """How far from the trainer's the log-probs of sampled tokens are."""
  how = {"temperature": 1.0, "chunk_size": 64}
  forward = objective.make_forward(policy.decoder, **how)
  zeros = np.zeros(sampled.starts.shape, np.float32)
  made = batch_lib.make_batch(sampled, zeros), policy.params
  rows, params = jax.tree.map(lambda x: x[0], made)
  found = forward(params, rows).log_probs - rows.behave_log_probs
  return np.abs(np.asarray(found))[rows.completion_mask]


def begun(directory=None):
  """What sources ask of a session, before its first step."""
  return types.SimpleNamespace(
    step=0,
    host={},
    arrays={},
    directory=directory,
    stack=contextlib.ExitStack(),
    interrupt=session.Interrupt(),
  )


def loaded(program, *names):
  """Which of these modules a program has imported at its end."""
  program += f"\nimport sys; print(*{{*sys.modules}} & {set(names)})"
  done = python("-c", program)
  assert done.returncode == 0, done.stderr
  return set(done.stdout.split())


def process(*words, **options) -> subprocess.Popen:
  """Starts the interpreter in a process of its own, to be spoken with."""
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | options
  command = [sys.executable, *map(str, words)]
  return subprocess.Popen(command, env=env, text=True, **how)


def python(*words, **options) -> subprocess.CompletedProcess:
  """Runs the interpreter in a process of its own, and keeps what it says."""
  command, how = [sys.executable, *map(str, words)], {"cwd": ROOT} | options
  return subprocess.run(command, capture_output=True, text=True, **how)
