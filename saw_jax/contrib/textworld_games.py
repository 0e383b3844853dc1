"""Games of TextWorld and TextWorld-Express as environments.

TextWorld-Express (https://arxiv.org/abs/2208.01174) makes its games from seeds,
in Java, in less than a millisecond a step; TextWorld
(https://arxiv.org/abs/1806.11532) compiles a game in seconds and plays a file.
"""

import json
import pathlib
import re
import weakref
from typing import Any

from saw_jax import naming
from saw_jax.tasks import base
from saw_jax.tasks.environments import EngineLost, Environment

EXPRESS = tuple(
  "coin cookingworld twc mapreader arithmetic sorting simonsays "
  "peckingorder".split()
)
# Two games of one seed in one process move each other's things.
_ALONE = frozenset(["sorting"])
PAYS = ("success", "score")
# First seed of a split, each with 1000: those of TextWorld-Express.
_FIRST_SEED = {"train": 0, "test": 20_000}
EXPRESS_SEEDS = 1000
NOTHING = "Nothing happens."
LONGEST = 200  # characters of an action
_NEED = "games of TextWorld and TextWorld-Express need their packages"
# What follows is said to a player at a keyboard.
_END = re.compile(r"\n>[^\n]*\Z|\s*\*\*\* The End \*\*\*.*", re.DOTALL)


class _Game(Environment):
  """What both kinds share: actions are read, and scores are paid."""

  def __init__(
    self, *, max_steps: int = 50, reward: float = 10.0, pays: str = "success"
  ):
    super().__init__(max_steps, reward)
    base.check_choice("pays", pays, PAYS)
    self._pays = pays

  @property
  def admissible_actions(self) -> list[str]:
    return sorted(set(self._actions))

  def _read(self, action: str) -> str:
    """An action as the game spells it, without what no game can read."""
    readable = (c if " " <= c <= "~" else " " for c in action[:LONGEST])
    text = " ".join("".join(readable).split())
    spelled = {known.lower(): known for known in self.admissible_actions}
    return spelled.get(text.lower(), text)

  def _pay(self, score: float, won: bool) -> float:
    """The reward of a step; the score may fall."""
    share = float(won) if self._pays == "success" else min(max(score, 0.0), 1.0)
    before, self._paid = self._paid, share * self.max_return
    return self._paid - before


class ExpressGame(_Game):
  """A game of TextWorld-Express, one of `EXPRESS`, another one each seed."""

  def __init__(
    self, game: str, split: str = "train", parameters: str = "", **options: Any
  ):
    super().__init__(**options)
    self._split = split
    self._java = _Java() if game in _ALONE else _shared_java()
    self._game = self._java.ask("PythonInterface")
    if problem := self._ask("load", game, parameters):
      raise ValueError(f"TextWorld-Express refuses game {game!r}: {problem}")

  def _start(self, seed: int) -> str:
    if not 0 <= seed < EXPRESS_SEEDS:
      raise ValueError(f"seeds go from 0 to {EXPRESS_SEEDS - 1}, not to {seed}")
    self._episode = _FIRST_SEED[self._split] + seed, self._split
    state = json.loads(self._ask("generateNewGameJSON", *self._episode, False))
    self.task = self._ask("getTaskDescription").strip()
    self._actions, self._paid = state["validActions"], 0.0
    return state["observation"].strip()

  def _act(self, action: str) -> tuple[str, float, bool]:
    state = json.loads(self._ask("stepJSON", self._read(action)))
    self._actions, won = state["validActions"], state["tasksuccess"]
    told = state["observation"].strip() or NOTHING
    return told, self._pay(state["score"], won), won or state["taskfailure"]

  @property
  def plan(self) -> list[str]:
    """Actions that win this episode, which has no step yet."""
    if self._steps:
      raise RuntimeError("there is a plan from the start of an episode only.")
    # With its plan, which may take a second.
    self._ask("generateNewGameJSON", *self._episode, True)
    return list(self._ask("getGoldActionSequence"))

  def close(self) -> None:
    self.done, self._java, self._game = True, None, None

  def _ask(self, method: str, *arguments: object) -> object:
    if self._java is None:
      raise RuntimeError("the game is closed: make another one")
    return self._java.ask(method, *arguments, of=self._game)


