import builtins
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from saw_jax.reporting import statistics
from saw_jax.reporting.statistics import Seed

numbers = st.floats(-100, 100, allow_nan=False, width=32)
NORMAL = np.random.default_rng(0).normal(size=9)


class TestSummarise:
  def test_by_hand(self):
    # mean 2; deviations -1, 0, 1, so the sample variance is 2 / 2 = 1. With two
    # degrees of freedom t = 4.3027, and 4.3027 / sqrt(3) = 2.4841.
    summary = statistics.summarise([1.0, 2.0, 3.0])
    assert (summary.mean, summary.std, summary.count) == (2.0, 1.0, 3)
    assert summary.half_width == pytest.approx(2.4841, abs=1e-4)
    assert summary.low == pytest.approx(2 - 2.4841, abs=1e-4)

  def test_one_seed_has_a_mean_and_no_width(self):
    summary = statistics.summarise([0.5])
    assert (summary.mean, summary.count) == (0.5, 1)
    assert math.isnan(summary.std) and math.isnan(summary.half_width)

  @pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, math.nan]])
  def test_what_is_no_sample_is_refused(self, values):
    with pytest.raises(ValueError, match="one value per seed|not finite"):
      statistics.summarise(values)


class TestIntervals:
  @hypothesis.given(st.lists(numbers, min_size=2, max_size=12))
  def test_of_student_agrees_with_scipy(self, values):
    hypothesis.assume(np.std(values) > 1e-3)
    ours = statistics.t_interval(values)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)

  def test_equal_values_have_no_width(self):
    assert statistics.t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)

  def test_a_missing_scipy_names_the_extra(self, monkeypatch):
    real = builtins.__import__

    def without_scipy(name, *args, **kwargs):
      if name.startswith("scipy"):
        raise ImportError(name)
      return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    with pytest.raises(ImportError, match=r"saw_jax\[report\]"):
      statistics.t_interval([1.0, 2.0])

  def test_of_draws_agrees_with_scipy_and_repeats(self):
    ours = statistics.bootstrap_interval(NORMAL)
    assert ours == statistics.bootstrap_interval(NORMAL)
    draws = {"n_resamples": 50_000, "method": "percentile"}
    theirs = stats.bootstrap((NORMAL,), np.mean, **draws).confidence_interval
    np.testing.assert_allclose(ours, theirs, atol=0.03)
    assert np.isnan(statistics.bootstrap_interval([1.0])).all()

  def test_two_values_by_hand(self):
    # The mean of two draws from {0, 1} is 0, 1/2 or 1 with shares 1/4, 1/2,
    # 1/4. Of six draws it is 0 with a share of 1/64, less than the tail.
    assert statistics.bootstrap_interval([0, 1]) == (0, 1)
    low, high = statistics.bootstrap_interval([0, 0, 0, 1, 1, 1])
    assert 0 < low < 0.5 < high < 1


class TestPairedDifference:
  def test_by_hand(self):
    # Differences 1, 2, 3, though the rows themselves vary by hundreds.
    control = {7: 100.0, 3: 0.0, 5: 300.0}
    treated = {3: 2.0, 5: 303.0, 7: 101.0}
    found = statistics.paired_difference(treated, control)
    mean, count, t, (low, high), starts = found
    assert (mean, count, starts) == (2.0, 3, 1)
    assert t[1] == pytest.approx(2 + 2.4841, abs=1e-4)
    assert 1.0 <= low <= high <= 3.0

  def test_agrees_with_the_paired_t_test(self):
    both = np.random.default_rng(0).normal(size=(2, 8))
    rows = [dict(enumerate(row)) for row in both]
    theirs, ours = stats.ttest_rel(*both), statistics.paired_difference(*rows)
    ends = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(ours.t, ends, rtol=1e-9)
    p = statistics.p_value(ours)
    assert p == pytest.approx(theirs.pvalue, rel=1e-9)

  @hypothesis.given(st.dictionaries(st.integers(0, 99), numbers, min_size=2))
  def test_exchanging_the_rows_changes_the_sign(self, treated):
    control = dict.fromkeys(treated, 1.0)
    one = statistics.paired_difference(treated, control)
    two = statistics.paired_difference(control, treated)
    assert one.mean == -two.mean
    np.testing.assert_allclose(one.t, [-x for x in two.t[::-1]], atol=1e-9)

  def test_unpaired_seeds_are_refused_and_one_pair_has_no_interval(self):
    with pytest.raises(ValueError, match="second"):
      statistics.paired_difference({1: 0.0, 2: 0.0}, {1: 0.0, 3: 0.0})
    difference = statistics.paired_difference({0: 2.0}, {0: 1.0})
    assert difference.mean == 1.0
    assert math.isnan(difference.t[0])


