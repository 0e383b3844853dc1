"""The page of what was compiled for which slice."""

from collections.abc import Mapping, Sequence

from saw_jax.ahead import report, topology
from saw_jax.reporting import tables
from saw_jax.tasks import base

_HEAD = ("rows", "slice", "fits, changed", "HBM", "FLOPs", "GB", "step, s")
_HEAD += ("of it sampling", "at")


def _cells(one: dict) -> list[str]:
  """Of one row on one slice: what its programs need, and a step's bound."""
  where = topology.read(one["slice"])
  if one["refused"]:
    return [""] * 6 + [f"no: {one['refused']}"]
  kept = _kept(one)
  if "update" not in kept:
    return [""] * 6 + ["not compiled to the end"]
  fits, _ = report.verdict(one["figures"], where)
  most = max(kept.values(), key=lambda x: x["needs"])
  update = kept["update"]
  ratio = update["flops"] / update["model_flops"]
  sent = sum(
    x["runs"] * line[-1] for x in kept.values() for line in x.get("moved", ())
  )
  changed = {}
  for x in kept.values():
    changed |= x.get("with", {})
  words = " ".join(f"`{key}={value}`" for key, value in changed.items())
  lost = [name for name, x in kept.items() if not report.fits(x, where)]
  said = f"no: {', '.join(lost)}" if lost else f"yes {words}".strip()
  if "generate" not in kept:  # It is not known, and nothing is recommended.
    said, fits = f"update: {said}; sampling not compiled", False
  return [
    f"{most['needs'] / 2**30:.2f} of {report.has(where) / 2**30:.2f}",
    f"{ratio:.2f}",
    f"{sent / 1e9:,.0f}" if fits else "",
    f"{_step(one):,.1f}" if fits else "",
    _sampling(kept["generate"], where) if fits else "",
    ", ".join(dict.fromkeys(x["commit"] for x in kept.values())),
    f"{said}",
  ]


def _sampling(found: dict, where: topology.Topology) -> str:
  """Seconds of a step's calls of the sampler, to read and to draw."""
  parts = found.get("parts", {}).values()
  times = [report.seconds({**x, "runs": found["runs"]}, where) for x in parts]
  return " + ".join(f"{time:,.1f}" for time in times)


def _compute(name: str) -> float:
  """What all chips of a slice can do, in TFLOP/s."""
  where = topology.read(name)
  return where.count * where.chip["tflops"]


def lines(
  every: Mapping[str, Sequence[Sequence[str]]],
  known: Mapping[tuple[str, str, str], Mapping],
  slices: Sequence[str],
) -> list[str]:
  """The page: a line for each program and slice, and what is recommended."""
  found = [base.asset(report.__file__, "scale.md")]
  for name, shared in every.items():
    found += ["", f"## {name}", ""]
    if not any(table == name for table, *_ in known):
      found.append("Not compiled yet.")
      continue
    cells, fitting = [], []
    for rows in shared:
      for where in slices:
        one = known.get((name, rows[0], where))
        if one is None:
          continue
        *figures, said = _cells(one)
        named = ", ".join(rows[:4]) + f" and {len(rows) - 4} more" * (
          len(rows) > 4
        )
        cells.append([named, where, said, *figures])
        if said.startswith("yes") and rows is shared[0]:
          fitting.append((one, said))
    found += tables.grid(_HEAD, cells, words=len(_HEAD))
    if fitting:
      found += _recommended(fitting)
  return found


def _recommended(fitting: Sequence[tuple[dict, str]]) -> list[str]:
  """The smallest slice that costs no more than others, and that fits at all."""
  sizes = {one["slice"]: _compute(one["slice"]) for one, _ in fitting}
  by_size = sorted(fitting, key=lambda pair: sizes[pair[0]["slice"]])
  times = [sizes[one["slice"]] * _step(one) for one, _ in by_size]
  best = next(n for n, time in enumerate(times) if time <= 1.1 * min(times))
  line = f"Recommended: {by_size[best][0]['slice']}, the smallest whose chip "
  line += "time is within a tenth of the least:"
  found = ["", line, "", _command(*by_size[best])]
  if best:
    line = f"The smallest that fits is {by_size[0][0]['slice']}, with "
    line += f"{times[0] / times[best]:.1f} times the chip time:"
    found += ["", line, "", _command(*by_size[0])]
  return found


def _kept(one: dict) -> dict[str, dict]:
  """Each program as it was compiled last: with what had to be changed."""
  return {x["program"]: x for x in one["figures"] if "program" in x}


def _step(one: dict) -> float:
  """Seconds that no step of a row that fits can be faster than."""
  where = topology.read(one["slice"])
  return sum(report.seconds(x, where) for x in _kept(one).values())


def _command(one: dict, said: str) -> str:
  config = said.removeprefix("yes").replace("`", "").split()
  words = "".join(f" --config.{word}" for word in config)
  given = one["command"].split()
  row = " ".join(word for word in given if word.startswith("--config"))
  return f"    saw train {row}{words} --workdir=runs/{one['table']}"
