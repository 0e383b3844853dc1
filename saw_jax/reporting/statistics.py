"""What seeds and samples say: intervals, paired differences, scores at k.

Inputs are NumPy arrays or mappings from seed to value. Nothing is trimmed and
nothing is dropped: a number that is not finite is refused.
"""

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
