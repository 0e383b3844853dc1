"""The page on which a person answers questions for labels.

It is served to this machine alone, to whoever has its token, and it treats all
that it shows as hostile: a policy wrote it. Text is escaped, what cannot be
seen is spelled out, and the browser is told to run and load nothing but the
page's own script and style.

It holds no state but the token, and what it refused until that has been said:
questions, leases and answers are in the ledger, so that the page, the browser
and the run can each be killed and started again.
"""

import contextlib
import functools
import hashlib
import hmac
import html
import importlib.resources
import ipaddress
import itertools
import os
import re
import secrets
import socket
import string
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from saw_jax import naming
from saw_jax.annotate import asking, database
from saw_jax.annotate import ledger as ledger_lib
from saw_jax.annotate.questions import (
  MAX_LABEL_SIZE,
  describe_form,
  is_hidden,
)

Fields = Mapping[str, str]

_BUSY_S = 5.0  # A person waits for less time than a run.
_STALLED_S = 30.0  # for one request, from its first byte to the reply's last
_MAX_BODY = 64 * 1024
_MOST_REFUSED = 99  # pages that have not come for what was refused
_PAGE_NAME = re.compile(r"[A-Za-z0-9_-]{8,40}")
_HEADERS = {
  "Content-Security-Policy": (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
  ),
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
  # Not "no-referrer", with which forms are sent without their origin.
  "Referrer-Policy": "same-origin",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
  "Connection": "close",  # so that its limit is that of one request
}
_REFUSED = (
  "This page needs the token that saw annotate printed: open the "
  "whole address, with ?token= at its end."
)
_ASSETS = importlib.resources.files(__package__) / "assets"
_KINDS = {"/annotate.css": "text/css", "/annotate.js": "text/javascript"}
_UNDO = '<button type="submit" form="undo">Undo <kbd>u</kbd></button>'


class Reply(NamedTuple):
  """What is sent back."""

  status: int
  body: str
  kind: str = "text/html"
  location: str | None = None  # of a redirect


class _Refusal(Exception):
  """Refuses a request that our page never sends: a status and a sentence."""


def make_app(
  path: str | os.PathLike, *, token: str, port: int, who: str = "annotator"
) -> Any:
  """Makes the starlette application of a ledger, for who has the token."""
  from starlette import applications, concurrency, requests, responses, routing

  pages, cookie = _Pages(path, token, who), f"saw_jax_annotate_{port}"

  async def serve(request: requests.Request) -> responses.Response:
    query = dict(request.query_params)
    given = query.get("token") or request.cookies.get(cookie, "")
    try:
      _check_host(request.headers)
      if not _is_same(given, token):
        raise _Refusal(403, _REFUSED)
      form = await _read_form(request) if request.method == "POST" else None
      asked = request.url.path, query, form
      reply = await concurrency.run_in_threadpool(pages.reply, *asked)
    except requests.ClientDisconnect:
      return responses.Response()  # Nobody is there to read it.
    except _Refusal as refusal:
      # A page for whoever has no token: it loads nothing.
      status, said = refusal.args
      head = '<!doctype html><html lang="en"><meta charset="utf-8">'
      body = f"{head}<title>Labels</title><p>{show_text(said)}</p>"
      reply = Reply(status, body)
    response = responses.Response(
      reply.body, reply.status, media_type=reply.kind, headers=_HEADERS
    )
    if reply.location is not None:
      response.headers["Location"] = reply.location
    if "token" in query and reply.status < 400:
      # Lax, not strict: else a click in another program's window arrives
      # without it. What changes anything is also guarded by a second token.
      response.set_cookie(cookie, token, httponly=True, samesite="lax")
    return response

  route = routing.Route("/{path:path}", serve, methods=["GET", "POST"])
  return applications.Starlette(routes=[route])


