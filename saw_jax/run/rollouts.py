"""The path from examples to prompts, completions and rewards."""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import engine, generate, refill, transcript, turns
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.rollout.transcript import Transcript
from saw_jax.run.sections import RolloutConfig
from saw_jax.tasks import stops as stops_lib
from saw_jax.tasks.answer_task import LazyExamples
from saw_jax.tasks.base import Example, Outcome
from saw_jax.tasks.workers.grading import Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import hosts, parallel, sampling
from saw_jax.types import Array, PyTree

LOG = logging.getLogger(__name__)
_SAMPLE = 64  # of generated examples, how many prompts are checked
OUTCOMES = tuple(Outcome)
RIGHT, WRONG = map(OUTCOMES.index, (Outcome.RIGHT, Outcome.WRONG))


class Rollout(NamedTuple):
  """Transcripts of all seeds, with what the graders said of them."""

  transcript: Transcript  # rows [N, P * G, ...]
  completions: list[str]  # N * P * G, in order; or none: see `texts_of`
  rewards: np.ndarray  # float32 [N, P, G, M]
  scored: np.ndarray  # bool [N, P, G, M]
  outcomes: np.ndarray  # int8 [N, P, G], places in OUTCOMES
  lengths: np.ndarray  # int32 [N, P, G], tokens that the policy chose
  ended: np.ndarray  # bool [N, P, G], an end was sampled
  # float32 [N, P], how much a prompt counts; None: all count 1
  multipliers: np.ndarray | None = None


Examples = Sequence[Sequence[Example]]  # [N][P]
# (params, prompts [N, P], keys [N, P * G]) -> Transcript of rows [N, P * G]
Generate = Callable[[PyTree, transcript.PromptBatch, Array], PyTree]

# What else a turn takes and gives: the cache, and what is shared with it.
_TURN = (parallel.STATE, parallel.ROWS), (parallel.STATE,)
_HELD = 10_000  # prompts whose tokens are remembered


