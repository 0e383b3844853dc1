"""A small world of letters, and an experiment that plays it in milliseconds."""

import dataclasses

import jax
import numpy as np

from saw_jax import algorithms
from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models import decoder
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import agents, evaluation, rollouts
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks import environments
from saw_jax.tasks.environments import Reply, Situation, Step, Transition
from saw_jax.training import optimizer, parallel

TOKENIZER = tokenizer_lib.PieceTokenizer([*"abcde", "yes ", "no ", " "])
CONFIG = DecoderConfig(
  vocab_size=TOKENIZER.vocab_size,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_size=8,
  mlp_size=24,
)


class Echo:
  """Shows a letter, and wants to hear it; won when it was heard twice."""

  max_return = 10.0
  task = "say it"
  admissible_actions = ["a", "b", "c"]

  def reset(self, seed):
    self.seed, self.right, self.steps = seed, 0, 0
    return self.letter

  @property
  def letter(self):
    return "abc"[(self.seed + self.steps) % 3]

  def step(self, action):
    if action == "e" and self.seed % 4 == 3:
      raise RuntimeError("a broken world")
    is_right = action == self.letter
    self.right += is_right
    self.steps += 1
    won = self.right == 2
    said = f"{'yes' if is_right else 'no'} {self.letter}"
    return Step(said, 10.0 * won, won or self.steps == 4)


class EchoTask(environments.AgentTask):
  """`Echo` as a task: a prompt is the last letter that was shown."""

  name = "echo"
  max_steps = 4
  max_return = 10.0

  def category(self, split, seed):
    return ("even", "odd", "")[seed % 3]

  def num_episodes(self, split):
    return {"train": 24, "test": 6}[split]

  def make(self, split):
    return Echo()

  def prompts(self, situation: Situation, history):
    yield situation.observation[-1]

  def read_reply(self, completion):
    return Reply(completion[:1], completion[:1] not in ("", "d", " "))

  def write_reply(self, action):
    return action

  def held_out(self, count):
    steps = []
    for seed in range(count):
      env = Echo()
      seen = env.reset(seed)
      before = Situation(env.task, seen, (), 0.0, False)
      action = env.letter
      steps.append(Transition(before, (), action, env.step(action).observation))
    return steps


def experiment(row="grpo_paw", **changes) -> experiment_lib.Experiment:
  """Makes an experiment; `row` is one of configs/paw/household.py."""
  from configs.paw import household
  from saw_jax.run import config as config_lib

  algorithm = config_lib.typed(household.get_config(f"row={row}")).algorithm
  for name, value in changes.pop("world_model", {}).items():
    algorithm = config_lib.replace(algorithm, f"world_model.{name}", value)
  task = changes.pop("task", None) or EchoTask()
  minima = np.array([c.minimum for c in task.components], np.float32)
  method = algorithms.make_method(algorithm, minima)
  model = dataclasses.replace(CONFIG, value_head=method.reads_values)
  params = decoder.init_params(CONFIG, jax.random.key(0))
  if model.value_head:
    params = decoder.add_value_head(params, model)
  made = experiment_lib.Experiment(
    task=task,
    tokenizer=TOKENIZER,
    decoder=model,
    params=params,
    method=method,
    loop=experiment_lib.LoopConfig(
      num_steps=4, prompts_per_step=4, group_size=4, checkpoint_interval=2
    ),
    rollout=rollouts.RolloutConfig(
      max_prompt_tokens=4,
      prompt_multiple=4,
      max_new_tokens=2,
      completion_multiple=8,
    ),
    sampling=SamplingConfig(),
    optimizer=optimizer.OptimizerConfig(learning_rate=1e-2),
    parallel=parallel.ParallelConfig(),
    evaluation=evaluation.EvaluationConfig(
      num_examples=6, samples=2, interval=2
    ),
    grading=experiment_lib.GradingConfig(num_workers=0, crash_tolerance=1.0),
    episodes=agents.EpisodeConfig(
      rows_per_call=16, row_parts=1, max_observation_tokens=4, num_transitions=8
    ),
  )
  sections = {
    name: dataclasses.replace(getattr(made, name), **value)
    for name, value in changes.items()
  }
  return made._replace(**sections)
