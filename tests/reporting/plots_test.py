import functools

import numpy as np
import pytest

from saw_jax.reporting import plots, statistics
from saw_jax.reporting.runs import Curves
from tests import helpers

T = 23


def curves(num_seeds=3, weights=False, components=("format", "correct")):
  rng = np.random.default_rng(num_seeds)
  kinds = ["reward", "weight"] if weights else ["reward"]
  values = {
    f"{kind}/{component}": rng.normal(size=(num_seeds, T))
    for kind in kinds
    for component in components
  }
  return Curves(np.arange(T), tuple(range(num_seeds)), values)


def caption_of(figure):
  return " ".join(figure.get_supxlabel().split())


def legend_of(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


class TestRewardCurves:
  def test_lines_are_the_means_over_seeds_of_the_steps_that_all_have(self):
    run = curves()
    values = run.values["reward/correct"]
    values[1, 20:] = np.nan
    figure = plots.reward_curves({"gdpo": run}, ["correct"])
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), run.steps[:20])
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0)[:20])

  @pytest.mark.parametrize(("length", "window"), [(T, 5), (3, 3)])
  def test_a_window_ends_at_its_step(self, length, window):
    # A run of fewer steps is averaged whole.
    steps, seeds, values = curves()
    values = {name: array[:, :length] for name, array in values.items()}
    run = Curves(steps[:length], seeds, values)
    figure = plots.reward_curves({"gdpo": run}, ["correct"], window=5)
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == list(range(window - 1, length))
    mean = values["reward/correct"][:, :window].mean()
    assert line.get_ydata()[0] == pytest.approx(mean)
    assert f"moving average over {window} steps" in caption_of(figure)

  def test_weights_get_panels_only_where_there_are_weights(self):
    names = ["format", "correct"]
    plain = plots.reward_curves({"gdpo": curves()}, names)
    assert len(plain.axes) == 2
    rows = {"gdpo": curves(), "gdpo_saw": curves(weights=True)}
    both = plots.reward_curves(rows, names)
    assert len(both.axes) == 4
    assert legend_of(both) == ["gdpo", "gdpo_saw", "equal weights"]
    assert both.axes[2].get_ylim() == both.axes[3].get_ylim()
    assert [ax.get_title() for ax in both.axes[:2]] == names
    ylabels = [ax.get_ylabel() for ax in both.axes]
    assert ylabels == ["reward", "", "weight", ""]

  def test_a_row_keeps_its_colour_in_every_panel(self):
    rows = {"gdpo": curves(weights=True), "saw": curves(2, weights=True)}
    figure = plots.reward_curves(rows, ["format", "correct"])
    for ax in figure.axes:
      found = {line.get_color() for line in ax.lines} & set(plots.COLOURS)
      assert found == set(plots.COLOURS[:2])

  def test_the_caption_says_seeds_and_band(self):
    same = plots.reward_curves({"a": curves(3), "b": curves(3)}, ["correct"])
    assert "means of 3 seeds; bands: ± 1 standard deviation" in caption_of(same)
    other = plots.reward_curves({"a": curves(3), "b": curves(1)}, ["correct"])
    assert "means of seeds, 3 of a, 1 of b; bands" in caption_of(other)

  def test_a_row_without_the_component_is_refused(self):
    rows = {"gdpo": curves(), "saw": curves(components=["other"])}
    with pytest.raises(ValueError, match="'saw'"):
      plots.reward_curves(rows, ["correct"])

  def test_the_file_is_a_picture_of_150_dots_an_inch(self, tmp_path):
    path = tmp_path / "curves.png"
    figure = plots.reward_curves({"gdpo": curves()}, ["correct"], path=path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width = int.from_bytes(data[16:20], "big")
    assert width == round(150 * figure.get_figwidth())

  def test_it_may_be_several_files_for_paper_without_a_date(self, tmp_path):
    paths = [tmp_path / f"curves.{ending}" for ending in plots.FORMATS]
    plots.reward_curves({"gdpo": curves()}, ["correct"], path=paths)
    starts = [path.read_bytes()[:5] for path in paths]
    assert starts == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    assert b"dc:date" not in paths[1].read_bytes()
    assert b"CreationDate" not in paths[2].read_bytes()


class TestMetricPanels:
  draw = staticmethod(functools.partial(plots.metric_panels, quantity="q"))
  REWARD = {"reward": "reward/correct"}

  def test_each_panel_has_each_row(self):
    rows, lags = {"naive": curves(2), "spo": curves(3)}, [0, 4, 8, 16]
    panels = {f"lag {lag}": rows for lag in lags}
    figure = self.draw(panels, self.REWARD, window=3)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == list(panels)
    assert all(len(ax.lines) == 2 for ax in shown)
    # Every column has its steps below.
    assert [ax.get_xlabel() for ax in shown] == ["", "step", "step", "step"]
    line = shown[0].lines[0]
    values = curves(2).values["reward/correct"].mean(axis=0)
    assert line.get_ydata()[0] == pytest.approx(values[:3].mean())
    assert line.get_xdata()[0] == 2
    assert legend_of(figure) == ["naive", "spo"]

  def test_a_name_has_one_look_of_its_own_in_all_panels(self):
    free = {"vote": curves(2), "truth": curves(2)}
    bought = {"care": curves(2), "vote": curves(2)}
    figure = self.draw({"free": free, "bought": bought}, self.REWARD)
    (vote, truth), (care, again) = (
      [(line.get_color(), line.get_linestyle()) for line in ax.lines]
      for ax in figure.axes
    )
    assert vote == again
    assert len({vote, truth, care}) == 3

  def test_a_long_title_fits_above_a_single_panel(self):
    title = "CARE on knights and knaves, scale tiny"
    figure = self.draw({"p": {"r": curves(2)}}, self.REWARD, title=title)
    figure.canvas.draw()
    extent = figure.legends[0].get_title().get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width

  def test_several_metrics_name_themselves(self):
    panels = {"naive": {"naive": curves(2)}}
    metrics = {"a": "reward/correct", "b": "reward/format"}
    assert legend_of(self.draw(panels, metrics)) == ["a", "b"]

  def test_a_logarithm_shades_from_seed_to_seed(self):
    values = {"reward/correct": np.array([[0.1] * T, [9.0] * T])}
    run = Curves(np.arange(T), (0, 1), values)
    figure = self.draw({"p": {"r": run}}, self.REWARD, log=True)
    (band,) = figure.axes[0].collections
    ends = band.get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((0.1, 9.0))
    assert "least seed" in caption_of(figure)
    assert figure.axes[0].get_yscale() == "log"


def test_a_sweep_has_means_in_the_order_of_the_values_and_intervals():
  naive = {0: [0.4, 0.6], 16: [0.1, 0.1], 4: [0.3, 0.5]}
  rows = {"naive": naive, "spo": {0: [0.5, 0.5], 16: [0.4, 0.6]}}
  figure = plots.sweep(rows, swept="lag", quantity="score")
  (ax,) = figure.axes
  naive, spo = ax.lines
  np.testing.assert_allclose(naive.get_ydata(), [0.5, 0.4, 0.1])
  np.testing.assert_allclose(spo.get_ydata(), [0.5, 0.5])
  ticks = [tick.get_text() for tick in ax.get_xticklabels()]
  assert ticks == ["0", "4", "16"]
  # The row without a run at 4 goes from the first place to the last.
  np.testing.assert_allclose(spo.get_xdata().round(), [0, 2])
  assert legend_of(figure) == ["naive", "spo"]
  (segment,) = ax.collections[0].get_segments()
  ends = statistics.t_interval([0.4, 0.6])
  np.testing.assert_allclose(sorted(segment[:, 1]), ends)
  assert (ax.get_xlabel(), ax.get_ylabel()) == ("lag", "score")


def test_a_band_is_one_deviation_and_of_one_seed_has_no_width():
  # Two seeds at 0 and 2: mean 1, sample deviation sqrt(2).
  low, high = plots.deviation_band(np.array([[0.0], [2.0]]))
  np.testing.assert_allclose([low[0], high[0]], [1 - 2**0.5, 1 + 2**0.5])
  np.testing.assert_array_equal(*plots.deviation_band(np.ones((1, 4))))


DIFFERENCES = {
  name: statistics.paired_difference(
    {0: shift, 1: shift + 0.5, 2: shift + 0.25}, dict.fromkeys(range(3), 0.0)
  )
  for name, shift in (("first", -1.0), ("second", 0.0), ("third", 1.0))
}


def test_a_forest_has_the_first_on_top_and_says_counts_and_level():
  figure = plots.difference_forest({"reward": DIFFERENCES})
  (ax,) = figure.axes
  assert [t.get_text() for t in ax.get_yticklabels()] == list(DIFFERENCES)
  bottom, top = ax.get_ylim()
  assert bottom > top
  dots = [line for line in ax.lines if line.get_marker() == "o"]
  means = [dot.get_xdata()[0] for dot in dots]
  np.testing.assert_allclose(means, [-0.75, 0.25, 1.25])
  assert [t.get_text() for t in ax.texts] == ["n = 3"] * 3
  assert "95 % intervals" in caption_of(figure)
  assert ax.get_xlabel() == "difference in reward"
  assert legend_of(figure)[:2] == ["t interval", "bootstrap interval"]
  ends = [line.get_segments()[0][:, 0] for line in ax.collections[:2]]
  first = DIFFERENCES["first"]
  np.testing.assert_allclose(ends, [first.t, first.bootstrap])


@pytest.mark.parametrize(
  "draw",
  [
    lambda title: plots.reward_curves(
      {f"grpo_saw_{n}": curves(n + 1, True) for n in range(6)},
      ["correct"],
      title=title,
    ),
    lambda title: plots.reward_curves(
      {"r": curves(1, True, "abc")}, "abc", title=title
    ),
    lambda title: plots.sweep(
      {"r": {0: [0.4, 0.6]}}, swept="lag", quantity="score", title=title
    ),
    lambda title: plots.difference_forest(
      dict.fromkeys("abc", DIFFERENCES), title=title
    ),
  ],
)
def test_legend_and_caption_cover_no_data(draw):
  figure = draw("A title")
  figure.canvas.draw()
  renderer = figure.canvas.get_renderer()
  legend = figure.legends[0].get_window_extent()
  caption = figure._supxlabel.get_window_extent(renderer)
  for ax in figure.axes:
    panel = ax.get_tightbbox()
    assert legend.y0 >= panel.y1 - 1
    assert caption.y1 <= panel.y0 + 1
  labels = [ax.yaxis.label.get_window_extent(renderer) for ax in figure.axes]
  for i, one in enumerate(labels):
    assert not any(one.overlaps(other) for other in labels[:i] if other.height)
  width = figure.get_window_extent().width
  assert 0 <= legend.x0 and legend.x1 <= width
  assert 0 <= caption.x0 and caption.x1 <= width


@pytest.mark.parametrize(
  "draw",
  [
    lambda: plots.reward_curves({}, ["correct"]),
    lambda: plots.reward_curves({"r": curves()}, []),
    lambda: plots.metric_panels({}, {"a": "b"}, quantity="q"),
    lambda: plots.metric_panels({"p": {"r": curves()}}, {}, quantity="q"),
    lambda: plots.sweep({}, swept="lag", quantity="score"),
    lambda: plots.difference_forest({}),
  ],
)
def test_nothing_to_draw_is_refused(draw):
  with pytest.raises(ValueError, match="nothing to draw"):
    draw()


def test_pyplot_stays_out():
  program = (
    "import sys, numpy as np\n"
    "from saw_jax.reporting import plots, runs\n"
    "assert 'matplotlib' not in sys.modules\n"
    "c = runs.Curves(np.arange(2), (0,), {'reward/a': np.zeros((1, 2))})\n"
    "plots.reward_curves({'r': c}, ['a'])"
  )
  assert helpers.loaded(program, "matplotlib.pyplot") == set()
