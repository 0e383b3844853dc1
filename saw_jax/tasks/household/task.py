"""The household as a task: which episodes there are, and how one is asked."""

import dataclasses

from saw_jax.tasks import base, environments, panels
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Situation
from saw_jax.tasks.household import rules, world
from saw_jax.tasks.household.rules import Household

_VERBS = (
  *("go to", "open", "close", "take", "move", "examine", "use"),
  *("clean", "heat", "cool", "inventory", "look", "help"),
)
# The pieces of compact prompts, of actions and of what is seen after them.
PIECES = base.asset(__file__, "pieces.json")


@dataclasses.dataclass(frozen=True)
class HouseholdConfig:
  """Which episodes there are, and how one is asked."""

  num_train: int = 8192
  num_test: int = 256
  kinds: tuple[str, ...] = world.KINDS  # of tasks
  receptacles: int = 16
  objects: int = 20
  max_steps: int = 50
  reward: float = 10.0  # of the step that solves the task
  form: str = "english"  # of prompts and replies; or "compact"
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    base.check_choice("form", self.form, environments.FORMS)
    for kind in self.kinds:
      base.check_choice("kind", kind, world.KINDS)
    counts = "num_train", "num_test", "receptacles", "max_steps"
    base.check_positive(self, *counts)


class HouseholdTask(environments.FormTask):
  """Households of ALFWorld's kinds, a new world each seed."""

  name = "household"
  Config = HouseholdConfig
  expert = staticmethod(rules.expert)
  panel = panels.walked
  _role = "acts in the ALFRED embodied environment"
  _subject = "the situation"

  def _make(self, split: str) -> Household:
    c = self.config

    def draw(seed: int) -> world.World:
      what = (split, c.kinds, c.receptacles, c.objects)
      return world.draw_world(Draws("household", split, seed), *what)

    return Household(draw, c.max_steps, c.reward)

  def category(self, split: str, seed: int) -> str:
    env = self.make(split)
    env.reset(seed)
    return env.world.kind

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    actions = tuple(one for one in situation.actions if one != "help")
    return super()._english(situation._replace(actions=actions), history, shown)

  def _compact(self, situation: Situation, history: History, shown: int) -> str:
    trips = [a for a in situation.actions if a.startswith("go to ")]
    places = "".join(a.removeprefix("go to") for a in trips)
    actions = [action for _, action in history[len(history) - shown :]]
    # The first observation lists the places, which are there already.
    seen = situation.observation if history else ""
    return f"{situation.task}|{places}|{';'.join(actions)}|{seen}>"

  def _is_action(self, text: str) -> bool:
    return text.startswith(_VERBS) and len(text) <= rules.LONGEST
