"""Tests of generation."""

import dataclasses
import functools

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax.ahead import flops
from saw_jax.models import config as config_lib
from saw_jax.models import decoder, log_probs
from saw_jax.rollout import generate, transcript
from saw_jax.rollout import sampling as sampling_lib
from saw_jax.rollout.sampling import SamplingConfig
from tests import helpers

CONFIG = dataclasses.replace(
  config_lib.TINY,
  **dict(vocab_size=19, width=14, num_heads=6, num_kv_heads=3),
  **dict(head_size=10, mlp_size=29),
)
PROMPTS = ([3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9])
IDS = (31, 7, 23, 5)
T, G = 11, 3
EOS = (2, 11)
GREEDY = SamplingConfig(greedy=True)


@functools.cache
def params_of(seed=0):
  params = decoder.init_params(CONFIG, jax.random.key(seed))
  # Sharper than new parameters are, so that rows end at different times.
  return params | {"embedding": 2.0 * params["embedding"]}


@functools.cache
def make(config=CONFIG, lanes=False, **changes):
  settings = {"max_new_tokens": T, "group_size": G, "eos_ids": EOS} | changes
  return generate.make_generate(
    config, generate.GenerateConfig(**settings), lanes=lanes
  )


def prompts_of(order=(0, 1, 2, 3), **settings):
  return transcript.pad_prompts(
    [PROMPTS[i] for i in order], ids=[IDS[i] for i in order], **settings
  )


def keys_of(prompts, step=0, seed=0, group_size=G):
  return generate.row_keys(jax.random.key(seed), step, prompts.ids, group_size)


def run(prompts=None, params=None, step=0, **changes):
  prompts = prompts_of() if prompts is None else prompts
  params = params_of() if params is None else params
  keys = keys_of(prompts, step, group_size=changes.get("group_size", G))
  return make(**changes)(params, prompts, keys)


def assert_same(found, expected):
  """Tokens to the last one, and log-probs up to rounding."""
  for name in ("tokens", "roles", "starts", "ends", "group_ids"):
    values = getattr(found, name), getattr(expected, name)
    np.testing.assert_array_equal(*values, err_msg=name)
  for name in ("behave_log_probs", "entropies"):
    values = getattr(found, name), getattr(expected, name)
    if values != (None, None):
      np.testing.assert_allclose(*values, rtol=0, atol=1e-5, err_msg=name)


def logits_of(record):
  """By the whole decoder, of each token of the completions."""
  rows = record.tokens, record.positions, record.valid
  whole = helpers.logits(CONFIG, params_of(), *rows)
  return whole[:, record.prompt_size - 1 : -1]


def test_a_key_is_folded_from_step_example_and_sample():
  keys = generate.row_keys(jax.random.key(3), 5, jnp.array([7, 2]), 3)
  expected = jax.random.key(3)
  for number in (5, 2, 1):
    expected = jax.random.fold_in(expected, number)
  assert keys.shape == (6,)
  assert (jax.random.key_data(keys[4]) == jax.random.key_data(expected)).all()


def test_prompts_come_first_and_are_padded_on_the_left():
  record = run()
  assert record.prompt_size == 5
  chex.assert_shape((record.tokens, record.roles), (12, 16))
  chex.assert_shape(record.behave_log_probs, (12, 11))
  np.testing.assert_array_equal(
    record.tokens[:, :5], np.repeat(prompts_of().tokens, G, axis=0)
  )
  np.testing.assert_array_equal(record.group_ids, np.repeat(range(4), G))
  starts = np.repeat([2, 0, 4, 1], G)
  np.testing.assert_array_equal(record.starts, starts)
  is_prompt = np.arange(5) >= starts[:, None]
  np.testing.assert_array_equal(
    record.roles[:, :5], np.where(is_prompt, transcript.PROMPT, transcript.PAD)
  )


@pytest.mark.parametrize("pad_id", [2, 11, 17])
@pytest.mark.slow
def test_a_row_ends_with_its_first_eos_whatever_the_padding_is(pad_id):
  record = run(pad_id=pad_id)
  seen = set()
  for row, length in enumerate(np.asarray(record.completion_lengths)):
    chosen, rest = np.split(np.asarray(record.tokens[row, 5:]), [length])
    roles = np.asarray(record.roles[row, 5:])
    assert record.ends[row] == 5 + length
    assert (roles[:length] == transcript.POLICY).all()
    assert (roles[length:] == transcript.PAD).all() and (rest == pad_id).all()
    assert (record.behave_log_probs[row, :length] < 0).all()
    np.testing.assert_array_equal(record.behave_log_probs[row, length:], 0)
    assert not np.isin(chosen[:-1], EOS).any()
    seen |= set(chosen[-1:].tolist()) if length < T else set()
  assert seen == set(EOS)  # both have ended some row


