"""Reads a compiled program: what moves between chips, and to their memory.

XLA's own figures count the body of a loop once; here it counts as often as it
runs. To know how often, the loop's condition is evaluated with the scalars that
it carries, as far as they are known. An unknown one (whether all responses have
ended) lets the loop go on.
"""

import functools
import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_MOST = 100_000  # trips of a loop that are followed
# What each of n chips receives, in arrays of the size that it holds.
COLLECTIVES = {
  "all-gather": lambda n: n - 1,
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "reduce-scatter": lambda n: (n - 1) / n,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
# What moves nothing, or only what its parts move.
_FREE = set(
  "parameter constant tuple get-tuple-element bitcast while call conditional "
  "after-all opt-barrier partition-id replica-id iota domain".split()
)
_CALLS = ("call", "conditional", "async-start")
_PARTS = "calls to_apply branch_computations called_computations".split()
_PARTS += ["true_computation", "false_computation"]
# Which operand of an instruction is put into the first, which stays.
_PUTS = {"dynamic-update-slice": 1, "scatter": 2}
_FETCHES = ("copy-start", "slice-start", "dynamic-slice-start")
_CUTS = ("dynamic-slice", "gather", *_PUTS)
_KNOWN = {
  "add": operator.add,
  "subtract": operator.sub,
  "multiply": operator.mul,
  "and": operator.and_,
  "or": operator.or_,
  "not": operator.not_,
}
_ENDS = {"and": 0, "or": 1}  # the operand that decides alone
_ORDER = {x.upper(): getattr(operator, x) for x in "lt le gt ge eq ne".split()}
Read = Callable[[int], int | None]


class Instruction(NamedTuple):
  """One line of a computation."""

  type: str
  op: str
  operands: list[str]
  given: str  # what stands in the parentheses
  rest: str  # attributes


class Moved(NamedTuple):
  """What a collective moves, and how often."""

  kind: str
  elements: int  # of the whole array, on all its chips
  size: float  # bytes that a chip receives
  times: int


class Found(NamedTuple):
  """What one run of a program moves."""

  moved: list[Moved]
  memory: float  # bytes of a chip's memory that are read and written
  unknown: int  # loops whose trips were not found: counted once


def arrays(text: str) -> Iterator[tuple[int, int, bool]]:
  """Elements and bytes of each array of a type, and whether it is in HBM."""
  for kind, sizes, layout in _ARRAY.findall(text):
    digits = re.match(r"[a-z]+(\d+)", kind)
    bits = _BITS.get(kind) or (int(digits[1]) if digits else 0)
    count = math.prod(int(x.strip("<=")) for x in sizes.split(",") if x)
    yield count, count * bits // 8, not re.search(r"S\([1-9]\)", layout)


def _parenthesis(text: str) -> int:
  """The place after the parenthesis that closes a text's first."""
  depth = 0
  for mark in re.finditer(r"[()]", text):
    depth += 1 if mark[0] == "(" else -1
    if not depth:
      return mark.end()
  return len(text)


class Module:
  """The computations of a program, from its text."""

  def __init__(
    self,
    text: str,
    devices: int,
    steps: int = 0,
    reads: int = 1,
    share: float = 1.0,
  ):
    # For a sampler that refills its slots, whose loops end with the rows: the
    # tokens that a slot draws, how often prompts are read, and the share of all
    # pages that attention reads.
    self.steps, self.reads, self.share = steps, reads, share
    self.devices, self.computations, self.roots = devices, {}, {}
    self._ends: dict[tuple[str, str], dict[int, int | None]] = {}
    self.unknown = 0  # loops whose trips were not found: counted once
    now = self.entry = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
      if line.endswith("{") and line[:1] not in (" ", "") and "(" in line:
        now = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
        self.computations[now] = {}
        self.entry = now if line.startswith("ENTRY") else self.entry
      elif now and (match := _LINE.match(line)):
        self._add(now, *match.groups())

  def _add(self, computation: str, root: str, name: str, text: str) -> None:
    end = _parenthesis(text) if text.startswith("(") else text.find(" ")
    kind, text = text[:end], text[end:].strip()
    op, begin = text.split("(", 1)[0], text.find("(")
    end = begin + _parenthesis(text[begin:])
    given = text[begin + 1 : end - 1]
    operands = re.findall(r"%([\w.\-]+)", given)
    found = Instruction(kind, op, operands, given, text[end:])
    self.computations[computation][name] = found
    if root:
      self.roots[computation] = name

  def called(self, one: Instruction, *keys: str) -> list[str]:
    found = []
    for key in keys:
      for text in re.findall(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", one.rest):
        found += re.findall(r"[\w.\-]+", text)
    return [name for name in found if name in self.computations]

  def value(self, at: str, name: str, carried: Read) -> int | None:
    """A scalar, or None; `carried` are the computation's parameters."""
    one = self.computations[at].get(name)
    if one is None or "[]" not in one.type:
      return None
    read = functools.partial(self.value, at, carried=carried)
    if one.op == "constant":
      text = {"true": "1", "false": "0"}.get(one.given, one.given)
      return int(text) if re.fullmatch(r"-?\d+", text) else None
    if one.op == "parameter":
      return carried(int(one.given))
    if one.op == "get-tuple-element":
      index = int(re.search(r"index=(\d+)", one.rest)[1])
      return self._element(at, one.operands[0], index, carried)
    if one.op in ("copy", "convert", "bitcast", "reshape"):
      return read(one.operands[0])
    if one.op == "fusion" and (inside := self.called(one, "calls")):
      given = functools.partial(self._given, at, one, carried)
      return self.value(inside[0], self.roots[inside[0]], given)
    if one.op not in _KNOWN and one.op != "compare":
      return None
    values = [read(operand) for operand in one.operands]
    if one.op in _ENDS and _ENDS[one.op] in values:
      return _ENDS[one.op]
    if None in values:
      return None
    if one.op == "compare":
      return int(_ORDER[re.search(r"direction=(\w+)", one.rest)[1]](*values))
    return int(_KNOWN[one.op](*values))

  def _element(self, at: str, source: str, index: int, carried: Read):
    one = self.computations[at].get(source)
    if one is not None and one.op == "parameter":
      return carried(index)
    if one is not None and one.op == "tuple":
      return self.value(at, one.operands[index], carried)
    if one is not None and one.op == "while" and (at, source) not in self._ends:
      self.trips(at, source, carried)
    return self._ends.get((at, source), {}).get(index)

  def trips(self, at: str, name: str, carried: Read) -> int | None:
    """The most trips of a loop; None if that cannot be known."""
    one = self.computations[at][name]
    condition, body = (self.called(one, x)[0] for x in ("condition", "body"))
    inside = self.computations[body][self.roots[body]]
    now: dict[int, int | None] = {}

    def read(index: int) -> int | None:
      if index not in now:
        now[index] = self._given(at, one, carried, index)
      return now[index]

    for trip in range(_MOST if inside.op == "tuple" else 0):
      if self.value(condition, self.roots[condition], read) == 0:
        self._ends[at, name] = now
        return trip
      after = {
        index: self.value(body, inside.operands[index], read)
        for index in list(now)
      }
      if after.items() <= now.items():  # Nothing known changes any more.
        return None
      now |= after
    return None

  def walk(
    self,
    at: str,
    times: int = 1,
    carried: Read = lambda i: None,
    lost: int = 0,  # loops around it of unknown trips
    rare: int = 0,
  ) -> Iterator[tuple[str, str, int]]:
    """Every instruction that runs, with its computation and how often.

    `rare` belongs to the body of a loop whose steps were given: how often that
    loop is entered. A loop inside of unknown trips counts per entry, and not at
    every step.
    """
    for name, one in self.computations[at].items():
      yield at, name, times
      count, parts, within = 1, (), None
      if one.op == "while":
        count, parts = self.trips(at, name, carried), ("condition", "body")
      elif one.op in _CALLS or (one.op == "fusion" and self._sends(one)):
        parts = _PARTS
      inside = functools.partial(self._given, at, one, carried)
      each, deeper = times * (count or 1), lost + (count is None)
      if parts and rare:
        within = rare
        each = each if count else rare * self.reads
      elif count is None and lost == 1 and self.steps:
        each, within = times * self.steps, times
      else:
        self.unknown += count is None
      for part in self.called(one, *parts):
        yield from self.walk(part, each, inside, deeper, within)

  def _given(self, at: str, one: Instruction, carried: Read, index: int):
    """An argument that a computation is called with, or a part of a tuple."""
    source = self.computations[at].get(one.operands[0])
    if source is not None and source.type.startswith("("):
      return self._element(at, one.operands[0], index, carried)
    return self.value(at, one.operands[index], carried)

  def _sends(self, fusion: Instruction) -> bool:
    """Whether a fusion contains a collective, as a TPU's products do."""
    return any(
      _kind(one.op) in COLLECTIVES
      for name in self.called(fusion, "calls")
      for one in self.computations[name].values()
    )

  def _goes_on(self, at: str, one: Instruction) -> bool:
    """Whether another fusion began this collective."""
    part = self.computations[at].values()
    begins = any("AsyncCollectiveStart" in x.rest for x in part)
    return _is_under_way(one) and not begins

  def read(self, scope: str = "") -> Found:
    """What the instructions of a named scope move, each as often as it runs."""
    moved, memory = [], 0.0
    self.unknown = 0
    fused = {
      part
      for computation in self.computations.values()
      for one in computation.values()
      if one.op == "fusion"
      for part in self.called(one, "calls")
    }
    for at, name, times in self.walk(self.entry):
      one = self.computations[at][name]
      if scope not in one.rest:
        continue
      kind = _kind(one.op)
      if at.startswith("all-reduce-scatter"):  # keeps only a part of the sum
        kind = kind.replace("all-reduce", "reduce-scatter")
      if at in fused and (kind not in COLLECTIVES or self._goes_on(at, one)):
        continue  # Counted with the fusion, or where it began.
      if kind in COLLECTIVES:
        types = [self.computations[at][x].type for x in one.operands]
        own = [array for text in types for array in arrays(text)]
        count, chips = sum(array[0] for array in own), self._chips(one.rest)
        size = sum(array[1] for array in own) * COLLECTIVES[kind](chips)
        count *= chips if kind in ("all-gather", "collective-permute") else 1
        moved.append(Moved(kind, count, size, times))
      is_free = one.op in _FREE or "AllocateBuffer" in one.rest
      if not is_free and not one.op.endswith("-done"):
        memory += times * self.touched(at, one)
    return Found(moved, memory, self.unknown)

  def _chips(self, text: str) -> int:
    """How many chips take part in a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
      return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
      return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
      sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
      return math.prod(int(sizes[x]) for x in re.findall(r"'(\w+)'", found[2]))
    return self.devices

  def touched(self, at: str, one: Instruction) -> float:
    """Bytes of HBM that an instruction reads and writes."""
    if one.op in _FETCHES:  # Its type has source and target, in either order.
      (_, *first), (_, *second), *_ = arrays(one.type)
      return min(first[0], second[0]) * (first[1] + second[1])
    read = 0.0
    for number, operand in enumerate(one.operands):
      source = self.computations[at].get(operand)
      whole = _bytes(source.type) if source else 0
      read += min(whole, self._read_by(at, one, number, math.inf))
      if one.op.endswith("-start"):  # Its results include its operands.
        read -= whole
    return read + min(_bytes(one.type), self._written(at, one))

  def _read_by(self, at: str, user: Instruction, number: int, after: float):
    """Bytes that an instruction reads of an operand; infinite: all of it.

    Of a part that it hands on as its result, `after` bytes are read.
    """
    if user.op in _CUTS:
      return self._part(at, user) if number == 0 else math.inf
    source = self.computations[at].get(user.operands[number])
    if user.op == "custom-call" and "paged_attention" in user.rest and source:
      return self.share * _bytes(source.type)
    inside = self.called(user, "calls") if user.op == "fusion" else []
    for name, one in self.computations[inside[0]].items() if inside else ():
      if one.op == "parameter" and int(one.given) == number:
        return self._reads(inside[0], name, after)
    return math.inf

  def _reads(self, at: str, name: str, after: float) -> float:
    """Bytes that a fusion reads of an array inside it, under any name."""
    read = after if name == self.roots[at] else 0.0
    for user, one in self.computations[at].items():
      for number, operand in enumerate(one.operands):
        if operand == name and one.op == "bitcast":
          read += self._reads(at, user, after)
        elif operand == name and one.op != "tuple" and not _is_under_way(one):
          is_fusion = one.op == "fusion"
          given = self._reads(at, user, after) if is_fusion else math.inf
          read += self._read_by(at, one, number, given)
    return read

  def _written(self, at: str, one: Instruction) -> float:
    """Bytes written: a result, or the part of an array that is replaced."""
    part = self.computations[at]
    if one.op == "fusion" and (inside := self.called(one, "calls")):
      made = self._made(inside[0], self.roots[inside[0]])
      return min(_bytes(one.type), made)
    if one.op == "tuple":
      return sum(self._made(at, name) for name in one.operands)
    if one.op == "bitcast" and one.operands[0] in part:
      return self._written(at, part[one.operands[0]])
    return self._part(at, one)

  def _made(self, at: str, name: str) -> float:
    """Bytes that a fusion writes of a result; none if it only hands it on."""
    one = self.computations[at].get(name)
    if one is None or one.op == "parameter" or _is_under_way(one):
      return 0.0
    return self._written(at, one)

  def _part(self, at: str, one: Instruction) -> float:
    """Bytes of a result, or of the operand that replaces a part of it."""
    if one.op in _PUTS:
      one = self.computations[at].get(one.operands[_PUTS[one.op]])
    return sum(size for _, size, _ in arrays(one.type)) if one else 0


def _is_under_way(one: Instruction) -> bool:
  """Whether it belongs to a collective that spans several fusions."""
  return any(name in one.rest for name in ("chain_id=", "AsyncCollective"))


def _kind(op: str) -> str:
  return op.removesuffix("-start")


def _bytes(text: str) -> int:
  return sum(size for _, size, in_memory in arrays(text) if in_memory)
