"""What seeds and samples say: intervals, paired differences, scores at k.

Inputs are NumPy arrays or mappings from seed to value. Nothing is trimmed and
nothing is dropped: a number that is not finite is refused.
"""

import math
import statistics as _statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
  """Two ends; both are NaN where one value leaves the spread unknown."""

  low: float
  high: float


class Summary(NamedTuple):
  """A sample in five numbers."""

  mean: float
  std: float  # sample deviation, with `n - 1`; NaN for one value
  low: float  # ends of the t interval
  high: float
  count: int

  @property
  def half_width(self) -> float:
    """Of the t interval."""
    return (self.high - self.low) / 2


class PairedDifference(NamedTuple):
  """How much better one row is than another on the same seeds."""

  mean: float
  count: int  # pairs
  t: Interval
  bootstrap: Interval
  confidence: float


class AtK(NamedTuple):
  """A score of several samples per problem, averaged over problems."""

  mean: float
  low: float  # ends of the bootstrap interval over problems
  high: float
  problems: int
  k: int


class StepsSummary(NamedTuple):
  """Steps to a threshold over seeds, some of which may not have reached it."""

  median: float | None  # None: more than `limit`
  reached: int  # seeds that got there
  count: int  # seeds
  limit: int  # last step of the runs

  def __str__(self) -> str:
    value = f"> {self.limit}" if self.median is None else f"{self.median:g}"
    return f"{value} ({self.reached}/{self.count} reached)"


def summarise(values: npt.ArrayLike, *, confidence: float = 0.95) -> Summary:
  """Gives mean, sample deviation and t interval.

  Args:
    values: one number per seed. Shape `[n]`, `n ≥ 1`.
    confidence: of the interval.

  Returns:
    The summary. For one value, deviation and interval are NaN.
  """
  sample = _sample(values)
  low, high = t_interval(sample, confidence=confidence)
  std = float(np.std(sample, ddof=1)) if sample.size > 1 else float("nan")
  return Summary(float(np.mean(sample)), std, low, high, sample.size)


def t_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Interval:
  """Gives Student's interval of the mean.

    x̄ ± t₍ₙ₋₁₎ · s / √n

  Args:
    values: one number per seed. Shape `[n]`, `n ≥ 1`.
    confidence: between 0 and 1.

  Returns:
    The interval; NaN for one value.

  Raises:
    ImportError: SciPy is absent.
  """
  sample = _sample(values)
  _check_confidence(confidence)
  if sample.size == 1:
    return Interval(float("nan"), float("nan"))
  quantile = _student_t().ppf((1 + confidence) / 2, sample.size - 1)
  half = float(quantile * np.std(sample, ddof=1) / np.sqrt(sample.size))
  mean = float(np.mean(sample))
  return Interval(mean - half, mean + half)


