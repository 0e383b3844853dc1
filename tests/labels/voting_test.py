"""Tests of saw_jax/labels/voting.py."""

import collections
import itertools
import json
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import strategies as st

from saw_jax.labels import voting
from saw_jax.tasks import clusters

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden" / "rlavr_care.json").read_text()
)
CASES = GOLDEN["majority_vote"]
DTYPES = ((np.float64, 1e-9), (np.float32, 1e-5))

# Few shapes, as each is compiled anew.
groups = st.sampled_from([1, 4, 7]).flatmap(
  lambda size: st.lists(
    st.lists(st.integers(-1, 4), min_size=size, max_size=size),
    min_size=3,
    max_size=3,
  )
)


def count(group):
  """(answer, members) of each cluster, the vote first: loops, no arrays."""
  members = collections.defaultdict(list)
  for index, answer in enumerate(group):
    if answer >= 0:
      members[answer].append(index)
  return sorted(members.items(), key=lambda item: (-len(item[1]), item[1][0]))


class GoldenTest(chex.TestCase):
  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*CASES)
  def test_votes(self, **case):
    answers = case["answers"]
    ids = clusters.answer_ids([answers])
    votes = self.variant(voting.majority_vote)(ids)
    winner = int(votes.winner[0])
    voted = "None" if winner < 0 else answers[list(ids[0]).index(winner)]
    assert voted == case["voted_answer"]
    assert votes.size.tolist() == [case["x"]]
    sizes = [len(members) for _, members in case["sorted_clusters"]]
    assert votes.sizes[0, : len(sizes)].tolist() == sizes
    assert not votes.sizes[0, len(sizes) :].any()
    members = case["sorted_clusters"][0][1] if sizes else []
    assert np.flatnonzero(votes.for_winner[0]).tolist() == members

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(*CASES)
  def test_statistics(self, **case):
    ids = clusters.answer_ids([case["answers"]])
    features = "prompt_features_valid_ratio_then_sorted_cluster_fractions"
    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        votes = voting.majority_vote(ids)
        for fn, key in (
          (voting.majority_share, "majority_ratio"),
          (voting.vote_entropy, "answer_entropy_nats"),
          (voting.vote_features, features),
        ):
          value = self.variant(fn)(votes)
          assert value.dtype == dtype
          np.testing.assert_allclose(value[0], case[key], rtol=rtol)

  def test_clusters_appear_in_order(self):
    for case in CASES:
      ids = clusters.answer_ids([case["answers"]])[0]
      for number, (_, members) in enumerate(case["clusters_in_order"]):
        assert np.flatnonzero(ids == number).tolist() == members

  def test_entropies_of_cluster_sizes(self):
    case = GOLDEN["selection_entropy"]
    sizes = case["cluster_sizes (valid answers only)"]
    ids = np.full((len(sizes), 8), -1)
    for row, group in zip(ids, sizes, strict=True):
      members = np.repeat(np.arange(len(group)), group)
      row[: len(members)] = members
    for dtype, rtol in DTYPES:
      with jax.enable_x64(dtype is np.float64):
        value = voting.vote_entropy(voting.majority_vote(ids))
        np.testing.assert_allclose(value, case["entropy_nats"], rtol=rtol)


