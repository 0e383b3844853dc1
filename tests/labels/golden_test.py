"""The reference code of CARE, number for number, in one program for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from saw_jax import advantages
from saw_jax.labels import care, certainty, gap, probes, selection, voting
from saw_jax.tasks import data
from tests import helpers

GOLDEN = helpers.golden("rlavr_care")
PROBES = GOLDEN["probe_tiny_training"]
INPUTS = {name: np.array(x) for name, x in PROBES["inputs"].items()}
SIZES = "cluster_sizes (valid answers only)"
ENTROPY = (
  "token_level_entropy (formula; released trainer drops entropys so it is 0)"
)


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


def advantage(c, a):
  trained = advantages.normalize_groups(a(c["reward"]))
  yield gap.gap_advantages(a(c["reward"])), c["cag_advantage_ddof0"]
  yield trained, c["train_advantage_ddof1_eps1e-6"]


def cag_from_vectors(c, a):
  pseudo, true = a(c["pseudo_reward"]), a(c["true_reward"])
  yield gap.gap_advantages(pseudo), c["pseudo_adv"]
  yield gap.gap_advantages(true), c["true_adv"]
  yield gap.corrective_advantage_gap(pseudo, true), c["cag"]


def cag_from_counts(c, a):
  n, x, y = c["n"], c["x"], c["y"]
  yield gap.gap_from_counts(np.array(x), np.array(y), n), c["closed_form"]
  rewards = map(a, rewards_of(x, y, n))
  yield gap.corrective_advantage_gap(*rewards), c["cag"]


def cag_from_counts_invalid(c, a):
  counts = np.array(c["x"]), np.array(c["y"]), c["n"]
  yield gap.gap_from_counts(*counts), 0
  yield gap.is_possible(*counts), False


def stage2_expected_cag(c, a):
  mask, x = np.array(c["class_valid_mask"], bool)[None], c["x"]
  p = probes.class_probabilities(a([c["logits"]]), mask)
  yield p[0], c["probs"]
  yield p[0][~mask[0]], 0
  yield gap.expected_gap(p, np.array([x]))[0], c["expected_cag"]
  yield jnp.where(mask[0], gap.gap_table(c["n"])[x], 0), c["cost"]


def majority_vote(c, a):
  answers, ranked = c["answers"], c["sorted_clusters"]
  (ids,) = data.answer_ids([answers])
  for number, (_, members) in enumerate(c["clusters_in_order"]):
    assert where(ids == number) == members
  votes, size = voting.majority_vote(ids[None]), len(ids)
  sizes = [len(members) for _, members in ranked]
  yield votes.winner[0], ids[answers.index(c["voted_answer"])] if sizes else -1
  yield votes.sizes[0], sizes + [0] * (size - len(sizes))
  yield votes.size[0], c["x"]
  yield votes.for_winner[0], among(size, ranked[0][1] if sizes else [])
  features = "prompt_features_valid_ratio_then_sorted_cluster_fractions"
  yield voting.majority_share(votes)[0], c["majority_ratio"]
  yield voting.vote_entropy(votes)[0], c["answer_entropy_nats"]
  yield voting.vote_features(votes)[0], c[features]


def selection_care(c, a):
  scores, p = a(c["expected_cag"]), a(c["p_vote_correct"])
  shares = dict(label_fraction=c["top_pct"], gate_fraction=c["prob_gate"])
  found = selection.care_selection(scores, p, c["step"], **shares)
  bought, size = c["labelled_in_query_order"], len(scores)
  yield found.order[: len(bought)], bought
  yield found.labelled, among(size, bought)
  yield found.pseudo_labelled, among(size, c["gated_pseudo"])
  yield ~(found.labelled | found.gated), among(size, c["masked_out"])
  multipliers = selection.advantage_multipliers
  yield multipliers(found, scores, c["soft_adv"]), c["advantage_coef"]


def ceil_counts(c, a):
  yield jnp.array(selection.budget(c["B"], c["pct"])), c["count"]


def selection_oracle_cag(c, a):
  found = top(a(c["cag"]), c["top_pct"])
  yield found.labelled, among(len(c["cag"]), c["selected_sorted"])


def selection_entropy(c, a):
  ids = np.full((len(c[SIZES]), 8), -1)
  for row, group in zip(ids, c[SIZES], strict=True):
    row[: sum(group)] = np.repeat(np.arange(len(group)), group)
  scores = selection.entropy_scores(ids)
  yield scores, c["entropy_nats"]
  for share, want in c["selected"].items():
    found = top(scores, float(share))
    yield found.order[: len(want)], want
    yield found.labelled, among(len(ids), want)


def selection_avg_prob(c, a):
  scores = selection.unlikeliness_scores(a(c["response_mean_token_prob"]))
  yield -scores, c["prompt_mean"]
  for share, want in c["selected"].items():
    yield top(scores, float(share)).order[: len(want)], want


def certainty_rewards(c, a):
  mask = np.array(c["response_mask"], bool)
  log_probs = a(c["old_log_probs"])
  certainties, entropies = a(c["self_certaintys"]), a(c["entropys"])
  yield certainty.self_certainty(certainties, mask), c["self_certainty"]
  yield certainty.token_entropy(entropies, mask), c[ENTROPY]
  likely = certainty.trajectory_entropy(log_probs, mask)
  yield likely, c["trajectory_level_entropy"]
  yield certainty.probability(log_probs, mask), c["probability"]


def avg_prob_response(c, a):
  log_probs = a([c["token_logprobs"]])
  found = certainty.mean_probability(log_probs, log_probs < 1)
  yield found, [c["mean_token_prob"]]


def class_weights(c, a):
  labels = np.repeat(np.arange(len(c["labels_counts"])), c["labels_counts"])
  bounds = dict(power=c["power"], low=c["min"], high=c["max"])
  yield (probes.class_weights(labels, c["num_classes"], **bounds), c["weights"])


def losses(c, a):
  mask = c.get("valid_mask")
  mask = None if mask is None else np.array(mask, bool)
  target, weights = np.array(c["target"]), np.array(c["class_weight"])
  loss = probes.weighted_cross_entropy
  yield loss(a(c["logits"]), target, weights, class_mask=mask), c["loss"]


def probe_steps(c, a):
  (first, second), inputs = c, INPUTS
  counts, mask = inputs["stage2_label"], inputs["stage2_class_valid_mask"]
  votes = a(first["train_logits"]), inputs["stage1_label"]
  yield probes.balanced_loss(*votes), first["main_loss"]
  responses = a(first["train_aux_logits"]), inputs["resp_correct"]
  yield probes.response_loss(*responses), first["aux_loss"]
  found = probes.count_loss(a(second["train_logits"]), counts, mask == 1)
  yield found, second["loss"]
  yield probes.class_weights(counts, 4), second["class_weight"]


def grad_clip(c, a):
  first, *rest = c["grads"]
  gradient = {"a": a([first]), "b": a(rest)}
  clipped, norm = care.clip_gradient(gradient, c["max_norm"])
  yield jnp.concatenate([clipped["a"], clipped["b"]]), c["clipped"]
  yield norm, c["norm"]


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
