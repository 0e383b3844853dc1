"""Says in words what the programs of a run need of a slice."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saw_jax.ahead import footprint
from saw_jax.ahead.topology import Topology
from saw_jax.run.sections import Experiment

GIB = 2**30
Figures = Mapping[str, Any]  # of one program: see `compiled.measure`
# What bounds the rows of a call, of a call in episodes, and of a pass.
_CACHE, _CALLS = "rollout.cache_tokens", "episodes.rows_per_call"
_PARTS = "loop.num_microbatches"
# What the backward pass recomputes: next to nothing, all but attention's
# results, everything.
REMATS = ("dots", "attention", "full")
_LONGEST = 5  # collectives that are named


def has(topology: Topology) -> float:
  """Bytes of a chip; infinite for a virtual one."""
  return GIB * topology.chip["memory_GiB"] if topology.chip else math.inf


def fits(found: Figures, topology: Topology) -> bool:
  return found["needs"] <= has(topology)


def roofline(found: Figures, topology: Topology) -> dict[str, float]:
  """Seconds of one run for each kind of work, at a chip's full speed.

  Done all at once, the slowest of them bounds the run.
  """
  chip = topology.chip
  if chip is None or found.keys().isdisjoint(("moved", "sent")):
    return {}
  sent = sum(entry[-1] for entry in found.get("moved", ()))
  return {
    "compute": found["flops"] / (1e12 * chip["tflops"]),
    "HBM": found["memory"] / (1e9 * chip["memory_GBps"]),
    "links": found.get("sent", sent) / (1e9 * chip["link_GBps"]),
  }


def seconds(found: Figures, topology: Topology) -> float:
  """The least seconds of a program in a step; NaN if they are unknown.

  Its parts run one after the other, each at its roofline.
  """
  parts = found.get("parts", {"": found}).values()
  times = [max(roofline(x, topology).values(), default=math.nan) for x in parts]
  return found.get("runs", 1) * sum(times)


def lines(found: Figures, topology: Topology) -> Iterator[str]:
  """A record in words: of the run, of a program, or of what would help."""
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


def _words(more: Mapping[str, Any]) -> str:
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
  parts = ("arguments", "temporaries", "beside", "cache")
  sizes = [f"{x} {found[x] / GIB:.3f}" for x in parts if x in found]
  yield f"  HBM       {', '.join(sizes)}"
  if "slots" in found:
    yield f"  slots     {_slots(found['slots'])}"
  if found["model_flops"]:
    flops, needed = found["flops"], found["model_flops"]
    said = f"{flops:.3g}, of the model {needed:.3g}: {flops / needed:.2f} to 1"
    yield f"  FLOPs     {said}"
  for name, part in {"roofline": found, **found.get("parts", {})}.items():
    times = roofline(part, topology)
    total = sum(times.values()) or 1.0
    shares = [f"{k} {v:.3g} s ({v / total:.0%})" for k, v in times.items()]
    if shares:
      yield f"  {name:<9} {', '.join(shares)}"
  if "weights" in found.get("parts", {}).get("decode", {}):
    size = found["parts"]["decode"]["weights"]
    said = f"{size / 1e9:.3g} GB" if size else "no"
    yield f"  links     {said} weights, to draw tokens"
  for kind, what, count, size in found.get("moved", ())[:_LONGEST]:
    yield f"  links     {size / 1e9:.3g} GB {what}, by {count:,} {kind}"
  if found.get("unknown_loops"):
    yield f"  {found['unknown_loops']} loops of unknown length count once"
  yield f"  compiled in {found['compile_s']:.0f} s"


def _slots(found: Mapping[str, Any]) -> str:
  """How many rows are sampled at once, and in which pages."""
  said = f"{found['slots']:,} of {found['rows']:,} rows"
  if found["slots"] > found["full"]:
    said += f", {found['full']:,} if all are of full length"
  if not found["page_size"]:
    return said
  if not found["pages"]:
    return f"{said}, without pages: {found['apart']}"
  how = "JAX's kernel"
  if found["apart"]:
    how = f"a gather, for {found['apart']}"
  pages = f"{found['pages']:,} pages of {found['page_size']:,} tokens"
  return f"{said}, in {pages} by {how}"


def verdict(
  every: Sequence[Figures], topology: Topology
) -> tuple[bool, list[str]]:
  """Whether everything fits, and the last lines, with what to change."""
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
    least = sum(seconds(x, topology) for x in programs.values())
    said.append(
      f"it fits; no step takes less than {least:.4g} s (compiled, not run)"
    )
  return not lost, said


def check_room(made: Experiment, topology: Topology) -> None:
  """Raises if, by arithmetic, even the smallest parts have no room."""
  count, sizes = topology.count, footprint.Sizes.of(made, topology.count)
  parts = max(1, sizes.rows // made.loop.num_minibatches // count)
  cache = sizes.least_cache
  least = {"model.remat": "full", _PARTS: parts, _CACHE: cache}
  found = footprint.per_device(_with(made, least), count)
  held = sum(found[name] for name in footprint.HELD)
  rows = sum(found[name] for name in footprint.UPDATING)
  pool = made.rollout.page_size and found["cache of keys and values"]
  for needs, of, help_ in (
    (held + rows, "the least of rows", "lora.rank=16"),
    (held + pool, "pages of all prompts and a response", "no pages"),
  ):
    if needs > has(topology):
      raise ValueError(
        f"what is held all the time takes {held / GIB:.1f} GiB a chip, with "
        f"{of} {needs / GIB:.1f} of {has(topology) / GIB:.2f}: a larger slice, "
        f"or {help_}"
      )


def reached(program: str, before: Mapping, after: Mapping) -> bool:
  """Whether keys that came later change a program."""
  own = ["parallel."]
  if program == "generate":
    own += ["rollout.", "episodes."]
  elif program not in ("weights", "layers"):
    own += ["loop."] + ["model."] * (program == "update")
  changed = {k for k, _ in dict(before).items() ^ dict(after).items()}
  return any(key.startswith(tuple(own)) for key in changed)


def choices(
  made: Experiment, found: Figures, topology: Topology
) -> Iterator[dict[str, Any]]:
  """Keys with which a program should fit, the best first.

  For an update that fits, keys with which it recomputes less, or sends less if
  links are what it waits for. Memory is scaled in proportion to arithmetic.
  """
  samples, is_well = found["program"] == "generate", fits(found, topology)
  if is_well and found["program"] != "update":
    return
  now, before = made.parallel.tensor, _of_rows(made, topology.count, samples)
  held, rate = found["beside"] + found["arguments"], 1.0
  # With more parts than this, each has one row and nothing to pack it with.
  most = made.loop.num_microbatches
  if not made.method.per_step:
    shards = topology.count // now * (1 + (made.loop.pack_length > 0))
    rows = footprint.Sizes.of(made, shards).rows // made.loop.num_minibatches
    most = max(most, rows // shards)
  times = roofline(found, topology)
  waits = times and times["links"] == max(times.values())
  if not is_well:
    rate = (found["needs"] - held) / before
  for keys in _settings(made, samples, topology.count):
    if is_well and not (keys if waits else "model.remat" in keys):
      return
    if is_well and keys.get(_PARTS, 0) > most:
      continue
    after = _of_rows(_with(made, keys), topology.count, samples)
    needs = found["needs"] + rate * (after - before)
    if samples:  # It has whole weights, split over `tensor` alone.
      cut = now / keys.get("parallel.tensor", now)
      needs -= found["arguments"] * (1 - cut)
    if keys and needs <= has(topology):
      yield keys


def _of_rows(made: Experiment, count: int, samples: bool) -> float:
  """Bytes on a chip that depend on a program's rows, by arithmetic."""
  sizes = footprint.per_device(made, count)
  names = footprint.SAMPLING if samples else footprint.UPDATING
  return sum(sizes[name] for name in names)