def serve(
  path: str | os.PathLike,
  *,
  host: str = "127.0.0.1",
  port: int = 0,
  who: str = "annotator",
) -> None:
  """Serves the page of a ledger until Ctrl-C, and prints its address."""
  address, token = loopback(host), secrets.token_urlsafe(24)
  is_ipv6 = ":" in address
  family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
  try:
    # Listens before it prints: a reader of the address may connect at once.
    listener = socket.create_server((address, port), family=family)
  except OSError as error:
    raise OSError(
      f"port {port} of {address} cannot be used "
      f"({os.strerror(error.errno or 0)}): choose another --port, or 0 for any"
    ) from error
  with listener:
    port = listener.getsockname()[1]
    need = "the annotation page needs starlette and uvicorn"
    with naming.needs_extra("annotate", need):
      import uvicorn
      from uvicorn.protocols.http.h11_impl import H11Protocol

      app = make_app(path, token=token, port=port, who=who)

    class Protocol(H11Protocol):
      def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(_STALLED_S, transport.abort)

    config = uvicorn.Config(
      app,
      http=Protocol,
      log_level="warning",
      access_log=False,  # It would hold the token.
      server_header=False,
      proxy_headers=False,
      lifespan="off",
      ws="none",
      timeout_graceful_shutdown=1,
    )
    shown = f"[{address}]" if is_ipv6 else address
    print(f"http://{shown}:{port}/?token={token}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def loopback(host: str) -> str:
  """The address of a host, which must be reachable from this machine alone."""
  address = "127.0.0.1" if host == "localhost" else host.strip("[]")
  with contextlib.suppress(ValueError):
    if ipaddress.ip_address(address).is_loopback:
      return address
  raise ValueError(
    f"the page is served to this machine alone, on 127.0.0.1, ::1 or "
    f"localhost, not on {host!r}: from another machine, forward its port with "
    "ssh -L"
  )


def show_text(text: str) -> str:
  """Writes any text as HTML in which nothing is active and nothing hides.

  >>> show_text("<b>" + chr(0x202E))
  '&lt;b&gt;<span class="odd">U+202E</span>'
  """
  shown = ""
  for odd, characters in itertools.groupby(text, is_hidden):
    if odd:
      codes = " ".join(f"U+{ord(character):04X}" for character in characters)
      shown += f'<span class="odd">{codes}</span>'
    else:
      shown += html.escape("".join(characters))
  return shown


class _Pages:
  """Turns a request that passed the checks into its reply."""

  def __init__(self, path: str | os.PathLike, token: str, who: str):
    self._ledger = ledger_lib.LabelLedger(path, busy_s=_BUSY_S, creates=False)
    self._who = who
    # Page -> why its last form was refused, and what it had.
    self._refused: dict[str, tuple[str, Fields]] = {}
    # Another site can make the browser send its cookie, but not this.
    self._csrf = hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()

  def reply(self, path: str, query: Fields, form: Fields | None) -> Reply:
    """Answers a GET or, with a form, a POST."""
    try:
      if form is not None:
        return self._post(path, form)
      if path in _KINDS:
        return Reply(200, _read_asset(path[1:]), _KINDS[path])
      if path != "/":
        raise _Refusal(404, "There is nothing here but the page at /.")
      page = query.get("page", "")
      if not _PAGE_NAME.fullmatch(page):
        return _redirect(secrets.token_urlsafe(9))
      if "token" in query:  # Out of the address bar.
        return _redirect(page)
      return self._show(page, *self._refused.pop(page, ("", {})))
    except database.LedgerError as error:
      is_locked = isinstance(error, database.LedgerLockedError)
      body = _failed(f"{error}.", path, query, form)
      return Reply(503 if is_locked else 500, body)

  def _post(self, path: str, form: Fields) -> Reply:
    if not _is_same(form.get("csrf", ""), self._csrf):
      raise _Refusal(403, "This form is not of this page: reload the page.")
    page = form.get("page", "")
    if not _PAGE_NAME.fullmatch(page):
      raise _Refusal(400, "The form names no page: reload the page.")
    try:
      if path == "/undo":
        self._ledger.undo(page)
        return _redirect(page)
      prompt, round = _number(form, "prompt"), _number(form, "round")
      if path == "/renew":
        return Reply(200, self._ledger.renew(page, prompt), "text/plain")
      how: dict[str, Any] = {}
      if path == "/answer":
        typed = form.get("answer", "").strip() or None
        choice = _number(form, "choice") if form.get("choice") else None
        if typed is None and choice is None:
          said = "Choose an answer or type one; or skip the question."
          raise asking.AnswerError(said)
        how = {"answer": typed, "choice": choice}
      elif path != "/skip":
        raise _Refusal(404, "There is no such form.")
      self._ledger.settle(page, prompt, round, who=self._who, **how)
    except asking.AnswerError as error:
      # Shown after a redirect, so that reloading does not send the form again.
      self._refused = dict(list(self._refused.items())[-_MOST_REFUSED:])
      self._refused[page] = str(error), form
    return _redirect(page)

  def _show(self, page: str, refused: str, form: Fields) -> Reply:
    shown, counts = self._ledger.lease(page), self._ledger.counts()
    last = self._ledger.last(page)
    fields = {"csrf": self._csrf, "page": page}
    body, refresh = _header(counts), ""
    if refused:
      body += _notice(refused)
    elif last is not None:
      prompt, label, can_undo = last
      done = f"answered <b>{show_text(label)}</b>" if label else "skipped"
      undo = "<kbd>u</kbd> takes it back"
      if not can_undo:
        undo = "and the run has taken it"
      body += f'<p class="notice">Prompt {prompt} {done}, {undo}.</p>'
    if shown is not None:
      is_same = form.get("prompt") == str(shown.prompt_id)
      typed = form.get("answer", "") if is_same else ""
      body += _question(shown, fields, typed)
    else:
      text = "No question is waiting. The page looks again by itself."
      if counts.waiting:
        text = f"{counts.waiting} waiting in other pages."
      body += f'<main><p class="idle">{text}</p>'
      body += f'<p class="actions">{_UNDO}</p></main>'
      # In the head and not in the script, without which the page works.
      url = f"3; url=/?page={page}"
      refresh = f'<meta http-equiv="refresh" content="{url}">'
    body += _form("undo", fields)
    body = _fill("document.html", body=body, head=refresh)
    return Reply(200, body)


def _question(shown: asking.Shown, fields: Fields, typed: str) -> str:
  total = shown.other_responses + sum(n for _, n, *_ in shown.clusters)
  more = ""
  if shown.other_clusters:
    more = (
      f'<p class="more">{shown.other_responses} more responses have '
      f"{shown.other_clusters} other answers: type one if it is right.</p>"
    )
  clusters, keys = [], []
  for index, (answer, count, response, label) in enumerate(shown.clusters):
    key, radio = f"<kbd>{index + 1}</kbd>", "<kbd></kbd>"
    if label is not None:
      keys.append(key)
      radio = f'<input type="radio" name="choice" value="{index}">{key}'
    name = '<span class="none">no answer</span>'
    if answer is not None:
      name = f'<code dir="ltr">{_show_excerpt(*answer)}</code>'
    clusters.append(
      f'<li><label>{radio}{name}<span class="count">{count} of {total}</span>'
      f'<meter max="{total}" value="{count}"></meter></label>'
      f'<pre dir="ltr">{_show_excerpt(*response)}</pre></li>'
    )
  choose = "none of it can be chosen"
  if keys:
    choose = " ".join([*keys, "choose" if len(keys) > 1 else "chooses"])
  expected = show_text(describe_form(shown.form))
  fields = {**fields, "prompt": shown.prompt_id, "round": shown.round}
  return _fill(
    "question.html",
    prompt=shown.prompt_id,
    step=shown.step,
    seed=shown.seed,
    text=_show_excerpt(*shown.text),
    hidden=_hidden(fields),
    total=total,
    choose=choose,
    clusters="".join(clusters),
    more=more,
    typed=html.escape(typed),
    longest=MAX_LABEL_SIZE,
    focus=" autofocus" if typed else "",
    expected=expected[0].upper() + expected[1:],
    undo=_UNDO,
    skip=_form("skip", fields),
  )


def _header(counts: ledger_lib.Counts) -> str:
  kinds, total = ("waiting", "answered", "skipped"), counts.total
  figures = [f"<b>{getattr(counts, kind)}</b> {kind}" for kind in kinds]
  for seed, spent in list(counts.spent.items())[:8]:
    name = f" by seed {seed}" if len(counts.spent) > 1 else ""
    left = "" if total is None else f", <b>{total - spent:g}</b> left"
    figures.append(f"<b>{spent:g}</b> spent{name}{left}")
  if not counts.spent and total is not None:
    figures.append(f"<b>{total:g}</b> left to spend")
  cells = "".join(f"<li>{figure}</li>" for figure in figures)
  text = f'<h1>Labels</h1><ul class="counts">{cells}</ul>'
  if counts.patience is not None:
    said = (
      "The run has stopped waiting, or was stopped: answers are kept for when "
      "it asks again."
    )
    if counts.patience:
      left = _duration(counts.patience)
      said = f"The run waits <b>{left}</b> more for the next answer."
    text += f'<p class="patience">{said}</p>'
  return f"<header>{text}</header>"


def _failed(text: str, path: str, query: Fields, form: Fields | None) -> str:
  """Says what is wrong with the ledger, and offers to send again."""
  page = urllib.parse.urlencode({"page": query.get("page", "")})
  again = f'<p><a href="/?{page}">Try again</a></p>'
  if form:
    again = (
      "<p>Nothing was kept of what you sent.</p>"
      f'<form method="post" action="{html.escape(path)}">{_hidden(form)}'
      '<button type="submit" class="main" autofocus>Send again</button></form>'
    )
  body = f"<main>{_notice(text)}{again}</main>"
  return _fill("document.html", body=body, head="")


def _show_excerpt(head: str, left_out: int, tail: str) -> str:
  cut = ""
  if left_out:
    cut = f'<span class="cut">… {left_out:,} characters left out …</span>'
  return f"{show_text(head)}{cut}{show_text(tail)}"


def _notice(text: str) -> str:
  return f'<p class="notice bad" role="alert">{show_text(text)}</p>'


def _form(name: str, fields: Fields) -> str:
  inside = _hidden(fields)
  return f'<form id="{name}" method="post" action="/{name}">{inside}</form>'


def _hidden(fields: Mapping[str, Any]) -> str:
  return "".join(
    f'<input type="hidden" name="{html.escape(name)}" '
    f'value="{html.escape(str(value))}">'
    for name, value in fields.items()
  )


def _fill(name: str, **values: object) -> str:
  return string.Template(_read_asset(name)).substitute(values)


@functools.cache
def _read_asset(name: str) -> str:
  return (_ASSETS / name).read_text("utf-8")


def _redirect(page: str) -> Reply:
  return Reply(303, "", location=f"/?page={page}")


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.0f} h"


