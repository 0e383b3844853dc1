"""Says whether a run fits into the memory of its devices: arithmetic.

  saw fit --config=saw/tool_calling:row=gdpo_saw,scale=paper \\
    --devices=8 --memory=80

Adds up what one device holds (parameters, gradients, optimizer, reference,
cache, activations of a micro-batch) from the shapes alone: no weight is read
and nothing is compiled. The compiled programs need somewhat more or less; that
holds for activations most. Ends with status 1 if it does not fit.
"""

from absl import flags

from saw_jax.run import command_line


def main() -> int:
  given, config = flags.FLAGS, command_line.given_config()
  if config is None:
    raise command_line.UsageError("give --config=TABLE, or --rows=FILE")

  from saw_jax.commands import footprint
  from saw_jax.run import build
  from saw_jax.run import config as config_lib

  with command_line.checking_input():
    made, _ = build.outline(config_lib.typed(config))
    sizes = footprint.per_device(made, given.devices)
  for name, size in ((n, x) for n, x in sizes.items() if x):
    print(f"  {name:<30} {size / 1e9:9.3f} GB")
  most, when = footprint.peak(sizes)
  print(
    f"about {most / 1e9:.3f} GB of {given.memory:g} on each of {given.devices} "
    f"device(s), in {when}: arithmetic on shapes, no measurement"
  )
  if most <= 1e9 * given.memory:
    return 0
  advice = footprint.HELD | footprint.SAMPLING | footprint.UPDATING
  print("it does not fit; what would help, the largest part first:")
  for name in sorted(sizes, key=sizes.get, reverse=True)[:4]:
    print(f"  {name}: {advice[name]}")
  return 1
