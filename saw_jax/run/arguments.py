"""The part of `--config=file.py:arguments` after the colon."""

import difflib


def parse(argument: str, **choices: tuple[str, ...]) -> dict[str, str]:
  """Reads `row=gdpo_saw,scale=tiny`.

  Args:
    argument: comma-separated; a bare word stands for the one key that has it
      among its choices.
    **choices: for each key, the values it can have; the first is the default.

  Returns:
    A value for every key.

  Raises:
    ValueError: an unknown key or value; the message has the nearest one.
  """
  values = {key: allowed[0] for key, allowed in choices.items()}
  for part in filter(None, (p.strip() for p in (argument or "").split(","))):
    key, sign, value = part.partition("=")
    if not sign:
      owners = [k for k, allowed in choices.items() if part in allowed]
      if len(owners) != 1:
        known = [
          *choices,
          *(v for allowed in choices.values() for v in allowed),
        ]
        raise ValueError(f"unknown argument {part!r}: {_nearest(part, known)}")
      key, value = owners[0], part
    if key not in choices:
      raise ValueError(f"unknown argument {key!r}: {_nearest(key, choices)}")
    if value not in choices[key]:
      raise ValueError(
        f"unknown {key} {value!r}: {_nearest(value, choices[key])}"
      )
    values[key] = value
  return values


def _nearest(word: str, known) -> str:
  known = list(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
  return f"did you mean {close!r}? There are {', '.join(known)}"
