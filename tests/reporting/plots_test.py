import subprocess
import sys

import numpy as np
import pytest

from saw_jax.reporting import plots, statistics
from saw_jax.reporting.runs import Curves

T = 23


def curves(num_seeds=3, weights=False, components=("format", "correct")):
  rng = np.random.default_rng(num_seeds)
  kinds = ["reward", "weight"] if weights else ["reward"]
  return Curves(
    steps=np.arange(T),
    seeds=tuple(range(num_seeds)),
    values={
      f"{kind}/{component}": rng.normal(size=(num_seeds, T))
      for kind in kinds
      for component in components
    },
  )


def caption_of(figure):
  return " ".join(figure.get_supxlabel().split())


def legend_of(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


def box(figure, artist):
  return artist.get_window_extent(figure.canvas.get_renderer())


def assert_legend_and_caption_are_clear_of_the_panels(figure):
  figure.canvas.draw()
  legend = figure.legends[0].get_window_extent()
  for ax in figure.axes:
    panel = ax.get_tightbbox()
    assert legend.y0 >= panel.y1 - 1
    assert box(figure, figure._supxlabel).y1 <= panel.y0 + 1
  labels = [box(figure, ax.yaxis.label) for ax in figure.axes]
  for i, one in enumerate(labels):
    assert not any(one.overlaps(other) for other in labels[:i] if other.height)
  width = figure.get_window_extent().width
  assert 0 <= legend.x0 and legend.x1 <= width
  caption = box(figure, figure._supxlabel)
  assert 0 <= caption.x0 and caption.x1 <= width


class TestRewardCurves:
  def test_lines_are_the_means_over_seeds(self):
    run = curves()
    figure = plots.reward_curves({"gdpo": run}, ["correct"])
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), run.steps)
    np.testing.assert_allclose(
      line.get_ydata(), run.values["reward/correct"].mean(axis=0)
    )

  @pytest.mark.parametrize(("length", "window"), [(T, 5), (3, 3)])
  def test_a_window_ends_at_its_step(self, length, window):
    # A run of fewer steps is averaged whole.
    run = curves()
    run = run._replace(
      steps=run.steps[:length],
      values={name: v[:, :length] for name, v in run.values.items()},
    )
    figure = plots.reward_curves({"gdpo": run}, ["correct"], window=5)
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == list(range(window - 1, length))
    assert line.get_ydata()[0] == pytest.approx(
      run.values["reward/correct"][:, :window].mean()
    )
    assert f"moving average over {window} steps" in caption_of(figure)

  def test_steps_that_a_seed_lacks_are_not_drawn(self):
    run = curves()
    run.values["reward/correct"][1, 20:] = np.nan
    figure = plots.reward_curves({"gdpo": run}, ["correct"])
    assert figure.axes[0].lines[0].get_xdata().tolist() == list(range(20))

  def test_weights_get_panels_only_where_there_are_weights(self):
    names = ["format", "correct"]
    plain = plots.reward_curves({"gdpo": curves()}, names)
    assert len(plain.axes) == 2
    rows = {"gdpo": curves(), "gdpo_saw": curves(weights=True)}
    both = plots.reward_curves(rows, names)
    assert len(both.axes) == 4
    assert legend_of(both) == ["gdpo", "gdpo_saw", "equal weights"]
    assert both.axes[2].get_ylim() == both.axes[3].get_ylim()

  def test_a_row_keeps_its_colour_in_every_panel(self):
    rows = {"gdpo": curves(weights=True), "saw": curves(2, weights=True)}
    figure = plots.reward_curves(rows, ["format", "correct"])
    colours = [
      {line.get_color() for line in ax.lines} & set(plots.COLOURS)
      for ax in figure.axes
    ]
    assert colours == [set(plots.COLOURS[:2])] * 4

  def test_the_caption_says_seeds_and_band(self):
    same = plots.reward_curves({"a": curves(3), "b": curves(3)}, ["correct"])
    assert "means of 3 seeds; bands: ± 1 standard deviation" in caption_of(same)
    other = plots.reward_curves({"a": curves(3), "b": curves(1)}, ["correct"])
    assert "means of seeds, 3 of a, 1 of b; bands" in caption_of(other)

  @pytest.mark.parametrize(("num_components", "num_rows"), [(1, 6), (3, 1)])
  def test_the_legend_covers_no_data(self, num_components, num_rows):
    names = ["format", "correct", "length"][:num_components]
    rows = {
      f"grpo_saw_{n}": curves(n + 1, True, names) for n in range(num_rows)
    }
    figure = plots.reward_curves(rows, names, title="A title")
    assert_legend_and_caption_are_clear_of_the_panels(figure)

  def test_a_row_without_the_component_is_refused(self):
    with pytest.raises(ValueError, match="'saw'"):
      plots.reward_curves(
        {"gdpo": curves(), "saw": curves(components=["other"])}, ["correct"]
      )

  def test_the_file_is_a_picture_of_150_dots_an_inch(self, tmp_path):
    path = tmp_path / "curves.png"
    figure = plots.reward_curves({"gdpo": curves()}, ["correct"], path=path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width = int.from_bytes(data[16:20], "big")
    assert width == round(150 * figure.get_figwidth())


class TestMetricPanels:
  def test_each_panel_has_each_row(self):
    rows, lags = {"naive": curves(2), "spo": curves(3)}, [0, 4, 8, 16]
    figure = plots.metric_panels(
      {f"lag {lag}": rows for lag in lags},
      {"reward": "reward/correct"},
      quantity="training reward",
      window=3,
    )
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in shown] == [f"lag {lag}" for lag in lags]
    assert all(len(ax.lines) == 2 for ax in shown)
    # Every column has its steps below.
    assert [ax.get_xlabel() for ax in shown] == ["", "step", "step", "step"]
    line = shown[0].lines[0]
    values = curves(2).values["reward/correct"].mean(axis=0)
    assert line.get_ydata()[0] == pytest.approx(values[:3].mean())
    assert line.get_xdata()[0] == 2
    assert legend_of(figure) == ["naive", "spo"]

  def test_a_name_has_one_look_of_its_own_in_all_panels(self):
    one, two = curves(2), curves(2)
    figure = plots.metric_panels(
      {
        "free": {"vote": one, "truth": two},
        "bought": {"care": one, "vote": two},
      },
      {"reward": "reward/correct"},
      quantity="reward",
    )
    (vote, truth), (care, again) = (ax.lines for ax in figure.axes)
    look = lambda line: (line.get_color(), line.get_linestyle())  # noqa: E731
    assert look(vote) == look(again)
    assert len({look(vote), look(truth), look(care)}) == 3

  def test_a_long_title_fits_above_a_single_panel(self):
    figure = plots.metric_panels(
      {"p": {"r": curves(2)}},
      {"reward": "reward/correct"},
      quantity="q",
      title="CARE on knights and knaves, scale tiny",
    )
    figure.canvas.draw()
    extent = figure.legends[0].get_title().get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width

  def test_several_metrics_name_themselves(self):
    figure = plots.metric_panels(
      {"naive": {"naive": curves(2)}},
      {"a": "reward/correct", "b": "reward/format"},
      quantity="reward",
      log=True,
    )
    assert legend_of(figure) == ["a", "b"]
    assert figure.axes[0].get_yscale() == "log"

  def test_a_logarithm_shades_from_seed_to_seed(self):
    values = {"reward/correct": np.array([[0.1] * T, [9.0] * T])}
    figure = plots.metric_panels(
      {"p": {"r": Curves(np.arange(T), (0, 1), values)}},
      {"reward": "reward/correct"},
      quantity="q",
      log=True,
    )
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(0.1)
    assert "least seed" in caption_of(figure)


