"""The household as a task: which episodes there are, and how one is asked.

Two forms of prompts and replies: ALFWorld's, in English with tags, and a
compact one for policies that start from nothing, of few tokens in the tokenizer
`household`: the task, where one can go, the last actions, and what is seen; a
reply is the action and nothing else.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Reply, Situation, Transition
from saw_jax.tasks.household import (
  rules as household,
)
from saw_jax.tasks.household import (
  world as household_world,
)
from saw_jax.tasks.household.expert import Expert

__all__ = ["PIECES", "HouseholdConfig", "HouseholdTask"]

_FORMS = ("english", "compact")
_VERBS = (
  *("go to", "open", "close", "take", "move", "examine", "use"),
  *("clean", "heat", "cool", "inventory", "look", "help"),
)
_NAMES = sorted(
  {kind for room in household_world.ROOMS.values() for kind in room.receptacles}
  | set(household_world.FITS)
  | {household_world.LAMP}
)
# The pieces of compact prompts, of actions and of what is seen after them.
PIECES = (
  *_VERBS,
  *(" from", " to", " with", "|", ">", ";"),
  *(f" {name}" for name in _NAMES),
  *(f" {number}" for number in range(1, 10)),
  *("put a", "put some", "put a clean", "put a hot", "put a cool", "put two"),
  *("clean some", "heat some", "cool some", "look at", "examine the"),
  *("find two", " in", " on", " and put it in", " and put them in", "."),
  *(" under the desklamp", " with the desklamp"),
  *("You arrive at", ". The", " is closed.", ". On the", ", you see a"),
  *(", a", ", and a", ", you see nothing.", " is open. In it"),
  *("You open the", "You close the", "You pick up the", " from the"),
  *("You move the", " to the", "You clean the", "You heat the"),
  *("You cool the", " using the", "You turn on the", household.NOTHING),
  *("You are not carrying anything.", "You are carrying: a"),
  *("You are facing the", ". Next to it, you see nothing."),
  "You are in the middle of a room. Looking quickly around you",
  *("There's nothing special about", "This is a", " hot", " cold", " clean"),
  *(" cool", " and", "On the", "The", household.HELP),
  *("-= Welcome to TextWorld, ALFRED! =-\n\n", "\n\nYour task is to: "),
)


@dataclasses.dataclass(frozen=True)
class HouseholdConfig:
  """Which episodes there are, and how one is asked."""

  num_train: int = 8192
  num_test: int = 256
  kinds: tuple[str, ...] = household_world.KINDS  # of tasks
  receptacles: int = 16
  objects: int = 20
  max_steps: int = 50
  reward: float = 10.0  # of the step that solves the task
  form: str = "english"  # of prompts and replies; or "compact"
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    if self.form not in _FORMS:
      raise ValueError(
        f"unknown form {self.form!r}: {base.nearest(self.form, _FORMS)}"
      )
    for kind in self.kinds:
      if kind not in household_world.KINDS:
        raise ValueError(
          f"unknown kind {kind!r}: {base.nearest(kind, household_world.KINDS)}"
        )
    for name in ("num_train", "num_test", "receptacles", "max_steps"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is not positive: {getattr(self, name)}.")


class HouseholdTask(environments.AgentTask):
  """Households of ALFWorld's kinds, a new world each seed."""

  name = "household"

  def __init__(self, config: HouseholdConfig | None = None):
    self.config = HouseholdConfig() if config is None else config
    self.max_steps = self.config.max_steps
    self.max_return = self.config.reward

  def num_episodes(self, split: str) -> int:
    """Returns how many seeds of episodes a split has."""
    sizes = {"train": self.config.num_train, "test": self.config.num_test}
    if split not in sizes:
      raise ValueError(f"no split {split!r}: {base.nearest(split, [*sizes])}")
    return sizes[split]

  def make(self, split: str) -> household.Household:
    """Makes an environment, whose `reset` takes a seed of the split."""
    config = self.config
    return household.Household(
      split,
      kinds=config.kinds,
      receptacles=config.receptacles,
      objects=config.objects,
      max_steps=config.max_steps,
      reward=config.reward,
    )

  def category(self, split: str, seed: int) -> str:
    """Returns the kind of an episode's task."""
    env = self.make(split)
    env.reset(seed)
    return env.world.kind

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields prompts with less and less history."""
    write = _compact if self.config.form == "compact" else _english
    for shown in range(min(self.config.shown, len(history)), -1, -1):
      yield write(situation, history, shown)

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, whatever it is."""
    if self.config.form == "english":
      return environments.read_reply(completion)
    action = completion.strip().lower()
    is_action = action.startswith(_VERBS) and len(action) <= household.LONGEST
    return Reply(action if is_action else "", is_action)

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action."""
    if self.config.form == "english":
      return super().write_reply(action)
    return action

  def demonstrations(
    self, count: int, *, seed: int, wrong_rate: float = 0.0
  ) -> list[Transition]:
    """Returns steps of an expert that errs at a given rate.

    It goes on from where its mistakes lead, so that both are shown. Episodes
    are those of the training split, cut where they end or are over the limit.

    Args:
      count: of steps.
      seed: of the first episode's order of search and mistakes.
      wrong_rate: probability that a step is any admissible action instead.

    Returns:
      The steps, episode by episode.
    """
    return list(self._play("train", count, seed, wrong_rate))

  def held_out(self, count: int) -> list[Transition]:
    """Returns steps of an expert in test worlds, without mistakes.

    Args:
      count: of steps.

    Returns:
      The steps, episode by episode.
    """
    return list(self._play("test", count, 0, 0.0))

  def _play(
    self, split: str, count: int, seed: int, wrong_rate: float
  ) -> Iterator[Transition]:
    number = self.num_episodes(split)
    steps = environments.play(
      self.make(split),
      (
        (episode % number, Draws("household expert", split, seed, episode))
        for episode in itertools.count()
      ),
      expert=Expert,
      mistake=lambda situation, draws: draws.choice(situation.actions),
      wrong_rate=wrong_rate,
    )
    return itertools.islice(steps, count)


def _english(
  situation: Situation, history: Sequence[tuple[str, str]], shown: int
) -> str:
  return household.make_prompt(
    situation.task,
    situation.observation,
    situation.actions,
    history,
    shown=shown,
  )


def _compact(
  situation: Situation, history: Sequence[tuple[str, str]], shown: int
) -> str:
  """The task, where one can go, the last actions, and what is seen.

  The first observation lists the places, which are there already.
  """
  trips = [a for a in situation.actions if a.startswith("go to ")]
  places = "".join(a.removeprefix("go to") for a in trips)
  actions = [action for _, action in history[len(history) - shown :]]
  seen = situation.observation if history else ""
  return f"{situation.task}|{places}|{';'.join(actions)}|{seen}>"
