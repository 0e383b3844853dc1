"""Chat templates, rendered under limits in a worker process.

A template is a program that came with somebody's weights. It runs in jinja2's
sandbox, with what templates are written for (transformers'
`apply_chat_template`). Its clock stands still, as prompts would depend on when
a run is made.
"""

import datetime
import functools
import json
import re
import threading
from collections.abc import Iterable
from typing import Any

from saw_jax.tasks.workers.pool import Pool

_SECONDS = 10.0  # for one conversation
_BYTES = 2**30  # of memory
_LONGEST = 4_000_000  # characters of a conversation
_DAY = datetime.datetime(2024, 7, 26)
# A tag around what an assistant says, for masks; here it changes nothing.
_GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(?=\s*[-+]?%})")


class Program:
  """The job: from a template's variables to its text, or why there is none."""

  def __init__(self, source: str):
    self._source = source

  def each(self, items: Iterable) -> Iterable[tuple[Any, str]]:
    return map(self, items)

  def __call__(self, values: dict[str, Any] | None) -> tuple[Any, str]:
    try:
      template, names = self._compiled
      found = names if values is None else template.render(values)
      if len(found) > _LONGEST:
        return None, f"it writes more than {_LONGEST:,} characters"
      return found, ""
    except MemoryError:
      return None, "it takes more than a gigabyte"
    except Exception as error:
      kind = type(error).__name__
      said = f"{error}" if kind == "TemplateError" else f"{kind}: {error}"
      return None, " ".join(said[:300].split())

  @functools.cached_property
  def _compiled(self) -> tuple[Any, list[str]]:
    import jinja2
    from jinja2 import meta, sandbox

    def refuse(message):
      raise jinja2.TemplateError(message)

    made = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=["jinja2.ext.loopcontrols"],
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(
      value, **{"ensure_ascii": False, **options}
    )
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = _DAY.strftime
    made.globals["said"] = lambda caller: caller()
    called = lambda tag: tag[1] + ("endcall" if tag[2] else "call said()")  # noqa: E731
    source = _GENERATION.sub(called, self._source)
    names = meta.find_undeclared_variables(made.parse(source))
    return made.from_string(source), sorted(names - set(made.globals))


class Renderer(Pool):
  """A template in its process; `names` are the variables that it reads."""

  def __init__(self, template: str):
    options = {"limit_s": _SECONDS, "memory_limit_bytes": _BYTES}
    super().__init__(Program(template), "template", num_workers=1, **options)
    self._lock = threading.Lock()
    self.names = frozenset(self.render(None))

  def render(self, values: dict[str, Any] | None) -> Any:
    asked, found = [(None, values)], []

    def ask(index):
      return ([asked.pop()] if asked else []), True

    def lose(index, pending, why):
      late = f"it takes more than {self._limit_s:g} seconds"
      found.append((None, why or late))

    with self._lock:
      self._exchange(ask, lambda _, answer: found.append(answer), lose)
    ((text, problem),) = found
    if problem:
      raise ValueError(problem)
    return text


# One process for all tokenizers of a template.
open_renderer = functools.lru_cache(maxsize=8)(Renderer)
