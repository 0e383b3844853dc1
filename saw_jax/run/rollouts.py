"""The path from examples to scored transcripts, and back to arrays.

This is one of two places where text meets arrays (the other is `sync_loop`):
prompts become token ids, tokens become completions, completions become rewards.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from saw_jax.models.config import DecoderConfig
from saw_jax.rollout import generate, transcript
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.tasks import stops as stops_lib
from saw_jax.tasks.base import Example, Outcome
from saw_jax.tasks.workers.grading import Graded, Grader
from saw_jax.tokenizer import Tokenizer
from saw_jax.training import hosts, parallel
from saw_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Sizes of a rollout."""

  max_prompt_tokens: int = 128
  max_new_tokens: int = 64
  prompt_multiple: int = 128  # prompt lengths are rounded up to it
  completion_multiple: int = 16  # so are the completions that are trained on
  long_prompts: str = "error"  # or "truncate": keep the end
  # A step's prompts are sampled in so many parts, of prompts of like length;
  # must divide the prompts of a step.
  length_groups: int = 1
  # Strings that end an answer, beside the tokenizer's end tokens.
  stops: tuple[str, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "stops", stops_lib.check_stops(self.stops))
    if self.length_groups < 1:
      raise ValueError(
        f"length_groups must be 1 or more, not {self.length_groups}."
      )


class Rollout(NamedTuple):
  """Transcripts of all seeds, with what the graders said of them."""

  transcript: transcript.Transcript  # rows [N, P * G, ...]
  completions: list[str]  # N * P * G, in order
  rewards: np.ndarray  # float32 [N, P, G, M]
  scored: np.ndarray  # bool [N, P, G, M]
  outcomes: list  # N * P * G
  lengths: np.ndarray  # int [N, P, G], tokens that the policy chose
  ended: np.ndarray  # bool [N, P, G], an end was sampled
  # float32 [N, P], how much a prompt counts; None: all count 1
  multipliers: np.ndarray | None = None


# (params, prompts [N, P], keys [N, P * G]) -> Transcript of rows [N, P * G]
Generate = Callable[[PyTree, transcript.PromptBatch, Array], PyTree]


class Encoder:
  """Turns examples into padded prompts, remembering their tokens.

  Attributes:
    stops: strings that end what is sampled from them.
  """

  def __init__(self, tokenizer: Tokenizer, config: RolloutConfig):
    """Starts with nothing remembered.

    Args:
      tokenizer: of the policy.
      config: the longest prompt, and what becomes of longer ones.
    """
    self._tokenizer, self._config = tokenizer, config
    self.stops = config.stops
    self._ids: dict[tuple, list[int]] = {}

  def tokens(self, example: Example) -> list[int]:
    """Encodes one prompt.

    Args:
      example: its messages.

    Returns:
      Token ids, at most `max_prompt_tokens`.

    Raises:
      ValueError: the prompt is too long and may not be cut.
    """
    name = tuple((m["role"], m["content"]) for m in example.messages)
    if name in self._ids:
      return self._ids[name]
    ids = list(self._tokenizer.encode_chat(example.messages))
    limit = self._config.max_prompt_tokens
    if len(ids) > limit:
      if self._config.long_prompts != "truncate":
        raise ValueError(
          f"example {example.key} has a prompt of {len(ids)} tokens; the limit "
          f"is {limit} (rollout.max_prompt_tokens, or "
          "rollout.long_prompts='truncate')"
        )
      ids = ids[-limit:]
    self._ids[name] = ids
    return ids

  def size(self, example: Example) -> int:
    """Says how wide a batch gets that has no longer prompt.

    Args:
      example: with its messages.

    Returns:
      The length of its prompt, rounded up to `prompt_multiple`.
    """
    multiple = self._config.prompt_multiple
    return -(-len(self.tokens(example)) // multiple) * multiple

  def cut(self, sampled: transcript.Transcript) -> transcript.Transcript:
    """Cuts completions behind the first stop string.

    Nothing before it changes: the key of a token is of its place, so the rest
    is what would have been sampled if the sampler had known.

    Args:
      sampled: host arrays, rows `[N, B]`.

    Returns:
      The same rows. The token that completes a stop string is the last that
      belongs to the policy, and its row's end.
    """
    if not self.stops:
      return sampled
    size = sampled.prompt_size
    roles, tokens = np.array(sampled.roles), np.array(sampled.tokens)
    ends = np.array(sampled.ends)
    for row in np.ndindex(*ends.shape):
      chosen = tokens[row][size : ends[row]].tolist()
      if chosen and chosen[-1] in self._tokenizer.eos_ids:
        chosen.pop()  # It is no text.
      count = stops_lib.count_tokens(chosen, self._tokenizer.decode, self.stops)
      if count is not None:
        ends[row] = size + count
        roles[row][ends[row] :] = transcript.PAD
        tokens[row][ends[row] :] = self._tokenizer.pad_id
    kept = roles[..., size:] != transcript.PAD

    def mask(values):
      return None if values is None else np.where(kept, values, 0.0)

    return sampled.replace(
      tokens=tokens,
      roles=roles,
      ends=ends,
      behave_log_probs=mask(sampled.behave_log_probs),
      entropies=mask(sampled.entropies),
      untempered_log_probs=mask(sampled.untempered_log_probs),
    )

  def prompts(
    self, examples: Sequence[Sequence[Example]]
  ) -> transcript.PromptBatch:
    """Pads the prompts of all seeds to one size.

    Args:
      examples: `[N, P]`.

    Returns:
      The prompts, with a leading axis of seeds.
    """
    flat = [example for row in examples for example in row]
    batch = transcript.pad_prompts(
      [self.tokens(example) for example in flat],
      ids=[example.key for example in flat],
      multiple=self._config.prompt_multiple,
    )
    shape = (len(examples), len(examples[0]))
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), batch)


