"""TextWorld and TextWorld-Express as a task: which game, and its prompt."""

import dataclasses
import importlib.util
import itertools
import pathlib
from collections.abc import Iterator

from saw_jax import naming
from saw_jax.contrib import textworld_games, worlds
from saw_jax.contrib.textworld_games import ExpressGame, StoryGame
from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Situation

_FILES = "textworld"
_GAMES = (*textworld_games.EXPRESS, _FILES)


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
    base.check_choice("game", self.game, _GAMES)
    base.check_choice("pays", self.pays, textworld_games.PAYS)
    base.check_positive(self, "num_train", "num_test", "max_steps")
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


class TextWorldTask(environments.FormTask):
  """One kind of text game, another one each seed; plans are its expert."""

  name = "textworld"
  Config = TextWorldConfig
  has_walkthroughs = True
  _longest_prompt = 12_000

  def __init__(self, config: TextWorldConfig | None = None):
    super().__init__(config)
    is_files = self.config.game == _FILES
    package = "textworld" if is_files else "textworld_express"
    need = f"game {self.config.game!r} needs its engine"
    with naming.needs_extra("textworld", need):
      if importlib.util.find_spec(package) is None:
        raise ImportError(package)
    self._paths: dict[str, list[str]] = {}
    for split, size in self.episodes.items() if is_files else ():
      folder = pathlib.Path(self.config.folder, split)
      found = textworld_games.find_games(folder)
      self._paths[split] = [str(path) for path in found]
      self.episodes[split] = min(size, len(found))

  def _make(self, split: str) -> ExpressGame | StoryGame:
    c = self.config
    options = dict(max_steps=c.max_steps, reward=c.reward, pays=c.pays)
    if self._paths:
      return StoryGame(self._paths[split], **options)
    return ExpressGame(c.game, split, c.parameters, **options)

  def expert(self, env: ExpressGame | StoryGame, draws: Draws) -> Iterator[str]:
    del draws
    return iter(env.plan)

  def _starts(self, split: str, seed: int) -> Iterator[tuple[int, Draws]]:
    for number in itertools.count(seed):
      yield number % self.num_episodes(split), Draws(number)

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    return worlds.ask("You are playing a text game.", situation, history, shown)
