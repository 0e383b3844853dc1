"""The reference code of CARE, number for number, in one program for each."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages
from saw_jax.labels import care, certainty, gap, probes, selection, voting
from saw_jax.tasks import clusters

GOLDEN = json.loads(
  (pathlib.Path(__file__).parents[1] / "golden" / "rlavr_care.json").read_text()
)
PROBES = GOLDEN["probe_tiny_training"]
ENTROPIES = "cluster_sizes (valid answers only)"


def rewards_of(x, y, group_size):
  """x ones, then y ones at other places: pseudo and true rewards."""
  index = np.arange(group_size)
  return index < x, (index >= x) & (index < x + y)


def where(mask):
  return np.flatnonzero(mask).tolist()


def among(size, members):
  return np.isin(np.arange(size), members)


def top(scores, label_fraction=0.2):
  """Buys by one score, as a baseline does."""
  return selection.care_selection(
    scores, scores, 99, label_fraction=label_fraction, gate_fraction=0.0
  )


# Each takes a case, and what makes an array of the type that is tested; and
# gives pairs of what is found and what is expected.


def advantage(case, a):
  rewards = a(case["reward"])
  trained = advantages.normalize_groups(rewards)
  yield gap.gap_advantages(rewards), case["cag_advantage_ddof0"]
  yield trained, case["train_advantage_ddof1_eps1e-6"]


def cag_from_vectors(case, a):
  pseudo, true = a(case["pseudo_reward"]), a(case["true_reward"])
  yield gap.gap_advantages(pseudo), case["pseudo_adv"]
  yield gap.gap_advantages(true), case["true_adv"]
  yield gap.corrective_advantage_gap(pseudo, true), case["cag"]


def cag_from_counts(case, a):
  n, x, y = case["n"], case["x"], case["y"]
  yield gap.gap_from_counts(np.array(x), np.array(y), n), case["closed_form"]
  pseudo, true = map(a, rewards_of(x, y, n))
  yield gap.corrective_advantage_gap(pseudo, true), case["cag"]


def cag_from_counts_invalid(case, a):
  counts = np.array(case["x"]), np.array(case["y"]), case["n"]
  yield gap.gap_from_counts(*counts), 0
  yield gap.is_possible(*counts), False


def stage2_expected_cag(case, a):
  mask, x = np.array(case["class_valid_mask"], bool)[None], case["x"]
  p = probes.class_probabilities(a([case["logits"]]), mask)
  yield p[0], case["probs"]
  yield p[0][~mask[0]], 0
  yield gap.expected_gap(p, np.array([x]))[0], case["expected_cag"]
  yield jnp.where(mask[0], gap.gap_table(case["n"])[x], 0), case["cost"]


def majority_vote(case, a):
  answers, ranked = case["answers"], case["sorted_clusters"]
  (ids,) = clusters.answer_ids([answers])
  for number, (_, members) in enumerate(case["clusters_in_order"]):
    assert where(ids == number) == members
  votes, size = voting.majority_vote(ids[None]), len(ids)
  sizes = [len(members) for _, members in ranked]
  voted = ids[answers.index(case["voted_answer"])] if sizes else -1
  yield votes.winner[0], voted
  yield votes.sizes[0], sizes + [0] * (size - len(sizes))
  yield votes.size[0], case["x"]
  yield votes.for_winner[0], among(size, ranked[0][1] if sizes else [])
  features = "prompt_features_valid_ratio_then_sorted_cluster_fractions"
  yield voting.majority_share(votes)[0], case["majority_ratio"]
  yield voting.vote_entropy(votes)[0], case["answer_entropy_nats"]
  yield voting.vote_features(votes)[0], case[features]


def selection_care(case, a):
  scores = a(case["expected_cag"])
  found = selection.care_selection(
    scores,
    a(case["p_vote_correct"]),
    case["step"],
    label_fraction=case["top_pct"],
    gate_fraction=case["prob_gate"],
  )
  bought, size = case["labelled_in_query_order"], len(scores)
  yield found.order[: len(bought)], bought
  yield found.labelled, among(size, bought)
  yield found.pseudo_labelled, among(size, case["gated_pseudo"])
  yield ~(found.labelled | found.gated), among(size, case["masked_out"])
  multipliers = selection.advantage_multipliers
  yield multipliers(found, scores, case["soft_adv"]), case["advantage_coef"]


def ceil_counts(case, a):
  assert selection.budget(case["B"], case["pct"]) == case["count"]
  return ()


def selection_oracle_cag(case, a):
  found = top(a(case["cag"]), case["top_pct"])
  yield found.labelled, among(len(case["cag"]), case["selected_sorted"])


def selection_entropy(case, a):
  ids = np.full((len(case[ENTROPIES]), 8), -1)
  for row, group in zip(ids, case[ENTROPIES], strict=True):
    members = np.repeat(np.arange(len(group)), group)
    row[: len(members)] = members
  scores = selection.entropy_scores(ids)
  yield scores, case["entropy_nats"]
  for share, want in case["selected"].items():
    found = top(scores, float(share))
    yield found.order[: len(want)], want
    yield found.labelled, among(len(ids), want)


def selection_avg_prob(case, a):
  scores = selection.unlikeliness_scores(a(case["response_mean_token_prob"]))
  yield -scores, case["prompt_mean"]
  for share, want in case["selected"].items():
    yield top(scores, float(share)).order[: len(want)], want


def certainty_rewards(case, a):
  formula = (
    "token_level_entropy (formula; released trainer drops entropys so it is 0)"
  )
  for fn, inputs, expected in (
    (certainty.self_certainty, "self_certaintys", "self_certainty"),
    (certainty.token_entropy, "entropys", formula),
    (certainty.trajectory_entropy, "old_log_probs", "trajectory_level_entropy"),
    (certainty.probability, "old_log_probs", "probability"),
  ):
    mask = np.array(case["response_mask"], bool)
    yield fn(a(case[inputs]), mask), case[expected]


def avg_prob_response(case, a):
  log_probs = a([case["token_logprobs"]])
  mask = np.ones(log_probs.shape, bool)
  yield certainty.mean_probability(log_probs, mask), [case["mean_token_prob"]]


def class_weights(case, a):
  counts = np.array(case["labels_counts"])
  labels = np.repeat(np.arange(len(counts)), counts)
  found = probes.class_weights(
    labels,
    case["num_classes"],
    power=case["power"],
    low=case["min"],
    high=case["max"],
  )
  yield found, case["weights"]


def losses(case, a):
  mask = case.get("valid_mask")
  loss = probes.weighted_cross_entropy(
    a(case["logits"]),
    np.array(case["target"]),
    np.array(case["class_weight"]),
    class_mask=None if mask is None else np.array(mask, bool),
  )
  yield loss, case["loss"]


def probe_steps(case, a):
  first, second = case
  inputs = {name: np.array(x) for name, x in PROBES["inputs"].items()}
  counts, mask = inputs["stage2_label"], inputs["stage2_class_valid_mask"]
  right, correct = inputs["stage1_label"], inputs["resp_correct"]
  found = probes.balanced_loss(a(first["train_logits"]), right)
  yield found, first["main_loss"]
  found = probes.response_loss(a(first["train_aux_logits"]), correct)
  yield found, first["aux_loss"]
  logits = a(second["train_logits"])
  yield probes.count_loss(logits, counts, mask.astype(bool)), second["loss"]
  yield probes.class_weights(counts, 4), second["class_weight"]


def grad_clip(case, a):
  first, *rest = case["grads"]
  gradient = {"a": a([first]), "b": a(rest)}
  clipped, norm = care.clip_gradient(gradient, case["max_norm"])
  yield jnp.concatenate([clipped["a"], clipped["b"]]), case["clipped"]
  yield norm, case["norm"]


def cases(fn):
  if fn is probe_steps:
    stages = (PROBES[stage]["steps"] for stage in ("stage1", "stage2"))
    return list(zip(*stages, strict=True))
  found = GOLDEN[fn.__name__]
  return found if isinstance(found, list) else [found]


CHECKS = [
  *(advantage, cag_from_vectors, cag_from_counts, cag_from_counts_invalid),
  *(stage2_expected_cag, majority_vote, selection_care, ceil_counts),
  *(selection_oracle_cag, selection_entropy, selection_avg_prob),
  *(certainty_rewards, avg_prob_response, class_weights, losses, probe_steps),
  grad_clip,
]


@pytest.mark.parametrize("fn", CHECKS, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize(
  ("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-5)]
)
def test_every_number(fn, dtype, rtol):
  wanted = []

  def every_case():
    for case in cases(fn):
      for found, want in fn(case, lambda x: np.array(x, dtype)):
        wanted.append((want, case))
        yield found

  with jax.enable_x64(dtype is np.float64):
    every = jax.jit(lambda: list(every_case()))()
  for found, (want, case) in zip(every, wanted, strict=True):
    assert found.dtype.kind != "f" or found.dtype == dtype
    np.testing.assert_allclose(found, want, rtol=rtol, err_msg=str(case))