class TestVotes:
  @pytest.mark.slow
  @hypothesis.given(groups)
  def test_it_counts_as_loops_do(self, ids):
    votes = voting.majority_vote(np.array(ids))
    possible = voting.possible_counts(np.array(ids))
    for row, group in enumerate(ids):
      ranked, size = count(group), len(group)
      sizes = [len(members) for _, members in ranked]
      assert votes.winner[row] == (ranked[0][0] if ranked else -1)
      assert votes.size[row] == (sizes[0] if ranked else 0)
      assert votes.answered[row] == sum(sizes)
      assert votes.sizes[row].tolist() == sizes + [0] * (size - len(sizes))
      assert set(np.flatnonzero(possible[row])) == {0, *sizes[1:]}

  @hypothesis.given(groups, st.randoms())
  def test_names_of_answers_do_not_matter(self, ids, random):
    ids = np.array(ids)
    names = random.sample(range(1000), 5)
    renamed = np.where(ids >= 0, np.array([*names, 0])[ids], -7)
    one, other = voting.majority_vote(ids), voting.majority_vote(renamed)
    for name in ("size", "answered", "sizes", "for_winner", "for_other"):
      assert (getattr(one, name) == getattr(other, name)).all()

  def test_ties_go_to_the_answer_that_came_first(self):
    ids = np.array([[-1, 9, 8, 8, 9], [3, 1, 1, 3, -1], [5, 4, 3, 2, 1]])
    assert voting.majority_vote(ids).winner.tolist() == [9, 3, 5]

  def test_nothing_parses(self):
    ids = np.full((2, 3), -1)
    votes = voting.majority_vote(ids)
    assert votes.winner.tolist() == [-1, -1]
    assert not votes.size.any() and not votes.for_other.any()
    assert not voting.vote_features(votes).any()
    assert voting.vote_entropy(votes).tolist() == [0, 0]
    assert voting.possible_counts(ids).tolist() == [[True] + [False] * 3] * 2
    everything = np.ones((2, 3), bool)  # a grader that accepts nothing at all
    assert not voting.is_vote_right(ids, everything).any()
    assert not voting.correct_outside(ids, everything).any()

  def test_all_agree(self):
    votes = voting.majority_vote(np.full((1, 4), 6))
    assert votes.size.tolist() == [4]
    assert voting.majority_share(votes).tolist() == [1]
    assert not np.signbit(voting.vote_entropy(votes))
    assert voting.possible_counts(np.full((1, 4), 6))[0].tolist() == (
      [True] + [False] * 4
    )

  def test_one_response(self):
    votes = voting.majority_vote(np.array([[4], [-1]]))
    assert votes.winner.tolist() == [4, -1]
    assert votes.sizes.tolist() == [[1], [0]]

  def test_ids_have_to_be_integers_by_group(self):
    with pytest.raises(AssertionError):
      voting.majority_vote(np.ones((2, 3), np.float32))
    with pytest.raises(AssertionError):
      voting.majority_vote(np.ones(3, np.int32))


class TestLabels:
  @pytest.mark.slow
  def test_every_small_group(self):
    ids = np.array(list(itertools.product(range(-1, 3), repeat=4)))
    for truth in range(3):
      correct = ids == truth
      right = voting.is_vote_right(ids, correct)
      outside = voting.correct_outside(ids, correct)
      for row, group in enumerate(ids):
        ranked = count(group)
        is_right = bool(ranked) and ranked[0][0] == truth
        assert right[row] == is_right
        expected = 0 if is_right else int((group == truth).sum())
        assert outside[row] == expected

  def test_one_correct_member_confirms_a_whole_cluster(self):
    # A grader split the clusters: 2 of the vote are right, or 1 of another.
    ids = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 2, 2]])
    correct = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    assert voting.is_vote_right(ids, correct).tolist() == [True, False]
    assert voting.correct_outside(ids, correct).tolist() == [0, 2]

  def test_several_clusters_may_be_right(self):
    ids, correct = np.array([[1, 1, 2, 3]]), np.array([[0, 0, 1, 1]])
    assert voting.correct_outside(ids, correct).tolist() == [2]
    # ... which the classes do not foresee.
    assert not voting.possible_counts(ids)[0, 2]

  def test_what_is_unparsed_is_not_counted(self):
    ids, correct = np.array([[1, 1, -1, 2]]), np.array([[0, 0, 1, 1]])
    assert voting.correct_outside(ids, correct).tolist() == [1]

  def test_it_runs_compiled(self):
    ids, correct = jnp.array([[1, 1, 2]]), jnp.array([[0, 0, 1]])
    assert jax.jit(voting.correct_outside)(ids, correct).tolist() == [1]
    assert jax.jit(voting.possible_counts)(ids).sum() == 2