def make_generate(
  lift: parallel.Lift,
  decoder_config: DecoderConfig,
  config: RolloutConfig,
  tokenizer: Tokenizer,
  *,
  sampling: SamplingConfig,
  group_size: int,
  record_entropies: bool = False,
) -> Generate:
  """Makes the sampler, lifted like the step is.

  Args:
    lift: how arrays are spread.
    decoder_config: the decoder.
    config: sizes.
    tokenizer: for its end tokens.
    sampling: temperature and truncation.
    group_size: samples per prompt, `G`.
    record_entropies: keep those of the distributions sampled from.

  Returns:
    A function over arrays with a leading axis of seeds.
  """
  settings = generate.GenerateConfig(
    sampling=sampling,
    max_new_tokens=config.max_new_tokens,
    group_size=group_size,
    eos_ids=tokenizer.eos_ids,
    pad_id=tokenizer.pad_id,
    record_entropies=record_entropies,
  )
  if lift.name == "seeded":
    # Not a vmap: the loop's condition and cache index are shared by all seeds.
    return generate.make_generate(decoder_config, settings, lanes=True)
  return lift.wrap(
    generate.make_generate(decoder_config, settings),
    (parallel.STATE, parallel.ROWS, parallel.ROWS),
    (parallel.ROWS,),
  )


def sample(
  generate_fn: Generate,
  params: PyTree,
  examples: Sequence[Sequence[Example]],
  keys: Array,
  *,
  encoder: Encoder,
  multiple: int,
  length_groups: int = 1,
) -> transcript.Transcript:
  """Samples responses.

  With `length_groups` above 1 the prompts of a seed are sorted by length and
  sampled in so many parts: short prompts are then padded to less, and their
  cache is smaller. The tokens are the same, up to rounding; a part has its own
  shape and may be compiled for it.

  Args:
    generate_fn: from `make_generate`.
    params: of all seeds, as the lift keeps them.
    examples: prompts of each seed, `[N, P]`.
    keys: a key per row, `[N, P * G]`.
    encoder: of the prompts; its stop strings end the completions.
    multiple: completions are cut to the longest one, rounded up to this.
    length_groups: parts; must divide P.

  Returns:
    Host arrays, rows `[N, P * G]` in the order of the examples.
  """
  if length_groups == 1:
    prompts = encoder.prompts(examples)
    sampled = hosts.fetch(generate_fn(params, prompts, keys))
  else:
    sampled = _sample_by_length(
      generate_fn, params, examples, keys, encoder, length_groups
    )
  return trim(encoder.cut(sampled), multiple)


