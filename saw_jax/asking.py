# SPDX-License-Identifier: Apache-2.0
"""Asking a server over HTTP: within what time, and what may be asked again."""

import http.client
import logging
import math
import time
from typing import Any

from saw_jax import naming

# What will be no better next time, whatever is asked.
_REFUSALS = (401, 402, 403, 404, 405)
_PASSING = (408, 409, 425, 429)  # and all from 500 on
_MOST_OF_AN_ERROR = 2_000  # bytes
# A reply that is compressed might be any size.
HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class Failure(Exception):
  """No answer: "failed", "late" or "unreadable".

  Without a pause, another attempt will do no better. `reply` is what the server
  said with an error, which may repeat what it was asked.
  """

  def __init__(
    self,
    problem: str,
    kind: str = "failed",
    pause_s: float | None = None,
    reply: bytes = b"",
  ):
    super().__init__(problem)
    self.kind, self.pause_s, self.reply = kind, pause_s, reply


class Refusal(Failure):
  """The server refuses whatever is asked: a wrong address, or a wrong key."""


def import_httpx(extra: str, need: str) -> Any:
  with naming.needs_extra(extra, need):
    import httpx
  # It would tell of each request in the log of a run.
  logging.getLogger("httpx").setLevel(logging.WARNING)
  return httpx


def send(
  client: Any, url: str, body: bytes | None, *, end: float, most_bytes: int
) -> bytes:
  """Posts a body, or gets, until `end` of `time.monotonic`."""
  import httpx

  reply, method = bytearray(), "GET" if body is None else "POST"
  limit = max(end - time.monotonic(), 0.001)
  try:
    with client.stream(method, url, content=body, timeout=limit) as response:
      is_right = response.status_code == 200
      packed = response.headers.get("content-encoding", "identity")
      if is_right and packed.strip().lower() not in ("", "identity"):
        what = "its reply is compressed, and nobody asked for that"
        raise Failure(what, "unreadable")
      # The limit of httpx is for each piece; a reply may come in drops.
      for piece in response.iter_raw():
        reply += piece
        if not is_right and len(reply) > _MOST_OF_AN_ERROR:
          break
        if len(reply) > most_bytes:
          raise Failure("its reply does not end", "unreadable")
        if time.monotonic() > end:
          raise Failure("it took too long", "late", pause_s=0.0)
  # Only the kind of an error is told: its text might hold a header.
  except httpx.TimeoutException as error:
    raise Failure("it took too long", "late", pause_s=0.0) from error
  except httpx.HTTPError as error:
    kind = type(error).__name__
    raise Failure(f"the connection failed ({kind})", pause_s=0.0) from error
  if not is_right:
    raise _failure(response.status_code, response.headers, bytes(reply))
  return bytes(reply)


def _failure(status: int, headers: Any, reply: bytes) -> Failure:
  phrase = f"{status} {http.client.responses.get(status, '')}".strip()
  if status in _REFUSALS or 300 <= status < 400:
    return Refusal(phrase, reply=reply)
  pause_s = None  # It is about what was asked.
  if status in _PASSING or status >= 500:
    try:
      pause_s = float(headers.get("retry-after", 0.0))
    except ValueError:  # a date
      pause_s = 0.0
    pause_s = pause_s if math.isfinite(pause_s) else 0.0
  return Failure(f"it answers {phrase}", pause_s=pause_s, reply=reply)
