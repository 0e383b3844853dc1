"""ALFWorld itself as a task: its engine, on its games or on drawn worlds."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterator

from saw_jax import naming
from saw_jax.tasks import base, panels
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Environment, Transition
from saw_jax.tasks.household import alfworld_games
from saw_jax.tasks.household.alfworld_games import Game
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask

_NEED = "task 'alfworld' needs its engine"
_BEFORE_TASK = "Your task is to: "


@dataclasses.dataclass(frozen=True)
class AlfworldConfig(HouseholdConfig):
  """Which games there are, and how one is asked.

  Of a folder `num_train` and `num_test` are bounds, and rooms are the files'.
  """

  folder: str = ""  # with train, valid_seen and valid_unseen; "": drawn worlds
  evaluate_on: str = "valid_seen"  # the folder's test split; or "valid_unseen"

  def __post_init__(self):
    super().__post_init__()
    folders = ("valid_seen", "valid_unseen")
    base.check_choice("evaluate_on", self.evaluate_on, folders)


class Alfworld(Environment):
  """The game that `choose` gives for a seed; the step that wins is paid."""

  def __init__(
    self, choose: Callable[[int], Game], max_steps: int, reward: float
  ):
    super().__init__(max_steps, reward)
    self._choose, self._engine = choose, _start_engine()

  def _start(self, seed: int) -> str:
    self.game = self._choose(seed)
    try:
      self._engine.load(self.game)
      self._state = self._engine.reset()
    except (Exception, SystemExit) as error:  # The parser of PDDL may exit.
      raise ValueError(
        f"the engine cannot play the game of seed {seed}: "
        f"{type(error).__name__}: {error}"
      ) from error
    self.task = self._state.feedback.rpartition(_BEFORE_TASK)[2].strip()
    return self._state.feedback

  def _act(self, action: str) -> tuple[str, float, bool]:
    self._state, _, _ = self._engine.step(action)
    won = bool(self._state["won"])
    return self._state.feedback, self.max_return * won, won

  @property
  def admissible_actions(self) -> list[str]:
    return list(self._state["admissible_commands"])

  def close(self) -> None:
    self.done = True
    self._engine.close()


class AlfworldTask(HouseholdTask):
  """Games of ALFWorld, or drawn ones, in its engine."""

  name = "alfworld"
  Config = AlfworldConfig
  has_walkthroughs = True

  def __init__(self, config: AlfworldConfig | None = None):
    super().__init__(config)
    if importlib.util.find_spec("alfworld") is None:
      raise ImportError(f"{_NEED}: pip install 'saw_jax[alfworld]'")
    self._drawn = HouseholdTask(self.config)
    self._paths: dict[str, list[pathlib.Path]] = {}
    if self.config.folder:
      folders = {"train": "train", "test": self.config.evaluate_on}
      for split, name in folders.items():
        folder = pathlib.Path(self.config.folder, name)
        found = alfworld_games.find_games(folder, self.config.kinds)
        self._paths[split] = found
        self.episodes[split] = min(self.episodes[split], len(found))

  def _make(self, split: str) -> Alfworld:
    if self._paths:
      read, paths = alfworld_games.read_game, self._paths[split]
      choose = lambda seed: read(paths[seed])  # noqa: E731
    else:
      household = self._drawn.make(split)
      logic = alfworld_games.read_logic()

      def choose(seed: int) -> Game:
        household.reset(seed)
        return alfworld_games.make_game(household.world, logic)

    return Alfworld(choose, self.config.max_steps, self.config.reward)

  def category(self, split: str, seed: int) -> str:
    if self._paths:
      return alfworld_games.read_kind(self._paths[split][seed])
    return self._drawn.category(split, seed)

  def panel(self, split: str, count: int) -> list[str]:
    """Hashes of the files of the games; without files, of the drawn worlds."""
    if not self._paths:
      return self._drawn.panel(split, count)
    games = self._paths[split][: min(count, self.num_episodes(split))]
    return [panels.short(path.read_bytes()) for path in games]

  def expert(self, env: Alfworld, draws: Draws) -> Iterator[str]:
    return iter(env.game["walkthrough"])

  def _play(self, *options) -> list[Transition]:
    # Drawn worlds give the same without the engine, in microseconds.
    return (super() if self._paths else self._drawn)._play(*options)


def _start_engine():
  """ALFWorld's engine, with its names of things and in a fixed order."""
  with naming.needs_extra("alfworld", _NEED):
    import textworld
    from alfworld.agents.environment import alfred_tw_env
    from textworld.envs import pddl
  infos = textworld.EnvInfos(admissible_commands=True, won=True)
  return alfred_tw_env.AlfredDemangler(pddl.PddlEnv(infos), shuffle=False)
