"""A small world of letters, and an experiment that plays it in milliseconds."""

import dataclasses

import jax
import pytest

from saw_jax import tokenizer as tokenizer_lib
from saw_jax.models import decoder
from saw_jax.run.sections import Experiment
from saw_jax.tasks import environments
from saw_jax.tasks.environments import Reply, Situation, Step, Transition
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from tests import helpers

TOKENIZER = tokenizer_lib.PieceTokenizer([*"abcde", "yes ", "no ", " "])
CONFIG = dataclasses.replace(helpers.CONFIG, vocab_size=TOKENIZER.vocab_size)


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

  name, max_steps, max_return = "echo", 4, 10.0
  episodes = {"train": 24, "test": 6}

  def category(self, split, seed):
    return ("even", "odd", "")[seed % 3]

  def make(self, split):
    return Echo()

  def prompts(self, situation: Situation, history):
    yield situation.observation[-1]

  def read_reply(self, completion):
    return Reply(completion[:1], completion[:1] not in ("", "d", " "))

  def write_reply(self, action):
    return action

  def held_out(self, count):
    env, steps = Echo(), []
    for seed in range(count):
      before, letter = Situation(env.task, env.reset(seed)), env.letter
      steps.append(Transition(before, (), letter, env.step(letter).observation))
    return steps


def experiment(row="grpo_paw", **changes) -> Experiment:
  """Makes an experiment; `row` is one of configs/paw/household.py."""
  from configs.paw import household
  from saw_jax.run import config as config_lib

  algorithm = config_lib.typed(household.get_config(f"row={row}")).algorithm
  for name, value in changes.pop("world_model", {}).items():
    algorithm = config_lib.replace(algorithm, f"world_model.{name}", value)
  value_head = algorithm.advantage in ("step_gae", "brace")
  model = dataclasses.replace(CONFIG, value_head=value_head)
  params = decoder.init_params(CONFIG, jax.random.key(0))
  if value_head:
    params = decoder.add_value_head(params, model)
  sections = {
    "rollout": dict(max_prompt_tokens=4, prompt_multiple=4)
    | dict(max_new_tokens=2, completion_multiple=8),
    "evaluation": dict(num_examples=6),
    "grading": dict(crash_tolerance=1.0),
    "episodes": dict(rows_per_call=16, row_parts=1)
    | dict(max_observation_tokens=4, num_transitions=8),
  }
  task = changes.pop("task", None) or EchoTask()
  for name, value in changes.items():
    sections[name] = {**sections.get(name, {}), **value}
  sections |= dict(task=task, algorithm=algorithm, params=params)
  return helpers.experiment(tokenizer=TOKENIZER, decoder=model, **sections)


def play(task, actions, split="train", seed=0, **options):
  """What an episode in a pool shows, from its start."""
  options = {"num_workers": 0, "limit_s": 9, "crash_tolerance": 1, **options}
  with EnvironmentPool(task, **options) as pool:
    start = pool.start([(split, seed)])
    return start + [pool.step({0: action})[0] for action in actions]


def train(name, options, tokenizer, directory, **changes):
  """Trains three updates of a task by its name; returns what was logged."""
  from saw_jax.run import build, registry
  from saw_jax.run.sections import RunConfig, TaskConfig

  sections = {
    "tokenizer": dict(name="of the test"),
    "algorithm": dict(advantage="trajectory_grpo"),
    "rollout": dict(max_prompt_tokens=24, prompt_multiple=24)
    | dict(max_new_tokens=1, completion_multiple=1),
    "loop": dict(num_steps=3, prompts_per_step=4, group_size=8)
    | dict(checkpoint_interval=0),
    "evaluation": dict(num_examples=4, interval=0),
    "grading": dict(num_workers=0),
    "optimizer": dict(learning_rate=1e-2),
    "warm_start": dict(num_steps=0),
  }
  run = RunConfig(task=TaskConfig(name, options), model=helpers.CONFIG)
  for section, values in sections.items():
    values = {**values, **changes.get(section, {})}
    changed = dataclasses.replace(getattr(run, section), **values)
    run = dataclasses.replace(run, **{section: changed})
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(registry.TOKENIZERS, "of the test", lambda: tokenizer)
    result = build.train(build.build(run), (0,), directory=directory)
  assert result.finished
  return helpers.curves(directory)
