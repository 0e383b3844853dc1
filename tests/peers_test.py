"""Tests of the benchmark beside other libraries: arithmetic, and our worker."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from benchmarks import peers, shared
from benchmarks.peer_workers import protocol
from tests import helpers

MODEL = dict(vocab_size=10, width=3, num_layers=2, num_heads=2, num_kv_heads=1)
BATCH = dict(num_prompts=2, group_size=1, prompt_size=2, new_tokens=3)
TINY = dataclasses.replace(
  protocol.SHAPES["S"], **MODEL, head_size=4, mlp_size=7, **BATCH
)


def repetition(ours, tunix, probe=100.0):
  return {"ours": ours, "tunix": tunix, "probe": probe}


def test_a_ratio_is_of_one_repetition():
  # Of the medians, 3 and 6, the ratio would be 2.
  found = [repetition(1, 4), repetition(3, 6), repetition(5, 25)]
  assert peers.ratios(found, "tunix") == [4, 2, 5]
  row = peers.summarise({"valid": found, "void": []}, 30)["rows"]
  assert (row["tunix"]["ratio"], row["tunix"]["range"]) == (4, [2, 5])
  assert row["ours"] == {"seconds": 3, "tokens_per_second": 10}


def test_void_repetitions_count_only_where_there_are_no_others():
  quiet, noisy = repetition(1, 2), repetition(1, 9)
  for valid, void, ratio in (([quiet], [noisy] * 5, 2), ([], [noisy], 9)):
    found = peers.summarise({"valid": valid, "void": void}, 1)
    assert found["quiet"] == len(valid)
    assert found["rows"]["tunix"]["ratio"] == ratio
  assert peers.is_quiet([100.0, 86.0], best=100.0)
  assert not peers.is_quiet([100.0, 84.0], best=100.0)


def test_nobody_always_goes_first():
  names = ["ours", "tunix", "trl"]
  found = [shared.order(names, repetition) for repetition in range(3)]
  assert found == [names, names[::-1], names]


def test_products_are_counted_by_hand():
  # A layer's weights: queries 3 x 8, keys and values 3 x 4 each, out 8 x 3, and
  # three of 3 x 7. Scores and mixing: 5 x 8 each, per token.
  weights = 24 + 12 + 12 + 24 + 63
  per_token, head = 2 * (weights + 2 * 5 * 8), 2 * 3 * 10
  flops = 2 * per_token * 10 + head * 6
  assert peers.matmul_flops(TINY) == {"forward": flops, "train": 3 * flops}


def test_the_largest_difference_counts_and_nan_is_no_agreement():
  ours = {"logits": np.zeros((2, 3)), "log_probs": np.zeros(4)}
  theirs = {"logits": np.zeros((2, 3)), "log_probs": np.array([0, 0, 2.0, 1])}
  assert peers.disagreement(ours, theirs) == 2
  theirs["log_probs"][0] = np.nan
  assert not peers.disagreement(ours, theirs) <= peers.TOLERANCE
  theirs["logits"] = np.zeros((2, 4))
  assert peers.disagreement(ours, theirs) == np.inf


@pytest.mark.parametrize(
  ("theirs", "differing"),
  [
    ({"loss": 0.00105, "gradient_norm": 10.005}, []),
    ({"loss": 0.002, "gradient_norm": 10.02}, ["loss", "gradient_norm"]),
    # Who does not know a value is not compared in it; who has none at all is.
    ({"loss": 0.001}, []),
    ({"loss": float("nan")}, ["loss"]),
  ],
)
def test_values_are_compared_as_shares(theirs, differing):
  ours = {"loss": 0.001, "gradient_norm": 10.0}
  assert peers.differing(ours, theirs) == differing


def test_flags_name_peers_and_their_parts():
  assert peers.parse(["--only=trl"]).only == ["ours", "trl"]
  assert peers.parse([]).only == ["ours", "tunix", "trl"]
  assert peers.parse([]).parts == {}
  assert peers.parse(["--parts=tunix:16/8,trl:2"]).parts == {
    "tunix": {"forward": 16, "train": 8},
    "trl": {"forward": 2, "train": 2},
  }


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--only=ternix", "'ternix' is not one of ours, tunix, trl"),
    ("--jobs=sleep", "'sleep' is not one of forward"),
    ("--repetitions=0", "at least 1"),
    ("--shape=XL", "'XL'"),
    ("--parts=ternix:2", "'ternix' is not one of"),
    ("--parts=tunix:0", "at least 1"),
    ("--parts=tunix:8/4/2", "--parts"),
  ],
)
def test_what_there_is_not_is_refused(flag, said, capsys):
  with pytest.raises(SystemExit):
    peers.parse([flag])
  assert said in capsys.readouterr().err


class FakePeer:
  """A worker that takes as long as it is told, by job and parts."""

  name = "ours"

  def __init__(self, seconds):
    self.seconds, self.parts = seconds, None

  def ask(self, op, *, parts=None, job=None, **_):
    if op == "open":
      self.parts = parts
      return {}
    seconds = self.seconds[job, self.parts[job]]
    if seconds is None:
      raise peers.PeerError("no memory")
    return {"seconds": seconds}


def test_each_job_gets_its_fastest_parts_that_do_not_fail():
  seconds = {"forward": (1.0, 2.0, 3.0), "train": (None, 4.0, 4.5)}
  peer = FakePeer(
    {
      (job, parts): value
      for job, values in seconds.items()
      for parts, value in zip((1, 8, 16), values, strict=True)
    }
  )
  found = peers.choose_parts(peer, ["forward", "train"], {}, None)
  assert found == {"forward": 1, "train": 8}
  assert peer.parts == found  # what it is left open with


def test_parts_that_are_given_or_not_measured_are_not_tried():
  peer, given = FakePeer({}), {"forward": 4, "train": 2}
  found = peers.choose_parts(peer, ["train"], {}, given)
  assert found == peer.parts == given
  found = peers.choose_parts(peer, ["generate"], {}, None)
  assert found == {"forward": 1, "train": 1}


@pytest.fixture
def document():
  measured = {
    "failed": {},
    "valid": [repetition(1.0, 1.5), repetition(2.0, 3.2)],
    "void": [],
  }
  cell = {"loaded": 300e6, "peak": 500e6, "steady": 400e6}
  memory = {
    "train": {"ours": cell | {"temporary": 5e6}, "tunix": cell},
    peers.AT_ONCE: {"ours": cell | {"temporary": 7e6}},
  }
  return {
    "name": "S",
    "shape": dataclasses.asdict(protocol.SHAPES["S"]),
    "peers": ["ours", "tunix"],
    "parts": {"ours": {"forward": 2, "train": 8}}
    | {"tunix": {"forward": 1, "train": 1}},
    "jobs": {"train": measured},
    "summary": {"train": peers.summarise(measured, 3000)},
    "bound": {"flops": 1e9, "gflops": 200.0, "share": 0.4},
    "memory": memory,
    "compile": {"saw_jax, layers scanned": {"6": 2.04, "28": 2.1}},
    "versions": {"ours": {"jax": "0.10.2"}, "tunix": {"jax": "0.10.2"}},
    **{"machine": "two cores", "commit": "abc", "repetitions": 2, "void": 0},
    **{"missing": {"trl": "no such package"}, "differences": {"tunix": 2e-6}},
    "given": ["tunix"],
  }


def test_a_table_says_what_was_measured_and_what_is_missing(document):
  text = peers.table(document)
  for said in (
    "| train step | 1.500 | 2,000 | 2.350 | 1.55 | 1.50 to 1.60 |",
    "TRL is missing: no such package.",
    "at 40 % of its matmul bound",
    "| train step | 500 (200) | 500 (200) |",
    "| train step, all rows at once | 500 (200) | - |",
    # 4 x 2 rows of 16 tokens, 512 entries of 4 bytes.
    *("needs 7 MB", "would be 0 MB"),
    "| saw_jax, layers scanned | 2.0 | 2.1 |",
    "Tunix 2.0e-06",
    "a train step: saw_jax 2 and 8, Tunix 1 and 1; Tunix's as",
  ):
    assert said in text, said


def test_a_table_says_what_is_not_quiet_or_failed(document):
  measured = document["jobs"]["train"]
  measured["void"], measured["valid"] = measured["valid"], []
  document["summary"]["train"] = peers.summarise(measured, 3000)
  assert "train step (no quiet repetition)" in peers.table(document)
  for found in measured["void"]:
    del found["tunix"]
  measured["valid"], measured["failed"] = measured["void"], {"tunix": "ended"}
  document["summary"]["train"] = peers.summarise(measured, 3000)
  text = peers.table(document)
  assert "| train step | 1.500 | 2,000 | - | - | - |" in text
  assert "train step: ended." in text


@pytest.mark.slow
def test_ours_answers_each_job(tmp_path):
  paths = {"directory": tmp_path / "model", "data": tmp_path / "batch.npz"}
  opening = {name: str(path) for name, path in paths.items()} | {"shape": "S"}
  shape, check = protocol.SHAPES["S"], tmp_path / "check.npz"
  # It compiles as tests do, and reads what one of before has compiled.
  kept = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_"))}
  with peers.Peer("ours", sys.executable, **kept) as peer:
    peer.ask("export", **opening)
    peer.ask("open", parts={"forward": 2, "train": 4}, **opening)
    peer.ask("check", rows=2, path=str(check))
    found = np.load(check)
    assert found["logits"].shape == (2, shape.length, shape.vocab_size)
    assert found["log_probs"].shape == (shape.rows, shape.new_tokens)
    answers = {job: peer.ask("run", job=job) for job in protocol.JOBS}
    assert all(answer["seconds"] > 0 for answer in answers.values())
    values = {job: answer["values"] for job, answer in answers.items()}
    mean = pytest.approx(found["log_probs"].mean(), abs=1e-6)
    assert values["forward"]["log_prob"] == mean
    # New parameters guess nearly evenly: the entropy is near that of all.
    assert 0 < values["train"]["entropy"] < np.log(512)
    assert values["train"]["gradient_norm"] > 0
    most = shape.rows * shape.new_tokens
    assert 0 < values["generate"]["tokens"] <= most
    assert peer.ask("memory")["peak"] > 1e7
    with pytest.raises(peers.PeerError, match="ours failed at 'run'"):
      peer.ask("run", job="sleep")


def test_a_worker_that_is_gone_says_its_last_words():
  with peers.Peer("nobody", sys.executable) as peer:
    with pytest.raises(peers.PeerError, match="nobody"):
      peer.ask("open")


ECHO = """
from benchmarks.peer_workers import protocol

class Echo(protocol.Worker):
  def echo(self, word):
    print("noise")
    return {"word": word}

protocol.serve(Echo())
"""


def test_an_error_is_an_answer_and_the_next_request_is_read():
  requests = [{"op": "echo"}, {"op": "echo", "word": "a"}]
  text = "".join(json.dumps(request) + "\n" for request in requests)
  done = helpers.python("-c", ECHO, cwd=peers.ROOT, input=text)
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert "TypeError" in answers[0]["error"]
  assert answers[1] == {"word": "a"}
  assert "noise" in done.stderr


def test_a_peak_can_be_forgotten():
  block = np.ones(30_000_000, np.float32)
  peak = protocol.memory()["peak"]
  del block
  protocol.forget_peak()
  assert protocol.memory()["peak"] < peak - 90_000_000