def _sample_by_length(
  generate_fn, params, examples, keys, encoder, length_groups
) -> transcript.Transcript:
  """Samples short prompts beside short ones; see `sample`."""
  lengths = np.array(
    [[len(encoder.tokens(example)) for example in row] for row in examples]
  )
  num_seeds, num_prompts = lengths.shape
  seeds = np.arange(num_seeds)[:, None]
  order = np.argsort(lengths, axis=1, kind="stable")
  keys = keys.reshape(num_seeds, num_prompts, -1)
  group_size = keys.shape[-1]
  parts = [
    generate_fn(
      params,
      encoder.prompts(
        [
          [row[place] for place in places]
          for row, places in zip(examples, chosen, strict=True)
        ]
      ),
      keys[seeds, chosen].reshape(num_seeds, -1),
    )
    for chosen in np.split(order, length_groups, axis=1)
  ]
  parts = [hosts.fetch(part) for part in parts]
  size = max(part.prompt_size for part in parts)
  back = np.argsort(order, axis=1)

  def rows(*values):
    """Puts the parts' rows where their examples are."""
    whole = np.concatenate(values, axis=1)
    rest = whole.shape[2:]
    whole = whole.reshape(num_seeds, num_prompts, group_size, *rest)
    return whole[seeds, back].reshape(num_seeds, -1, *rest)

  joined = jax.tree.map(rows, *(_pad_left(part, size) for part in parts))
  groups = np.repeat(np.arange(num_prompts, dtype=np.int32), group_size)
  return joined.replace(
    group_ids=np.broadcast_to(groups, joined.group_ids.shape)
  )


def _pad_left(
  sampled: transcript.Transcript, prompt_size: int
) -> transcript.Transcript:
  """Moves the completions to begin at `prompt_size`."""
  more = prompt_size - sampled.prompt_size
  widths = ((0, 0), (0, 0), (more, 0))
  return sampled.replace(
    tokens=np.pad(sampled.tokens, widths),
    roles=np.pad(sampled.roles, widths, constant_values=transcript.PAD),
    starts=sampled.starts + more,
    ends=sampled.ends + more,
    prompt_size=prompt_size,
  )


def score(
  sampled: transcript.Transcript,
  examples: Sequence[Sequence[Example]],
  *,
  tokenizer: Tokenizer,
  grader: Grader,
  stops: Sequence[str] = (),
) -> Rollout:
  """Has the responses scored.

  Components with a limit of tokens are 0 where a response is longer.

  Args:
    sampled: host arrays, rows `[N, P * G]`.
    examples: prompts of each seed, `[N, P]`.
    tokenizer: for the completions' text.
    grader: scores them. With several processes each has its own score its
      share of the rows, and all get all.
    stops: strings that ended completions; what is scored is before them.

  Returns:
    The rollout.
  """
  completions, lengths, ended = read(sampled, tokenizer, stops)
  group_size = sampled.tokens.shape[1] // len(examples[0])
  graded = _grade(
    grader,
    [example for row in examples for example in row for _ in range(group_size)],
    completions,
  )
  shape = (len(examples), len(examples[0]), group_size)
  rewards = np.array(graded.rewards)
  for component, limit in grader.token_limits.items():
    rewards[lengths.reshape(-1) > limit, component] = 0.0
  return Rollout(
    transcript=sampled,
    completions=completions,
    rewards=rewards.reshape(*shape, -1),
    scored=graded.scored.reshape(*shape, -1),
    outcomes=list(graded.outcomes),
    lengths=lengths.reshape(shape),
    ended=ended.reshape(shape),
  )


def unscored(
  sampled: transcript.Transcript,
  num_prompts: int,
  num_components: int,
  *,
  tokenizer: Tokenizer,
  stops: Sequence[str] = (),
) -> Rollout:
  """Makes the rollout of responses that nobody has scored yet.

  Args:
    sampled: host arrays, rows `[N, P * G]`.
    num_prompts: of each seed, `P`.
    num_components: of the reward, `M`.
    tokenizer: for the completions' text.
    stops: strings that ended completions.

  Returns:
    The rollout, whose rewards are 0 and masked.
  """
  completions, lengths, ended = read(sampled, tokenizer, stops)
  shape = (len(sampled.tokens), num_prompts, -1)
  lengths, ended = lengths.reshape(shape), ended.reshape(shape)
  return Rollout(
    transcript=sampled,
    completions=completions,
    rewards=np.zeros((*lengths.shape, num_components), np.float32),
    scored=np.zeros((*lengths.shape, num_components), bool),
    outcomes=[Outcome.WRONG] * len(completions),
    lengths=lengths,
    ended=ended,
  )