class Encoder:
  """Turns examples into padded prompts, remembering their tokens."""

  def __init__(self, tokenizer: Tokenizer, config: RolloutConfig):
    self.tokenizer, self.config = tokenizer, config
    self._ids: dict[str, list[int]] = {}

  def tokens(self, example: Example) -> list[int]:
    """Encodes one prompt into at most `max_prompt_tokens` ids."""
    ids = self._encode(example)
    return self.fit(ids, f"example {example.key} has a prompt")

  def _encode(self, example: Example) -> list[int]:
    name = json.dumps(list(map(dict, example.messages)), default=repr)
    ids = self._ids.get(name)
    if ids is None:
      if len(self._ids) >= _HELD:  # Prompts of episodes never repeat.
        self._ids.clear()
      ids = self._ids[name] = list(self.tokenizer.encode_chat(example.messages))
    return ids

  def fit(self, ids: list[int], whose: str) -> list[int]:
    """Cuts the beginning of a prompt that is too long, or refuses it."""
    limit = self.config.max_prompt_tokens
    if len(ids) > limit and self.config.long_prompts != "truncate":
      raise ValueError(
        f"{whose} of {len(ids)} tokens; the limit is {limit} "
        "(rollout.max_prompt_tokens, or rollout.long_prompts='truncate')"
      )
    return ids[-limit:]

  def keep(self, examples: Sequence[Example]) -> Sequence[Example]:
    """Leaves out what is too long, where that is to be dropped."""
    if self.config.long_prompts != "drop":
      return examples
    return [example for example in examples if self.fits(example)]

  def fits(self, example: Example) -> bool:
    return len(self._encode(example)) <= self.config.max_prompt_tokens

  def check_lengths(
    self, examples: Sequence[Example], what: str, most: int | None = None
  ) -> None:
    """Refuses or logs those of the first `most` prompts that are too long."""
    how, limit = self.config.long_prompts, self.config.max_prompt_tokens
    rows = range(len(examples))[: None if how == "drop" else most]
    if isinstance(examples, LazyExamples):
      rows = rows[:: max(1, len(rows) // _SAMPLE)]
    sizes = {row: len(self._encode(examples[row])) for row in rows}
    long = [row for row, size in sizes.items() if size > limit]
    if not long:
      return
    longest = max(long, key=sizes.get)
    said = (
      f"{len(long):,} of {len(rows):,} {what} are longer than {limit:,} tokens "
      f"(rollout.max_prompt_tokens); longest {sizes[longest]:,} (row {longest}"
      f", example {examples[longest].key})"
    )
    if how == "error":
      raise ValueError(
        f"{said}: rollout.long_prompts='drop' leaves them out, and 'truncate' "
        "keeps their ends"
      )
    done = {"drop": "they are left out", "truncate": "their ends are kept"}
    LOG.warning("%s: %s", said, done[how])

  def settings(
    self, sampling: SamplingConfig, group_size: int, **options: Any
  ) -> GenerateConfig:
    return GenerateConfig(
      sampling=sampling,
      max_new_tokens=self.config.max_new_tokens,
      group_size=group_size,
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id,
      cache_tokens=self.config.cache_tokens,
      page_size=self.config.page_size,
      **options,
    )

  def round_up(self, size: int) -> int:
    return -(-size // self.config.prompt_multiple) * self.config.prompt_multiple

  def cut(self, sampled: Transcript) -> Transcript:
    """Cuts completions of rows `[N, B]` behind the first stop string.

    A token's key depends on its place alone: what is kept is what a sampler
    that looks for the strings would give. The last token kept completes one.
    """
    stops, size = self.config.stops, sampled.prompt_size
    if not stops:
      return sampled
    roles, tokens = np.array(sampled.roles), np.array(sampled.tokens)
    ends = np.array(sampled.ends)
    for row in np.ndindex(*ends.shape):
      chosen = tokens[row][size : ends[row]].tolist()
      if chosen and chosen[-1] in self.tokenizer.eos_ids:
        chosen.pop()  # It is no text.
      count = stops_lib.count_tokens(chosen, self.tokenizer.decode, stops)
      if count is not None:
        ends[row] = size + count
        roles[row][ends[row] :] = transcript.PAD
        tokens[row][ends[row] :] = self.tokenizer.pad_id
    kept = roles[..., size:] != transcript.PAD
    cut = _map_log_probs(sampled, lambda x: np.where(kept, x, 0.0))
    return cut.replace(tokens=tokens, roles=roles, ends=ends)

  def prompts(self, examples: Examples) -> transcript.PromptBatch:
    """Pads the prompts `[N, P]` of all seeds to one size."""
    flat = [example for row in examples for example in row]
    batch = transcript.pad_prompts(
      [self.tokens(example) for example in flat],
      ids=[example.key for example in flat],
      multiple=self.config.prompt_multiple,
    )
    shape = (len(examples), -1)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)


@functools.lru_cache(maxsize=1)  # shared with checks
def encoder_of(tokenizer: Tokenizer, config: RolloutConfig) -> Encoder:
  """The encoder that all parts of a run share."""
  return Encoder(tokenizer, config)


class Native(engine.Engine):
  """Our own sampler as an engine, lifted over seeds as the step is."""

  traits = engine.Traits("native", "", True, "processed", "memory")

  def __init__(
    self,
    lift: parallel.Lift,
    decoder: DecoderConfig,
    weights: sampling.Weights | None = None,
  ):
    self._lift, self._decoder = lift, decoder
    self._weights = weights or sampling.Weights(lift, decoder)
    self._make = functools.cache(self._make)

  def sample(
    self, params, prompts, row_keys, config, newest=None
  ) -> Transcript:
    return self._make(config)(self._weights.of(params), prompts, row_keys)

  def turn(self, params, prompts, row_keys, *, kept, config):
    size, shared = prompts.tokens.shape[-1], None
    if size <= turns.PART or config.cache_tokens:
      sampled = self.sample(params, prompts, row_keys, config)
      return hosts.fetch(sampled), kept and turns.Kept()
    if kept and kept.cache:
      shared = turns.share(kept.transcript, prompts, self._lift.num_shards)
      if shared.unread(prompts.lengths) + turns.PART > size:
        shared = kept = None  # Nothing is saved: these do not go on.
    asked = self._weights.of(params), prompts, row_keys
    sample = self._make(config, generate.make_turn, *_TURN)
    sampled, cache = sample(*asked, shared and kept.cache, shared)
    sampled = hosts.fetch(sampled)
    return sampled, kept and turns.Kept(cache, sampled)

  def close(self) -> None:
    self._weights.drop()

  def _make(self, config, make=refill.make_generate, *more) -> Generate:
    # Lanes are not a vmap: the loop's condition and cache index are shared.
    is_seeded = self._lift.name == "seeded"
    made = make(self._decoder, config, lanes=is_seeded)
    if is_seeded and not (self._lift.mesh and (config.cache_tokens or more)):
      return jax.jit(made)
    return sampling.wrap(self._lift, self._decoder, made, *more)


def sample(
  generate_fn: Generate,
  params: PyTree,
  examples: Examples,
  keys: Array,
  *,
  encoder: Encoder,
  multiple: int = 1,
  length_groups: int = 1,
) -> Transcript:
  """Samples responses to prompts `[N, P]`: host arrays, rows `[N, P * G]`.

  A seed's prompts are sampled in `length_groups` parts of like length. The
  tokens are the same, up to rounding; each part's shape is compiled.
  """
  if length_groups == 1:
    sampled = hosts.fetch(generate_fn(params, encoder.prompts(examples), keys))
    return trim(encoder.cut(sampled), multiple)
  examples = np.array(examples, object)
  lengths = [[len(encoder.tokens(e)) for e in row] for row in examples]
  order = np.argsort(lengths, axis=1, kind="stable")
  num_seeds, num_prompts = order.shape
  each = np.arange(num_seeds)[:, None]
  keys = keys.reshape(num_seeds, num_prompts, -1)
  group_size = keys.shape[-1]
  parts = []
  for chosen in np.split(order, length_groups, axis=1):
    prompts = encoder.prompts(examples[each, chosen])
    own_keys = keys[each, chosen].reshape(num_seeds, -1)
    parts.append(generate_fn(params, prompts, own_keys))
  parts = hosts.fetch(parts)
  size = max(part.prompt_size for part in parts)
  # Where the rows of each example are.
  back = np.argsort(order, axis=1)[..., None] * group_size
  back = (back + np.arange(group_size)).reshape(num_seeds, -1)
  joined = jax.tree.map(
    lambda *values: np.concatenate(values, axis=1)[each, back],
    *(transcript.pad_left(part, size) for part in parts),
  )
  groups = np.repeat(np.arange(num_prompts, dtype=np.int32), group_size)
  joined = joined.replace(group_ids=np.tile(groups, (num_seeds, 1)))
  return trim(encoder.cut(joined), multiple)


def _map_log_probs(sampled: Transcript, fn: Callable) -> Transcript:
  """Changes what was recorded at each position after the prompts."""
  names = ("behave_log_probs", "entropies")
  values = {name: getattr(sampled, name) for name in names}
  return sampled.replace(
    **{name: None if x is None else fn(x) for name, x in values.items()}
  )


def score(
  sampled: Transcript, examples: Examples, grader: Grader, encoder: Encoder
) -> Rollout:
  """Has responses `[N, P * G]` scored; each process scores its own rows."""
  rollout = unscored(sampled, len(examples[0]), 1, encoder)
  texts, lengths = rollout.completions, rollout.lengths
  asked = [e for row in examples for e in row for _ in lengths[0, 0]]
  mine = slice(jax.process_index(), None, jax.process_count())
  graded = grader.grade(asked[mine], texts[mine])
  outcomes = np.array(list(map(OUTCOMES.index, graded.outcomes)), np.int8)

  def whole(values):
    """Zeros where another process has scored."""
    rows = np.zeros((len(texts), *values.shape[1:]), values.dtype)
    rows[mine] = values
    return rows

  shares = (graded.rewards, graded.scored.astype(np.int8), outcomes)
  rewards, scored, outcomes = (
    x.reshape(*lengths.shape, *x.shape[1:])
    for x in hosts.add_up(tuple(map(whole, shares)))
  )
  for component, limit in grader.token_limits.items():
    rewards[lengths > limit, component] = 0.0
  scored = scored.astype(bool) & (lengths > 0)[..., None]  # The engine failed.
  return rollout._replace(rewards=rewards, scored=scored, outcomes=outcomes)


def check_scored(
  rollout: Rollout, examples: Examples, grader: Grader, encoder: Encoder
) -> None:
  """Raises a RewardError if too few responses of a step have a reward."""
  lost = np.flatnonzero(~rollout.scored.any(-1))
  if not lost.size:
    return
  texts = texts_of(rollout, encoder)
  flat = [example for row in examples for example in row]
  size, outcomes = rollout.lengths.shape[-1], rollout.outcomes.ravel()
  unscored = [(flat[i // size], texts[i], OUTCOMES[outcomes[i]]) for i in lost]
  grader.check_scored(unscored, len(texts))


def texts_of(rollout: Rollout, encoder: Encoder) -> list[str]:
  """All completions, in order; a queue keeps tokens alone, which are read."""
  return rollout.completions or read(rollout.transcript, encoder)[0]


def unscored(
  sampled: Transcript, num_prompts: int, num_components: int, encoder: Encoder
) -> Rollout:
  """The rollout of responses that nobody has scored: rewards 0 and masked."""
  completions, lengths, ended = read(sampled, encoder)
  lengths = lengths.reshape(len(sampled.tokens), num_prompts, -1)
  shape = (*lengths.shape, num_components)
  return Rollout(
    transcript=sampled,
    completions=completions,
    rewards=np.zeros(shape, np.float32),
    scored=np.zeros(shape, bool),
    outcomes=np.full(lengths.shape, WRONG, np.int8),
    lengths=lengths,
    ended=ended.reshape(lengths.shape),
  )


def read(
  sampled: Transcript, encoder: Encoder
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads rows `[N, B]`: texts, lengths in tokens, and whether they ended."""
  size, tokenizer = sampled.prompt_size, encoder.tokenizer
  width = sampled.tokens.shape[-1] - size
  tokens = sampled.tokens[..., size:].reshape(-1, width)
  chosen = sampled.roles[..., size:].reshape(-1, width) == transcript.POLICY
  ends = np.isin(tokens, tokenizer.eos_ids) & chosen
  texts = [
    tokenizer.decode(row[mask & ~end].tolist())
    for row, mask, end in zip(tokens, chosen, ends, strict=True)
  ]
  found = [stops_lib.find_stop(text, encoder.config.stops) for text in texts]
  # What is scored begins with the format, which may begin in the prompt.
  begun = tokenizer.opening
  texts = [begun + text[:at] for text, at in zip(texts, found, strict=True)]
  ended = ends.any(-1) | np.array([x is not None for x in found])
  return texts, chosen.sum(-1, dtype=np.int32), ended


def trim(sampled: Transcript, multiple: int) -> Transcript:
  """Cuts the padding that all rows share, so that no step computes it."""
  used = sampled.roles[..., sampled.prompt_size :] != transcript.PAD
  longest = int(used.sum(-1).max(initial=1))
  size = min(-(-longest // multiple) * multiple, used.shape[-1])
  end = sampled.prompt_size + size
  return _map_log_probs(sampled, lambda x: x[..., :size]).replace(
    tokens=sampled.tokens[..., :end], roles=sampled.roles[..., :end]
  )


def example_keys(
  seeds: Sequence[int], step: int | np.ndarray, examples: Examples, size: int
) -> Array:
  """Keys `[N, P * G]` of `size` responses to each example: see `row_keys`."""
  ids = [[example.key for example in row] for row in examples]
  return row_keys(seeds, step, ids, size)


def row_keys(
  seeds: Sequence[int], step: int | np.ndarray, ids: np.ndarray, group_size: int
) -> Array:
  """Keys `[N, P * G]`, of seed, step, example `ids [N, P]` and sample alone."""
  ids = np.asarray(ids, np.int32)
  steps = np.broadcast_to(np.asarray(step, np.int32), ids.shape)
  roots = jnp.stack([jax.random.key(seed) for seed in seeds])
  return _row_keys(roots, steps, ids, group_size)


@functools.partial(jax.jit, static_argnums=3)
def _row_keys(roots, steps, ids, group_size):
  return jax.vmap(lambda *rows: generate.row_keys(*rows, group_size))(
    roots, steps, ids
  )
