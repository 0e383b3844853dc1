"""Games of TextWorld and TextWorld-Express as environments.

TextWorld-Express makes its games from seeds, in Java, in less than a
millisecond a step; TextWorld compiles a game in seconds and plays it from a
file. Both tell the score of every step and what can be done.

References:
  Jansen and Côté, "TextWorldExpress: Simulating Text Games at One Million Steps
  Per Second". https://arxiv.org/abs/2208.01174
  Côté et al., "TextWorld: A Learning Environment for Text-based Games".
  https://arxiv.org/abs/1806.11532
"""

import json
import pathlib
import re
import weakref

from saw_jax.tasks import base
from saw_jax.tasks.environments import EngineLost, Step

EXPRESS = (
  *("coin", "cookingworld", "twc", "mapreader"),
  *("arithmetic", "sorting", "simonsays", "peckingorder"),
)
# Two games of one seed in one process move each other's things.
_ALONE = frozenset(["sorting"])
PAYS = ("success", "score")
# First seed of a split, each with 1000: those of TextWorld-Express.
_FIRST_SEED = {"train": 0, "test": 20_000}
EXPRESS_SEEDS = 1000
NOTHING = "Nothing happens."
LONGEST = 200  # characters of an action
# Of TextWorld's challenges, with their smallest settings.
CHALLENGES = {
  "tw-coin_collector": {"level": 5},
  "tw-treasure_hunter": {"level": 5},
  "tw-simple": {"rewards": "dense", "goal": "detailed", "test": False},
}
# What follows is said to a player at a keyboard.
_END = re.compile(r"\n>[^\n]*\Z|\s*\*\*\* The End \*\*\*.*", re.DOTALL)