class TestSweep:
  ROWS = {
    "naive": {0: [0.4, 0.6], 16: [0.1, 0.1], 4: [0.3, 0.5]},
    "spo": {0: [0.5, 0.5], 16: [0.4, 0.6]},
  }

  def test_lines_are_the_means_in_the_order_of_the_values(self):
    figure = plots.sweep(self.ROWS, swept="lag", quantity="score")
    (ax,) = figure.axes
    naive, spo = ax.lines
    np.testing.assert_allclose(naive.get_ydata(), [0.5, 0.4, 0.1])
    np.testing.assert_allclose(spo.get_ydata(), [0.5, 0.5])
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == ["0", "4", "16"]
    # The row without a run at 4 goes from the first place to the last.
    np.testing.assert_allclose(spo.get_xdata().round(), [0, 2])
    assert legend_of(figure) == ["naive", "spo"]

  def test_intervals_are_those_of_the_seeds(self):
    figure = plots.sweep(
      {"naive": {0: [0.4, 0.6]}}, swept="lag", quantity="score"
    )
    low, high = statistics.t_interval([0.4, 0.6])
    (segment,) = figure.axes[0].collections[0].get_segments()
    np.testing.assert_allclose(sorted(segment[:, 1]), [low, high])

  def test_the_legend_covers_no_data(self):
    figure = plots.sweep(self.ROWS, swept="lag", quantity="score", title="T")
    assert_legend_and_caption_are_clear_of_the_panels(figure)


