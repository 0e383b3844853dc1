"""The part of `--config=saw/tool_calling:arguments` after the colon."""

from saw_jax.names import nearest


def parse(argument: str | None, **choices: tuple[str, ...]) -> dict[str, str]:
  """Reads `row=gdpo_saw,scale=tiny`; the first choice of a key is its default.

  A bare word stands for the one key that has it among its choices. What is
  unknown is a ValueError that names the nearest.
  """
  values = {key: allowed[0] for key, allowed in choices.items()}
  for part in filter(None, (p.strip() for p in (argument or "").split(","))):
    key, sign, value = part.partition("=")
    if not sign:
      owners = [k for k, allowed in choices.items() if part in allowed]
      if len(owners) != 1:
        known = sum(choices.values(), tuple(choices))
        raise ValueError(f"unknown argument {part!r}: {nearest(part, known)}")
      key, value = owners[0], part
    if key not in choices:
      raise ValueError(f"unknown argument {key!r}: {nearest(key, [*choices])}")
    if value not in choices[key]:
      near = nearest(value, choices[key])
      raise ValueError(f"unknown {key} {value!r}: {near}")
    values[key] = value
  return values


def first(default: str, choices: tuple[str, ...]) -> tuple[str, ...]:
  """The same choices, in front of them the one that is the default."""
  return (default, *(choice for choice in choices if choice != default))