def _grade(
  grader: Grader, examples: Sequence[Example], completions: Sequence[str]
) -> Graded:
  """Scores this process's share of the rows, and learns of the others'."""
  count = jax.process_count()
  if count == 1:
    return grader.grade(examples, completions)
  mine = slice(jax.process_index(), None, count)
  graded = grader.grade(examples[mine], completions[mine])
  names = list(Outcome)

  def whole(values):
    """Zeros where another process has scored."""
    values = np.asarray(values)
    rows = np.zeros((len(completions), *values.shape[1:]), values.dtype)
    rows[mine] = values
    return rows

  rewards, scored, outcomes = hosts.add_up(
    (
      whole(graded.rewards),
      whole(graded.scored.astype(np.int32)),
      whole([names.index(outcome) for outcome in graded.outcomes]),
    )
  )
  return Graded(
    rewards, scored.astype(bool), tuple(names[int(i)] for i in outcomes)
  )


def read(
  sampled: transcript.Transcript,
  tokenizer: Tokenizer,
  stops: Sequence[str] = (),
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads the completions of a transcript.

  Args:
    sampled: host arrays, rows `[N, B]`.
    tokenizer: of the policy.
    stops: strings that ended completions.

  Returns:
    The text of each row without its end token, or before its stop string; the
    number of tokens that the policy chose; whether it chose an end.
  """
  size = sampled.prompt_size
  width = sampled.tokens.shape[-1] - size
  tokens = sampled.tokens[..., size:].reshape(-1, width)
  chosen = sampled.roles[..., size:].reshape(-1, width) == transcript.POLICY
  lengths = chosen.sum(-1)
  ends = np.isin(tokens, tokenizer.eos_ids) & chosen
  texts = [
    tokenizer.decode(row[mask & ~end].tolist())
    for row, mask, end in zip(tokens, chosen, ends, strict=True)
  ]
  found = [stops_lib.find_stop(text, stops) for text in texts]
  texts = [text[:at] for text, at in zip(texts, found, strict=True)]
  return texts, lengths, ends.any(-1) | np.array([x is not None for x in found])


def trim(
  sampled: transcript.Transcript, multiple: int
) -> transcript.Transcript:
  """Cuts the padding that all rows share, so that no step computes it.

  Args:
    sampled: host arrays, rows `[N, B]`.
    multiple: the completion part is rounded up to it, to bound the number of
      shapes that are compiled.

  Returns:
    The same rows over fewer positions.
  """
  used = sampled.roles[..., sampled.prompt_size :] != transcript.PAD
  longest = int(used.sum(-1).max(initial=1))
  size = min(-(-max(longest, 1) // multiple) * multiple, used.shape[-1])
  end = sampled.prompt_size + size

  def shorten(values):
    return None if values is None else values[..., :size]

  return sampled.replace(
    tokens=sampled.tokens[..., :end],
    roles=sampled.roles[..., :end],
    behave_log_probs=shorten(sampled.behave_log_probs),
    entropies=shorten(sampled.entropies),
    untempered_log_probs=shorten(sampled.untempered_log_probs),
  )


def row_keys(
  seeds: Sequence[int],
  step: int | np.ndarray,
  ids: np.ndarray,
  group_size: int,
) -> Array:
  """Makes the key of every row (R9).

  Args:
    seeds: of the runs, `N`.
    step: the rollout step; one, or one a prompt, `[N, P]`.
    ids: the examples' own numbers, `[N, P]`.
    group_size: samples per prompt, `G`.

  Returns:
    Keys `[N, P * G]`, functions of seed, step, example and sample only.
  """
  ids = np.asarray(ids, np.int32)
  steps = np.broadcast_to(np.asarray(step, np.int32), ids.shape)
  roots = [jax.random.key(seed) for seed in seeds]
  return _row_keys(jnp.stack(roots), steps, ids, group_size)


@functools.partial(jax.jit, static_argnums=3)
def _row_keys(roots: Array, steps: Array, ids: Array, group_size: int) -> Array:
  return jax.vmap(
    lambda root, step, row: generate.row_keys(root, step, row, group_size)
  )(roots, steps, ids)