class TestHeatMap:
  def test_each_cell_says_its_number_and_impossible_ones_nothing(self):
    values = np.array([[0.0, 2.5, 3.25], [np.nan, 1.0, np.nan]])
    figure = plots.heat_map(values, across="x", down="y", quantity="z")
    ax = figure.axes[0]
    found = {text.get_position(): text.get_text() for text in ax.texts}
    assert found == {
      (0, 0): "0.00", (1, 0): "2.50", (2, 0): "3.25", (1, 1): "1.00",
    }  # fmt: skip
    bottom, top = ax.get_ylim()
    assert bottom < top
    assert figure.axes[1].get_ylabel() == "z"

  def test_a_row_is_no_matrix(self):
    with pytest.raises(ValueError, match=r"not of shape \(3,\)"):
      plots.heat_map(np.zeros(3), across="x", down="y", quantity="z")


def test_a_band_is_one_deviation_and_of_one_seed_has_no_width():
  # Two seeds at 0 and 2: mean 1, sample deviation sqrt(2).
  low, high = plots.deviation_band(np.array([[0.0], [2.0]]))
  np.testing.assert_allclose([low[0], high[0]], [1 - 2**0.5, 1 + 2**0.5])
  np.testing.assert_array_equal(*plots.deviation_band(np.ones((1, 4))))


class TestDifferenceForest:
  DIFFERENCES = {
    name: statistics.paired_difference(
      {0: shift, 1: shift + 0.5, 2: shift + 0.25}, {0: 0.0, 1: 0.0, 2: 0.0}
    )
    for name, shift in (("first", -1.0), ("second", 0.0), ("third", 1.0))
  }

  def test_the_first_is_on_top(self):
    figure = plots.difference_forest(self.DIFFERENCES, quantity="reward")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == list(
      self.DIFFERENCES
    )
    bottom, top = ax.get_ylim()
    assert bottom > top
    means = [
      line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"
    ]
    np.testing.assert_allclose(means, [-0.75, 0.25, 1.25])

  def test_counts_and_level_are_said(self):
    figure = plots.difference_forest(self.DIFFERENCES, quantity="reward")
    assert [t.get_text() for t in figure.axes[0].texts] == ["n = 3"] * 3
    assert "95 % intervals" in caption_of(figure)
    assert figure.axes[0].get_xlabel() == "difference in reward"

  def test_the_legend_covers_no_data(self):
    figure = plots.difference_forest(
      self.DIFFERENCES, quantity="reward", title="A title"
    )
    assert_legend_and_caption_are_clear_of_the_panels(figure)


@pytest.mark.parametrize(
  "draw",
  [
    lambda: plots.reward_curves({}, ["correct"]),
    lambda: plots.metric_panels({}, {"a": "b"}, quantity="q"),
    lambda: plots.sweep({}, swept="lag", quantity="score"),
    lambda: plots.difference_forest({}, quantity="reward"),
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
    "plots.reward_curves({'r': c}, ['a'])\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)
