"""A server that speaks as vLLM's does, or as SGLang's, with a model in NumPy.

Its forms are those that a real vLLM was recorded with
(`golden/engines/vllm.json`); SGLang's are from its documentation. It has the
weights that it was given last, so that what it samples can be wrong.
"""

import contextlib
import copy
import functools
import http.server
import json
import math
import pathlib
import threading

import jax
import numpy as np

from saw_jax.models import decoder, log_probs
from saw_jax.models.hub import pretrained

_WIDTH = 64  # of the one row that it reads
RECORDED = json.loads(
  (pathlib.Path(__file__).parent / "golden/engines/vllm.json").read_text()
)


def recorded(name, place=0):
  return copy.deepcopy(RECORDED[name][place]["answer"])


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, length):
  order = np.arange(_WIDTH)[None]
  hidden, _ = decoder.Decoder(config).apply(
    {"params": params}, tokens[None], order, order < length
  )
  head = decoder.head_kernel(params, config)
  return log_probs.head_logits(hidden[0, length - 1][None], head)[0]


def draw(logits, how, rng):
  """A token, and the log-probs of the distribution that it is of."""
  scaled = np.asarray(logits, np.float64)
  if how["temperature"]:
    scaled = scaled / how["temperature"]
    if how["top_k"] > 0:
      least = np.sort(scaled)[-how["top_k"]]
      scaled = np.where(scaled >= least, scaled, -np.inf)
  found = scaled - np.logaddexp.reduce(scaled)
  passed = np.cumsum(np.exp(found)) > rng.random()
  return int(passed.argmax() if how["temperature"] else found.argmax()), found


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def do_GET(self):
    self.handle_path(None)

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    self.handle_path(json.loads(body))

  def handle_path(self, asked):
    status, answer = self.server.fake.answer(self.path, asked)
    if self.server.fake.stopped:
      self.close_connection = True
      return
    body = json.dumps(answer).encode()
    with contextlib.suppress(OSError):  # whoever asked has gone
      self.send_response(status)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  def log_message(self, *args):
    pass