class StoryGame(_Game):
  """An `Environment`: games of TextWorld, each seed another of the `paths`."""

  def __init__(self, paths: list[str], **options: Any):
    super().__init__(**options)
    with naming.needs_extra("textworld", _NEED):
      import textworld
    self._textworld, self._paths, self._engine = textworld, paths, None

  def _start(self, seed: int) -> str:
    self.close()
    path = pathlib.Path(self._paths[seed])
    for needed in (path, path.with_suffix(".json")):
      if not needed.is_file():
        raise FileNotFoundError(f"there is no {needed}.")
    wanted = ("admissible_commands", "won", "lost", "score", "max_score")
    infos = self._textworld.EnvInfos(
      **dict.fromkeys((*wanted, "objective", "verbs"), True),
      extras=["walkthrough"],
    )
    try:
      self._engine = self._textworld.start(str(path), infos)
      state = self._engine.reset()
      self.task = " ".join(state["objective"].split())
      self._verbs = {command.partition(" ")[0] for command in state["verbs"]}
      self._best = max(state["max_score"], 1)
      self.plan = list(state["extra.walkthrough"] or ())
      self._actions, self._paid = state["admissible_commands"], 0.0
    except (Exception, SystemExit) as error:
      raise ValueError(
        f"{path} cannot be played: {type(error).__name__}: {error}"
      ) from error
    # The banner comes first, and what is to be done, which the task says.
    told = _told(state["feedback"]).rpartition("$$")[2].partition("\n")[2]
    return told.replace(state["objective"].strip(), "", 1).strip() or NOTHING

  def _act(self, action: str) -> tuple[str, float, bool]:
    command = self._read(action)
    # To save, quit and the like are commands to the game's player.
    if command.partition(" ")[0].lower() not in self._verbs:
      return NOTHING, 0.0, False
    state, _, _ = self._engine.step(command)
    self._actions, won = state["admissible_commands"], bool(state["won"])
    reward = self._pay(state["score"] / self._best, won)
    told = _told(state["feedback"]) or NOTHING
    return told, reward, won or bool(state["lost"])

  def close(self) -> None:
    self.done = True
    if self._engine is not None:
      self._engine.close()
      self._engine = None


def find_games(folder: pathlib.Path | str) -> list[pathlib.Path]:
  """Returns the `.z8` files of a folder at any depth, sorted."""
  found = sorted(pathlib.Path(folder).rglob("*.z8"))
  if not found:
    raise FileNotFoundError(
      f"there is no game of TextWorld (*.z8) in {folder}: make some with its "
      "tw-make, as docs/reproducing.md says."
    )
  return found


def _told(feedback: str) -> str:
  """What a game says, without what asks for a command or for another game."""
  lines = _END.sub("", feedback.rstrip()).splitlines()
  return re.sub(r"\n{3,}", "\n\n", "\n".join(map(str.rstrip, lines))).strip()


class _Java:
  """A Java process with TextWorld-Express in it."""

  def __init__(self):
    with naming.needs_extra("textworld", _NEED):
      from py4j import java_gateway, protocol
      from textworld_express import constants
    # What a broken connection raises, beside errors of the system.
    self._broken = (protocol.Py4JNetworkError, OSError)
    try:
      port, self.process = java_gateway.launch_gateway(
        classpath=constants.JAR_PATH,
        cwd=constants.BASEPATH,  # it opens its tables by their names
        die_on_exit=True,  # also when this process is killed
        javaopts=["-XX:+UseSerialGC"],
        return_proc=True,
      )
    except OSError as error:
      raise RuntimeError(
        f"TextWorld-Express needs Java: see that `java` can be run ({error})."
      ) from error
    self._gateway = java_gateway.JavaGateway(
      gateway_parameters=java_gateway.GatewayParameters(
        auto_field=True, port=port, enable_memory_management=False
      )
    )
    weakref.finalize(self, _stop, self._gateway, self.process)

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
_SHARED: weakref.WeakValueDictionary[str, _Java] = weakref.WeakValueDictionary()


def _shared_java() -> _Java:
  java = _SHARED.get("java")
  if java is None or java.process.poll() is not None:
    java = _SHARED["java"] = _Java()
  return java