class TestSeveralTests:
  def test_pairs_that_differ_by_as_much(self):
    same = statistics.paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0})
    other = same._replace(mean=0.5)
    assert (statistics.p_value(same), statistics.p_value(other)) == (1, 0)

  def test_holm_agrees_with_scipys_idea_of_it_by_hand(self):
    # 0.001 · 4, then 0.013 · 3, 0.013 · 3 again and not 0.02 · 2 ... up to 1.
    found = statistics.holm([0.02, 0.001, 0.9, 0.013])
    np.testing.assert_allclose(found, [0.04, 0.004, 0.9, 0.039])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]

  def test_a_detectable_difference_is_found_in_four_of_five(self):
    rng, found = np.random.default_rng(0), 0
    noise = rng.normal(size=(4000, 8))
    # With the noise known to be 1, as in the mean of what tables say.
    quantiles = stats.t.ppf([0.975, 0.8], 7).sum()
    for sample in noise + quantiles / np.sqrt(8):
      low, _ = statistics.t_interval(sample)
      found += low > 0
    assert found / len(noise) == pytest.approx(0.8, abs=0.03)
    one = statistics.paired_difference(
      dict(enumerate(noise[0])), dict.fromkeys(range(8), 0.0)
    )
    expected = quantiles * noise[0].std(ddof=1) / np.sqrt(8)
    assert statistics.smallest_detectable(one) == pytest.approx(expected)


def test_an_interval_over_starts_covers_and_one_over_seeds_does_not():
  rng, trials = np.random.default_rng(0), 4000
  starts = rng.normal(size=(trials, 3, 1))  # their chance, as large as a seed's
  values = starts + rng.normal(size=(trials, 3, 8))

  def covers(interval, samples):
    ends = np.array([interval(sample) for sample in samples])
    return ((ends[:, 0] < 0) & (ends[:, 1] > 0)).mean()

  def over_starts(sample):
    seeds = {Seed(*at): value for at, value in np.ndenumerate(sample)}
    return statistics.t_interval(seeds)

  assert covers(over_starts, values) == pytest.approx(0.95, abs=0.01)
  assert covers(statistics.t_interval, values.reshape(trials, -1)) < 0.65


def test_a_difference_of_several_starts_has_their_degrees_of_freedom():
  by_start = ((1.0, 3.0), (4.0, 6.0), (7.0, 15.0))  # means 2, 5 and 11
  seeds = {Seed(*at): x for at, x in np.ndenumerate(np.array(by_start))}
  found = statistics.paired_difference(seeds, dict.fromkeys(seeds, 0.0))
  assert found.mean == pytest.approx(6.0) and found.size == "3 × 2"
  of_starts = {0: 2.0, 1: 5.0, 2: 11.0}
  same = statistics.paired_difference(of_starts, dict.fromkeys(of_starts, 0.0))
  for told in (statistics.p_value, statistics.smallest_detectable):
    assert told(found) == pytest.approx(told(same))
  assert found.t == pytest.approx(same.t)
  assert found.bootstrap == same.bootstrap


def test_an_interquartile_mean_agrees_with_counting_quarters():
  for size in (1, 3, 4, 5, 7):
    sample = np.random.default_rng(size).normal(size=size)
    middle = np.sort(np.repeat(sample, 4))[size : 3 * size]
    found = statistics.interquartile_mean(sample)
    assert found == pytest.approx(middle.mean())


def test_a_moving_average_agrees_with_a_loop_and_has_to_fit():
  values = np.random.default_rng(0).normal(size=(3, 11))
  expected = [[row[i : i + 5].mean() for i in range(7)] for row in values]
  np.testing.assert_allclose(statistics.moving_average(values, 5), expected)
  for window in (0, 4):
    with pytest.raises(ValueError, match="window"):
      statistics.moving_average([1.0, 2.0, 3.0], window)


@pytest.mark.parametrize(
  ("threshold", "window", "step"),
  [
    *((1.0, 1, 10), (1.0, 2, 40), (0.5, 2, 10)),
    (1.5, 1, math.inf),
    (0.0, 6, math.inf),  # nor is it known of a run within the first window
  ],
)
def test_steps_to_a_threshold_by_hand(threshold, window, step):
  # Averages of two: 0.5 at step 1, 0.5, 0.5 at step 3, 1.0 at step 4.
  values, at = [0.0, 1.0, 0.0, 1.0, 1.0], [0, 10, 20, 30, 40]
  found = statistics.steps_to_threshold(values, threshold, window, at)
  assert found == step


def test_ends_of_runs():
  # A run that is shorter than the window is one average.
  assert statistics.best_and_last([0.9, 0.1], 5) == (0.5, 0.5)
  assert statistics.best_and_last([0, 2, 4, 1, 1], 2) == (3.0, 1.0)
  # The median is of 10, 20, 30 and beyond.
  found = statistics.median_steps([30, math.inf, 10, 20], limit=100)
  assert found == "25 (3/4 reached)"
