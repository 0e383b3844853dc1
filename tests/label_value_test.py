"""What labels buy: the orders, and the means."""

import numpy as np

from experiments import label_value_table as table


def rows(start=0):
  """Ten prompts: two whose label is worth something, one of which is sure."""
  found = [
    {"start": start, "prompt": n, "gap": 0.0, "entropy": n / 10, "margin": 0.5}
    for n in range(10)
  ]
  for n, gap, value in ((0, 5.66, 0.3), (9, 2.83, 0.1)):
    found[n] |= {"gap": gap, "value": value}
  return [{"value": 0.0, "right": 0.5} | row for row in found]


def test_the_first_of_an_order_are_averaged():
  first = table._first
  orders = table._ORDERS
  assert first(rows(), orders["true gap"], 0.2) == [0.3, 0.1]
  assert first(rows(), orders["entropy"], 0.2) == [0.1, 0.0]
  assert np.isclose(np.mean(first(rows(), orders["margin"], 1.0)), 0.04)


def test_the_table_has_every_order_and_level():
  lines = table.table(rows()).splitlines()
  assert [line.split("|")[1].strip() for line in lines if "|" in line] == [
    *("order", "---", "true gap", "entropy", "margin"),
    *("gap", "---", "0.00", "2.83", "5.66"),
  ]
  assert "nan" not in "".join(lines)  # one label has no interval
  gap = lines[4].split("|")
  assert gap[6].split()[0] == "40.00"  # thousandths, of all
  # Of two starts the interval is of the starts.
  both = table.table(rows() + rows(1)).splitlines()[4]
  assert "40.00 [40.00, 40.00]" in both
