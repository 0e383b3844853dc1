"""Programs are shared by functions that are equal, and by no others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import helpers
from tests.shared_programs import PROGRAMS


def made(scale, traced, offset=0):
  """A function that tells whether it is traced."""

  def fn(x):
    traced()
    return x * scale + offset

  return fn


def test_equal_functions_are_one_program_and_others_are_not():
  count = 0

  def traced():
    nonlocal count
    count += 1

  # What counts is no value: such functions are told apart.
  for _ in range(2):
    assert float(jax.jit(made(2.0, traced))(3.0)) == 6
  assert count == 2
  silent = {"traced": int}
  one = jax.jit(made(np.float32([2.0]), **silent))
  assert jax.jit(made(np.float32([2.0]), **silent)) is one
  for other in (
    made(np.float32([3.0]), **silent),
    made(np.float64([2.0]), **silent),
    made(np.float32([2.0]), **silent, offset=1),
    made(np.float32([2.0]), str),
    functools.partial(made(np.float32([2.0]), **silent)),
    lambda x: x * 2.0,
  ):
    assert jax.jit(other) is not one
  assert jax.jit(made(np.float32([2.0]), **silent), donate_argnums=0) is not one
  assert float(one(np.ones(1))[0]) == 2


def test_learners_of_one_experiment_share_all_they_run():
  first, second, other = (
    helpers.make_learner(helpers.experiment(**changes)).programs
    for changes in ({}, {}, {"loop": {"chunk_size": 64}})
  )
  assert first == second and first.keys() == other.keys()
  assert other["update"] is not first["update"]
  assert other["keep"] is first["keep"]


def test_a_test_that_patches_shares_nothing(monkeypatch):
  scope = PROGRAMS.scope
  one = jax.jit(made(2.0, int))
  PROGRAMS.scope = object()
  assert jax.jit(made(2.0, int)) is not one
  PROGRAMS.scope = scope
  assert jax.jit(made(2.0, int)) is one
  # Those of all other tests are of another scope.
  key = next(reversed(PROGRAMS._made))
  assert key[0] is scope


def test_keys_are_looked_at_though_programs_without_them_are_called_fast():
  draw, (used, fresh) = jax.random.uniform, jax.random.split(jax.random.key(0))
  drawn = jax.jit(draw)
  drawn(used)
  twice = jax.jit(lambda key: draw(key) + draw(key))
  for fn, *args in (
    (drawn, used),
    (jax.jit(lambda: draw(used)),),
    (twice, fresh),
  ):
    with pytest.raises(jax.errors.KeyReuseError):
      fn(*args)


def test_programs_are_lowered_in_one_context_after_another():
  lowered = [jax.jit(jnp.sin).lower(np.ones(size)) for size in range(1, 4)]
  if jax.__version__.startswith("0.10."):
    assert len({id(one.compiler_ir().context) for one in lowered}) < 3
