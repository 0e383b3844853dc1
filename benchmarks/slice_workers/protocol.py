"""What the workers share: a batch, and how a step is measured."""

import dataclasses
import json
import os
import sys

from saw_jax.ahead import compiled, programs
from saw_jax.ahead import topology as topology_lib


@dataclasses.dataclass(frozen=True)
class Shape:
  """Rows of an update, all as long as they may be."""

  rows: int
  prompt: int
  new: int  # tokens that have a loss

  @property
  def length(self) -> int:
    return self.prompt + self.new


def answer(step_of) -> None:
  """Compiles a peer's step as our own are, and prints its figures.

  `step_of(shape, devices, variant)` gives what traces the step, its arguments
  and the mesh. The words of the command are a topology, sizes of the batch and
  the variant; what else is printed goes to stderr.
  """
  topology, sizes, variant = sys.argv[1:]
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  compiler = compiled.Compiler(topology_lib.read(topology))
  shape = Shape(*json.loads(sizes))
  trace, args, mesh = step_of(shape, compiler.devices, variant)
  kept = _Kept(trace, mesh, (), args=args)
  found = compiler.compile(programs.Program("update", kept, 1, 0.0))
  answers.write(json.dumps(found) + "\n")


class _Kept(programs.Kept):
  """A program that says itself how it is traced."""

  def trace(self):
    return self.jitted()
