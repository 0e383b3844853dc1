"""ALFWorld itself as a task: its engine, on its games or on drawn worlds.

The engine is TextWorld's for PDDL, in the package alfworld: tens of
milliseconds a step and half a second or more an episode. Without a folder of
games it plays the worlds that the task `household` plays, seed by seed;
prompts, replies and rewards are the same in any case.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence

from saw_jax.tasks import base, environments
from saw_jax.tasks.environments import Reply, Situation, Step, Transition
from saw_jax.tasks.household import alfworld_games
from saw_jax.tasks.household.alfworld_games import Game
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask

__all__ = ["Alfworld", "AlfworldConfig", "AlfworldTask"]

_EVALUATED = ("valid_seen", "valid_unseen")
_BEFORE_TASK = "Your task is to: "


@dataclasses.dataclass(frozen=True)
class AlfworldConfig(HouseholdConfig):
  """Which games there are, and how one is asked.

  With a folder, `num_train` and `num_test` are bounds, and the rooms are the
  files': `receptacles` and `objects` are not read.
  """

  folder: str = ""  # with train, valid_seen and valid_unseen; "": drawn worlds
  evaluate_on: str = "valid_seen"  # the folder's test split; or "valid_unseen"

  def __post_init__(self):
    super().__post_init__()
    if self.evaluate_on not in _EVALUATED:
      raise ValueError(
        f"unknown evaluate_on {self.evaluate_on!r}: "
        f"{base.nearest(self.evaluate_on, _EVALUATED)}"
      )


class Alfworld:
  """An `Environment`: one game a seed, done when solved or out of steps."""

  def __init__(
    self,
    choose: Callable[[int], Game],
    *,
    max_steps: int = 50,
    reward: float = 10.0,
  ):
    """Starts an engine, without a game.

    Args:
      choose: the game of a seed.
      max_steps: after which the episode is over.
      reward: of the step that solves the task; the others pay nothing.

    Raises:
      ImportError: the package alfworld is missing.
    """
    self.max_return = reward
    self.task = ""
    self._choose, self._max_steps = choose, max_steps
    self._engine = _start_engine()
    self._done = True

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation.

    Raises:
      FileNotFoundError: the game file is not there.
      ValueError: the game is damaged.
    """
    self._done = True
    self.game = self._choose(seed)
    try:
      self._engine.load(self.game.data)
      self._state = self._engine.reset()
    except (Exception, SystemExit) as error:  # The parser of PDDL may exit.
      raise ValueError(
        f"the engine cannot play the game of seed {seed}: "
        f"{type(error).__name__}: {error}"
      ) from error
    self._steps, self._done = 0, False
    self.task = self._state.feedback.rpartition(_BEFORE_TASK)[2].strip()
    return self._state.feedback

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    if self._done:
      raise RuntimeError("the episode is over: reset first")
    self._steps += 1
    self._state, _, _ = self._engine.step(action)
    won = bool(self._state["won"])
    self._done = won or self._steps >= self._max_steps
    return Step(self._state.feedback, self.max_return * won, self._done)

  @property
  def done(self) -> bool:
    """Whether the task is solved or the steps are used up."""
    return self._done

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now, sorted."""
    return list(self._state["admissible_commands"])

  def close(self) -> None:
    """Ends the engine; safe to call twice."""
    self._done = True
    self._engine.close()


class AlfworldTask(environments.AgentTask):
  """Games of ALFWorld, or drawn ones, in its engine."""

  name = "alfworld"

  def __init__(self, config: AlfworldConfig | None = None):
    """Finds the games, where there is a folder.

    Args:
      config: of the games.

    Raises:
      ImportError: the package alfworld is missing.
      FileNotFoundError: there is no such folder.
      ValueError: it holds no game.
    """
    self.config = AlfworldConfig() if config is None else config
    if importlib.util.find_spec("alfworld") is None:
      raise ImportError(
        "task 'alfworld' needs its engine: pip install 'saw_jax[alfworld]'"
      )
    self.max_steps = self.config.max_steps
    self.max_return = self.config.reward
    self._household = HouseholdTask(self.config)
    self._paths = _find(self.config) if self.config.folder else None

  def num_episodes(self, split: str) -> int:
    """Returns how many seeds of episodes a split has."""
    size = self._household.num_episodes(split)
    return size if self._paths is None else min(size, len(self._paths[split]))

  def make(self, split: str) -> Alfworld:
    """Makes an environment, whose `reset` takes a seed of the split."""
    self.num_episodes(split)  # says so if there is no such split
    if self._paths is not None:
      paths = self._paths[split]

      def choose(seed: int) -> Game:
        return alfworld_games.read_game(paths[seed])
    else:
      household, logic = (
        self._household.make(split),
        alfworld_games.read_logic(),
      )

      def choose(seed: int) -> Game:
        household.reset(seed)
        return alfworld_games.make_game(household.world, logic)

    return Alfworld(
      choose, max_steps=self.config.max_steps, reward=self.config.reward
    )

  def category(self, split: str, seed: int) -> str:
    """Returns the kind of an episode's task."""
    if self._paths is None:
      return self._household.category(split, seed)
    return alfworld_games.read_kind(self._paths[split][seed])

  def prompts(
    self, situation: Situation, history: Sequence[tuple[str, str]]
  ) -> Iterator[str]:
    """Yields prompts with less and less history; those of the household."""
    return self._household.prompts(situation, history)

  def read_reply(self, completion: str) -> Reply:
    """Finds the action in a completion, whatever it is."""
    return self._household.read_reply(completion)

  def write_reply(self, action: str) -> str:
    """Returns a completion that asks for an action."""
    return self._household.write_reply(action)

  def demonstrations(
    self, count: int, *, seed: int, wrong_rate: float = 0.0
  ) -> list[Transition]:
    """Returns steps of an expert.

    Those of drawn worlds are the household's, which are the same and take
    microseconds. Those of a folder are the walkthroughs of its games.

    Args:
      count: of steps.
      seed: of the first episode's order of search and mistakes; of a folder, of
        nothing.
      wrong_rate: probability that a step is any admissible action instead; 0
        with a folder, as nobody knows the way back to a walkthrough.

    Returns:
      The steps, episode by episode.

    Raises:
      ValueError: a rate that cannot be; or no game has a walkthrough.
    """
    if self._paths is None:
      return self._household.demonstrations(
        count, seed=seed, wrong_rate=wrong_rate
      )
    if wrong_rate:
      raise ValueError(
        "walkthroughs of game files have no mistakes: set wrong_rate to 0."
      )
    return list(self._walk("train", count))

  def held_out(self, count: int) -> list[Transition]:
    """Returns an expert's steps in test games, without mistakes.

    Args:
      count: of steps.

    Returns:
      The steps, episode by episode.
    """
    if self._paths is None:
      return self._household.held_out(count)
    return list(self._walk("test", count))

  def _walk(self, split: str, count: int) -> Iterator[Transition]:
    env, left = self.make(split), count
    while left:
      before = left
      for seed in range(self.num_episodes(split)):
        observation, history = env.reset(seed), ()
        for action in env.game.walkthrough:
          if env.done or not left:
            break
          situation = Situation(
            env.task, observation, tuple(env.admissible_actions), 0.0, False
          )
          seen, observation = observation, env.step(action).observation
          yield Transition(situation, history, action, observation)
          history, left = (*history, (seen, action)), left - 1
        if not left:
          break
      if left == before:
        raise ValueError(f"no game of split {split!r} has a walkthrough.")
    env.close()


def _find(config: AlfworldConfig) -> dict[str, list[str]]:
  folders = {"train": "train", "test": config.evaluate_on}
  return {
    split: [
      str(path)
      for path in alfworld_games.find_games(
        pathlib.Path(config.folder, folder), config.kinds
      )
    ]
    for split, folder in folders.items()
  }


def _start_engine():
  """ALFWorld's engine, with its names of things and in a fixed order."""
  try:
    import textworld
    from alfworld.agents.environment import alfred_tw_env
    from textworld.envs import pddl
  except ImportError as error:
    raise ImportError(
      "task 'alfworld' needs its engine: pip install 'saw_jax[alfworld]'"
    ) from error
  infos = textworld.EnvInfos(admissible_commands=True, won=True)
  return alfred_tw_env.AlfredDemangler(pddl.PddlEnv(infos), shuffle=False)
