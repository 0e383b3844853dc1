"""Where the text of episodes meets arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from saw_jax.rollout import episodes
from saw_jax.run.policy import Policy
from saw_jax.run.rollouts import Encoder
from saw_jax.run.sections import Experiment
from saw_jax.tasks.environments import AgentTask, Situation, number_anchors
from saw_jax.tasks.workers.environment_pool import EnvironmentPool
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import hosts
from saw_jax.types import Array


class Turn(NamedTuple):
  """One step of an episode, in words."""

  prompt: str
  reply: str
  action: str  # empty: none was found
  observation: str  # that followed
  reward: float
  valid: bool  # the reply parsed


class Episodes(NamedTuple):
  """Episodes of all seeds, as host arrays."""

  played: episodes.Played  # rows [N, P * G * E]
  rewards: np.ndarray  # float32 [N, P, G, E]
  invalid: np.ndarray  # bool [N, P, G, E], the reply did not parse
  anchors: np.ndarray  # int32 [N, P, G, E]
  over: np.ndarray  # bool [N, P, G], ended by the environment
  failed: np.ndarray  # bool [N, P, G], the environment failed
  observations: dict[tuple[int, int, int], list[int]]  # (n, b, e) -> tokens
  turns: list[list[list[Turn]]]  # [N][P * G], in words

  @property
  def steps(self) -> np.ndarray:
    """The steps that count: taken, in episodes that did not fail."""
    taken = self.played.steps.reshape(self.rewards.shape)
    return taken & ~self.failed[..., None]

  @property
  def returns(self) -> np.ndarray:
    """What each episode paid. Shape `[N, P, G]`."""
    return self.rewards.sum(-1)


def write_prompt(
  task: AgentTask,
  encoder: Encoder,
  situation: Situation,
  history: Sequence[tuple[str, str]],
) -> tuple[str, list[int]]:
  """Writes a prompt that fits, as text and as tokens.

  It has as much history as fits; or none, and half, a quarter, ... of what is
  seen and of the admissible actions; or else its end, if `long_prompts` allows
  that.
  """
  while True:
    for text in task.prompts(situation, history):
      ids = encoder.tokenizer.encode_chat([{"role": "user", "content": text}])
      if len(ids) <= encoder.config.max_prompt_tokens:
        return text, ids
    size, count = len(situation.observation), len(situation.actions)
    if not size and not count:
      whose = f"without history or observation, task {task.name!r} has a prompt"
      return text, encoder.fit(ids, whose)
    situation = situation._replace(
      observation=situation.observation[: size // 2],
      actions=situation.actions[: count // 2],
    )
    history = ()


def glue_of(tokenizer: Tokenizer) -> list[int]:
  """The template's tokens between an action's end and what the user says."""
  ids = list(tokenizer.encode_chat([{"role": "user", "content": ""}], False))
  ends = [i for i, token in enumerate(ids) if token in tokenizer.eos_ids]
  if not ends:
    raise ValueError(
      "the chat template has no end token behind what a user says, so that "
      "nobody knows what stands between an action and what followed it: take a "
      "model whose template closes each message, as ChatML does"
    )
  return ids[ends[-1] + 1 :] + ids[: ends[-1]]


class _Stage:
  """The episodes of all seeds: what `rollout.episodes.play` plays in."""

  def __init__(self, policy, pool, starts):
    self._task, self._encoder = policy.made.task, policy.encoder
    self._max_tokens = policy.made.episodes.max_observation_tokens
    self._pool, self._size = pool, len(starts[0])
    shape = (len(starts), self._size)
    self.rewards = np.zeros((*shape, self._task.max_steps), np.float32)
    self.invalid = np.zeros(self.rewards.shape, bool)
    self.over, self.failed = np.zeros(shape, bool), np.zeros(shape, bool)
    self.observations: dict[tuple[int, int, int], list[int]] = {}
    self.seen, self.turns = (
      [[[] for _ in row] for row in starts] for _ in range(2)
    )
    situations = pool.start([start for row in starts for start in row])
    self._now = dict(zip(np.ndindex(*shape), situations, strict=True))
    self._asked: dict[episodes.Place, str] = {}
    for place, situation in self._now.items():
      if situation.failure:
        self.failed[place] = self.over[place] = True

  def prompts(self, places):
    prompts = []
    for n, b in places:
      actions = [turn.action for turn in self.turns[n][b]]
      history = list(zip(self.seen[n][b], actions, strict=True))
      self._asked[n, b], ids = write_prompt(
        self._task, self._encoder, self._now[n, b], history
      )
      prompts.append(ids)
    return prompts

  def act(self, places, actions):
    tokenizer = self._encoder.tokenizer
    for (n, b), ids in zip(places, actions, strict=True):
      if ids is None and not self.failed[n, b]:
        lost = self._pool.give_up(n * self._size + b, "no action was sampled")
        self._now[n, b], self.failed[n, b] = lost, True
    texts = [tokenizer.opening + tokenizer.decode(ids or ()) for ids in actions]
    replies = [self._task.read_reply(text) for text in texts]
    found = self._pool.step(
      {
        n * self._size + b: reply.action
        for (n, b), reply in zip(places, replies, strict=True)
        if not self.failed[n, b]
      }
    )
    for (n, b), text, reply in zip(places, texts, replies, strict=True):
      before, step = self._now[n, b], len(self.turns[n][b])
      after = self._now[n, b] = found.get(n * self._size + b, before)
      said, paid = after.observation, after.reward
      self.seen[n][b].append(before.observation)
      self.turns[n][b].append(
        Turn(self._asked[n, b], text, reply.action, said, paid, reply.valid)
      )
      self.rewards[n, b, step] = paid
      self.invalid[n, b, step] = not reply.valid
      self.failed[n, b] |= bool(after.failure)
      self.over[n, b] = after.done
      if ids := tokenizer.encode(said)[: self._max_tokens]:
        self.observations[n, b, step] = ids
    return [bool(self._now[place].done) for place in places]


class SharedPool(EnvironmentPool):
  """Shares the slots with the other processes, one after the other."""

  def start(self, episodes: Sequence[tuple[str, int]]) -> list[Situation]:
    self._index, self._count = jax.process_index(), jax.process_count()
    self._total = len(episodes)
    own = super().start(episodes[self._index :: self._count])
    found = self._whole(dict(enumerate(own)))
    return [found[slot] for slot in range(len(episodes))]

  def step(self, actions: Mapping[int, str]) -> dict[int, Situation]:
    own = {
      slot // self._count: action
      for slot, action in actions.items()
      if slot % self._count == self._index
    }
    return self._whole(super().step(own))

  def check(self) -> None:
    """Raises in all processes if too many episodes of all have failed."""
    failures = [x for own in hosts.gather(self._failures) for x in own]
    self._check_failures(failures, self._total, "episodes failed")

  def _whole(self, own: Mapping[int, Situation]) -> dict[int, Situation]:
    found = {}
    for index, part in enumerate(hosts.gather(list(own.items()))):
      for slot, (task, seen, actions, *rest) in part:
        situation = Situation(task, seen, tuple(actions), *rest)
        found[slot * self._count + index] = situation
    return found


def rows_per_call(made: Experiment, num_shards: int) -> int:
  """How many prompts of a seed are sampled at a time: at most a step's."""
  rows = made.loop.prompts_per_step * made.loop.group_size
  filled = -(-rows // num_shards) * num_shards
  return min(made.episodes.rows_per_call, filled)


def play(
  policy: Policy,
  turn: Callable,
  starts: Sequence[Sequence[tuple[str, int]]],
  keys: Array,
  pool: EnvironmentPool,
) -> Episodes:
  """Plays episodes of all seeds; `starts` is `[N][P]`, `keys` `[N, P * G]`."""
  config, encoder = policy.made.episodes, policy.encoder
  num_steps = policy.made.task.max_steps
  shape = (len(starts), len(starts[0]), keys.shape[1] // len(starts[0]))
  size = shape[2]
  starts = [[start for start in row for _ in range(size)] for row in starts]
  stage = _Stage(policy, pool, starts)
  played = episodes.play(
    turn,
    policy.params,
    stage,
    keys,
    num_steps=num_steps,
    rows_per_call=rows_per_call(policy.made, policy.lift.num_shards),
    max_prompt_tokens=encoder.config.max_prompt_tokens,
    prompt_multiple=encoder.config.prompt_multiple,
    eos_ids=encoder.tokenizer.eos_ids,
    pad_id=encoder.tokenizer.pad_id,
  )
  pool.check()
  # Numbers what was seen before each step, in each group.
  anchors = np.zeros((*shape, num_steps), np.int32)
  for n, p in np.ndindex(*shape[:2]):
    rows = stage.seen[n][p * size : (p + 1) * size]
    texts = [text for row in rows for text in row]
    numbers = iter(number_anchors(texts, similarity=config.similarity))
    for g, row in enumerate(rows):
      anchors[n, p, g, : len(row)] = [next(numbers) for _ in row]
  return Episodes(
    played=played,
    rewards=stage.rewards.reshape(anchors.shape),
    invalid=stage.invalid.reshape(anchors.shape),
    anchors=anchors,
    over=stage.over.reshape(shape),
    failed=stage.failed.reshape(shape),
    observations=stage.observations,
    turns=stage.turns,
  )
