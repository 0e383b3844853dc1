"""The page on which a person answers questions for labels.

It is served to this machine alone, to whoever has its token, and it treats all
that it shows as hostile: a policy wrote it. Text is escaped, what cannot be
seen is spelled out, and the browser is told to run and load nothing but the
page's own script and style.

It holds no state but the token: questions, leases and answers are in the
ledger, so that the page, the browser and the run can each be killed and started
again.
"""

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
import unicodedata
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from saw_jax.annotate import ledger as label_ledger
from saw_jax.annotate import queue as label_queue
from saw_jax.annotate.questions import MAX_LABEL_SIZE, describe_form

if TYPE_CHECKING:
  from starlette.applications import Starlette

_BUSY_S = 5.0  # A person waits for less time than a run.
_MAX_BODY = 64 * 1024
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
}
_REFUSED = (
  "This page needs the token that experiments/annotate.py printed: open the "
  "whole address, with ?token= at its end."
)


class Reply(NamedTuple):
  """What is sent back."""

  status: int
  body: str
  kind: str = "text/html"
  location: str | None = None  # of a redirect


class _Refusal(Exception):
  """A request that no page of ours sends; the message says why."""

  def __init__(self, status: int, text: str):
    super().__init__(text)
    self.status = status


def make_app(
  path: str | os.PathLike, *, token: str, port: int, who: str = "annotator"
) -> "Starlette":
  """Makes the web application.

  Args:
    path: of the ledger.
    token: without which nothing is served.
    port: where it is served; it names the cookie, since a browser sends the
      cookies of one port to all ports of a host.
    who: answers.

  Returns:
    A Starlette application.

  Raises:
    ImportError: Starlette is missing.
    LedgerError: the ledger is absent, damaged, locked, or none.
  """
  try:
    from starlette import applications, concurrency, requests, responses
    from starlette.routing import Route
  except ImportError as error:
    raise ImportError(_missing()) from error

  pages = _Pages(path, token=token, who=who)
  cookie = f"saw_jax_annotate_{port}"

  async def serve(request: requests.Request) -> responses.Response:
    given = (
      request.query_params.get("token")
      or request.headers.get("x-token")
      or request.cookies.get(cookie)
      or ""
    )
    try:
      _check_host(request.headers)
      if not _is_same(given, token):
        raise _Refusal(403, _REFUSED)
      form = await _read_form(request) if request.method == "POST" else {}
      reply = await concurrency.run_in_threadpool(
        pages.reply,
        request.method,
        request.url.path,
        dict(request.query_params),
        form,
      )
    except _Refusal as refusal:
      reply = Reply(refusal.status, _bare(str(refusal)))
    response = responses.Response(
      reply.body, reply.status, media_type=reply.kind, headers=_HEADERS
    )
    if reply.location is not None:
      response.headers["Location"] = reply.location
    if "token" in request.query_params and reply.status < 400:
      # Lax, not strict: else a click in another program's window arrives
      # without it. What changes anything is also guarded by a second token.
      response.set_cookie(cookie, token, httponly=True, samesite="lax")
    return response

  route = Route("/{path:path}", serve, methods=["GET", "POST"])
  return applications.Starlette(routes=[route])


def serve(
  path: str | os.PathLike,
  *,
  host: str = "127.0.0.1",
  port: int = 0,
  who: str = "annotator",
) -> None:
  """Serves the page until Ctrl-C, and prints its address.

  Args:
    path: of the ledger.
    host: a loopback address.
    port: 0 takes any that is free.
    who: answers.

  Raises:
    ValueError: the host is not this machine alone.
    OSError: the port is taken.
    ImportError: Starlette or uvicorn is missing.
    LedgerError: the ledger is absent, damaged, locked, or none.
  """
  address = loopback(host)
  try:
    import uvicorn
  except ImportError as error:
    raise ImportError(_missing()) from error
  token = secrets.token_urlsafe(24)
  with _listen(address, port) as listener:
    port = listener.getsockname()[1]
    app = make_app(path, token=token, port=port, who=who)
    server = uvicorn.Server(
      uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # It would hold the token.
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
      )
    )
    shown = f"[{address}]" if ":" in address else address
    print(f"http://{shown}:{port}/?token={token}", flush=True)
    server.run(sockets=[listener])


def loopback(host: str) -> str:
  """Checks that an address is reachable from this machine alone.

  Args:
    host: an address, or `localhost`.

  Returns:
    The address.

  Raises:
    ValueError: it is another one.

  >>> loopback("localhost")
  '127.0.0.1'
  """
  address = "127.0.0.1" if host == "localhost" else host.strip("[]")
  try:
    if ipaddress.ip_address(address).is_loopback:
      return address
  except ValueError:
    pass
  raise ValueError(
    f"the page is served to this machine alone, on 127.0.0.1, ::1 or "
    f"localhost, not on {host!r}: from another machine, forward its port with "
    "ssh -L"
  )


