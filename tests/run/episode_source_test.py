"""Episodes in the loop: rows, observations behind them, resume, learning."""

import functools

import chex
import jax
import numpy as np
import pytest

from saw_jax.rollout import turns
from saw_jax.rollout.transcript import GLUE, OBSERVATION, PAD, POLICY, PROMPT
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import loop
from tests import agent_helpers, helpers
from tests.helpers import curves


def first_step(row="grpo_paw", seeds=(0, 1), **changes):
  """The source of a run, and the episodes of its first step."""
  made = agent_helpers.experiment(row, **changes)
  kind, one = experiment_lib.kind_of(made), helpers.make_learner(made, seeds)
  with kind.open_workers() as pool:
    source = kind.Source(one, pool, None)
    return source, source.score(source.generate(0), 0)


def laid_out(row="grpo_paw", **changes):
  """The batch of the first step, and the rows that are logged."""
  source, scored = first_step(row, **changes)
  return source.estimate(scored, 0)


def texts(batch, role, n=0):
  """What has a role in each row, in words."""
  return [
    agent_helpers.TOKENIZER.decode(tokens[roles == role])
    for tokens, roles in zip(batch.tokens[n], batch.roles[n], strict=True)
  ]


@pytest.fixture(scope="module")
def paw():
  return laid_out()


@pytest.fixture(scope="module")
def plain():
  """Of the base algorithm; its rows are padded to eighths."""
  return laid_out("grpo", episodes={"row_parts": 8})


