"""Programs that tests share: what was traced before is not traced anew.

JAX knows a program by its function, and each learner makes functions of its
own, also where they say the same. Here `jax.jit` and `jax.pmap` give the
program that they gave before for a function of the same code, made around the
same values. What is not known to be a value is never shared, and neither is a
test's that patches something: patched names are no part of a function.
"""

import collections
import dataclasses
import enum
import functools
import os
import runpy
import sys
import threading
import types

import flax.linen as nn
import jax
import numpy as np

_MOST = 400  # programs that are held
_MOST_LOWERED = 200  # in one context, which keeps what they were made of
# Values, and what there is one of.
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, type(...))
_PLAIN += (np.dtype, np.ufunc, jax.Device, jax.custom_vjp, jax.custom_jvp)
_PLAIN += (types.CodeType, types.ModuleType, types.BuiltinFunctionType)
_PLAIN += (enum.Enum, type(jax.jit(abs)))


class _Unknown(Exception):
  """A function is made around something that may change."""


class Programs:
  """What was jitted, by what it is made of; the oldest make room."""

  def __init__(self):
    self._made = collections.OrderedDict()
    self.scope = object()  # another one: nothing of before is shared

  def share(self, lift):
    """`jax.jit` or `jax.pmap`, which then gives what it gave before."""

    @functools.wraps(lift)
    def shared(fn, **options):
      try:
        # Constants of programs of 64 bits would be found by those of 32.
        if jax.config.x64_enabled:
          raise _Unknown
        key = self.scope, lift, os.environ.get("XLA_FLAGS"), _key((fn, options))
      except _Unknown:
        return lift(fn, **options)
      if key not in self._made:
        self._made[key] = lift(fn, **options)
        while len(self._made) > _MOST:
          self._made.popitem(last=False)
      self._made.move_to_end(key)
      return self._made[key]

    return shared


def _key(x):
  """A key that is equal for values that are."""
  kind = type(x)
  if isinstance(x, _PLAIN) or kind is object:
    return kind, x, repr(x) if isinstance(x, float | complex) else ""
  if isinstance(x, tuple) or isinstance(x, list) and x:  # else it gathers
    return kind, *map(_key, x)
  if isinstance(x, dict):
    return kind, *map(_key, x.items())
  if isinstance(x, np.ndarray | np.generic):
    return kind, x.shape, x.dtype, x.tobytes()
  if isinstance(x, functools.partial):
    return kind, _key((x.func, x.args, x.keywords))
  if isinstance(x, types.FunctionType):
    inside = tuple(map(_content, x.__closure__ or ()))
    parts = x.__code__, x.__defaults__, x.__kwdefaults__, inside
    return kind, x.__module__, _key(parts)
  if isinstance(x, types.MethodType):
    return kind, _key((x.__func__, x.__self__))
  if isinstance(x, nn.Module) or (
    dataclasses.is_dataclass(x) and kind.__dataclass_params__.frozen
  ):
    fields = (getattr(x, one.name) for one in dataclasses.fields(x))
    return kind, _key(tuple(fields))
  raise _Unknown


def _content(cell):
  try:
    return cell.cell_contents
  except ValueError:  # There is none yet.
    raise _Unknown from None


def share_contexts():
  """Has MLIR's contexts shared, a thread's by what it lowers one after another.

  To make one takes longer than to lower a small program.
  """
  from jax._src.interpreters import mlir

  init, own = mlir.ModuleContext.__init__, threading.local()

  @functools.wraps(init)
  def init_in_shared(self, *, context=None, **options):
    if context is None:
      own.count = getattr(own, "count", -1) + 1
      if own.count % _MOST_LOWERED == 0:
        own.context = mlir.make_ir_context()
      context = own.context
    init(self, context=context, **options)

  mlir.ModuleContext.__init__ = init_in_shared


def call_fast():
  """Has programs without keys called as fast as where no key is looked at.

  Where JAX looks for keys that are used twice, it calls each program by way of
  Python, to see those of its arguments. What is inside it saw when it traced.
  """
  from jax._src import core, pjit

  run = pjit._run_python_pjit

  @functools.wraps(run)
  def run_fast(program, *args):
    jaxpr = program.params["jaxpr"]
    avals = *jaxpr.in_avals, *jaxpr.out_avals, *map(core.typeof, jaxpr.consts)
    kinds = (getattr(x, "dtype", np.dtype(int)) for x in avals)
    has_keys = any(jax.dtypes.issubdtype(x, jax.dtypes.prng_key) for x in kinds)
    with jax.debug_key_reuse(has_keys and jax.config.jax_debug_key_reuse):
      return run(program, *args)

  pjit._run_python_pjit = run_fast


def keep_all():
  """Has each process write what it compiles: JAX's first one alone does so."""
  from jax._src import compiler

  first = types.SimpleNamespace(process_id=0)
  compiler.distributed = types.SimpleNamespace(global_state=first)


PROGRAMS = Programs()

if __name__ == "__main__":  # python -m tests.shared_programs python SCRIPT ...
  keep_all()
  sys.argv = sys.argv[2:]
  runpy.run_path(sys.argv[0], run_name="__main__")