def _number(form: Fields, name: str) -> int:
  value = form.get(name, "")
  if not re.fullmatch(r"-?[0-9]{1,18}", value):
    raise _Refusal(400, f"The form has no {name}: reload the page.")
  return int(value)


def _check_host(headers: Fields) -> None:
  """Refuses requests that another site makes, under its name or ours."""
  host = headers.get("host", "")
  try:
    loopback(urllib.parse.urlsplit(f"//{host}").hostname or "")
  except ValueError:
    raise _Refusal(403, "The page has another address than this.") from None
  if headers.get("origin", f"http://{host}") != f"http://{host}":
    raise _Refusal(403, "Another site sent this form.")


async def _read_form(request: Any) -> dict[str, str]:
  """Reads the fields of a form; starlette's own needs one package more."""
  body = b""
  async for chunk in request.stream():
    body += chunk
    if len(body) > _MAX_BODY:
      raise _Refusal(413, "The answer is too long: nothing was kept.")
  try:
    text, options = body.decode(), {"max_num_fields": 20}
    return dict(urllib.parse.parse_qsl(text, keep_blank_values=True, **options))
  except ValueError:
    raise _Refusal(400, "The form cannot be read: reload the page.") from None


def _is_same(given: str, secret: str) -> bool:
  return hmac.compare_digest(given.encode(), secret.encode())
