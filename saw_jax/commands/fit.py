"""Says what a run needs of the chips of a slice, ahead of time.

  saw fit --config=saw/tool_calling:row=gdpo_saw,scale=paper --topology=v5e-8

Compiles the programs of a step for the slice, without weights and without a
chip: sampling, log-probs, the update. Prints of each the memory that it takes,
its FLOPs, what it sends and how often, and how fast a chip could be at most.
Slices are v5e, v6e and v5p, as v5e-8 (so many chips) or v5e:2x4; gpu:h100x8 is
arithmetic on shapes, as is --devices with --memory. cpu:8 is XLA's partitioner
on virtual devices, which also stands in where the extra `tpu` is missing.

Ends with status 1 if something does not fit. What would help is said by
proportion, and with what an update that fits would compute less again;
--suggest compiles that, until it does fit.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

from absl import flags

from saw_jax.ahead import topology as topology_lib
from saw_jax.run import children, command_line
from saw_jax.run import config as config_lib

_TRIES = 4  # settings that may help a program


def main() -> int:
  given = flags.FLAGS
  if command_line.given_config() is None:
    raise command_line.UsageError("give --config=TABLE, or --rows=FILE")
  with command_line.checking_input():
    where = given.topology and topology_lib.read(given.topology)
  if not where or where.kind == "gpu":
    return _by_arithmetic(where)
  if topology_lib.is_set():
    for found in _compile(where):
      print(json.dumps(found), flush=True)
    return 0
  # The platform and the number of devices are set before JAX starts.
  words = children.saw("fit", *sys.argv[1:])
  env = topology_lib.environment(where)
  with subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as child:
    fits = _report(where, map(json.loads, child.stdout))
  return child.returncode or int(not fits)


def _run(more=()):
  """The settings of the flags, with `more` keys."""
  words = [(key, str(value)) for key, value in dict(more).items()]
  run = config_lib.typed(command_line.given_config(*words))
  return config_lib.replace(run, "rollout.page_size", flags.FLAGS.page_size)


def _by_arithmetic(where) -> int:
  from saw_jax.ahead import compiled, footprint, report

  count = where.count if where else flags.FLAGS.devices
  most = report.has(where) if where else 1e9 * flags.FLAGS.memory
  with command_line.checking_input():
    made = compiled.experiment_of(_run(), count)
    sizes = footprint.per_device(made, count)
  for name, size in ((n, x) for n, x in sizes.items() if x):
    print(f"  {name:<30} {size / 1e9:9.3f} GB")
  need, _ = footprint.peak(sizes)
  print(f"{footprint.sentence(made, count)}; there are {most / 1e9:g} GB")
  if need <= most:
    return 0
  advice = footprint.HELD | footprint.SAMPLING | footprint.UPDATING
  print("it does not fit; what would help, the largest part first:")
  for name in sorted(sizes, key=sizes.get, reverse=True)[:4]:
    print(f"  {name}: {advice[name]}")
  return 1


def _compile(where) -> Iterator[dict]:
  """The figures of each program, in a process that was set up for that."""
  from saw_jax.ahead import compiled, programs, report

  given = flags.FLAGS

  def made_with(more):
    return compiled.experiment_of(_run(more), where.count)

  def measure(name, more):
    found = ahead.measure(made_with(more), name)
    return found | {"with": more} if more else found

  more, known = {}, {}  # keys that help, and those each program was made with
  with command_line.checking_input():
    if given.suggest:
      more = compiled.splitting(_run(more), where.count)
    made = made_with(more)
    report.check_room(made, where)
    ahead = compiled.Compiler(where)
  policy = ahead.outline(made)
  yield {"mesh": dict(policy.mesh.shape), "compiler": ahead.name}
  names = [one.name for one in programs.programs_of(policy)]
  for name in (x for x in names if x in (given.programs or [x])):
    found = measure(name, more)
    yield found
    known[name], is_well = more, report.fits(found, where)
    slowest = report.seconds(found, where)
    better, tried = report.choices(made_with(more), found, where), None
    if not given.suggest:
      yield from ({"would help": one} for one in itertools.islice(better, 1))
      continue
    for one in itertools.islice(better, _TRIES):
      tried = measure(name, more | one)
      yield tried
      is_better = not is_well or report.seconds(tried, where) <= slowest
      if report.fits(tried, where) and is_better:
        more = known[name] = more | one
        break
    else:
      if not is_well:
        yield {"given up": name}
      elif tried:
        yield found  # Nothing is better.
  for name, before in known.items():  # Later keys may change earlier programs.
    if report.reached(name, before, more):
      yield measure(name, more)


def _report(where, every) -> bool:
  from saw_jax.ahead import report

  kept = []
  for found in every:
    kept.append(found)
    is_json, said = flags.FLAGS.json, report.lines(found, where)
    print(*([json.dumps(found)] if is_json else said), sep="\n", flush=True)
  fits, said = report.verdict(kept, where)
  if said and not flags.FLAGS.json:
    print(*said, sep="\n")
  return fits