def test_a_sampled_padding_token_belongs_to_the_policy():
  record = run(eos_ids=(), pad_id=17)
  sampled = np.asarray(record.tokens[:, 5:]) == 17
  assert sampled.any()
  assert (record.roles[:, 5:][sampled] == transcript.POLICY).all()
  np.testing.assert_array_equal(record.completion_lengths, T)


@pytest.mark.parametrize("sampled", [None, [1, 0, 0, 2]])
def test_the_key_of_a_token_is_folded_from_its_row_and_its_time(sampled):
  prompts = prompts_of()
  if sampled is not None:  # The prompts end with tokens that had keys before.
    prompts = prompts.replace(sampled=np.array(sampled, np.int32))
  record = run(prompts, eos_ids=())
  logits = logits_of(record)
  for t in (0, 1, T - 1):
    times = t + np.repeat(sampled or [0] * 4, G)
    keys = jax.vmap(jax.random.fold_in)(keys_of(prompts), times)
    tokens, _ = sampling_lib.sample(keys, logits[:, t], SamplingConfig())
    np.testing.assert_array_equal(tokens, record.tokens[:, 5 + t])


@pytest.mark.parametrize(
  "sampling",
  [
    GREEDY,
    SamplingConfig(temperature=0.7),
    pytest.param(
      SamplingConfig(temperature=0.7, top_k=6), marks=pytest.mark.slow
    ),
    SamplingConfig(temperature=1.3, top_p=0.8, min_p=0.1),
  ],
)
def test_what_is_recorded_is_of_what_was_sampled_from(sampling):
  record = run(sampling=sampling, record_entropies=True)
  mask, logits = record.completion_mask, logits_of(record)
  tokens = record.tokens[:, 5:]
  flat = own = logits[mask]
  if sampling.greedy:
    np.testing.assert_array_equal(tokens[mask], flat.argmax(-1))
  else:
    own = sampling_lib._truncate(flat / sampling.temperature, sampling)
  for found, want in (
    (record.behave_log_probs, log_probs.log_probs_of(own, tokens[mask])[0]),
    (record.entropies, sampling_lib.entropies(flat, sampling)),
  ):
    np.testing.assert_allclose(found[mask], want, atol=2e-5)
    np.testing.assert_array_equal(found[~mask], 0)
  assert jnp.isneginf(own).any() == (sampling.top_k + sampling.min_p > 0)


def test_one_key_gives_one_result_to_the_last_bit():
  record = run()
  chex.assert_trees_all_equal(record, run())
  recorded = run(record_entropies=True)
  np.testing.assert_array_equal(recorded.tokens, record.tokens)
  assert record.entropies is None
  assert len(set(np.asarray(record.completion_lengths))) > 3  # they end apart
  assert not np.array_equal(record.tokens, run(step=1).tokens)
  completions = np.asarray(record.tokens[:3, 5:]).tolist()
  assert len(set(map(tuple, completions))) == 3  # of one prompt
  large = run(group_size=5)  # begins with the smaller group
  np.testing.assert_array_equal(
    large.tokens.reshape(4, 5, -1)[:, :G], record.tokens.reshape(4, G, -1)
  )


@pytest.mark.slow
def test_a_row_depends_on_no_other_row_and_on_no_padding():
  expected = run()
  for order, size in (((3, 1, 0, 2), 1), ((2,), 1), ((0, 2), 8)):
    record = run(prompts_of(order, multiple=size))
    for place, i in enumerate(order):
      ours = slice(G * place, G * (place + 1))
      theirs = slice(G * i, G * (i + 1))
      np.testing.assert_array_equal(
        record.tokens[ours, record.prompt_size :], expected.tokens[theirs, 5:]
      )
      np.testing.assert_allclose(
        record.behave_log_probs[ours],
        expected.behave_log_probs[theirs],
        atol=1e-5,
      )


@pytest.mark.slow
def test_a_longer_limit_begins_with_the_shorter_run():
  # Long enough for the cache to grow on the way.
  long = run(max_new_tokens=130, eos_ids=())
  assert len(generate.stages(5, 130)) > 1
  short = run(eos_ids=())
  np.testing.assert_array_equal(long.tokens[:, :16], short.tokens)
  values, _ = log_probs.log_probs_of(logits_of(long), long.tokens[:, 5:])
  np.testing.assert_allclose(long.behave_log_probs, values, atol=2e-5)


def test_few_new_tokens_are_legal():
  record = run(max_new_tokens=0, record_entropies=True)
  chex.assert_shape(record.tokens, (12, 5))
  chex.assert_shape(
    (record.behave_log_probs, record.entropies, record.completion_mask), (12, 0)
  )
  np.testing.assert_array_equal(record.completion_lengths, 0)
  np.testing.assert_array_equal(record.ends, 5)
  one = run(max_new_tokens=1)
  np.testing.assert_array_equal(one.tokens, run().tokens[:, :6])


