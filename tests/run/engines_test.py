"""Runs that a server samples for, whatever happens to it."""

import dataclasses
import functools
import json
import logging
import threading
import time

import jax
import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.rollout import engine_dialects, server
from saw_jax.rollout.engine import EngineConfig, EngineError, Traits
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import engines, loop, rollouts, run_directory
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import policy as policy_lib
from saw_jax.tasks.workers.grading import Grader
from tests import agent_helpers, engine_fake, helpers

SPO = algorithms.AlgorithmConfig(advantage="dr_grpo", loss="spo")
GRPO = algorithms.AlgorithmConfig(advantage="grpo", loss="tis")
FAST = {"patience_s": 5.0, "deadline_s": 5.0}
PROCESS = {"actor_kind": "process"}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
  pytest.importorskip("httpx", reason="needs the extra `engine`")
  monkeypatch.setattr(server, "PAUSES_S", (0.02, 0.1))


@pytest.fixture
def fake():
  found = engine_fake.Fake()
  yield found
  found.stop()


other = fake  # a second one


def experiment(*servers, sections=None, **options):
  rollout = {
    "engine": ",".join(server.url for server in servers),
    "engine_options": FAST | options,
  }
  changes = {"algorithm": SPO, "loop": {"num_steps": 3}, **(sections or {})}
  changes = {"evaluation": {"interval": 0, "samples": 0}, **changes}
  return helpers.experiment(**{"rollout": rollout, **changes})


def asked(made):
  """Four prompts of a step, and the keys of four responses to each."""
  examples = [made.task.examples("train")[:4]]
  return examples, rollouts.example_keys([0], 0, examples, 4)


def draw(policy, sampling=None):
  """Has the responses of a step sampled."""
  made, encoder = policy.made, policy.encoder
  generate = policy.make_generate(sampling or made.sampling, 4)
  return rollouts.sample(generate, policy.params, *asked(made), encoder=encoder)


def sample(made, folder, sampling=None, during=None):
  """A step's rows by the servers, the policy, and what is in its log."""
  policy = policy_lib.Policy(made, 1, folder)
  threading.Thread(target=during or time.time).start()
  found = draw(policy, sampling)
  figures = policy.engine.figures()
  policy.engine.close()
  return found, policy, figures


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_rows_are_of_our_weights_and_of_their_keys(tmp_path, dialect):
  fake = engine_fake.Fake(dialect)
  made = experiment(fake)
  found, policy, _ = sample(made, tmp_path)
  again, _, _ = sample(made, tmp_path)
  np.testing.assert_array_equal(found.tokens, again.tokens)
  assert len({*map(tuple, found.tokens[0, :4].tolist())}) > 1  # of one prompt
  assert helpers.apart(policy, found).max() < 1e-4
  greedy, _, _ = sample(made, tmp_path, SamplingConfig(greedy=True))
  native = rollouts.Native(policy.lift, policy.decoder)
  settings = policy.encoder.settings(SamplingConfig(greedy=True), 4)
  expected = rollouts.sample(
    lambda *given: native.sample(*given, settings),
    *(policy.params, *asked(made)),
    encoder=policy.encoder,
  )
  for name in ("tokens", "roles", "starts", "ends", "group_ids"):
    np.testing.assert_array_equal(
      getattr(greedy, name), getattr(expected, name), err_msg=name
    )
  assert not list(tmp_path.glob("weights-*"))  # Nothing is left.
  fake.stop()


def test_the_recorded_vllm_is_understood():
  name = "POST /inference/v1/generate"
  read = engine_dialects.VLLM().read(engine_fake.recorded(name))
  assert read.tokens == [9, 29, 1] and read.reason == "stop"
  assert read.log_probs[0] == pytest.approx(-2.947780132)
  assert read.top == pytest.approx([-0.6251872777, -2.947780132])
  assert read.versions == {"default"}


