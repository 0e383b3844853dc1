"""The page for people: hostile text, wrong tokens, two pages, a lock."""

import contextlib
import html
import html.parser
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import types
import urllib.error
import urllib.parse
import urllib.request

import hypothesis
import pytest
from hypothesis import strategies as st
from starlette import testclient

from saw_jax.annotate import page as annotation_page
from saw_jax.annotate.ledger import Budget, LabelLedger
from saw_jax.annotate.questions import Cluster, Label, Question
from saw_jax.annotate.sources import GroundTruth
from tests import helpers

BASE = "http://127.0.0.1:8765"
TOKEN = "a-token-for-tests"
HOME = "/?page=page-for-tests"  # at / alone, each request is another page


def ask(*prompts, text="", response="", step=0):
  clusters = (
    Cluster("7", 3, f"it is 7{response}"),
    Cluster("8", 1, f"it is 8{response}"),
    Cluster(None, 1, "it is"),
  )
  return [
    Question(p, f"{text}prompt {p}", clusters, step, 0, "integer")
    for p in prompts
  ]


@pytest.fixture
def app(path, ledger, monkeypatch):
  monkeypatch.setattr(annotation_page, "_BUSY_S", 0.05)
  return annotation_page.make_app(path, token=TOKEN, port=8765)


def stranger(app):
  """A browser without the token."""
  return testclient.TestClient(app, base_url=BASE)


@pytest.fixture
def browser(app):
  client = stranger(app)
  assert client.get(f"/?token={TOKEN}").status_code == 200
  return client


class Form(html.parser.HTMLParser):
  """What a browser would make of a page: its text, its tags, its fields."""

  def __init__(self, page):
    super().__init__()
    self.text, self.tags, self.fields, self._form = "", [], {}, None
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    self.tags.append((tag, values))
    if tag == "form":
      self._form = values["action"]
    elif tag == "input" and "type" in values and values["type"] == "hidden":
      fields = self.fields.setdefault(self._form, {})
      fields[values["name"]] = values["value"]

  def handle_data(self, data):
    self.text += data


def read(response):
  return Form(response.text)


def submit(client, action, shown=None, **fields):
  """Fills in a form of the page, and sends it."""
  forms = read(client.get(HOME) if shown is None else shown).fields
  hidden = forms.get(action, forms.get("/answer"))
  return client.post(action, data={**hidden, **fields})


class TestToken:
  @pytest.mark.parametrize("given", ["", "?token=", "?token=wrong"])
  def test_without_it_nothing_is_served(self, app, ledger, given):
    ledger.ask(ask(1, text="secret "))
    client = stranger(app)
    replies = [client.get(t + given) for t in ("/", "/annotate.js", "/nowhere")]
    for action in ("/answer", "/skip", "/undo", "/renew"):
      replies.append(client.post(action + given, data={"x": "y"}))
    for reply in replies:
      assert reply.status_code == 403 and not reply.cookies
      assert "open the whole address, with ?token=" in reply.text
      assert "secret" not in reply.text
    assert ledger.counts().waiting == 1

  def test_it_leaves_the_address_bar(self, app):
    client = stranger(app)
    reply = client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert reply.status_code == 303
    assert re.fullmatch(r"/\?page=[\w-]+", reply.headers["location"])
    cookie = reply.headers["set-cookie"].lower()
    assert cookie.startswith(f"saw_jax_annotate_8765={TOKEN};")
    assert "httponly" in cookie and "samesite=lax" in cookie
    reply = client.get("/")
    assert reply.status_code == 200 and TOKEN not in reply.text

  def test_another_name_for_this_machine_is_refused(self, browser):
    # A site whose name is made to point here has the cookies of its name only,
    # but it does not even get that far.
    evil = ("evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[", "")
    for host in (*evil, "localhost:9000", "[::1]:8765", "127.0.0.1"):
      reply = browser.get(HOME, headers={"host": host})
      assert reply.status_code == (403 if host in evil else 200), host

  def test_forms_of_other_sites_are_refused(self, browser, ledger):
    ledger.ask(ask(1))
    fields = {**read(browser.get("/")).fields["/answer"], "answer": "7"}
    evil = ("http://evil.example", "null", "http://127.0.0.1:9999")
    wrong = [(fields, origin) for origin in evil]
    wrong += [({**fields, "csrf": x}, BASE) for x in ("", "0" * 64, TOKEN)]
    for data, origin in wrong:
      reply = browser.post("/answer", data=data, headers={"origin": origin})
      assert reply.status_code == 403
      assert ("Another site" in reply.text) == (origin != BASE)
    assert ledger.counts().waiting == 1
    reply = browser.post("/answer", data=fields, headers={"origin": BASE})
    assert reply.status_code == 200 and ledger.counts().answered == 1