def show_text(text: str) -> str:
  """Writes any text as HTML in which nothing is active and nothing hides.

  Args:
    text: anything, also what no encoding can write.

  Returns:
    HTML in which markup is escaped, and characters that are invisible or turn
    the text around stand as their numbers.

  >>> show_text("<b>" + chr(0x202E))
  '&lt;b&gt;<span class="odd">U+202E</span>'
  """
  parts = []
  for is_odd, group in itertools.groupby(text, _is_odd):
    piece = "".join(group)
    if is_odd:
      codes = " ".join(f"U+{ord(character):04X}" for character in piece)
      parts.append(f'<span class="odd">{codes}</span>')
    else:
      parts.append(html.escape(piece))
  return "".join(parts)


def show_excerpt(excerpt: label_queue.Excerpt) -> str:
  """Writes an excerpt as HTML, with a note on what is left out.

  Args:
    excerpt: of a text.

  Returns:
    HTML.
  """
  if not excerpt.left_out:
    return show_text(excerpt.head)
  return (
    f"{show_text(excerpt.head)}"
    f'<span class="cut">… {excerpt.left_out:,} characters left out …</span>'
    f"{show_text(excerpt.tail)}"
  )


class _Pages:
  """From a request that may be answered to its reply."""

  def __init__(self, path: str | os.PathLike, *, token: str, who: str):
    self._queue = label_queue.LabelQueue(path, busy_s=_BUSY_S)
    self._who = who
    # Whoever can make the browser send its cookie does not know this.
    self._csrf = hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()
    assets = importlib.resources.files("saw_jax.annotate") / "assets"
    self._assets = {
      f"/{name}": Reply(200, (assets / name).read_text("utf-8"), kind)
      for name, kind in (
        ("annotate.css", "text/css"),
        ("annotate.js", "text/javascript"),
      )
    }

  def reply(
    self,
    method: str,
    path: str,
    query: Mapping[str, str],
    form: Mapping[str, str],
  ) -> Reply:
    try:
      if method == "POST":
        return self._post(path, form)
      if path in self._assets:
        return self._assets[path]
      if path != "/":
        raise _Refusal(404, "There is nothing here but the page at /.")
      page = query.get("page", "")
      if not _PAGE_NAME.fullmatch(page):
        return self._redirect(secrets.token_urlsafe(9))
      if "token" in query:  # Out of the address bar.
        return self._redirect(page)
      return self._show(page)
    except label_ledger.LedgerLockedError as error:
      return Reply(503, self._failed(f"{error}.", path, query, form))
    except label_ledger.LedgerError as error:
      return Reply(500, self._failed(f"{error}.", path, query, form))

  def _post(self, path: str, form: Mapping[str, str]) -> Reply:
    if not _is_same(form.get("csrf", ""), self._csrf):
      raise _Refusal(403, "This form is not of this page: reload the page.")
    page = form.get("page", "")
    if not _PAGE_NAME.fullmatch(page):
      raise _Refusal(400, "The form names no page: reload the page.")
    if path == "/undo":
      return self._act(page, form, lambda: self._queue.undo(page))
    prompt, round = _number(form, "prompt"), _number(form, "round")
    if path == "/renew":
      state = self._queue.renew(page, prompt)
      return Reply(200, state, "text/plain")
    if path == "/skip":
      return self._act(
        page,
        form,
        lambda: self._queue.settle(page, prompt, round, who=self._who),
      )
    if path != "/answer":
      raise _Refusal(404, "There is no such form.")
    typed = form.get("answer", "").strip()
    choice = _number(form, "choice") if form.get("choice") else None

    def settle() -> None:
      if not typed and choice is None:
        raise label_queue.AnswerError(
          "Choose an answer or type one; or skip the question."
        )
      self._queue.settle(
        page,
        prompt,
        round,
        answer=typed or None,
        choice=choice,
        who=self._who,
      )

    return self._act(page, form, settle)

  def _act(
    self, page: str, form: Mapping[str, str], act: Callable[[], object]
  ) -> Reply:
    """Does something and shows the next question, or says why not."""
    try:
      act()
    except label_queue.AnswerError as error:
      return self._show(page, refused=str(error), form=form)
    return self._redirect(page)

  def _redirect(self, page: str) -> Reply:
    return Reply(303, "", location=f"/?page={page}")

  def _show(
    self, page: str, *, refused: str = "", form: Mapping[str, str] | None = None
  ) -> Reply:
    shown = self._queue.lease(page)
    counts = self._queue.counts()
    last = self._queue.last(page)
    notice = ""
    if refused:
      notice = f'<p class="notice bad" role="alert">{show_text(refused)}</p>'
    elif last is not None:
      done = "skipped" if last.label is None else "answered"
      what = "" if last.label is None else f" <b>{show_text(last.label)}</b>"
      undo = (
        ", <kbd>u</kbd> takes it back"
        if last.can_undo
        else ", and the run has taken it"
      )
      notice = (
        f'<p class="notice">Prompt {last.prompt_id} {done}{what}{undo}.</p>'
      )
    body = self._header(counts) + notice
    if shown is None:
      text = (
        f"{counts.waiting} waiting in other pages."
        if counts.waiting
        else "No question is waiting. The page looks again by itself."
      )
      body += f'<main><p class="idle">{text}</p>'
      body += f'<p class="actions">{self._undo_button()}</p></main>'
    else:
      typed = (form or {}).get("answer", "")
      is_same = (form or {}).get("prompt") == str(shown.prompt_id)
      body += self._question(shown, page, typed if is_same else "")
    body += self._small_form("undo", page)
    # A script would do, but the page works without one.
    refresh = (
      ""
      if shown
      else f'<meta http-equiv="refresh" content="3; url=/?page={page}">'
    )
    return Reply(422 if refused else 200, _document(body, refresh))

  def _header(self, counts: label_queue.Counts) -> str:
    figures = [
      (counts.waiting, "waiting"),
      (counts.answered, "answered"),
      (counts.skipped, "skipped"),
    ]
    cells = "".join(f"<li><b>{n}</b> {what}</li>" for n, what in figures)
    total = counts.budget.total
    for seed, spent in list(counts.spent.items())[:8]:
      name = f" by seed {seed}" if len(counts.spent) > 1 else ""
      left = "" if total is None else f", <b>{total - spent:g}</b> left"
      cells += f"<li><b>{spent:g}</b> spent{name}{left}</li>"
    if not counts.spent and total is not None:
      cells += f"<li><b>{total:g}</b> left to spend</li>"
    patience = ""
    if counts.patience is not None:
      patience = (
        '<p class="patience">The run waits '
        f"<b>{_duration(counts.patience)}</b> more for the next answer.</p>"
        if counts.patience
        else '<p class="patience">The run has stopped waiting, or was '
        "stopped: answers are kept for when it asks again.</p>"
      )
    return (
      f'<header><h1>Labels</h1><ul class="counts">{cells}</ul>'
      f"{patience}</header>"
    )

  def _question(self, shown: label_queue.Shown, page: str, typed: str) -> str:
    total = sum(c.count for c in shown.clusters) + shown.other_responses
    rows = "".join(
      _cluster(index, cluster, total)
      for index, cluster in enumerate(shown.clusters)
    )
    more = ""
    if shown.other_clusters:
      more = (
        f'<p class="more">{shown.other_responses} more responses have '
        f"{shown.other_clusters} other answers: type one if it is right.</p>"
      )
    expected = show_text(describe_form(shown.form))
    keys = [
      f"<kbd>{index + 1}</kbd>"
      for index, cluster in enumerate(shown.clusters)
      if cluster.label is not None
    ]
    choose = " ".join(keys) + (" choose" if len(keys) > 1 else " chooses")
    if not keys:
      choose = "none of it can be chosen"
    hidden = self._hidden(page, shown)
    return f"""
<main>
<section class="prompt">
<h2>Question <small>prompt {shown.prompt_id}, step {shown.step}, seed \
{shown.seed}</small></h2>
<pre dir="ltr">{show_excerpt(shown.text)}</pre>
</section>
<form id="answer" method="post" action="/answer" autocomplete="off">
{hidden}
<h2>What {total} responses answered <small>{choose}</small></h2>
<ol class="clusters">{rows}</ol>
{more}
<div class="typed">
<label for="typed">Another answer <kbd>a</kbd></label>
<input id="typed" name="answer" value="{html.escape(typed)}" \
maxlength="{MAX_LABEL_SIZE}" spellcheck="false" autocapitalize="off"\
{" autofocus" if typed else ""}>
<p>{expected[0].upper()}{expected[1:]}</p>
</div>
<p class="actions">
<button type="submit" class="main">Send <kbd>Enter</kbd></button>
<button type="submit" form="skip">Skip <kbd>s</kbd></button>
{self._undo_button()}
</p>
</form>
{self._small_form("skip", page, shown)}
</main>
"""

  def _undo_button(self) -> str:
    return '<button type="submit" form="undo">Undo <kbd>u</kbd></button>'

  def _small_form(
    self, name: str, page: str, shown: label_queue.Shown | None = None
  ) -> str:
    return (
      f'<form id="{name}" method="post" action="/{name}">'
      f"{self._hidden(page, shown)}</form>"
    )

  def _hidden(self, page: str, shown: label_queue.Shown | None) -> str:
    fields = {"csrf": self._csrf, "page": page}
    if shown is not None:
      fields |= {"prompt": str(shown.prompt_id), "round": str(shown.round)}
    return _hidden(fields)

  def _failed(
    self,
    text: str,
    path: str,
    query: Mapping[str, str],
    form: Mapping[str, str],
  ) -> str:
    """Says what is wrong with the ledger, and offers to send again."""
    page = urllib.parse.urlencode({"page": query.get("page", "")})
    again = f'<p><a href="/?{page}">Try again</a></p>'
    if form:
      again = (
        "<p>Nothing was kept of what you sent.</p>"
        f'<form method="post" action="{html.escape(path)}">{_hidden(form)}'
        '<button type="submit" class="main" autofocus>Send again</button>'
        "</form>"
      )
    return _document(
      f'<main><p class="notice bad" role="alert">{show_text(text)}</p>'
      f"{again}</main>"
    )