class TestFaults:
  @pytest.mark.parametrize(
    ("change", "said"),
    [
      (lambda c: c["token_ids"].pop(), "other tokens"),
      (lambda c: c.update(token_ids=[], logprobs=None), "0 tokens"),
      (lambda c: c["logprobs"]["content"].pop(), "other tokens"),
      (
        lambda c: c["logprobs"]["content"][0].update(logprob=float("nan")),
        "log-probs that are none",
      ),
      (
        lambda c: (
          c["token_ids"].__setitem__(0, 9999),
          c["logprobs"]["content"][0].update(token_id=9999),
        ),
        "token ids",
      ),
    ],
  )
  def test_is_named_and_asked_again(self, fake, tmp_path, caplog, change, said):
    made = experiment(fake)
    whole, _, _ = sample(made, tmp_path)

    def fault(answer):
      change(answer["choices"][0])
      return answer

    caplog.set_level(logging.WARNING)
    # Three probes come first, and the row that is compared.
    fake.faults = [lambda x: x] * 4 + [fault]
    found, _, figures = sample(made, tmp_path)
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    assert figures["engine/wrong"] == 1 and figures["engine/unscored"] == 0
    assert said in caplog.text

  def test_an_answer_of_no_known_form_is_too(self, tmp_path, caplog):
    fake = engine_fake.Fake("sglang")
    broken = lambda answer: answer | {"meta_info": None}  # noqa: E731
    fake.faults = [lambda x: x] * 4 + [broken]
    _, _, figures = sample(experiment(fake), tmp_path)
    assert figures["engine/wrong"] == 1 and figures["engine/unscored"] == 0
    assert "no response of the known form" in caplog.text
    fake.stop()

  def test_a_row_by_other_weights_is_asked_again(self, fake, tmp_path):
    def fault(answer):
      answer["choices"][0]["weight_versions"][0]["version"] = "another"
      return answer

    fake.faults = [lambda x: x] * 5 + [fault]
    _, _, figures = sample(experiment(fake), tmp_path)
    assert figures["engine/asked_again"] == 1 and not figures["engine/wrong"]

  def test_a_row_that_stays_wrong_is_unscored(self, fake, tmp_path):
    made = experiment(fake, concurrency=1)
    cut = lambda answer: answer["choices"][0].update(token_ids=[]) or answer  # noqa: E731
    fake.faults = [lambda x: x] * 4 + [cut] * 3
    found, policy, figures = sample(made, tmp_path)
    assert figures["engine/unscored"] == 1
    lengths = found.completion_lengths[0]
    assert (lengths == 0).sum() == 1
    with Grader(made.task, **dataclasses.asdict(made.grading)) as grader:
      examples, _ = asked(made)
      scored = rollouts.score(found, examples, grader, policy.encoder).scored
    np.testing.assert_array_equal(
      scored.all(-1).ravel(), np.asarray(lengths) > 0
    )

  def test_a_server_that_dies_is_not_missed(self, fake, other, tmp_path):
    whole, _, _ = sample(experiment(fake), tmp_path)
    made = experiment(fake, other)

    def slow(answer):
      time.sleep(0.3)
      return answer

    fake.faults, other.faults = [lambda x: x] * 4 + [slow] * 20, [slow] * 20
    found, _, figures = sample(
      made, tmp_path, during=lambda: (time.sleep(0.5), fake.stop())
    )
    np.testing.assert_array_equal(found.tokens, whole.tokens)
    fake.start()  # for the fixture

  def test_one_that_comes_back_gets_its_weights_again(self, fake, tmp_path):
    policy = policy_lib.Policy(experiment(fake), 1, tmp_path)
    draw(policy)
    assert len(fake.loads) == 1
    fake.stop()
    fake.start()
    assert helpers.apart(policy, draw(policy)).max() < 1e-4
    assert len(fake.loads) == 2
    fake.stop()
    with pytest.raises(EngineError, match="no server of rollout.engine"):
      object.__setattr__(policy.engine._config, "patience_s", 0.2)
      draw(policy)
    policy.engine.close()
    fake.start()

  def test_weights_that_are_not_loaded_are_noticed(self, fake, tmp_path):
    policy = policy_lib.Policy(experiment(fake), 1, tmp_path)
    load = fake.load

    def keep_some(folder, version):
      load(folder, version)
      head = 30 * fake.params["head"]
      fake.params = {**fake.params, "head": head}

    fake.load = keep_some
    with pytest.raises(EngineError, match="where our decoder has"):
      draw(policy)
    policy.engine.close()


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_newer_weights_abort_what_runs_and_leave_what_came(tmp_path, dialect):
  fake = engine_fake.Fake(dialect)
  made = experiment(fake, in_flight="abort")
  policy = policy_lib.Policy(made, 1, tmp_path)
  old, new = (jax.tree.map(lambda x, k=k: k * x, policy.params) for k in (2, 3))
  examples, keys = asked(made)
  sample = functools.partial(
    policy.engine.sample,
    prompts=policy.encoder.prompts(examples),
    row_keys=keys,
    config=policy.encoder.settings(made.sampling, 4),
  )
  by_old, by_new = (sample(x).tokens[0] for x in (old, new))
  fake.passing = 1 + 6  # with the row that is compared
  newest = lambda: old if fake.passing > -10 else new  # noqa: E731
  found = sample(old, newest=newest).tokens[0]
  figures = policy.engine.figures()
  assert figures["engine/aborted"] == 10
  assert figures["engine/wrong"] == 0
  same = [(found == x).all(-1) for x in (by_old, by_new)]
  assert (same[0] | same[1]).all() and same[0].sum() >= 6
  assert same[1].sum() >= 10
  policy.engine.close()
  fake.stop()