def bootstrap_interval(
  values: npt.ArrayLike,
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Interval:
  """Gives the percentile bootstrap interval of the mean.

  It assumes no shape of the distribution, but with five seeds or so it is too
  narrow; read it beside the t interval, not in its place.

  Args:
    values: one number per seed. Shape `[n]`, `n ≥ 1`.
    confidence: between 0 and 1.
    num_resamples: samples drawn with replacement.
    seed: of the draws.

  Returns:
    The interval; NaN for one value.

  >>> bootstrap_interval([1.0, 1.0, 1.0])
  Interval(low=1.0, high=1.0)
  """
  sample = _sample(values)
  _check_confidence(confidence)
  if sample.size == 1:
    return Interval(float("nan"), float("nan"))
  rng = np.random.default_rng(seed)
  draws = rng.integers(sample.size, size=(num_resamples, sample.size))
  tail = (1 - confidence) / 2
  low, high = np.quantile(sample[draws].mean(axis=1), [tail, 1 - tail])
  return Interval(float(low), float(high))


def paired_difference(
  treated: Mapping[int, float],
  control: Mapping[int, float],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> PairedDifference:
  """Compares two rows seed by seed.

  A seed fixes the prompts and the keys of both rows, so the difference within a
  seed varies less than either row does.

  Args:
    treated: value of the row in question by seed.
    control: value of the row it is compared with, for the same seeds.
    confidence: of both intervals.
    num_resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    Mean of `treated - control` with its t and bootstrap intervals.

  Raises:
    ValueError: the two rows do not have the same seeds.
  """
  if set(treated) != set(control):
    raise ValueError(
      "the two rows have different seeds, so there is nothing to pair: "
      f"only in the first {sorted(set(treated) - set(control))}, "
      f"only in the second {sorted(set(control) - set(treated))}"
    )
  seeds = sorted(treated)
  differences = _sample([treated[s] - control[s] for s in seeds])
  return PairedDifference(
    mean=float(np.mean(differences)),
    count=differences.size,
    t=t_interval(differences, confidence=confidence),
    bootstrap=bootstrap_interval(
      differences,
      confidence=confidence,
      num_resamples=num_resamples,
      seed=seed,
    ),
    confidence=confidence,
  )


def mean_at_k(
  correct: npt.ArrayLike,
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> AtK:
  """Gives the share of right samples, averaged over problems.

  Args:
    correct: whether each sample is right. Shape `[problems, samples]`; `k` is
      the number of samples.
    confidence: of the bootstrap interval over problems.
    num_resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The mean with its interval.
  """
  right = _samples(correct)
  return _at_k(
    right.mean(axis=1), right.shape[1], confidence, num_resamples, seed
  )


def pass_at_k(
  correct: npt.ArrayLike,
  k: int | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> AtK:
  """Gives the probability that one of `k` samples is right, over problems.

  Args:
    correct: whether each sample is right. Shape `[problems, samples]`.
    k: between 1 and the number of samples, which it is if None.
    confidence: of the bootstrap interval over problems.
    num_resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The mean of `pass_at_k_per_problem` with its interval.
  """
  right = _samples(correct)
  k = right.shape[1] if k is None else k
  values = pass_at_k_per_problem(right, k)
  return _at_k(values, k, confidence, num_resamples, seed)


def pass_at_k_per_problem(
  correct: npt.ArrayLike, k: int | None = None
) -> np.ndarray:
  """Estimates for each problem that one of `k` samples is right, unbiased.

    1 - C(n - c, k) / C(n, k)

  for `c` right ones of `n` samples: of all choices of `k` of them, the share
  that has a right one.

  Args:
    correct: whether each sample is right. Shape `[problems, samples]`.
    k: between 1 and the number of samples, which it is if None.

  Returns:
    Float64, shape `[problems]`.

  References:
    Chen et al., "Evaluating Large Language Models Trained on Code".
    https://arxiv.org/abs/2107.03374

  >>> print(pass_at_k_per_problem([[1, 0, 0, 0], [0, 0, 0, 0]], 2))
  [0.5 0. ]
  """
  right = _samples(correct)
  n = right.shape[1]
  k = n if k is None else k
  if not 1 <= k <= n:
    raise ValueError(f"k is {k}, not between 1 and the {n} samples")
  all_of = math.comb(n, k)
  # Exact integers: no product of quotients that drifts.
  return np.array(
    [1 - math.comb(n - int(c), k) / all_of for c in right.sum(axis=1)]
  )


def majority_at_k(
  correct: npt.ArrayLike,
  answers: npt.ArrayLike,
  k: int | None = None,
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> AtK:
  """Gives the probability that the vote of `k` samples is right, over problems.

  Args:
    correct: whether each sample is right. Shape `[problems, samples]`.
    answers: id of each sample's answer, negative where there is none. Shape
      `[problems, samples]`.
    k: between 1 and the number of samples, which it is if None.
    confidence: of the bootstrap interval over problems.
    num_resamples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    The mean of `majority_at_k_per_problem` with its interval.
  """
  right = _samples(correct)
  k = right.shape[1] if k is None else k
  values = majority_at_k_per_problem(right, answers, k)
  return _at_k(values, k, confidence, num_resamples, seed)


def majority_at_k_per_problem(
  correct: npt.ArrayLike, answers: npt.ArrayLike, k: int | None = None
) -> np.ndarray:
  """Says for each problem how often the most frequent answer is right.

  Samples vote in blocks of `k`, one after the other; what is left over does
  not vote. A tie goes to the answer that comes first in its block, and a block
  without an answer is wrong. An answer is as right as its first sample.

  Args:
    correct: whether each sample is right. Shape `[problems, samples]`.
    answers: id of each sample's answer, negative where there is none. Shape
      `[problems, samples]`.
    k: between 1 and the number of samples, which it is if None.

  Returns:
    Float64, shape `[problems]`.

  >>> print(majority_at_k_per_problem([[1, 0, 0], [1, 1, 0]], [[3, 4, 4]] * 2))
  [0. 1.]
  """
  right, ids = _samples(correct), np.asarray(answers)
  if ids.shape != right.shape:
    raise ValueError(f"answers {ids.shape} of samples {right.shape}")
  if not np.issubdtype(ids.dtype, np.integer):
    raise ValueError(f"answers are ids, not {ids.dtype}")
  n = right.shape[1]
  k = n if k is None else k
  if not 1 <= k <= n:
    raise ValueError(f"k is {k}, not between 1 and the {n} samples")
  size = n // k * k
  shape = (right.shape[0], n // k, k)
  right, ids = right[:, :size].reshape(shape), ids[:, :size].reshape(shape)
  is_answer = ids >= 0
  same = ids[..., :, None] == ids[..., None, :]
  votes = np.where(is_answer, same.sum(axis=-1), 0)
  voted = votes.argmax(axis=-1)  # The first of the most frequent.
  wins = np.take_along_axis(right & is_answer, voted[..., None], axis=-1)
  return wins[..., 0].mean(axis=1, dtype=np.float64)


def wilson_interval(
  successes: int, trials: int, *, confidence: float = 0.95
) -> Interval:
  """Gives Wilson's score interval of a proportion.

  It stays between 0 and 1 and has a width even when all trials agree:

    (p̂ + z²/2n ± z √(p̂(1 - p̂)/n + z²/4n²)) / (1 + z²/n)

  Args:
    successes: between 0 and `trials`.
    trials: at least 1.
    confidence: between 0 and 1.

  Returns:
    The interval.

  References:
    Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927. https://doi.org/10.1080/01621459.1927.10502953

  >>> [round(end, 3) for end in wilson_interval(0, 10)]
  [0.0, 0.278]
  """
  _check_confidence(confidence)
  if not 0 <= successes <= trials or trials < 1:
    raise ValueError(f"{successes} successes in {trials} trials")
  z = _statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  share = successes / trials
  centre = share + z**2 / (2 * trials)
  half = z * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5
  scale = 1 + z**2 / trials
  return Interval(
    max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
  )


def moving_average(values: npt.ArrayLike, window: int) -> np.ndarray:
  """Averages each value with those before it.

  Args:
    values: shape `[..., T]`.
    window: values in an average, between 1 and `T`.

  Returns:
    Shape `[..., T - window + 1]`: entry `i` averages `values[i : i + window]`.

  >>> moving_average([0.0, 2.0, 4.0], 2)
  array([1., 3.])
  """
  array = np.asarray(values, np.float64)
  if not 1 <= window <= array.shape[-1]:
    raise ValueError(f"a window of {window} over {array.shape[-1]} values")
  views = np.lib.stride_tricks.sliding_window_view(array, window, axis=-1)
  return views.mean(axis=-1)


def steps_to_threshold(
  values: npt.ArrayLike,
  threshold: float,
  *,
  window: int = 1,
  steps: npt.ArrayLike | None = None,
) -> int | None:
  """Finds the first step at which the moving average reaches a threshold.

  Args:
    values: of one seed, in the order of the steps. Shape `[T]`.
    threshold: to reach or pass.
    window: values in the average; the step is that of the last of them.
    steps: of the values, increasing. Shape `[T]`; `0, 1, ...` if None.

  Returns:
    The step; None if the run ended first, which is not a number to average,
    be it before there were `window` values.
  """
  sample = _sample(values)
  at = np.arange(sample.size) if steps is None else np.asarray(steps)
  if at.shape != sample.shape or np.any(np.diff(at) <= 0):
    raise ValueError("`steps` has to increase, one for each value")
  if window > sample.size:
    return None
  (reached,) = np.nonzero(moving_average(sample, window) >= threshold)
  return int(at[reached[0] + window - 1]) if reached.size else None


def has_collapsed(
  values: npt.ArrayLike, *, window: int, share: float = 0.5
) -> bool:
  """Says whether a seed lost what it had.

  Args:
    values: rewards of one seed in the order of the steps, 0 or more. Shape
      `[T]`.
    window: steps that are averaged; all of them where there are fewer.
    share: of the best average.

  Returns:
    Whether the average of the last `window` steps is below `share` of the best
    such average that the seed ever had.

  >>> has_collapsed([0.4, 0.8, 0.9, 0.3], window=1)
  True
  >>> has_collapsed([0.4, 0.8, 0.9, 0.5], window=1)
  False
  """
  sample = _sample(values)
  averages = moving_average(sample, min(window, sample.size))
  return bool(averages[-1] < share * averages.max())


def summarise_steps(steps: Sequence[int | None], *, limit: int) -> StepsSummary:
  """Gives the median of steps to a threshold, None counting as beyond `limit`.

  The mean of the seeds that got there would flatter a row that rarely does; the
  median is known as long as more than half of them do.

  Args:
    steps: of each seed, from `steps_to_threshold`.
    limit: last step of the runs.

  Returns:
    The summary.

  >>> str(summarise_steps([10, None, 30], limit=50))
  '30 (2/3 reached)'
  >>> str(summarise_steps([10, None], limit=50))
  '> 50 (1/2 reached)'
  """
  if not steps:
    raise ValueError("no seeds to summarise")
  late = [s for s in steps if s is not None and s > limit]
  if late:
    raise ValueError(f"steps {late} lie beyond the limit of {limit}")
  median = float(np.median([np.inf if s is None else s for s in steps]))
  return StepsSummary(
    median=median if np.isfinite(median) else None,
    reached=sum(s is not None for s in steps),
    count=len(steps),
    limit=limit,
  )


def _sample(values: npt.ArrayLike) -> np.ndarray:
  sample = np.asarray(values, np.float64)
  if sample.ndim != 1 or not sample.size:
    raise ValueError(f"expected one value per seed, got shape {sample.shape}")
  if not np.isfinite(sample).all():
    raise ValueError(f"values that are not finite: {sample}")
  return sample


def _samples(correct: npt.ArrayLike) -> np.ndarray:
  array = np.asarray(correct)
  if array.ndim != 2 or not array.size:
    raise ValueError(f"expected [problems, samples], got shape {array.shape}")
  if not np.isin(array, (0, 1)).all():
    raise ValueError("a sample is right or wrong, 1 or 0")
  return array.astype(bool)


def _at_k(
  values: np.ndarray, k: int, confidence: float, num_resamples: int, seed: int
) -> AtK:
  low, high = bootstrap_interval(
    values, confidence=confidence, num_resamples=num_resamples, seed=seed
  )
  return AtK(float(np.mean(values)), low, high, values.size, k)


def _check_confidence(confidence: float) -> None:
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence}, not between 0 and 1")


def _student_t():
  try:
    from scipy import stats
  except ImportError as error:
    raise ImportError(
      "intervals need SciPy: pip install 'saw_jax[report]'"
    ) from error
  return stats.t
