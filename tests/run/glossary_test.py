"""Each figure that a run logs has a line that says what it is."""

from saw_jax.rollout import engine_servers
from saw_jax.run import glossary
from tests import golden_runs, helpers


def logged():
  """The names of the golden runs; those of evaluations with their prefix."""
  names = set()
  for case in golden_runs.CASES:
    for key in golden_runs.read(case)["numbers"]:
      kind, _, _, name = key.split(" ", 3)
      name = name.partition("/")[2] if kind == "final" else name
      names.add(name if kind == "metrics" else f"eval/{name}")
  names |= {f"engine/{name}" for name in engine_servers._FIGURES.split()}
  return names | {"seconds/update", "compilations", "tokens_per_second"}


def test_each_figure_of_the_golden_runs_has_a_line():
  names = logged()
  assert len(names) > 100
  assert sorted(name for name in names if not glossary.find(name).line) == []


def test_a_name_has_its_own_line_before_that_of_a_pattern():
  assert glossary.find("reward/total").name == "reward/total"
  assert glossary.find("reward/a/b").name == "reward/<component>"
  assert glossary.find("eval/pass@8").name == "eval/pass@<k>"
  assert glossary.find("my_figure") == ("Other", "my_figure", "", 0)
  assert glossary.sections()[-1] == "Other"
  for entry in glossary.entries():
    assert entry.line.endswith(".") and len(entry.line) <= 150, entry


def test_it_is_read_without_jax():
  program = "from saw_jax.run import glossary; glossary.entries()"
  assert helpers.loaded(program, "jax") == set()