def _cluster(index: int, cluster: label_queue.ShownCluster, total: int) -> str:
  name = (
    '<span class="none">no answer</span>'
    if cluster.answer is None
    else f'<code dir="ltr">{show_excerpt(cluster.answer)}</code>'
  )
  key = "<kbd></kbd>"
  if cluster.label is not None:
    key = (
      f'<input type="radio" name="choice" value="{index}">'
      f"<kbd>{index + 1}</kbd>"
    )
  return (
    f'<li><label>{key}{name}<span class="count">{cluster.count} of {total}'
    f'</span><meter max="{total}" value="{cluster.count}"></meter></label>'
    f'<pre dir="ltr">{show_excerpt(cluster.response)}</pre></li>'
  )


def _document(body: str, head: str = "") -> str:
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"{head}<title>Labels</title>"
    '<link rel="stylesheet" href="/annotate.css">'
    '<script src="/annotate.js" defer></script>'
    f"</head><body>{body}</body></html>"
  )


def _bare(text: str) -> str:
  """A page for whoever has no token: it loads nothing."""
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    f"<title>Labels</title></head><body><p>{show_text(text)}</p></body></html>"
  )


def _hidden(fields: Mapping[str, str]) -> str:
  return "".join(
    f'<input type="hidden" name="{html.escape(name)}" '
    f'value="{html.escape(value)}">'
    for name, value in fields.items()
  )


