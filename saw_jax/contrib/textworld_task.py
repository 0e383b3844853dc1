"""TextWorld and TextWorld-Express as a task: which game, and how one is asked.

With a `game` of TextWorld-Express every seed is another one, made when it is
played; with `game="textworld"` the games are files in a folder.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator, Sequence

from saw_jax.contrib import textworld_games
from saw_jax.contrib.textworld_games import ExpressGame, StoryGame
from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import Situation, Transition

__all__ = ["TextWorldConfig", "TextWorldTask"]

_FILES = "textworld"
_GAMES = (*textworld_games.EXPRESS, _FILES)
_LONGEST_PROMPT = 12_000  # characters; a longer one goes without history

_PROMPT = """\
You are playing a text game.
Your task is: {task}
{past}Your current observation is: {observation}
The actions that are possible now are: [{actions}].

It is your turn to act. First reason step by step about the situation, inside \
<think> </think> tags. Then choose one possible action and write it inside \
<action> </action> tags."""
_PAST = """\
So far you have taken {steps} step(s). The last {shown} observation(s) and the \
actions that you took: {history}
"""


@dataclasses.dataclass(frozen=True)
class TextWorldConfig:
  """Which games there are, and how one is asked."""

  game: str = "coin"  # of TextWorld-Express, or "textworld"
  parameters: str = ""  # of that game, as "numLocations=3,includeDoors=0"
  folder: str = ""  # of game="textworld": with train and test, which hold .z8
  num_train: int = textworld_games.EXPRESS_SEEDS  # of a folder: at most
  num_test: int = 200
  max_steps: int = 50
  reward: float = 10.0  # of a won game
  pays: str = "success"  # or "score": whenever the score changes
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    for name, known in (("game", _GAMES), ("pays", textworld_games.PAYS)):
      value = getattr(self, name)
      if value not in known:
        raise ValueError(
          f"unknown {name} {value!r}: {base.nearest(value, known)}"
        )
    for name in ("num_train", "num_test", "max_steps"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is not positive: {getattr(self, name)}.")
    if (self.game == _FILES) != bool(self.folder):
      raise ValueError(
        f"game={_FILES!r} and a folder of games go together: give both or none."
      )
    most = textworld_games.EXPRESS_SEEDS
    if self.game != _FILES and max(self.num_train, self.num_test) > most:
      raise ValueError(
        f"TextWorld-Express has {most} seeds a split: num_train and num_test "
        "can be no more."
      )


class TextWorldTask(environments.AgentTask):
  """One kind of text game, another one each seed."""

  name = "textworld"

  def __init__(self, config: TextWorldConfig | None = None):
    """Finds the games, where they are files.

    Args:
      config: of the games.

    Raises:
      ImportError: the package that plays them is missing.
      FileNotFoundError: there is no game in the folder.
    """
    self.config = TextWorldConfig() if config is None else config
    is_files = self.config.game == _FILES
    package = "textworld" if is_files else "textworld_express"
    if importlib.util.find_spec(package) is None:
      raise ImportError(
        f"game {self.config.game!r} needs its engine: "
        "pip install 'saw_jax[textworld]'"
      )
    self.max_steps = self.config.max_steps
    self.max_return = self.config.reward
    self._paths = {
      split: [
        str(path)
        for path in textworld_games.find_games(
          pathlib.Path(self.config.folder, split)
        )
      ]
      for split in (("train", "test") if is_files else ())
    }

  def num_episodes(self, split: str) -> int:
    """Returns how many seeds of episodes a split has."""
    sizes = {"train": self.config.num_train, "test": self.config.num_test}
    if split not in sizes:
      raise ValueError(f"no split {split!r}: {base.nearest(split, [*sizes])}")
    if split in self._paths:
      return min(sizes[split], len(self._paths[split]))
    return sizes[split]

  def make(self, split: str) -> ExpressGame | StoryGame:
    """Makes an environment, whose `reset` takes a seed of the split."""
    return self._make(split, has_plan=False)

  def _make(self, split: str, *, has_plan: bool) -> ExpressGame | StoryGame:
    self.num_episodes(split)  # says so if there is no such split
    config = self.config
    options = dict(
      max_steps=config.max_steps, reward=config.reward, pays=config.pays
    )
    if config.game == _FILES:
      return StoryGame(self._paths[split], **options)
    return ExpressGame(
      config.game,
      split,
      parameters=config.parameters,
      has_plan=has_plan,
      **options,
    )

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields prompts with less and less history."""
    for shown in range(min(self.config.shown, len(history)), -1, -1):
      text = _write(situation, history, shown)
      if not shown or len(text) <= _LONGEST_PROMPT:
        yield text

  def demonstrations(self, count: int, *, seed: int) -> list[Transition]:
    """Returns steps of the games' own plans.

    Args:
      count: of steps.
      seed: of the first episode; the others follow it.

    Returns:
      The steps, episode by episode. Plans are cut at the limit of steps.

    Raises:
      ValueError: no game has a plan.
    """
    return list(self._play("train", count, seed))

  def held_out(self, count: int) -> list[Transition]:
    """Returns steps of the plans of test games.

    Args:
      count: of steps.

    Returns:
      The steps, episode by episode.
    """
    return list(self._play("test", count, 0))

  def _play(self, split: str, count: int, seed: int) -> Iterator[Transition]:
    env, idle = self._make(split, has_plan=True), 0
    size = self.num_episodes(split)
    while count:
      observation, history = env.reset(seed % size), ()
      plan = env.plan
      idle = 0 if plan else idle + 1
      if idle > size:
        raise ValueError(f"no game of split {split!r} has a plan.")
      for action in plan:
        if env.done or not count:
          break
        situation = Situation(
          env.task, observation, tuple(env.admissible_actions), 0.0, False
        )
        before, observation = observation, env.step(action).observation
        yield Transition(situation, history, action, observation)
        history, count = (*history, (before, action)), count - 1
      seed += 1
    env.close()


def _write(
  situation: Situation, history: Sequence[tuple[str, str]], shown: int
) -> str:
  first = len(history) - shown
  entries = ", ".join(
    f"[Observation {k}: '{seen}', Action {k}: '{action}']"
    for k, (seen, action) in enumerate(history[first:], first + 1)
  )
  past = _PAST.format(steps=len(history), shown=shown, history=entries)
  return _PROMPT.format(
    task=situation.task,
    past=past if shown else "",
    observation=situation.observation,
    actions=", ".join(f"'{action}'" for action in situation.actions),
  )
