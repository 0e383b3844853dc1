import numpy as np

from experiments import gap_picture
from saw_jax.labels import gap


def test_it_says_each_number_and_leaves_out_what_cannot_be():
  ax, bar = gap_picture.draw(3).axes
  found = {text.get_position(): text.get_text() for text in ax.texts}
  # No vote has more than the group, and no right answer more than the vote.
  places = [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1), (2, 1)]
  table = np.asarray(gap.gap_table(3))
  assert found == {place: f"{table[place]:.2f}" for place in places}
  bottom, top = ax.get_ylim()
  assert bottom < top and bar.get_ylabel().startswith("gap")