class _Game:
  """What both kinds share: steps are counted, and scores are paid."""

  def __init__(self, max_steps: int, reward: float, pays: str):
    if pays not in PAYS:
      raise ValueError(f"unknown pays {pays!r}: {base.nearest(pays, PAYS)}")
    self.max_return = reward
    self.task = ""
    self._max_steps, self._pays = max_steps, pays
    self._actions: list[str] = []
    self._done = True

  @property
  def done(self) -> bool:
    """Whether the game is over or the steps are used up."""
    return self._done

  @property
  def admissible_actions(self) -> list[str]:
    """What would do something now, sorted."""
    return list(self._actions)

  def _begin(self, actions: list[str]) -> None:
    self._steps, self._paid, self._done = 0, 0.0, False
    self._actions = sorted(set(actions))

  def _read(self, action: str) -> str:
    """An action as the game spells it, without what no game can read.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    if self._done:
      raise RuntimeError("the episode is over: reset first")
    readable = (c if " " <= c <= "~" else " " for c in action[:LONGEST])
    text = " ".join("".join(readable).split())
    spelled = {known.lower(): known for known in self._actions}
    return spelled.get(text.lower(), text)

  def _note(
    self, observation: str, actions: list[str], score: float, *, won, lost
  ) -> Step:
    """Counts a step; `score` is from 0 to 1, and may fall."""
    self._steps += 1
    self._done = won or lost or self._steps >= self._max_steps
    self._actions = sorted(set(actions))
    earned = (
      float(won) if self._pays == "success" else min(max(score, 0.0), 1.0)
    )
    earned *= self.max_return
    reward, self._paid = earned - self._paid, earned
    return Step(observation, reward, self._done)


class ExpressGame(_Game):
  """An `Environment`: a game of TextWorld-Express, another one each seed."""

  def __init__(
    self,
    game: str,
    split: str = "train",
    *,
    parameters: str = "",
    max_steps: int = 50,
    reward: float = 10.0,
    pays: str = "success",
    has_plan: bool = False,
  ):
    """Starts Java, unless another game of this process has and can share it.

    Args:
      game: one of `EXPRESS`.
      split: "train" or "test"; in some games their things differ too.
      parameters: as `numLocations=3,includeDoors=0`; "" for the game's own.
      max_steps: after which the episode is over.
      reward: of a won game.
      pays: "success" pays at the win, "score" whenever the score changes.
      has_plan: whether `plan` is made, which may take a second a game.

    Raises:
      ImportError: the package textworld-express is missing.
      RuntimeError: there is no Java.
      ValueError: no such game or parameter.
    """
    super().__init__(max_steps, reward, pays)
    self._split, self._has_plan = split, has_plan
    self._java = _Java() if game in _ALONE else _shared_java()
    self._game = self._java.ask("PythonInterface")
    problem = self._ask("load", game, parameters)
    if problem:
      raise ValueError(f"TextWorld-Express refuses game {game!r}: {problem}")

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation.

    Raises:
      ValueError: no such seed.
      EngineLost: Java has ended.
    """
    if not 0 <= seed < EXPRESS_SEEDS:
      raise ValueError(
        f"seeds go from 0 to {EXPRESS_SEEDS - 1}, not to {seed}."
      )
    first = _FIRST_SEED[self._split] + seed
    text = self._ask("generateNewGameJSON", first, self._split, self._has_plan)
    state = json.loads(text)
    self.task = self._ask("getTaskDescription").strip()
    self._begin(state["validActions"])
    return state["observation"].strip()

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    Raises:
      RuntimeError: the episode is done, or none was started.
      EngineLost: Java has ended.
    """
    state = json.loads(self._ask("stepJSON", self._read(action)))
    return self._note(
      state["observation"].strip() or NOTHING,
      state["validActions"],
      state["score"],
      won=state["tasksuccess"],
      lost=state["taskfailure"],
    )

  @property
  def plan(self) -> list[str]:
    """Actions that win this episode from its start."""
    return list(self._ask("getGoldActionSequence"))

  def close(self) -> None:
    """Leaves Java, which ends with the last game; safe to call twice."""
    self._done, self._java, self._game = True, None, None

  def _ask(self, method: str, *arguments: object) -> object:
    if self._java is None:
      raise RuntimeError("the game is closed: make another one")
    return self._java.ask(method, *arguments, of=self._game)


class StoryGame(_Game):
  """An `Environment`: games of TextWorld from files, one each seed."""

  def __init__(
    self,
    paths: list[str],
    *,
    max_steps: int = 50,
    reward: float = 10.0,
    pays: str = "success",
  ):
    """Opens nothing yet: `reset` does.

    Args:
      paths: of `.z8` files with their `.json` beside them; a seed is an
        index.
      max_steps: after which the episode is over.
      reward: of a won game.
      pays: "success" pays at the win, "score" whenever the score changes.

    Raises:
      ImportError: the package textworld is missing.
    """
    super().__init__(max_steps, reward, pays)
    self._paths, self._engine = paths, None
    self._textworld = _import_textworld()

  def reset(self, seed: int) -> str:
    """Starts the episode of a seed, and returns its first observation.

    Raises:
      FileNotFoundError: the file is not there.
      ValueError: it is damaged, or no game of TextWorld.
    """
    self.close()
    path = pathlib.Path(self._paths[seed])
    for needed in (path, path.with_suffix(".json")):
      if not needed.is_file():
        raise FileNotFoundError(f"there is no {needed}.")
    infos = self._textworld.EnvInfos(
      **dict.fromkeys(
        ("admissible_commands", "won", "lost", "score", "max_score"), True
      ),
      **dict.fromkeys(("objective", "verbs"), True),
      extras=["walkthrough"],
    )
    try:
      self._engine = self._textworld.start(str(path), infos)
      state = self._engine.reset()
      self.task = " ".join(state["objective"].split())
      self._verbs = {command.partition(" ")[0] for command in state["verbs"]}
      self._best = max(state["max_score"], 1)
      self.plan = list(state["extra.walkthrough"] or ())
      self._begin(state["admissible_commands"])
    except (Exception, SystemExit) as error:
      raise ValueError(
        f"{path} cannot be played: {type(error).__name__}: {error}"
      ) from error
    # The banner comes first, and what is to be done, which the task says.
    told = _told(state["feedback"]).rpartition("$$")[2].partition("\n")[2]
    return told.replace(state["objective"].strip(), "", 1).strip() or NOTHING

  def step(self, action: str) -> Step:
    """Takes an action: any text at all, while the episode is not done.

    What begins with none of the game's verbs does not reach it: to save, quit
    and the like are commands to its player.

    Raises:
      RuntimeError: the episode is done, or none was started.
    """
    command = self._read(action)
    if command.partition(" ")[0].lower() not in self._verbs:
      return self._note(
        NOTHING, self._actions, self._score(), won=False, lost=False
      )
    state, _, _ = self._engine.step(command)
    self._state = state
    return self._note(
      _told(state["feedback"]) or NOTHING,
      state["admissible_commands"],
      self._score(),
      won=bool(state["won"]),
      lost=bool(state["lost"]),
    )

  def close(self) -> None:
    """Ends the engine; safe to call twice."""
    self._done, self._state = True, None
    if self._engine is not None:
      self._engine.close()
      self._engine = None

  def _score(self) -> float:
    return self._state["score"] / self._best if self._state else 0.0


def make_games(
  folder: pathlib.Path | str,
  count: int,
  *,
  challenge: str = "tw-simple",
  seed: int = 0,
  settings: dict[str, object] | None = None,
) -> list[pathlib.Path]:
  """Compiles games of TextWorld, without a network; some seconds each.

  Args:
    folder: of a split; made if it is not there.
    count: of games.
    challenge: one of `CHALLENGES`.
    seed: of the first; the others follow it.
    settings: of the challenge, where they are not those in `CHALLENGES`.

  Returns:
    The paths of the `.z8` files.

  Raises:
    ImportError: the package textworld is missing.
    ValueError: no such challenge.
  """
  if challenge not in CHALLENGES:
    raise ValueError(
      f"unknown challenge {challenge!r}: "
      f"{base.nearest(challenge, tuple(CHALLENGES))}"
    )
  textworld = _import_textworld()
  from textworld import challenges, generator

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for number in range(seed, seed + count):
    options = textworld.GameOptions()
    options.seeds = number
    options.path = str(folder / f"{challenge}-{number}.z8")
    options.force_recompile = True
    _, make, *_ = challenges.CHALLENGES[challenge]
    game = make(CHALLENGES[challenge] | (settings or {}), options)
    paths.append(pathlib.Path(generator.compile_game(game, options)))
  return paths


def find_games(folder: pathlib.Path | str) -> list[pathlib.Path]:
  """Finds the games of a split.

  Args:
    folder: that holds `.z8` files, at any depth.

  Returns:
    Their paths, sorted.

  Raises:
    FileNotFoundError: there is no such folder, or none in it.
  """
  found = sorted(pathlib.Path(folder).rglob("*.z8"))
  if not found:
    raise FileNotFoundError(
      f"there is no game of TextWorld (*.z8) in {folder}: make some with "
      "saw_jax.contrib.textworld_games.make_games."
    )
  return found


def _told(feedback: str) -> str:
  """What a game says, without what asks for a command or for another game."""
  lines = _END.sub("", feedback.rstrip()).splitlines()
  return re.sub(r"\n{3,}", "\n\n", "\n".join(map(str.rstrip, lines))).strip()


def _import_textworld():
  try:
    import textworld
  except ImportError as error:
    raise ImportError(
      "games of TextWorld need its package: pip install 'saw_jax[textworld]'"
    ) from error
  return textworld


class _Java:
  """A Java process with TextWorld-Express in it."""

  def __init__(self):
    try:
      from py4j import java_gateway, protocol
      from textworld_express import constants
    except ImportError as error:
      raise ImportError(
        "games of TextWorld-Express need its package: "
        "pip install 'saw_jax[textworld]'"
      ) from error
    # What a broken connection raises, beside errors of the system.
    self._broken = (protocol.Py4JNetworkError, OSError)
    try:
      port, self._process = java_gateway.launch_gateway(
        classpath=constants.JAR_PATH,
        cwd=constants.BASEPATH,  # it opens its tables by their names
        die_on_exit=True,  # also when this process is killed
        javaopts=["-XX:+UseSerialGC"],
        return_proc=True,
      )
    except OSError as error:
      raise RuntimeError(
        "TextWorld-Express needs Java: install it, and see that "
        f"`java` can be run ({error})."
      ) from error
    self._gateway = java_gateway.JavaGateway(
      gateway_parameters=java_gateway.GatewayParameters(
        auto_field=True, port=port, enable_memory_management=False
      )
    )
    weakref.finalize(self, _stop, self._gateway, self._process)

  @property
  def pid(self) -> int:
    return self._process.pid

  def is_alive(self) -> bool:
    return self._process.poll() is None

  def ask(self, method: str, *arguments: object, of: object = None) -> object:
    """Calls a method, of what there is in the process or of its package."""
    if of is None:
      of = self._gateway.jvm.textworldexpress.runtime
    try:
      return getattr(of, method)(*arguments)
    except self._broken as error:
      raise EngineLost(f"Java has ended: {error}") from error


def _stop(gateway, process) -> None:
  gateway.close()
  process.stdin.close()
  process.kill()
  process.wait()


# The one that the games of this process share while there are any.
_SHARED: "weakref.WeakValueDictionary[str, _Java]" = (
  weakref.WeakValueDictionary()
)


def _shared_java() -> _Java:
  java = _SHARED.get("java")
  if java is None or not java.is_alive():
    java = _Java()
    _SHARED["java"] = java
  return java
