# SPDX-License-Identifier: Apache-2.0
"""From rewards to one advantage for each step of an episode.

    advantage(rewards, [values,] [anchors,] steps, *, penalties) -> [P, G, E]

All arrays are `[P, G, E]`: `rewards` r of the environment, `steps` the mask of
the steps that were taken, from the first on, `penalties` of invalid steps,
subtracted at that step only, `anchors` an integer for what was seen before a
step, equal within a prompt's episodes where that is, `values` V of a value
function, and `ratios` π / μ of what was done. An advantage names those that it
reads, and is given these. It is 0 where a step was not taken, and carries no
gradient; one that has a value function learn other targets than A + V gives
both.

`normalize` is an estimator of `advantages`: `normalize_groups`, `center_groups`
("mean_norm" of verl-agent) or `leave_one_out`, over all steps of a group.
GiGPO and verl-agent: https://arxiv.org/abs/2505.10978
"""

import chex
import jax
import jax.numpy as jnp

from saw_jax import reductions
from saw_jax.advantages import Estimator, leave_one_out, normalize_groups
from saw_jax.types import Array


def step_grpo(
  rewards: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  normalize: Estimator = normalize_groups,
) -> Array:
  """Standardises episodes' returns over all steps of a group.

    sₜ = Σₖ rₖ − penaltyₜ,   A = (s − mean_steps) / (std_steps + ε)

  A long episode weighs more. In a group that always fails, penalties are the
  only difference, and get an advantage of order 1. As verl-agent's agent loop.

  >>> from saw_jax.advantages import center_groups
  >>> r = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])
  >>> print(step_grpo(r, jnp.ones_like(r), normalize=center_groups))
  [[[ 0.5  0.5]
    [-0.5 -0.5]]]
  """
  scores = _scores(rewards, steps, penalties)
  flat = (scores.shape[0], -1)
  taken = jnp.asarray(steps, bool).reshape(flat)
  return normalize(scores.reshape(flat), scored=taken).reshape(scores.shape)


def step_rloo(
  rewards: Array, steps: Array, *, penalties: Array | None = None
) -> Array:
  """Subtracts the mean score of all other steps of the group. 2402.14740"""
  return step_grpo(rewards, steps, penalties=penalties, normalize=leave_one_out)


def trajectory_grpo(
  rewards: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  eps: float | None = 1e-6,
) -> Array:
  """Standardises steps' scores by the mean and deviation of episodes.

    sₜ = Σₖ rₖ − penaltyₜ,   A = (s − mean_episodes) / (std_episodes + eps)

  Each episode counts once in the statistics, without penalties. Where all end
  alike a penalty is divided by `eps`: use none, or `step_grpo`, or an `eps` of
  `None`, which divides nothing. GRPO, https://arxiv.org/abs/2402.03300
  """
  returns = _scores(rewards, steps, None)
  ran = jnp.any(jnp.asarray(steps, bool), axis=-1)
  totals = reductions.all_max(returns, axis=-1, where=steps)
  totals = reductions.select(totals, ran)
  # What a step lost to its episode, so that equal episodes deviate by 0.
  lost = _scores(rewards, steps, penalties) - returns
  deviations = reductions.all_deviations(totals, axis=-1, where=ran)
  centered = reductions.select(deviations[..., None] + lost, steps)
  if eps is None:
    return centered
  std = reductions.all_std(totals, axis=-1, where=ran, ddof=1, keepdims=True)
  return reductions.divide(centered, std[..., None] + eps)


def step_returns(rewards: Array, steps: Array, *, gamma: float = 0.95) -> Array:
  """What each step and the later ones were paid: `Rₜ = Σ_{k≥t} γ^(k−t) rₖ`."""
  chex.assert_rank([rewards, steps], 3)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), steps)

  def add(later, reward):
    total = reward + gamma * later
    return total, total

  zeros, rewards = jnp.zeros_like(rewards[..., 0]), jnp.moveaxis(rewards, -1, 0)
  _, returns = jax.lax.scan(add, zeros, rewards, reverse=True)
  return reductions.select(jnp.moveaxis(returns, 0, -1), steps)


def anchor_advantages(
  returns: Array,
  anchors: Array,
  steps: Array,
  *,
  normalize: Estimator = normalize_groups,
) -> Array:
  """Compares the steps of a group that started from the same observation.

    Aₜ = (Rₜ − mean_anchor) / (std_anchor + ε)

  0 for a step that nothing can be compared with. Memory is quadratic in `G E`.
  """
  chex.assert_equal_shape([returns, anchors, steps])
  flat = (returns.shape[0], -1)
  taken = jnp.asarray(steps, bool).reshape(flat)
  anchors = anchors.reshape(flat)
  same = anchors[:, :, None] == anchors[:, None, :]
  same &= taken[:, :, None] & taken[:, None, :]
  # A row per step: the returns of the steps that it is compared with.
  others = reductions.select(returns.reshape(flat), taken)
  others = jnp.broadcast_to(others[:, None], same.shape)
  advantages = jnp.diagonal(normalize(others, scored=same), axis1=-2, axis2=-1)
  comparable = jnp.sum(same, axis=-1) > 1
  return reductions.select(advantages, comparable).reshape(returns.shape)