class Fake:
  """One server; `faults` are done to the next answers, one after the other."""

  def __init__(self, dialect="vllm", folder="/models/tiny", mode="processed"):
    self.dialect, self.folder, self.mode = dialect, str(folder), mode
    self.faults, self.asked, self.loads = [], [], []
    self.status, self.max_length, self.port = {}, 512, 0
    self.version, self.params, self.config = "default", None, None
    self.lock = threading.Lock()
    # Rows that pass before others have to wait until they are aborted.
    self.passing, self.aborted = math.inf, threading.Event()
    self.start()

  def start(self):
    """Begins, at the old place if there was one, without published weights."""
    self.version, self.params, self.stopped = "default", None, False
    address = ("127.0.0.1", self.port)
    self._server = http.server.ThreadingHTTPServer(address, Handler)
    self._server.daemon_threads = True
    self._server.fake, self.port = self, self._server.server_address[1]
    self.url = f"http://127.0.0.1:{self.port}"
    threading.Thread(
      target=self._server.serve_forever, args=(0.01,), daemon=True
    ).start()

  def stop(self):
    self.stopped = True
    self._server.shutdown()
    self._server.server_close()

  def answer(self, path, asked):
    self.asked.append((path, asked))
    path = path.partition("?")[0]
    if path in self.status:
      return self.status[path], {"error": {"message": "as it was told"}}
    name = path.strip("/").replace("/", "_")
    found = getattr(self, f"{self.dialect}_{name}", None)
    if found is None:
      return 404, {"detail": "Not Found"}
    return 200, found(asked)

  def load(self, folder, version):
    with self.lock:
      source = pretrained.open_checkpoint(folder)
      self.params, self.config = source.load(), source.config
      self.loads.append(folder)
      if version is not None:
        self.version = version

  def sample(self, prompt, how, limit, mode=None):
    """Tokens, their log-probs, the first token's likeliest, and the reason."""
    rng, tokens, taken, top = np.random.default_rng(how.get("seed")), [], [], []
    row = np.zeros(_WIDTH, np.int32)
    row[: len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + limit):
      if self.params is None:
        logits = np.linspace(0, 3, 40)
      else:
        logits = _logits(self.config, self.params, row, length)
      token, found = draw(logits, how, rng)
      if (mode or self.mode) == "raw":
        found = np.asarray(logits) - np.logaddexp.reduce(np.asarray(logits))
      top = top or np.sort(found)[:-3:-1].tolist()
      row[length] = token
      tokens.append(token)
      taken.append(float(found[token]))
      if token in how["stop_token_ids"]:
        return tokens, taken, top, "stop"
    return tokens, taken, top, "length"

  def is_aborted(self):
    with self.lock:
      self.passing -= 1
      waits = self.passing < 0 and not self.aborted.is_set()
    return waits and self.aborted.wait(10)

  def vllm_abort_requests(self, asked):
    names = {b["request_id"] for _, b in self.asked if b and "request_id" in b}
    assert {f"generate-tokens-{x}" for x in names} >= {*asked["request_ids"]}
    self.aborted.set()
    return {"status": "aborted", "aborted": len(asked["request_ids"])}

  def sglang_abort_request(self, asked):
    assert asked["rid"] in {b["rid"] for _, b in self.asked if b and "rid" in b}
    self.aborted.set()

  def fault(self, answer):
    with self.lock:
      fault = self.faults.pop(0) if self.faults else None
    return answer if fault is None else fault(answer)

  def vllm_version(self, asked):
    return recorded("GET /version")

  def vllm_v1_models(self, asked):
    found = recorded("GET /v1/models")
    found["data"][0] |= {"root": self.folder, "max_model_len": self.max_length}
    return found

  def vllm_weight_info(self, asked):
    return {"weight_version": self.version}

  def vllm_update_weight_version(self, asked):
    self.version = asked["new_version"]
    return recorded("POST /update_weight_version") | asked

  def vllm_collective_rpc(self, asked):
    assert asked["method"] == "reload_weights"
    self.load(asked["kwargs"]["weights_path"], None)
    return recorded("POST /collective_rpc")

  def vllm_reset_prefix_cache(self, asked):
    return recorded("POST /reset_prefix_cache")

  def vllm_inference_v1_generate(self, asked):
    how, version = asked["sampling_params"], self.version
    prompt, limit = asked["token_ids"], how["max_tokens"]
    tokens, found, top, reason = self.sample(prompt, how, limit)
    if self.is_aborted():
      tokens, found, reason = tokens[:1], found[:1], "abort"
    answer = recorded("POST /inference/v1/generate")
    spans = [{"version": version, "start": 0, "end": len(tokens)}]
    content = [
      {"token_id": token, "logprob": x, "rank": 1, "top_logprobs": []}
      for token, x in zip(tokens, found, strict=True)
    ]
    content[0]["top_logprobs"] = [{"token_id": 0, "logprob": x} for x in top]
    answer["choices"][0] |= {
      "token_ids": tokens,
      "finish_reason": reason,
      "weight_versions": spans,
      "logprobs": None if how["logprobs"] is None else {"content": content},
    }
    if self.mode == "none":
      answer["choices"][0]["logprobs"] = None
    return self.fault(answer)

  def sglang_get_server_info(self, asked):
    return {"version": "0.5", "context_length": self.max_length}

  def sglang_get_model_info(self, asked):
    return {"model_path": self.folder, "weight_version": self.version}

  def sglang_update_weights_from_disk(self, asked):
    assert asked["flush_cache"]
    self.load(asked["model_path"], asked["weight_version"])
    return {"success": True, "message": "", "num_paused_requests": 0}

  def sglang_generate(self, asked):
    how, version = asked["sampling_params"], self.version
    how["seed"] = how["sampling_seed"]
    prompt, limit = asked["input_ids"], how["max_new_tokens"]
    tokens, found, top, reason = self.sample(prompt, how, limit)
    if self.is_aborted():
      tokens, found, reason = [], [], "abort"
    about = {"finish_reason": {"type": reason}, "weight_version": version}
    if asked["return_logprob"]:
      pairs = zip(found, tokens, strict=True)
      about["output_token_logprobs"] = [[x, token, None] for x, token in pairs]
      about["output_top_logprobs"] = [[[x, 0, None] for x in top]]
    return self.fault({"text": "", "output_ids": tokens, "meta_info": about})