class TestHeaders:
  def test_each_reply_has_them(self, app, browser, ledger):
    ledger.ask(ask(1))
    for reply in (
      browser.get(HOME),
      browser.get("/annotate.css"),
      browser.get("/nowhere"),
      stranger(app).get("/"),
      submit(browser, "/answer", answer="no"),
    ):
      policy = reply.headers["content-security-policy"]
      assert policy.startswith("default-src 'none'; script-src 'self';")
      assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
      assert reply.headers["x-content-type-options"] == "nosniff"
      assert reply.headers["cache-control"] == "no-store"
      assert reply.headers["referrer-policy"] == "same-origin"

  def test_nothing_comes_from_elsewhere(self, browser, ledger):
    ledger.ask(ask(1))
    for path in ("/", "/annotate.js", "/annotate.css"):
      page = browser.get(path).text
      assert not re.search(r"https?:|url\(|@import|innerHTML|eval", page)
      assert not re.search(r"<[^>]* (on\w+|style)=", page)
    for _, values in read(browser.get("/")).tags:
      for name in ("src", "href", "action"):
        assert values.get(name, "/").startswith("/")


HOSTILE = [
  "</pre></main><script src=//evil.example></script>",
  "]]></textarea></style><svg onload=alert(1)>",
  '"><img src=x onerror=alert(1)><!--',
  "&lt;b&gt; &#x202e;",
  "\u202eevank\u202c-\u2066\u200b\ufeff\U000e0041",
  "\x00\x1b[31m\x7f\x85\u2028-\ud800",
]


def is_odd(character):
  return annotation_page.show_text(character).startswith("<span")


class TestHostileText:
  @pytest.mark.parametrize("text", HOSTILE, ids=ascii)
  def test_it_is_shown_and_does_nothing(self, browser, ledger, text):
    def show(prompt, text):
      clusters = (Cluster(text, 1, text),)
      ledger.ask([Question(prompt, text, clusters, 0, 0, "text")])
      # But for the spans around what cannot be seen, and the key of an answer
      # that is none.
      found = [tag for tag, _ in read(browser.get(HOME)).tags]
      return [tag for tag in found if tag not in ("span", "input", "kbd")]

    usual = show(1, "plain")
    ledger.take([1])
    assert show(2, text) == usual
    page = browser.get(HOME)
    for character in filter(is_odd, text):
      assert character not in page.text
      assert f"U+{ord(character):04X}" in page.text
    shown = re.sub(r"U\+[0-9A-F]+ ?", "", read(page).text)
    rest = "".join(c for c in text if not is_odd(c))
    assert shown.count(rest) >= 3

  def test_a_typed_answer_comes_back_escaped(self, browser, ledger):
    ledger.ask(ask(1))
    page = submit(browser, "/answer", answer='"><script>alert(1)</script>')
    # Reloading the page sends nothing again, and says it once.
    (before,) = page.history
    assert (before.status_code, page.request.method) == (303, "GET")
    assert 'class="notice bad"' in page.text
    assert 'class="notice bad"' not in browser.get(page.url).text
    assert "<script>alert" not in page.text
    (typed,) = (v for _, v in read(page).tags if v.get("id") == "typed")
    assert typed["value"] == '"><script>alert(1)</script>'

  def test_megabytes_are_cut(self, browser, ledger):
    ledger.ask(ask(1, response="y" * 5_000_000, text="x" * 3_000_000))
    page = browser.get("/")
    assert len(page.text) < 100_000
    assert "2,960,008 characters left out" in page.text
    assert "4,992,007 characters left out" in page.text

  @hypothesis.settings(max_examples=100)
  @hypothesis.given(st.text(st.characters(codec=None)))
  def test_any_text_can_be_sent_and_read(self, text):
    shown = annotation_page.show_text(text)
    shown.encode()
    parsed = Form(shown)
    assert {tag for tag, _ in parsed.tags} <= {"span"}
    plain = "".join(c for c in text if not is_odd(c))
    kept = re.sub(r'<span class="odd">[^<]*</span>', "", shown)
    assert html.unescape(kept) == plain