class TestRuns:
  def test_a_run_learns_as_one_that_samples_itself(self, fake, tmp_path):
    made = experiment(fake, sections={"algorithm": GRPO})
    (tmp_path / "run.json").write_text('{"config": {}}')
    assert loop.train(made, [0], directory=tmp_path).finished
    found = helpers.curves(tmp_path)
    assert found["mismatch/max"][0].max() < 1e-4
    assert found["sampler_mismatch"][0].max() < 1e-4
    assert (found["engine/publish_seconds"][0] > 0).all()
    (traits,) = run_directory.read_run(tmp_path)["engines"]
    assert traits["name"] == "vllm" and traits["log_probs"] == "processed"

  def test_episodes_and_their_evaluation_are_by_it_too(self, fake, tmp_path):
    rollout = {"engine": fake.url, "engine_options": FAST}
    made = agent_helpers.experiment(
      row="gigpo",
      rollout=rollout,
      loop={"num_steps": 2},
      evaluation={"interval": 2, "samples": 0},
    )
    assert loop.train(made, [0], directory=tmp_path / "a").finished
    found = helpers.curves(tmp_path / "a")
    assert found["mismatch/max"][0].max() < 1e-4
    own = made._replace(rollout=dataclasses.replace(made.rollout, engine=""))
    restore, place = experiment_lib.restore, tmp_path / "a"
    policies = [restore(x, 1, place)[1] for x in (made, own)]
    a, b = (experiment_lib.evaluate(x)["greedy"] for x in policies)
    np.testing.assert_array_equal(a["rewards"], b["rewards"])
    world = agent_helpers.experiment(rollout=rollout)
    with pytest.raises(ValueError, match="gives no entropies"):
      engines.check(world, 1)

  def test_each_group_is_of_the_weights_of_its_ticket(self, fake, tmp_path):
    ahead = {"protocol": "fixed_lag", "lag": 1, "actors": 2}
    one = experiment(fake, sections={"asynchronous": ahead})
    none = experiment(fake, sections={"asynchronous": ahead | {"actors": 0}})
    for name, made in (("a", one), ("b", none)):
      loop.train(made, [0], directory=tmp_path / name)
    a, b = (helpers.curves(tmp_path / name) for name in "ab")
    for name in ("reward/total", "behave_kl", "lag/versions", "loss"):
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert b["behave_kl"][0][0] < 1e-8 < b["behave_kl"][0][-1]

  def test_it_goes_on_where_it_was(self, fake, tmp_path):
    def train(name, steps):
      fields = {"num_steps": steps, "checkpoint_interval": 2}
      made = experiment(fake, sections={"loop": fields})
      loop.train(made, [0], directory=tmp_path / name)

    train("a", 4)
    train("b", 2)
    fake.stop()
    fake.start()
    train("b", 4)
    a, b = (helpers.curves(tmp_path / name) for name in "ab")
    np.testing.assert_array_equal(a["loss"], b["loss"])

  def test_too_much_apart_stops_a_run_that_says_so(self):
    made = helpers.experiment()
    far = np.array([0.0, 0.0, 0.5])
    found = engines.describe(far, made)
    assert found["mismatch/beyond"] == pytest.approx(1 / 3)
    assert (found["mismatch/mean"], found["mismatch/max"]) == (0.5 / 3, 0.5)
    stops = dataclasses.replace(made.rollout, engine_options={"beyond": "stop"})
    with pytest.raises(EngineError, match="33.33%"):
      engines.describe(far, made._replace(rollout=stops))