def _with(made: Experiment, keys: Mapping[str, Any]) -> Experiment:
  for key, value in keys.items():
    section, name = key.replace("model.", "decoder.").split(".")
    part = dataclasses.replace(getattr(made, section), **{name: value})
    made = made._replace(**{section: part})
  return made


def _settings(
  made: Experiment, samples: bool, count: int
) -> Iterator[dict[str, Any]]:
  """Settings with which rows still split, the best first.

  That is the least recomputed, in the fewest parts; matrices are split last.
  """
  loop, now = made.loop, made.parallel.tensor
  remats = dict.fromkeys((made.decoder.remat, *REMATS))
  if made.decoder.remat in REMATS:
    remats = REMATS
  for tensor in dict.fromkeys((now, 2, 4, 8)):
    shards = count // tensor
    if tensor < now or not shards or made.decoder.num_heads % tensor:
      continue
    axes = {"parallel.fsdp": -1, "parallel.tensor": tensor}
    axes = axes if tensor > now else {}
    sizes = footprint.Sizes.of(made, shards)
    if not samples:
      rows = sizes.rows // loop.num_minibatches // shards
      every = (
        {"model.remat": remat, "loop.chunk_size": chunk, _PARTS: parts}
        for remat in remats
        for chunk in (loop.chunk_size, loop.chunk_size // 4)
        for parts in range(1, rows + 1)
        if rows % parts == 0
      )
    elif made.method.per_step:
      most = made.episodes.rows_per_call
      parts = (x for x in range(1, most + 1) if most % (x * shards) == 0)
      every = ({_CALLS: most // part} for part in parts)
    else:
      most = math.ceil(sizes.sampled / shards) * sizes.width
      most = min(made.rollout.cache_tokens or most, most)
      parts = range(1, most // sizes.least_cache + 1)
      every = ({_CACHE: most // part} for part in parts)
    for keys in every:
      keys = {k: v for k, v in keys.items() if _with(made, {k: v}) != made}
      yield axes | keys