class TestAnswering:
  def test_by_choice_by_hand_and_not_at_all(self, browser, ledger):
    ledger.ask(ask(1, 2, 3))
    page = submit(browser, "/answer", choice="1", answer="")
    assert page.status_code == 200 and "prompt 2" in page.text
    assert "Prompt 1 answered 8, u takes it back." in read(page).text
    submit(browser, "/answer", page, answer=" 0012 ")
    page = submit(browser, "/skip")
    assert "No question is waiting" in page.text
    assert "Prompt 3 skipped" in page.text
    labels = [Label("8", "annotator"), Label("12", "annotator"), None]
    assert list(ledger.take([1, 2, 3]).values()) == labels
    assert "the run has taken it" in browser.get(page.url).text

  @pytest.mark.parametrize(
    ("action", "fields", "status", "message"),
    [
      ("/answer", {"answer": ""}, 200, "Choose an answer or type one; or skip"),
      ("/answer", {"choice": "0"}, 200, "not both"),
      ("/answer", {"answer": "7\u202e"}, 200, "invisible character U+202E"),
      ("/answer", {"prompt": "5"}, 200, "no question 5"),
      # What the page itself never sends.
      ("/answer", {"prompt": "x"}, 400, "no prompt"),
      ("/answer", {"round": ""}, 400, "no round"),
      ("/answer", {"choice": "9" * 30}, 400, "no choice"),
      ("/answer", {"page": "../../x"}, 400, "names no page"),
      ("/answer", {"answer": "7" * 100_000}, 413, "too long"),
      ("/answer", {f"x{n}": "" for n in range(30)}, 400, "cannot be read"),
      ("/elsewhere", {}, 404, "no such form"),
    ],
  )
  def test_nonsense_is_refused_with_a_sentence(
    self, browser, ledger, action, fields, status, message
  ):
    ledger.ask(ask(1))
    reply = submit(browser, action, **{"answer": "7", **fields})
    assert reply.status_code == status
    assert message in read(reply).text
    assert ("prompt 1" in reply.text) == (status == 200)
    assert ledger.counts().waiting == 1

  def test_a_body_that_is_no_form(self, browser):
    reply = browser.post("/answer", content=b"\xff\xfe%zz")
    assert reply.status_code == 400 and "cannot be read" in reply.text

  def test_undo(self, browser, ledger):
    ledger.ask(ask(1, 2))
    submit(browser, "/answer", answer="5")
    page = submit(browser, "/undo")
    assert "prompt 1" in page.text and ledger.counts().waiting == 2
    submit(browser, "/answer", answer="6")
    ledger.take([1])
    page = submit(browser, "/undo")
    assert "The run has taken" in page.text
    assert ledger.take([1]) == {1: Label("6", "annotator")}

  def test_two_pages_open_at_once(self, browser, ledger):
    ledger.ask(ask(1, 2))
    one, two = browser.get("/"), browser.get("/")
    assert "prompt 1" in one.text and "prompt 2" in two.text
    assert "2 waiting in other pages" in browser.get("/").text
    # The same page in two windows: the second answer is refused.
    submit(browser, "/answer", one, answer="5")
    late = submit(browser, "/answer", one, answer="6")
    assert "answered already with '5': this answer was not" in read(late).text
    assert ledger.take([1]) == {1: Label("5", "annotator")}
    assert ledger.counts().answered == 1

  def test_the_script_hears_what_became_of_a_question(self, browser, ledger):
    ledger.ask(ask(1))
    page = browser.get("/")
    for said in ("yours", "closed"):
      reply = browser.post("/renew", data=read(page).fields["/answer"])
      assert reply.text == said
      assert reply.headers["content-type"].startswith("text/plain")
      ledger.take([1])

  def test_the_figures(self, path, browser, ledger):
    ledger = LabelLedger(path, budget=Budget(total=9.0))
    assert "9 left to spend" in read(browser.get("/")).text
    example = types.SimpleNamespace(key=8, reference="1")
    ledger.buy(ask(8), GroundTruth([example], price=2.5))
    ledger.ask(ask(1, 2), patience=300.0)
    text = read(browser.get("/")).text
    parts = "2 waiting", "0 answered", "2.5 spent, 6.5 left", "5 min more"
    assert all(part in text for part in parts)
    ledger.ask(ask(1, 2, step=1), patience=1e-9)
    assert "has stopped waiting" in browser.get("/").text

  def test_the_page_works_without_its_script(self, browser, ledger):
    ledger.ask(ask(1))
    tags = read(browser.get(HOME)).tags
    buttons = {v.get("form", "answer") for t, v in tags if t == "button"}
    assert buttons == {"answer", "skip", "undo"}
    radios = [v["value"] for _, v in tags if v.get("type") == "radio"]
    assert radios == ["0", "1"]
    refresh = ("meta", {"http-equiv": "refresh", "content": f"3; url={HOME}"})
    assert refresh not in tags
    # Also where a form was refused.
    for action in ("/skip", "/undo"):
      page = submit(browser, action)
      assert page.status_code == 200 and refresh in read(page).tags
      ledger.take([1])