def _is_odd(character: str) -> bool:
  """Controls, formats, surrogates, private and unassigned; odd separators."""
  if character in "\n\t ":
    return False
  return unicodedata.category(character)[0] in "CZ"


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  if seconds < 5400:
    return f"{seconds / 60:.0f} min"
  return f"{seconds / 3600:.0f} h"


def _number(form: Mapping[str, str], name: str) -> int:
  value = form.get(name, "")
  if not re.fullmatch(r"-?[0-9]{1,18}", value):
    raise _Refusal(400, f"The form has no {name}: reload the page.")
  return int(value)


def _check_host(headers: Mapping[str, str]) -> None:
  """Refuses requests that another site makes, under its name or ours."""
  host = headers.get("host", "")
  try:
    loopback(urllib.parse.urlsplit(f"//{host}").hostname or "")
  except ValueError:
    raise _Refusal(403, "The page has another address than this.") from None
  origin = headers.get("origin")
  if origin is not None and origin != f"http://{host}":
    raise _Refusal(403, "Another site sent this form.")


async def _read_form(request: Any) -> dict[str, str]:
  """Reads the fields of a form; starlette's own needs one package more."""
  body = b""
  async for chunk in request.stream():
    body += chunk
    if len(body) > _MAX_BODY:
      raise _Refusal(413, "The answer is too long: nothing was kept.")
  try:
    fields = urllib.parse.parse_qsl(
      body.decode(), keep_blank_values=True, max_num_fields=20
    )
  except ValueError:
    raise _Refusal(400, "The form cannot be read: reload the page.") from None
  return dict(fields)


def _is_same(given: str, secret: str) -> bool:
  return hmac.compare_digest(
    given.encode("utf-8", "surrogatepass"), secret.encode()
  )


def _listen(address: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in address else socket.AF_INET
  listener = socket.socket(family, socket.SOCK_STREAM)
  try:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    # Whoever reads the printed address may connect, before anything is served.
    listener.listen()
  except OSError as error:
    listener.close()
    raise OSError(
      f"port {port} of {address} cannot be used ({error.strerror}): choose "
      "another --port, or 0 for any"
    ) from error
  return listener


def _missing() -> str:
  return (
    "the annotation page needs starlette and uvicorn: "
    "pip install 'saw_jax[annotate]'"
  )
