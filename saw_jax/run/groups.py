"""Groups of responses on their way from an actor to an update.

A group is the `G` responses of one prompt with their rewards. It is queued,
saved and dropped as a whole: a mean over part of a group is another baseline.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from saw_jax.rollout.transcript import PAD, Transcript
from saw_jax.run.rollouts import Rollout
from saw_jax.tasks.base import Outcome

_OUTCOMES = tuple(Outcome)
_ROW_FIELDS = ("tokens", "roles", "starts", "ends")


class Group(NamedTuple):
  """One prompt's responses, as host arrays."""

  tokens: np.ndarray  # int32 [G, S]
  roles: np.ndarray  # int8 [G, S]
  starts: np.ndarray  # int32 [G]
  ends: np.ndarray  # int32 [G]
  behave_log_probs: np.ndarray | None  # float32 [G, T]; None: not carried
  rewards: np.ndarray  # float32 [G, M]
  scored: np.ndarray  # bool [G, M]
  outcomes: np.ndarray  # int8 [G]
  lengths: np.ndarray  # int32 [G]
  ended: np.ndarray  # bool [G]
  prompt_size: int


def split(rollout: Rollout, *, carry_log_probs: bool) -> list[list[Group]]:
  """Takes a rollout apart."""
  num_seeds, num_prompts, size = rollout.lengths.shape
  transcript = rollout.transcript
  outcomes = np.array(
    [_OUTCOMES.index(outcome) for outcome in rollout.outcomes], np.int8
  ).reshape(num_seeds, num_prompts, size)

  def group(n: int, p: int) -> Group:
    rows = slice(p * size, (p + 1) * size)
    log_probs = None
    if carry_log_probs:
      log_probs = np.array(transcript.behave_log_probs[n, rows])
    return Group(
      *(np.array(getattr(transcript, name)[n, rows]) for name in _ROW_FIELDS),
      behave_log_probs=log_probs,
      rewards=rollout.rewards[n, p].copy(),
      scored=rollout.scored[n, p].copy(),
      outcomes=outcomes[n, p],
      lengths=rollout.lengths[n, p].astype(np.int32),
      ended=rollout.ended[n, p].copy(),
      prompt_size=transcript.prompt_size,
    )

  return [[group(n, p) for p in range(num_prompts)] for n in range(num_seeds)]


def join(
  groups: Sequence[Sequence[Group]],
  *,
  multiple: int,
  max_new_tokens: int,
  versions: np.ndarray | None = None,
  pad_id: int = 0,
) -> Rollout:
  """Puts groups together that may come from different rollouts."""
  num_seeds, num_prompts = len(groups), len(groups[0])
  size = len(groups[0][0].starts)
  flat = [group for row in groups for group in row]
  prompt_size = max(group.prompt_size for group in flat)
  longest = max(1, *(_used(group) for group in flat))
  width = min(-(-longest // multiple) * multiple, max_new_tokens)
  total = prompt_size + width

  shape = (num_seeds, num_prompts * size)
  tokens = np.full((len(flat), size, total), pad_id, np.int32)
  roles = np.full((len(flat), size, total), PAD, np.int8)
  log_probs = np.zeros((len(flat), size, width), np.float32)
  carried = all(group.behave_log_probs is not None for group in flat)
  for k, group in enumerate(flat):
    first = prompt_size - group.prompt_size
    last = min(total, first + group.tokens.shape[1])
    tokens[k, :, first:last] = group.tokens[:, : last - first]
    roles[k, :, first:last] = group.roles[:, : last - first]
    if carried:
      known = min(width, group.behave_log_probs.shape[1])
      log_probs[k, :, :known] = group.behave_log_probs[:, :known]

  def rows(name: str) -> np.ndarray:
    values = [
      getattr(group, name) + (prompt_size - group.prompt_size) for group in flat
    ]
    return np.concatenate(values).reshape(shape).astype(np.int32)

  def stack(name: str) -> np.ndarray:
    values = np.stack([getattr(group, name) for group in flat])
    return values.reshape(num_seeds, num_prompts, *values.shape[1:])

  if versions is None:
    versions = np.zeros((num_seeds, num_prompts), np.int32)
  transcript = Transcript(
    tokens=tokens.reshape(*shape, total),
    roles=roles.reshape(*shape, total),
    starts=rows("starts"),
    ends=rows("ends"),
    behave_log_probs=log_probs.reshape(*shape, width) if carried else None,
    group_ids=np.broadcast_to(
      np.repeat(np.arange(num_prompts, dtype=np.int32), size), shape
    ).copy(),
    policy_versions=np.repeat(versions, size, axis=1).astype(np.int32),
    prompt_size=prompt_size,
  )
  return Rollout(
    transcript=transcript,
    completions=[],
    rewards=stack("rewards"),
    scored=stack("scored"),
    outcomes=[_OUTCOMES[code] for code in stack("outcomes").reshape(-1)],
    lengths=stack("lengths"),
    ended=stack("ended"),
  )


def pack(groups: Sequence[Group]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Turns groups into what a checkpoint can hold."""
  if not groups:
    return {"count": 0}, {}
  longest = max(map(_used, groups))
  joined = join([groups], multiple=1, max_new_tokens=max(longest, 1))
  shape = (len(groups), len(groups[0].starts))
  transcript = joined.transcript
  arrays = {
    name: np.asarray(getattr(transcript, name)).reshape(
      *shape, *getattr(transcript, name).shape[2:]
    )
    for name in (*_ROW_FIELDS, "behave_log_probs")
    if getattr(transcript, name) is not None
  }
  for name in ("rewards", "scored", "outcomes", "lengths", "ended"):
    arrays[name] = np.stack([getattr(group, name) for group in groups])
  return {"count": len(groups), "prompt_size": transcript.prompt_size}, arrays


def unpack(document: dict[str, Any], arrays: dict[str, Any]) -> list[Group]:
  """Returns the groups that `pack` was given, on common shapes."""
  names = [field for field in Group._fields if field != "prompt_size"]
  return [
    Group(
      **{
        name: np.array(arrays[name][k]) if name in arrays else None
        for name in names
      },
      prompt_size=document["prompt_size"],
    )
    for k in range(document["count"])
  ]


def _used(group: Group) -> int:
  """Positions after the prompt that somebody wrote, in the longest row."""
  return int((group.roles[:, group.prompt_size :] != PAD).sum(-1).max())
