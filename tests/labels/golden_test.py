"""The reference code of CARE, number for number, compiled and not."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages
from saw_jax.labels import (
  care,
  certainty,
  gap,
  probe_losses,
  selection,
  voting,
)
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


def top(scores, label_fraction=0.2):
  """Buys by one score, as a baseline does."""
  return selection.care_selection(
    scores, scores, 99, label_fraction=label_fraction, gate_fraction=0.0
  )


def ids_of_sizes():
  sizes = GOLDEN["selection_entropy"][ENTROPIES]
  ids = np.full((len(sizes), 8), -1)
  for row, group in zip(ids, sizes, strict=True):
    members = np.repeat(np.arange(len(group)), group)
    row[: len(members)] = members
  return ids


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


def stage2_expected_cag(case, a):
  mask, x = np.array(case["class_valid_mask"], bool)[None], case["x"]
  p = probe_losses.class_probabilities(a([case["logits"]]), mask)
  yield p[0], case["probs"]
  yield p[0][~mask[0]], 0
  yield gap.expected_gap(p, np.array([x]))[0], case["expected_cag"]
  yield jnp.where(mask[0], gap.gap_table(case["n"])[x], 0), case["cost"]


def majority_vote(case, a):
  (ids,) = clusters.answer_ids([case["answers"]])
  votes = voting.majority_vote(ids[None])
  winner = int(votes.winner[0])
  voted = case["answers"][ids.tolist().index(winner)] if winner >= 0 else "None"
  assert voted == case["voted_answer"]
  sizes = [len(members) for _, members in case["sorted_clusters"]]
  assert votes.sizes[0].tolist() == sizes + [0] * (len(ids) - len(sizes))
  assert votes.size.tolist() == [case["x"]]
  members = case["sorted_clusters"][0][1] if sizes else []
  assert where(votes.for_winner[0]) == members
  for number, (_, members) in enumerate(case["clusters_in_order"]):
    assert where(ids == number) == members
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
  bought = case["labelled_in_query_order"]
  assert found.order[: len(bought)].tolist() == bought
  assert where(found.labelled) == sorted(bought)
  assert where(found.pseudo_labelled) == case["gated_pseudo"]
  assert where(found.dropped) == case["masked_out"]
  soft_adv = case["soft_adv"]
  multipliers = selection.advantage_multipliers(
    found, scores, soft_adv=soft_adv
  )
  yield multipliers, case["advantage_coef"]


def ceil_counts(case, a):
  assert selection.budget(case["B"], case["pct"]) == case["count"]
  return ()


def selection_oracle_cag(case, a):
  found = top(a(case["cag"]), case["top_pct"])
  assert where(found.labelled) == case["selected_sorted"]
  return ()


def selection_entropy(case, a):
  scores = selection.entropy_scores(ids_of_sizes())
  yield scores, case["entropy_nats"]
  for share, want in case["selected"].items():
    found = top(scores, float(share))
    assert found.order[: len(want)].tolist() == want
    assert where(found.labelled) == sorted(want)


def selection_avg_prob(case, a):
  scores = selection.unlikeliness_scores(a(case["response_mean_token_prob"]))
  yield -scores, case["prompt_mean"]
  for share, want in case["selected"].items():
    assert top(scores, float(share)).order[: len(want)].tolist() == want


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
  found = probe_losses.class_counts(labels, case["num_classes"])
  yield found, counts
  yield (
    probe_losses.class_weights(
      found, power=case["power"], low=case["min"], high=case["max"]
    ),
    case["weights"],
  )


def losses(case, a):
  mask = case.get("valid_mask")
  loss = probe_losses.weighted_cross_entropy(
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
  yield (
    probe_losses.vote_loss(a(first["train_logits"]), inputs["stage1_label"]),
    first["main_loss"],
  )
  yield (
    probe_losses.response_loss(
      a(first["train_aux_logits"]), inputs["resp_correct"]
    ),
    first["aux_loss"],
  )
  yield (
    probe_losses.count_loss(
      a(second["train_logits"]), counts, mask.astype(bool)
    ),
    second["loss"],
  )
  weights = probe_losses.class_weights(probe_losses.class_counts(counts, 4))
  yield weights, second["class_weight"]


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
  *(advantage, cag_from_vectors, cag_from_counts, stage2_expected_cag),
  *(majority_vote, selection_care, ceil_counts, selection_oracle_cag),
  *(selection_entropy, selection_avg_prob, certainty_rewards),
  *(avg_prob_response, class_weights, losses, probe_steps, grad_clip),
]


@pytest.mark.parametrize("fn", CHECKS, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize(
  ("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-5)]
)
def test_every_number(fn, dtype, rtol):
  with jax.enable_x64(dtype is np.float64):
    for case in cases(fn):
      for found, want in fn(case, lambda x: np.array(x, dtype)):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, want, rtol=rtol, err_msg=str(case))


def test_impossible_counts():
  for case in GOLDEN["cag_from_counts_invalid"]:
    counts = np.array(case["x"]), np.array(case["y"]), case["n"]
    assert gap.gap_from_counts(*counts) == 0
    assert not gap.is_possible(*counts)