class TestWhatIsRefused:
  @pytest.mark.parametrize(
    ("option", "said"),
    [
      ({"concurrency": "many"}, "concurrency is a number, not 'many'"),
      ({"bound": "x"}, "bound is a number, not 'x'"),
      ({"bound": float("nan")}, "bound is 0 or more"),
      ({"most_beyond": -0.1}, "most_beyond is 0 or more"),
      ({"dtype": "float17"}, "'float16'"),
    ],
  )
  def test_an_option_out_of_range_is_too(self, option, said):
    with pytest.raises(ValueError, match=said):
      EngineConfig(**option)

  @pytest.mark.parametrize(
    ("server", "sections", "said"),
    [
      ({"status": {"/weight_info": 404}}, {}, "VLLM_SERVER_DEV_MODE=1"),
      ({"status": {"/inference/v1/generate": 404}}, {}, "--enable-scale-out"),
      ({"status": {"/version": 404}}, {}, "none of vllm or sglang"),
      ({"status": {"/version": 500}}, {}, "no inference engine answers"),
      ({"max_length": 50}, {}, "takes 50 tokens"),
      (
        {"mode": "raw"},
        {"algorithm": GRPO, "sampling": {"temperature": 0.7}},
        "--logprobs-mode processed_logprobs",
      ),
      ({"mode": "none"}, {"algorithm": GRPO}, "gives no ones"),
      (
        {},
        {"asynchronous": {"protocol": "max_lag", "actors": 1} | PROCESS},
        "actor_kind must be 'thread'",
      ),
    ],
  )
  def test_it_is_a_sentence_before_any_step(self, fake, server, sections, said):
    vars(fake).update(server)
    made = experiment(fake, sections=sections)
    with pytest.raises((ValueError, EngineError), match=said) as info:
      engines.check(made, 1)
    assert "\n" not in str(info.value)

  def test_several_seeds_wrong_addresses_and_other_sizes(self, fake, tmp_path):
    made = experiment(fake)
    with pytest.raises(ValueError, match="one seed at a time, not 2"):
      engines.check(made, 2)
    for url, said in (
      ("localhost:80", "http://"),
      ("http://127.0.0.1:9", "no "),
    ):
      other = dataclasses.replace(made.rollout, engine=url)
      with pytest.raises(EngineError, match=said):
        engines.check(made._replace(rollout=other), 1)
    ahead = {"asynchronous": {"protocol": "fixed_lag"}}
    with pytest.raises(ValueError, match="choose max_lag or quota"):
      engines.check(experiment(fake, sections=ahead, in_flight="abort"), 1)
    assert engines.check(made, 1).log_probs == "processed"
    engines.export(made.params, made, tmp_path)
    fake.folder = str(tmp_path)
    assert engines.check(made, 1).model == str(tmp_path)
    wide = dataclasses.replace(made.decoder, mlp_size=32)
    with pytest.raises(ValueError, match="mlp_size is 24; the policy's is 32"):
      engines.check(made._replace(decoder=wide), 1)

  def test_log_probs_are_of_what_is_sampled_from_or_not_used(self, fake):
    plain, cold = SamplingConfig(), SamplingConfig(temperature=0.5)
    cut = SamplingConfig(top_p=0.9)
    for mode, expected in (
      ("processed", [True] * 3),
      ("tempered", [True, True, False]),
      ("raw", [True, False, False]),
      (None, [False] * 3),
    ):
      traits = Traits("x", "", True, mode, "disk")
      found = [traits.gives_log_probs(x) for x in (plain, cold, cut)]
      assert found == expected

  def test_a_run_may_move_to_another_server(self):
    old = {"rollout": {"engine": "http://a:1", "engine_options": {}}}
    options = {"bound": 1.0}
    new = {"rollout": {"engine": "http://b:2", "engine_options": options}}
    assert run_directory.differences(old, new) == {}
    none = {"rollout": {"engine": "", "engine_options": {}}}
    assert json.dumps(run_directory.differences(old, none))
    assert "rollout.engine" in run_directory.differences(old, none)
