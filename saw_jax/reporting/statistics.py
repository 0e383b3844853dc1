"""What seeds say: 95 % intervals, paired differences, steps to a threshold."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from saw_jax import naming

CONFIDENCE = 0.95
_POWER = 0.8  # of the effect that is called detectable
Interval = tuple[float, float]  # NaN where one value leaves the spread unknown


class Seed(NamedTuple):
  """The name of one policy of a row."""

  start: int  # the supervised start that it began at
  seed: int

  def __str__(self) -> str:
    return f"{self.seed}" + (f" of start {self.start}" if self.start else "")


# A number per policy; by its `Seed` where there may be several starts.
Sample = npt.ArrayLike | Mapping[Seed, float]


def _size(sample: "Summary | PairedDifference") -> str:
  """How many policies, as `5`, or `3 × 8` of three starts."""
  if sample.starts == 1:
    return str(sample.count)
  return f"{sample.starts} × {sample.count / sample.starts:g}"


class Summary(NamedTuple):
  """A sample in a few numbers."""

  mean: float
  std: float  # sample deviation, with `n - 1`; NaN for one value
  low: float  # ends of the t interval
  high: float
  count: int
  starts: int = 1

  size = property(_size)

  @property
  def half_width(self) -> float:
    return (self.high - self.low) / 2


class PairedDifference(NamedTuple):
  """How much better one row is than another on the same seeds."""

  mean: float
  count: int  # pairs
  t: Interval
  bootstrap: Interval
  starts: int = 1

  size = property(_size)

  @property
  def freedom(self) -> int:
    """Degrees of freedom of its interval."""
    return (self.starts if self.starts > 1 else self.count) - 1


def independent(values: Sample) -> np.ndarray:
  """The independent values of a sample: its means by start, or all of it.

  Seeds of one start share its chance, and as many values would claim to know
  too much. Of a single start nothing says what another would have given.

  >>> independent({Seed(0, 0): 1.0, Seed(0, 1): 3.0, Seed(1, 0): 5.0})
  array([2., 5.])
  """
  if not isinstance(values, Mapping):
    return _sample(values)
  by_start: dict[int, list[float]] = {}
  for seed, value in values.items():
    by_start.setdefault(_start(seed), []).append(value)
  if len(by_start) == 1:
    return _sample([*values.values()])
  return _sample([np.mean(_sample(of)) for of in by_start.values()])


def _start(seed: Seed | int) -> int:
  return seed.start if isinstance(seed, Seed) else 0


def summarise(values: Sample) -> Summary:
  """Mean, sample deviation and t interval of one number per seed."""
  is_named, mean = isinstance(values, Mapping), np.mean(independent(values))
  sample = _sample([*values.values()] if is_named else values)
  std = float(np.std(sample, ddof=1)) if sample.size > 1 else np.nan
  starts = len({*map(_start, values)}) if is_named else 1
  return Summary(float(mean), std, *t_interval(values), sample.size, starts)


def t_interval(values: Sample) -> Interval:
  """Student's interval of the mean, x̄ ± t₍ₙ₋₁₎ · s / √n.

  Of the means of supervised starts, where there are several; with equally many
  seeds of each it covers the truth as often as it says, however unlike starts
  are.
  """
  sample = independent(values)
  if sample.size == 1:
    return np.nan, np.nan
  quantile = _student().ppf((1 + CONFIDENCE) / 2, sample.size - 1)
  half = float(quantile * np.std(sample, ddof=1) / np.sqrt(sample.size))
  mean = float(np.mean(sample))
  return mean - half, mean + half


def interquartile_mean(values: npt.ArrayLike) -> float:
  """The mean of the middle half, values at its ends counting in part.

  >>> interquartile_mean([0.0, 1.0, 2.0, 99.0])
  1.5
  """
  sample = np.sort(_sample(values))
  ends = np.clip(np.arange(sample.size + 1) / sample.size, 0.25, 0.75)
  # An exact sum: a dot product's rounding differs between processors.
  return 2 * math.fsum(np.diff(ends) * sample)


def bootstrap_interval(values: Sample) -> Interval:
  """The percentile bootstrap interval of the mean.

  It assumes no shape of the distribution, but with five seeds or so it is too
  narrow; read it beside the t interval, not in its place.

  >>> bootstrap_interval([1.0, 1.0, 1.0])
  (1.0, 1.0)
  """
  sample = independent(values)
  if sample.size == 1:
    return np.nan, np.nan
  rng = np.random.default_rng(0)
  draws = rng.integers(sample.size, size=(10_000, sample.size))
  tail = (1 - CONFIDENCE) / 2
  low, high = np.quantile(sample[draws].mean(axis=1), [tail, 1 - tail])
  return float(low), float(high)


def paired_difference(
  treated: Mapping[Seed, float], control: Mapping[Seed, float]
) -> PairedDifference:
  """Compares two rows seed by seed: `treated - control`.

  A seed fixes the prompts and the keys of both rows, so the difference within a
  seed varies less than either row does.
  """
  if set(treated) != set(control):
    only = [
      ", ".join(map(str, sorted(set(a) - set(b)))) or "none"
      for a, b in ((treated, control), (control, treated))
    ]
    raise ValueError(
      "the two rows have different seeds, so there is nothing to pair: only in "
      f"the first {only[0]}, only in the second {only[1]}"
    )
  found = {s: treated[s] - control[s] for s in sorted(treated)}
  mean, *_, count, starts = summarise(found)
  ends = t_interval(found), bootstrap_interval(found)
  return PairedDifference(mean, count, *ends, starts)


def p_value(difference: PairedDifference) -> float:
  """The two-sided t test that a paired difference is 0; NaN for one pair."""
  if difference.freedom < 1:
    return np.nan
  error = _standard_error(difference)
  if not error:  # all pairs differ by as much
    return float(difference.mean == 0)
  size = abs(difference.mean) / error
  return float(2 * _student().sf(size, difference.freedom))


def smallest_detectable(difference: PairedDifference) -> float:
  """The true difference that four of five such comparisons would show.

  With as many pairs and as much noise; without Holm's correction.
  """
  if difference.freedom < 1:
    return np.nan
  shares = (1 + CONFIDENCE) / 2, _POWER
  quantiles = _student().ppf(shares, difference.freedom)
  return float(quantiles.sum() * _standard_error(difference))


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's corrected p of each of several tests; NaN is no test.

  >>> [float(round(p, 3)) for p in holm([0.01, 0.04, np.nan, 0.03])]
  [0.03, 0.06, nan, 0.06]
  """
  p = np.asarray(p_values, np.float64)
  order = [k for k in np.argsort(p, kind="stable") if np.isfinite(p[k])]
  left = np.arange(len(order), 0, -1)
  p[order] = np.minimum(np.maximum.accumulate(left * p[order]), 1)
  return p.tolist()