class TestLedgerTrouble:
  def test_locked(self, path, browser, ledger):
    ledger.ask(ask(1))
    page = browser.get("/")
    with contextlib.closing(sqlite3.connect(path)) as holder:
      holder.execute("BEGIN EXCLUSIVE")
      reply = browser.get(HOME)
      sent = submit(browser, "/answer", page, answer="5")
    assert reply.status_code == sent.status_code == 503
    assert "is locked by another process" in reply.text
    assert f'href="{HOME}"' in reply.text
    # What was sent can be sent again.
    assert "Nothing was kept" in sent.text
    assert submit(browser, "/answer", sent).status_code == 200
    assert ledger.take([1]) == {1: Label("5", "annotator")}

  def test_damaged(self, path, browser):
    path.write_bytes(b"x" * 9000)
    reply = browser.get("/")
    assert reply.status_code == 500
    assert "is damaged (file is not a database)" in reply.text


class TestServe:
  def test_on_this_machine_alone(self, path):
    hosts = {"127.3.2.1": "127.3.2.1", "localhost": "127.0.0.1", "[::1]": "::1"}
    for host, address in hosts.items():
      assert annotation_page.loopback(host) == address
    for host in ("0.0.0.0", "::", "", "example.org", "127.0.0.1.nip.io"):
      with pytest.raises(ValueError, match="to this machine alone"):
        annotation_page.serve(path, host=host)

  def test_a_port_that_is_taken(self, path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
      port = taken.getsockname()[1]
      with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be"):
        annotation_page.serve(path, port=port)

  @pytest.mark.parametrize("package", ["starlette", "uvicorn"])
  def test_without_the_extra(self, path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'saw_jax\[annotate\]'"):
      annotation_page.serve(path)


class TestForReal:
  """The script in a process of its own, over the loopback interface."""

  @pytest.fixture
  def server(self, path):
    script = helpers.ROOT / "experiments" / "annotate.py"
    words = f"--run={path.parent}", "--port=0", "--name=eva"
    process = helpers.process(script, *words, stderr=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()

  def test_from_the_address_to_the_label(self, server, path, ledger):
    ledger.ask(ask(1, 2))
    address = server.stdout.readline().strip()
    base = address.partition("/?")[0]
    form = r"http://127\.0\.0\.1:[0-9]+/\?token=[\w-]{32}"
    assert re.fullmatch(form, address)
    with pytest.raises(urllib.error.HTTPError, match="403"):
      urllib.request.urlopen(base)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    page = Form(browser.open(address).read().decode())
    fields = {**page.fields["/answer"], "choice": "0", "answer": ""}
    body = urllib.parse.urlencode(fields).encode()
    request = urllib.request.Request(f"{base}/answer", body, {"Origin": base})
    assert "prompt 2" in browser.open(request).read().decode()
    assert ledger.take([1, 2]) == {1: Label("7", "eva"), 2: None}
    # Not reachable from another interface.
    port = int(base.rpartition(":")[2])
    with socket.socket(socket.AF_INET6) as other, pytest.raises(OSError):
      other.connect(("::1", port))
    server.send_signal(signal.SIGINT)
    said, complaints = server.communicate(timeout=60)
    assert server.returncode == 0
    assert said == f"the page is closed; the answers are in {path}\n"
    assert complaints == ""

  def test_who_stalls_is_cut_off_and_who_leaves_is_no_error(self, path, ledger):
    code = (
      "import contextlib, sys; from saw_jax.annotate import page\n"
      "page._STALLED_S = 0.5\n"
      "with contextlib.suppress(KeyboardInterrupt): page.serve(sys.argv[1])"
    )
    server = helpers.process("-c", code, path, stderr=subprocess.PIPE)
    try:
      found = urllib.parse.urlsplit(server.stdout.readline().strip())
      post = f"POST /skip?{found.query} HTTP/1.1\r\nHost: {found.netloc}\r\n"
      half = f"{post}Content-Length: 100\r\n\r\ncsrf="
      get = post.replace("POST /skip", "GET /") + "\r\n"
      place = found.hostname, found.port
      with socket.create_connection(place) as one:
        one.sendall(half.encode())  # and is gone
      for text in ("", "GET / HT", half, f"{get}G"):
        with socket.create_connection(place, timeout=30) as one:
          one.sendall(text.encode())
          reply = b"".join(iter(lambda one=one: one.recv(4096), b""))
          status = b"HTTP/1.1 303" if text.startswith(get) else b""
          assert reply[:12] == status
      server.send_signal(signal.SIGINT)
      assert server.communicate(timeout=60)[1] == ""
    finally:
      server.kill()
