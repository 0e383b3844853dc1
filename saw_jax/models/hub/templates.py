"""Chat templates, rendered under limits in a process of their own.

A template is a program that came with somebody's weights. This file is also
that process: it runs the program in jinja2's sandbox, with what templates are
written for (transformers' `apply_chat_template`). There is no clock, as prompts
would depend on when a run is made: a template's own day stands, or a fixed one.
"""

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

_SECONDS = 10.0  # for one conversation
_START_SECONDS = 120.0  # for the process, which may wait for the machine
_BYTES = 2**30  # of memory
_LONGEST = 4_000_000  # characters of a conversation


class TemplateError(ValueError):
  """A template that is none, refuses a conversation, or passes a limit."""


class Renderer:
  """A template and the process in which it runs; `names` are its variables."""

  def __init__(self, template: str):
    self._template, self._lock = template, threading.Lock()
    self._stop: Any = None
    with self._lock:
      self.names = frozenset(self._start())

  def render(self, values: dict[str, Any]) -> str:
    with self._lock:
      if not self._stop.alive:
        self._start()
      return self._ask(values, _SECONDS)

  def _start(self) -> list[str]:
    command = [sys.executable, "-P", __file__]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(  # Ctrl-C is the run's, and not this one's.
      command, **pipes, stderr=subprocess.DEVNULL, start_new_session=True
    )
    self._process = process
    self._stop = weakref.finalize(self, _end, process)
    return self._ask(self._template, _START_SECONDS)

  def _ask(self, value: Any, seconds: float) -> Any:
    line = json.dumps(value).encode() + b"\n"
    try:
      # It is read whole before anything is written.
      self._process.stdin.write(line)
      self._process.stdin.flush()
      reply = json.loads(_read_line(self._process.stdout.fileno(), seconds))
    except BaseException as error:
      self._stop()  # What comes late would answer another question.
      if isinstance(error, TimeoutError):
        raise TemplateError(str(error)) from error
      if isinstance(error, OSError | ValueError):
        raise TemplateError("its process ended") from error
      raise
    if "error" in reply:
      raise TemplateError(reply["error"])
    return reply["found"]


# One process for all tokenizers of a template.
open_renderer = functools.lru_cache(maxsize=8)(Renderer)


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()
  process.stdin.close()
  process.stdout.close()


def _read_line(source: int, seconds: float) -> bytes:
  end, line = time.monotonic() + seconds, bytearray()
  poll = select.poll()
  poll.register(source, select.POLLIN)
  while not line.endswith(b"\n"):
    if not poll.poll(1000 * max(end - time.monotonic(), 0.0)):
      raise TimeoutError(f"it takes more than {seconds:g} seconds")
    piece = os.read(source, 2**16)
    if not piece:
      raise ValueError("nothing more comes")
    line += piece
  return bytes(line)


def _main() -> None:
  """Reads a template, then values of its variables, as JSON, a line each."""
  import datetime
  import resource

  import jinja2
  from jinja2 import ext, meta, nodes, runtime, sandbox

  # Some systems have no such limit.
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))

  class Generation(ext.Extension):
    """`{% generation %}`, around what an assistant said; it is only said."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
      call = self.call_method("_say")
      return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _say(self, caller):
      return caller()

  class Clock(runtime.Undefined):
    """Is not defined, for templates that ask, and tells a day to others."""

    unsafe_callable = alters_data = False
    jinja_pass_arg = None

    def __call__(self, form):
      return datetime.datetime(2024, 7, 26).strftime(form)

  def refuse(message):
    raise jinja2.TemplateError(message)

  def to_json(
    value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    options = {"indent": indent, "separators": separators}
    options |= {"ensure_ascii": ensure_ascii, "sort_keys": sort_keys}
    return json.dumps(value, **options)

  def reply(make, *arguments):
    try:
      document = {"found": make(*arguments)}
    except MemoryError:
      document = {"error": "it takes more than a gigabyte"}
    except Exception as error:
      kind = type(error).__name__
      said = f"{error}" if kind == "TemplateError" else f"{kind}: {error}"
      document = {"error": " ".join(said[:300].split())}
    print(json.dumps(document), flush=True)

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, ext.LoopControlExtension],
  )
  environment.filters["tojson"] = to_json
  environment.globals |= {"raise_exception": refuse, "strftime_now": Clock()}

  def prepare(source):
    nonlocal template
    template = environment.from_string(source)
    names = meta.find_undeclared_variables(environment.parse(source))
    return sorted(names - set(environment.globals))

  def render(values):
    text = template.render(values)
    if len(text) > _LONGEST:
      refuse(f"it writes more than {_LONGEST:,} characters")
    return text

  template = None
  make = prepare
  for line in sys.stdin:
    reply(make, json.loads(line))
    make = render


if __name__ == "__main__":
  _main()
