"""Dry-runs a config: looks at everything once before it costs hours.

  saw doctor --config=saw/tool_calling:row=gdpo_saw,scale=tiny

Checks the task (each gold answer scores the maximum, damaged ones what they
should), then samples a few responses and prints prompts, completions, masks and
rewards. Ends with status 1 if something is wrong: a gold answer that does not
score the maximum, a reward that is the same for every response, responses that
could not be scored.

Where the task has episodes, it plays some worlds and prints an episode of each.

With --data=FILE it only checks that file of ToolRL rows, or, with --task=math
or --task=knights, that file of mathematical problems or puzzles.

  saw doctor --form='18 cm' --form=18

With two --form it shows how the math task reads them, and whether they agree.
"""

from absl import flags

from saw_jax.run import command_line


def main() -> int:
  given = flags.FLAGS
  if given.form:
    if len(given.form) != 2:
      raise command_line.UsageError("give two of --form, the reference last")
    from saw_jax.tasks.math import answers

    with command_line.checking_input():
      print("\n".join(answers.explain(*given.form)))
    return 0
  if not given.data and command_line.given_config() is None:
    raise command_line.UsageError(
      "give --config=configs/...py:arguments or --data=FILE"
    )

  import jax

  from saw_jax.ahead import footprint
  from saw_jax.run import build, doctor, registry

  problems = []
  with command_line.checking_input():
    if given.data:
      task = registry.make_task(given.task, {"test_path": given.data})
      problems += doctor.check_task(task, ["test"], given.examples)
    else:
      made = build.build(command_line.given_config(), seeds=[0])
      if not made.method.per_step:
        splits = ["train", "test"]
        problems += doctor.check_task(made.task, splits, given.examples)
  if not given.data:
    said = footprint.sentence(made, jax.device_count())
    print(f"memory: {said}; see saw fit")
    problems += doctor.check_sampling(
      made, prompts=given.prompts, shown=given.show
    )
  for problem in problems[:20]:
    print(f"PROBLEM: {problem}")
  if len(problems) > 20:
    print(f"... and {len(problems) - 20} more")
  said = f"{len(problems)} problem(s)" if problems else "all well"
  print(f"doctor: {said}")
  return 1 if problems else 0