class TestRows:
  def test_a_row_is_prompt_action_glue_and_observation(self, paw):
    batch, _ = paw
    seen = 0
    parts = (texts(batch, role) for role in (PROMPT, POLICY, OBSERVATION))
    for prompt, action, said, roles in zip(*parts, batch.roles[0], strict=True):
      kind = roles[roles != PAD].tolist()
      assert bool(kind) == (POLICY in kind)
      assert kind.count(GLUE) == bool(said)
      if said:
        seen += 1
        assert said.startswith("yes" if action[:1] == prompt else "no"), said
        # In one piece, in this order.
        order = [PROMPT, POLICY, GLUE, OBSERVATION]
        assert kind == sorted(kind, key=order.index)
        first = (roles != PAD).argmax()
        assert (roles[first : first + len(kind)] != PAD).all()
    assert seen > 8

  def test_only_selected_transitions_have_an_observation(self, paw):
    batch, rows = paw
    has = batch.observation_mask.any(-1)
    np.testing.assert_array_equal(np.asarray(has), batch.world.weights > 0)
    taken = (batch.roles == POLICY).any(-1).sum(-1)
    np.testing.assert_array_equal(has.sum(-1), np.ceil(0.75 * taken))
    selected = [row["selected"] for row in rows]
    np.testing.assert_allclose(selected, has.sum(-1) / taken)

  def test_the_base_algorithm_has_none_and_the_same_actions(self, paw, plain):
    batch, rows = plain
    assert batch.world is None and not batch.observation_mask.any()
    size, width = batch.tokens.shape[1:]
    whole = jax.tree.map(lambda x: x[:, :size], paw[0])
    assert width < whole.tokens.shape[-1]
    chosen = batch.roles == POLICY
    np.testing.assert_array_equal(chosen, (whole.roles == POLICY)[..., :width])
    np.testing.assert_array_equal(
      batch.tokens[chosen], whole.tokens[..., :width][chosen]
    )
    np.testing.assert_array_equal(batch.advantages, whole.advantages)
    assert rows[0]["success"] == paw[1][0]["success"]

  def test_a_mesh_may_have_more_devices_than_a_step_has_groups(self):
    few = dict(seeds=(0,), loop={"prompts_per_step": 2})
    whole, _ = laid_out(**few)
    found, _ = laid_out(parallel={"lift": "meshed"}, **few)
    size = whole.tokens.shape[1]  # Rows are filled up to equal parts.
    found = jax.tree.map(lambda x: x[:, :size], found)
    chex.assert_trees_all_equal(found.tokens, whole.tokens)
    near = [(x.advantages, x.behave_log_probs, x.world) for x in (found, whole)]
    chex.assert_trees_all_close(*near, rtol=1e-5, atol=1e-6)

  def test_the_placebo_moves_observations_and_nothing_else(self, paw):
    batch, _ = laid_out("paw_shuffled")
    for n in (0, 1):
      ours = texts(batch, OBSERVATION, n)
      theirs = texts(paw[0], OBSERVATION, n)
      assert sorted(ours) == sorted(theirs) and ours != theirs
      assert [bool(o) for o in ours] == [bool(o) for o in theirs]
      assert texts(batch, POLICY, n) == texts(paw[0], POLICY, n)
    np.testing.assert_array_equal(batch.world.weights, paw[0].world.weights)

  def test_brace_is_told_what_the_policy_has_become(self):
    source, (played, record, rows) = first_step("brace")
    taken = record.steps
    np.testing.assert_allclose(record.ratios[taken], 1, rtol=1e-4)
    assert not record.ratios[~taken].any()
    # All are of the policy: a window as long as an episode learns returns.
    batch, _ = source.estimate((played, record, rows), 0)
    left = np.cumsum(record.rewards[..., ::-1], -1)[..., ::-1]
    left = (left / 10 * taken).reshape(len(rows), -1)
    fines = (record.penalties / 10 * taken)[..., ::-1].cumsum(-1)[..., ::-1]
    left -= (fines * taken).reshape(left.shape)
    for n, own in enumerate(rows):
      targets = np.asarray(batch.value_targets)[n, own >= 0]
      np.testing.assert_allclose(targets, left[n, own[own >= 0]], atol=1e-4)

  def test_tokens_that_were_observed_are_counted(self):
    batch, _ = laid_out("echo_tokens")
    lengths = batch.observation_mask.sum(-1)
    assert lengths.max() > 1
    np.testing.assert_array_equal(batch.world.counts, lengths)
    np.testing.assert_allclose(batch.world.weights, 0.1 * lengths, rtol=1e-6)

  def test_padding_counts_nowhere_and_has_few_sizes(self, paw, plain):
    batch, _ = paw
    absent = ~(batch.roles == POLICY).any(-1)
    assert absent.any()
    for x in (batch.advantages, *batch.world):
      assert not np.asarray(x)[absent].any()
    # The counts add up to the number of groups.
    np.testing.assert_allclose(batch.world.counts.sum(-1), 4, rtol=1e-5)
    # 4 worlds x 4 episodes x 4 steps: whole, or as many eighths as are needed.
    assert paw[0].tokens.shape[1] == 64
    taken = (plain[0].roles == POLICY).any(-1).sum(-1).max()
    assert plain[0].tokens.shape[1] == -(-taken // 8) * 8 <= 64

  def test_a_failed_environment_is_left_out_and_counted(self, paw):
    _, rows = paw
    _, scored = first_step()
    np.testing.assert_array_equal(scored.record.scored, ~scored.played.failed)
    assert rows[1]["failed"] == 1 / 16 and rows[0]["failed"] == 0
    lengths = (paw[0].roles[1] == POLICY).any(-1).sum()
    assert lengths == round(rows[1]["steps"] * 15)
    assert np.isfinite([*rows[1].values()]).all()


def test_packed_rows_are_the_same_update():
  (_, scored), found = first_step("ppo_paw"), []
  for length in (0, 64):
    made = agent_helpers.experiment(
      "ppo_paw",
      loop={"pack_length": length, "num_minibatches": 2, "num_microbatches": 2},
      optimizer={"eps": 1e-3},  # As in tests/training/parallel_test.py.
    )
    one = helpers.make_learner(made, (0, 1))
    kind = experiment_lib.kind_of(made)
    batch, _ = kind.Source(one, None, None).estimate(scored, 0)
    found.append((one.update(batch), one.policy.params))
  (logged, params), (expected, wanted) = found[::-1]
  for a, b in zip(logged, expected, strict=True):
    assert a.pop("padding") != b.pop("padding")  # or it packs nothing
    assert {"loss/world_model", "loss/value", "gradient_norm"} <= a.keys()
    near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(near, a, b)
  chex.assert_trees_all_close(params, wanted, atol=1e-5)


class TranscriptTask(agent_helpers.EchoTask):
  """A prompt is all letters that were shown and said: it only grows."""

  def prompts(self, situation, history):
    said = "".join(seen[-1] + action for seen, action in history)
    yield said + situation.observation[-1]


def test_turns_of_a_transcript_are_read_from_where_they_differ(monkeypatch):
  share, saved = turns.share, []

  def spy(last, prompts, shards):
    found = share(last, prompts, shards)
    saved.append(prompts.lengths.max() - found.unread(prompts.lengths))
    return found

  monkeypatch.setattr(turns, "share", spy)
  sizes = {"max_prompt_tokens": 12, "prompt_multiple": 12}
  made = agent_helpers.experiment(task=TranscriptTask(), rollout=sizes)
  kind, played = experiment_lib.kind_of(made), []
  for part in (12, 2):  # One part is read anew; six are, from the first.
    monkeypatch.setattr(turns, "PART", part)
    assert not saved
    one = helpers.make_learner(made, (0, 1))
    with kind.open_workers() as pool:
      source = kind.Source(one, pool, None)
      for step in (0, 1):
        played.append(source.generate(step).played.transcript)
        params = jax.tree.map(lambda x: 2 * x, one.policy.state.params)
        one.policy.state = one.policy.state.replace(params=params)
  # The first of four turns, by new weights, has nothing to go on from.
  assert len(saved) == 6 and min(saved) > 0
  for a, b in zip(played[:2], played[2:], strict=True):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    near = functools.partial(np.testing.assert_allclose, atol=1e-5)
    near(a.behave_log_probs, b.behave_log_probs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp("whole")
  made = agent_helpers.experiment()
  return directory, loop.train(made, [0, 1], directory=directory)


class TestRun:
  def test_it_logs_what_the_papers_figures_show(self, whole):
    directory, result = whole
    assert result.finished and result.step == 4
    found = curves(directory)
    names = "selected clipped_tokens observation_nll invalid steps failed"
    assert {*names.split(), "loss/policy", "loss/world_model"} <= set(found)
    np.testing.assert_allclose(found["lambda"], 1 - found["success"], atol=0.4)
    assert found["sampler_mismatch"].max() < 1e-5
    np.testing.assert_array_equal(found["skipped"], 0)
    names = {"right", "valid", "observation_accuracy", "observation_nll"}
    assert names <= result.final[0]["greedy"].keys()
    assert "mean@2" in result.final[0]["sampled"]

  def test_its_last_policies_can_be_watched(self, whole):
    directory, result = whole
    made = agent_helpers.experiment()
    step, policy = experiment_lib.restore(made, 2, directory)
    found = experiment_lib.kind_of(made).play(policy, "greedy")
    assert step == 4
    won = found.returns >= made.task.max_return
    np.testing.assert_allclose(
      won.mean((1, 2)), [seed["greedy"]["right"] for seed in result.final]
    )
    # In words and in arrays it is the same episode.
    for n, seed in enumerate(found.turns):
      paid = [sum(turn.reward for turn in turns) for turns in seed]
      np.testing.assert_allclose(paid, found.returns[n].reshape(-1))

  @pytest.mark.slow
  def test_a_resumed_run_is_the_uninterrupted_one(self, whole, tmp_path):
    # What a kill after the second step leaves, and the same command again.
    for steps in (2, 4):
      made = agent_helpers.experiment(loop={"num_steps": steps})
      loop.train(made, [0, 1], directory=tmp_path)
    helpers.assert_same_run(whole[0], tmp_path)

  @pytest.mark.slow
  @pytest.mark.parametrize("lift", ["pmapped", "meshed"])
  def test_other_lifts_train_the_same_policy(self, whole, tmp_path, lift):
    made = agent_helpers.experiment(
      parallel={"lift": lift},
      loop={"num_steps": 2},
      evaluation={"interval": 0, "samples": 0},
    )
    loop.train(made, [0], directory=tmp_path)
    found, expected = curves(tmp_path), curves(whole[0])
    names = "success loss/policy loss/world_model lambda gradient_norm"
    for name in names.split():
      a, b = found[name][0], expected[name][0, :2]
      np.testing.assert_allclose(a, b, 1e-3, 1e-5, err_msg=name)

  @pytest.mark.slow
  @pytest.mark.parametrize("row", ["gigpo", "ppo_paw"])
  def test_success_rises(self, row, tmp_path):
    made = agent_helpers.experiment(
      row,
      loop={"num_steps": 30, "num_minibatches": 2},
      evaluation={"interval": 0, "samples": 0},
    )
    loop.train(made, [0], directory=tmp_path)
    success = curves(tmp_path)["success"][0]
    assert success[-5:].mean() > success[:5].mean() + 0.2
    if row == "ppo_paw":
      values = curves(tmp_path)["loss/value"][0]
      assert np.isfinite(values).all() and values.max() > 0