@pytest.mark.parametrize(
  "change",
  [
    {"max_new_tokens": -1},
    {"group_size": 0},
    {"cache_tokens": -1},
    {"page_size": -1},
  ],
)
def test_arguments_that_cannot_be_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    make(**change)


@pytest.mark.parametrize("max_new_tokens", [T, 0])
@pytest.mark.slow
def test_each_lane_equals_its_run_alone(max_new_tokens):
  lanes = []
  for seed, order in enumerate(((0, 1), (2, 3), (1, 3))):
    prompts = prompts_of(order, multiple=5)
    lanes.append((params_of(seed), prompts, keys_of(prompts, seed=seed)))
  stack = functools.partial(jax.tree.map, lambda *xs: jnp.stack(xs))
  together = make(lanes=True, max_new_tokens=max_new_tokens)(*stack(*lanes))
  alone = [make(max_new_tokens=max_new_tokens)(*lane) for lane in lanes]
  chex.assert_trees_all_close(together, stack(*alone), atol=1e-5)
  assert together.tokens.shape == (3, 2 * G, 5 + max_new_tokens)
  assert together.positions.shape == together.tokens.shape


def test_scanned_lanes_are_unstacked_by_lane():
  scanned = dataclasses.replace(CONFIG, scan_layers=True)
  prompts = prompts_of()
  lane = (helpers.stack_layers(params_of()), prompts, keys_of(prompts))
  record = make(lanes=True, config=scanned)(
    *jax.tree.map(lambda x: jnp.stack([x, x]), lane)
  )
  np.testing.assert_array_equal(record.tokens[1], run().tokens)


def test_lanes_write_to_the_cache_as_one_run_does():
  prompts = prompts_of()
  lane = (params_of(), prompts, keys_of(prompts))
  lanes = jax.tree.map(lambda x: jnp.stack([x, x]), lane)
  one = make().lower(*lane).compile().as_text()
  two = make(lanes=True).lower(*lanes).compile().as_text()
  # An index that differs between lanes would make each write a scatter.
  assert " scatter(" not in two
  write = " dynamic-update-slice("
  assert two.count(write) == one.count(write)


def test_a_size_of_prompts_is_compiled_once():
  fn, events = make.__wrapped__(max_new_tokens=2), []
  params, cases = params_of(), []
  for step in range(2):
    for size in (6, 7):
      for order in ((0, 2), (2, 3)):
        prompts = prompts_of(order, multiple=size)
        cases.append((prompts, keys_of(prompts, step)))

  def listen(event, duration, **_):
    events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for case in cases:
      fn(params, *case)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert events.count("/jax/core/compile/backend_compile_duration") == 2


def test_a_stream_is_a_row_and_ends_with_its_end():
  config = dataclasses.replace(CONFIG, scan_layers=True)
  params = helpers.stack_layers(params_of())
  key, sampling = jax.random.key(7), SamplingConfig(temperature=1.5)

  def both(eos_ids):
    settings = generate.GenerateConfig(12, 1, eos_ids, sampling=sampling)
    sampler = generate.make_generate(config, settings)
    record = sampler(params, transcript.pad_prompts([PROMPTS[1]]), key[None])
    whole = record.tokens[0][record.roles[0] == transcript.POLICY].tolist()
    given = (config, settings, params, PROMPTS[1], key)
    return list(generate.stream(*given, multiple=8)), whole

  streamed, whole = both(())
  assert streamed == whole and len(whole) == 12 and len(set(whole)) > 3
  ended, whole = both((streamed[4],))
  assert ended == whole == streamed[: streamed.index(streamed[4]) + 1]


def shapes_in(jaxpr):
  """Of all arrays of a program, those of programs inside it too."""
  for equation in jaxpr.eqns:
    yield from (var.aval.shape for var in equation.outvars)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from shapes_in(inner)


@pytest.mark.parametrize("most", [17, 6])  # 34 in equal parts, and filled up
def test_prompts_are_read_in_parts_without_a_square(monkeypatch, most):
  settings = generate.GenerateConfig(4, G, EOS)
  prompts = prompts_of(multiple=34)
  args = params_of(), prompts, keys_of(prompts)
  whole = generate.make_generate(CONFIG, settings)
  expected = whole(*args)
  square = [s for s in shapes_in(whole.trace(*args).jaxpr) if s.count(34) > 1]
  assert square
  monkeypatch.setattr(generate, "_MOST_READ", most)
  jax.clear_caches()  # What was traced with other parts is remembered.
  parts = generate.make_generate(CONFIG, settings)
  for shape in shapes_in(parts.trace(*args).jaxpr):
    assert sum(size in (34, 36) for size in shape) < 2
  assert np.isfinite(flops.count(parts.trace(*args)))  # `saw fit` counts parts.
  assert_same(parts(*args), expected)