def gigpo(
  rewards: Array,
  anchors: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  gamma: float = 0.95,  # of the returns
  omega: float = 1.0,  # weight of the steps' term
  normalize: Estimator = normalize_groups,
) -> Array:
  """Adds the comparison of steps to the comparison of episodes.

    A = A^E + ω A^S

  A^E is `step_grpo`, A^S is `anchor_advantages` of the discounted returns, from
  which an invalid step's own penalty is subtracted. ω = 0 is GRPO over steps.
  """
  episode = step_grpo(rewards, steps, penalties=penalties, normalize=normalize)
  later = step_returns(rewards, steps, gamma=gamma)
  if penalties is not None:
    later -= reductions.select(jax.lax.stop_gradient(penalties), steps)
  step = anchor_advantages(later, anchors, steps, normalize=normalize)
  return episode + omega * step


def gae(
  rewards: Array,
  values: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  gamma: float = 1.0,
  lambda_: float = 1.0,
) -> Array:
  """Estimates advantages against a value function, along the last axis.

    δₜ = rₜ + γ Vₜ₊₁ − Vₜ,   Aₜ = δₜ + γ λ Aₜ₊₁

  Time runs over what the mask selects: t + 1 is the next selected place, and
  after the last the value is 0. λ = 1 is the return less the value, λ = 0 the
  error of one step. A value function learns A + V. `[..., T]`. 1506.02438

  >>> r, v = jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.5]])
  >>> print(gae(r, v, jnp.ones_like(r)))
  [[0.75 0.5 ]]
  """
  chex.assert_equal_shape([rewards, values, steps])
  if penalties is not None:
    rewards = rewards - reductions.select(penalties, steps)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), steps)
  values = reductions.select(jax.lax.stop_gradient(values), steps)
  dtype = jnp.result_type(rewards, values)

  def step(later, now):
    next_value, next_advantage = later
    reward, value, on = now
    error = reward + gamma * next_value - value
    advantage = error + gamma * lambda_ * next_advantage
    next_value = jnp.where(on, value, next_value)
    next_advantage = jnp.where(on, advantage, next_advantage)
    return (next_value, next_advantage), jnp.where(on, advantage, 0.0)

  zeros = jnp.zeros(rewards.shape[:-1], dtype)
  now = rewards.astype(dtype), values.astype(dtype), jnp.asarray(steps, bool)
  now = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), now)
  _, advantages = jax.lax.scan(step, (zeros, zeros), now, reverse=True)
  return jnp.moveaxis(advantages, 0, -1)


def brace(
  rewards: Array,
  values: Array,
  ratios: Array,
  steps: Array,
  *,
  penalties: Array | None = None,
  window: int = 100,  # k
  rho_bar: float = 1.2,
  c_bar: float = 1.1,
  gamma: float = 1.0,
  lambda_: float = 1.0,
) -> tuple[Array, Array]:
  """Corrects k steps for what the policy has become since, and then none.

    δₜ = min(ρ̄, wₜ) (rₜ + γ Vₜ₊₁ − Vₜ),   cₜ = λ min(c̄, wₜ),   j = min(s + k, T)
    targetₛ = Vₛ + Σ_{s≤t<j} γ^{t−s} c_{s:t} δₜ + γ^{j−s} c_{s:j} (Rⱼ − Vⱼ)
    Aₛ = rₛ + γ targetₛ₊₁ − Vₛ

  w are `ratios`, c_{s:t} the product from s up to t, R the discounted rewards,
  T the last step: a weight beyond j is 1, and V beyond it cancels. On the
  policy with γ = λ = 1, or with k = 0, a target is R. `[..., T]`; advantages
  and targets. BRACE (2026), eq. for a reward at the end, from the paper's text.
  """
  chex.assert_equal_shape([rewards, values, ratios, steps])
  if penalties is not None:
    rewards = rewards - reductions.select(penalties, steps)
  rewards, values, w = (
    reductions.select(jax.lax.stop_gradient(x), steps)
    for x in (rewards, values, ratios)
  )

  goes_on = _after(jnp.asarray(steps, bool))
  error = jnp.minimum(rho_bar, w) * (rewards + gamma * _after(values) - values)
  trace = gamma * lambda_ * jnp.minimum(c_bar, w)
  most, loop = rewards.shape[-1] - 1, jax.lax.fori_loop
  returns = loop(0, most, lambda _, x: rewards + gamma * _after(x), rewards)
  rest = returns - values

  def widen(_, x: Array) -> Array:  # a window of one step more, from its start
    return jnp.where(goes_on, error + trace * _after(x), rest)

  targets = values + loop(0, min(window, most), widen, rest)
  advantages = rewards + gamma * _after(targets) - values
  return advantages, targets


def _after(x: Array) -> Array:
  """What stands one step later: 0, or false, after the last."""
  return jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)


def _scores(rewards: Array, steps: Array, penalties: Array | None) -> Array:
  """The return of its episode for each step, less the step's own penalty."""
  chex.assert_rank(rewards, 3)
  rewards = reductions.select(jax.lax.stop_gradient(rewards), steps)
  total = jnp.sum(rewards, axis=-1, keepdims=True)
  scores = jnp.broadcast_to(total, rewards.shape)
  if penalties is not None:
    chex.assert_equal_shape([rewards, penalties])
    scores -= jax.lax.stop_gradient(penalties).astype(scores.dtype)
  return reductions.select(scores, steps)
