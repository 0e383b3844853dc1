"""What is said of the programs of a run on a slice."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saw_jax.ahead.footprint import Sizes
from saw_jax.ahead.topology import Topology
from saw_jax.run import checks
from saw_jax.run.sections import Experiment

GIB = 2**30
Figures = Mapping[str, Any]  # of one program: see `compiled.measure`
# What the rows of a call, of an episodes' call and of a pass are cut by.
_CACHE, _CALLS = "rollout.cache_tokens", "episodes.rows_per_call"
_PARTS = "loop.num_microbatches"
_LONGEST = 5  # collectives that are named


def has(topology: Topology) -> float:
  """Bytes of a chip; nothing is known of a virtual one."""
  return GIB * topology.chip["memory_GiB"] if topology.chip else math.inf


def fits(found: Figures, topology: Topology) -> bool:
  return found["needs"] <= has(topology)


def roofline(found: Figures, topology: Topology) -> dict[str, float]:
  """Seconds of one run, of each kind of work as fast as a chip can do it.

  Nobody runs faster than the slowest of them, if all is done at once.
  """
  chip = topology.chip
  if chip is None or "moved" not in found:
    return {}
  sent = sum(entry[-1] for entry in found["moved"])
  return {
    "compute": found["flops"] / (1e12 * chip["tflops"]),
    "HBM": found["memory"] / (1e9 * chip["memory_GBps"]),
    "links": sent / (1e9 * chip["link_GBps"]),
  }


def lines(found: Figures, topology: Topology) -> Iterator[str]:
  """Says a record in words: of the run, of a program, of what would help."""
  if "mesh" in found:
    axes = ", ".join(f"{name} {size}" for name, size in found["mesh"].items())
    yield f"{topology.name}, {topology.count} chips, a mesh of {axes}"
    yield f"{found['compiler']}: compiled, not run"
  elif "would help" in found:
    yield f"  would help, by proportion: {_words(found['would help'])}"
  elif "given up" in found:
    yield "  nothing that was tried helps: a larger slice, or lora.rank=16"
  else:
    yield from _program(found, topology)


def _words(more: Mapping[str, str]) -> str:
  return " ".join(f"--config.{key}={value}" for key, value in more.items())


def _program(found: Figures, topology: Topology) -> Iterator[str]:
  room = f" of {has(topology) / GIB:.2f}" if topology.chip else ""
  said = "fits" if fits(found, topology) else "DOES NOT FIT"
  said = said if topology.chip else "compiles"
  how = f" with {_words(found['with'])}" if "with" in found else ""
  yield (
    f"{found['program']}{how}, {found['runs']:g} a step: {said}, "
    f"{found['needs'] / GIB:.2f}{room} GiB"
  )
  parts = ("arguments", "temporaries", "results", "beside", "cache")
  sizes = [f"{x} {found[x] / GIB:.3f}" for x in parts if x in found]
  yield f"  HBM       {', '.join(sizes)}"
  if found["model_flops"]:
    flops, needed = found["flops"], found["model_flops"]
    said = f"{flops:.3g}, of the model {needed:.3g}: {flops / needed:.2f} to 1"
    yield f"  FLOPs     {said}"
  if times := roofline(found, topology):
    total = sum(times.values()) or 1.0
    shares = (f"{k} {v:.3g} s ({v / total:.0%})" for k, v in times.items())
    yield f"  roofline  {', '.join(shares)}"
  for kind, what, count, size in found.get("moved", ())[:_LONGEST]:
    yield f"  links     {size / 1e9:.3g} GB {what}, by {count:,} {kind}"
  if found.get("unknown_loops"):
    yield f"  {found['unknown_loops']} loops of unknown length count once"
  yield f"  compiled in {found['compile_s']:.0f} s"


def verdict(
  every: Sequence[Figures], topology: Topology
) -> tuple[bool, list[str]]:
  """Whether all fits, and what is said of the run, with what to change."""
  programs = {x["program"]: x for x in every if "program" in x}
  lost = [name for name, x in programs.items() if not fits(x, topology)]
  more = {}
  for found in programs.values():
    more |= found.get("with", {})
  said = []
  if more:
    said.append(f"change: {_words(more)}")
  if lost:
    said.append(f"it does not fit: {', '.join(lost)}")
  elif programs and topology.chip:
    seconds = step_seconds(list(programs.values()), topology)
    said.append(
      f"it fits; no step takes less than {seconds:.4g} s (compiled, not run)"
    )
  return not lost, said


def step_seconds(every: Sequence[Figures], topology: Topology) -> float:
  """A step at the roofline: the slowest of each program, one after another."""
  times = (max(roofline(x, topology).values(), default=math.nan) for x in every)
  return sum(x["runs"] * time for x, time in zip(every, times, strict=True))


def reached(program: str, before: Mapping, after: Mapping) -> bool:
  """Whether a program is another one with the keys that came later."""
  own = ("loop.", "model.")
  if program in ("weights", "generate"):
    own = () if program == "weights" else ("rollout.", "episodes.")
  own = ("parallel.", *own)
  changed = {k for k, _ in dict(before).items() ^ dict(after).items()}
  return any(key.startswith(own) for key in changed)


def remedies(
  made: Experiment, found: Figures, topology: Topology
) -> Iterator[dict[str, str]]:
  """What may help a program that does not fit: keys of a config, in turn.

  What has rows goes in proportion to them, so that parts which would not do are
  passed over; after that the matrices themselves are cut.
  """
  fixed = found["beside"] + found["arguments"]
  over = (found["needs"] - fixed) / max(has(topology) - fixed, 1.0)
  samples = found["program"] == "generate"
  key = (_CALLS if made.method.per_step else _CACHE) if samples else _PARTS
  if not samples and made.decoder.remat == "none":
    yield {"model.remat": "full"}
  for tensor in (1, 2, 4, 8):
    shards = topology.count // tensor
    if shards < 1 or made.decoder.num_heads % tensor:
      continue
    if tensor == 1 and fixed >= has(topology):
      continue  # No rows would have room.
    axes = {"parallel.fsdp": "-1", "parallel.tensor": str(tensor)}
    # A cut in `tensor` halves what is inside a layer, and no more is known.
    for parts in _parts(made, key, shards, 0 if tensor > 1 else over):
      yield {key: str(parts)} | (axes if tensor > 1 else {})


def _parts(
  made: Experiment, key: str, shards: int, over: float
) -> Iterator[int]:
  """Values of a key that cut the rows more often, where they still split."""
  section, name = key.split(".")
  now, sizes = getattr(getattr(made, section), name), Sizes.of(made, shards)
  if key == _CACHE:
    now = now or sizes.sampled // shards * sizes.width
  for parts in range(2, sizes.rows + 1):
    value = now * parts if key == _PARTS else now // parts
    # A tenth less than in proportion: only part of it may have rows.
    if parts < 0.9 * over:
      continue
    if key == _CACHE and value < 2 * sizes.width:
      return
    part = dataclasses.replace(getattr(made, section), **{name: value})
    try:
      checks.check_rows(made._replace(**{section: part}), shards)
    except (ValueError, ZeroDivisionError):
      continue
    yield value
