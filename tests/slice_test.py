"""Tests of the benchmark on a slice: what it asks for, and its table."""

import pytest

from benchmarks import slice as benchmark
from saw_jax.ahead import report

GIB = report.GIB


def record(variant, needs, flops, sent, **more):
  moved = [["all-gather", "weights mlp", 2, sent]] if sent else None
  found = {"needs": needs * GIB, "beside": 0, "flops": flops, "memory": 819e9}
  found |= {"moved": moved} if sent else {}
  case = ("v5e-8", "16x1+2047", variant, "maxtext")
  made = dict(zip(benchmark.KEYS, case, strict=True), found=found)
  return made | dict(label=variant, versions="jax 1", commit="abc") | more


def test_ratios_are_to_the_least_of_the_settings_that_fit():
  ours = record(benchmark.OURS, needs=6, flops=394e12, sent=100e9)
  found = [
    ours,
    record("plain", needs=12, flops=197e12, sent=400e9),
    record("tiled", needs=8, flops=788e12, sent=200e9),
    record("large", needs=40, flops=1e12, sent=0),
  ]
  lines = benchmark.table(found).splitlines()
  rows = {
    x[0].strip(): x[1:]
    for x in (y.split("|")[1:-1] for y in lines if y[:1] == "|")
  }
  # The roofline is 2 s of ours, of products; 2 s of the plain one, of links.
  assert [float(x) for x in rows["saw_jax"]] == [6, 394, 100, 2]
  ratios = [float(x) for x in rows["**ours to theirs**"]]
  assert ratios == [0.75, 2, 0.5, 1]
  assert [x.strip() for x in rows["large: does not fit"]] == [
    "40",
    "1",
    "-",
    "-",
  ]


def test_what_failed_says_why_and_is_compared_with_nothing():
  ours = record(benchmark.OURS, needs=6, flops=1e12, sent=1e9)
  lost = record("plain", 1, 1, 1) | {"failed": "no such compiler"}
  said = benchmark.table([ours, lost])
  assert "| plain | no such compiler |" in said and "**ours to" not in said


def test_all_of_a_row_is_asked_for():
  words = benchmark.our_words("v5e-8", "16x2048+1024")
  for word in ("max_prompt_tokens=2048", "max_new_tokens=1024"):
    assert f"--config.rollout.{word}" in words
  assert "--config.loop.prompts_per_step=8" in words  # two rows of each


@pytest.mark.parametrize("shape", ["16x2048", "x1+2", "16x1+2+3"])
def test_a_shape_that_is_none_is_refused(shape, capsys):
  with pytest.raises(SystemExit):
    benchmark.parse([f"--shapes={shape}"])
  assert "ROWSxPROMPT+NEW" in capsys.readouterr().err