def _standard_error(difference: PairedDifference) -> float:
  low, high = difference.t
  quantile = _student().ppf((1 + CONFIDENCE) / 2, difference.freedom)
  return float((high - low) / 2 / quantile)


def _student() -> Any:
  with naming.needs_extra("report", "intervals need SciPy"):
    from scipy import stats
  return stats.t


def moving_average(values: npt.ArrayLike, window: int) -> np.ndarray:
  """Averages `window` values: `[..., T]` becomes `[..., T - window + 1]`.

  >>> moving_average([0.0, 2.0, 4.0], 2)
  array([1., 3.])
  """
  array = np.asarray(values, np.float64)
  if not 1 <= window <= array.shape[-1]:
    raise ValueError(f"a window of {window} over {array.shape[-1]} values")
  views = np.lib.stride_tricks.sliding_window_view(array, window, axis=-1)
  return views.mean(axis=-1)


def steps_to_threshold(
  values: npt.ArrayLike, threshold: float, window: int, steps: Sequence[int]
) -> float:
  """The first step at which the moving average reaches a threshold.

  The step is that of the last value in the average. Infinite if the run ended
  first, which is not a number to average.
  """
  sample = _sample(values)
  if window > sample.size:
    return np.inf
  (reached,) = np.nonzero(moving_average(sample, window) >= threshold)
  return float(steps[reached[0] + window - 1]) if reached.size else np.inf


def median_steps(steps: Sequence[float], *, limit: int) -> str:
  """The median of steps to a threshold, and how many seeds reached it.

  The mean of the seeds that got there would flatter a row that rarely does; the
  median is known as long as more than half of them do.

  >>> median_steps([10, np.inf, 30], limit=50)
  '30 (2/3 reached)'
  >>> median_steps([10, np.inf], limit=50)
  '> 50 (1/2 reached)'
  """
  median = np.median(steps)
  value = f"{median:g}" if np.isfinite(median) else f"> {limit}"
  return f"{value} ({np.isfinite(steps).sum()}/{len(steps)} reached)"


def best_and_last(values: npt.ArrayLike, window: int) -> tuple[float, float]:
  """The best average over a window, and the last.

  >>> best_and_last([0.4, 0.8, 0.9, 0.3], 1)
  (0.9, 0.3)
  """
  sample = _sample(values)
  averages = moving_average(sample, min(window, sample.size))
  return float(averages.max()), float(averages[-1])


def _sample(values: npt.ArrayLike) -> np.ndarray:
  sample = np.asarray(values, np.float64)
  if sample.ndim != 1 or not sample.size:
    raise ValueError(f"expected one value per seed, got shape {sample.shape}")
  if not np.isfinite(sample).all():
    raise ValueError(f"values that are not finite: {sample}")
  return sample
