"""A policy as the judge of its own solutions: what it is asked, what it says.

The verdict, boxed True or False, is the reward. The released code of CARE asks
whether a Countdown expression is valid, whatever the task; this wording is
ours.
"""

from saw_jax.tasks import answer_task, base

TEMPERATURE = 0.5  # of the verdict, which is sampled once
MAX_NEW_TOKENS = 4096

_WORDS = base.asset(__file__, "verification.json")
_QUESTION, _CHECKS, _VERDICT = _WORDS.values()
TASKS = tuple(_CHECKS)


def ask(task: str, question: str, solution: str) -> answer_task.Messages:
  """Asks, as a user, whether a solution to a question is right."""
  base.check_choice("wording for the task", task, TASKS)
  steps = enumerate((*_CHECKS[task], _VERDICT), start=1)
  lines = [
    _QUESTION,
    *(f"{number}. {step}" for number, step in steps),
    f"\nQuestion:\n{question}",
    f"\nSolution:\n{solution}",
    "\nResult:",
  ]
  return answer_task.ask("\n".join(lines))


def read_verdict(text: str) -> float:
  r"""Turns what a judge said into a reward: 1 for True, 0 for anything else.

  A boxed verdict counts before words, and of both verdicts True, wherever they
  stand; a box need not be closed. Without one, a text that says "true" and not
  "false" counts as True. This is the rule of the released code of CARE.

  >>> read_verdict(r"so it is \boxed{True}"), read_verdict("true or false?")
  (1.0, 0.0)
  """
  text = text.lower()
  if r"\boxed{true" in text:
    return 1.0
  if r"\boxed{false" in text:
    return 0.0
  return float("true" in text and "false" not in text)
