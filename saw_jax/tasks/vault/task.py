"""Rooms of locked chests, whose keys nobody tells: rules that must be learned.

A thing lies in a chest whose key may lie in another chest, and so on. What is
in each chest is seen, and which keys lie about, but not which key is of which
chest: every room has a rule of its own, the same in all of its episodes. A key
that does not fit tells what it is of. So an action's outcome says what decides
the next ones, and somebody who can predict outcomes knows the way.
"""

import dataclasses
from collections.abc import Iterator

from saw_jax.tasks import base, environments, panels
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import History, Situation, Transition

_WORDS = base.asset(__file__, "words.json")
_PARTS = ("get", "in", "take", "open", "have", "key", "of", "hand", "floor")
_PARTS += ("nothing", "happens", "you", "come")
_NAMES = [f" {word}" for words in _WORDS.values() for word in words]
# The pieces of compact prompts, of actions and of what is seen after them.
PIECES = (*_PARTS, *(f" {part}" for part in _PARTS), *_NAMES, *":,;|>")
_NOTHING = "nothing happens"


@dataclasses.dataclass(frozen=True)
class VaultConfig:
  """Which rooms there are, and how one is asked."""

  num_train: int = 8192
  num_test: int = 256
  seed: int = 0  # of the rules
  rooms: int = 8  # each with a rule
  rule_per_episode: bool = False  # not per room: no rule comes back
  chests: int = 5
  depth: int = 3  # chests to open: the last has what is looked for
  max_steps: int = 20
  reward: float = 1.0
  form: str = "english"  # of prompts and replies; or "compact"
  shown: int = 2  # earlier steps in a prompt, where they fit

  def __post_init__(self):
    base.check_choice("form", self.form, environments.FORMS)
    names = "num_train", "num_test", "rooms", "chests", "depth", "max_steps"
    base.check_positive(self, *names)
    for name in ("rooms", "chests"):
      if getattr(self, name) > len(_WORDS[name]):
        raise ValueError(f"{name} are at most {len(_WORDS[name])}.")
    if self.depth > self.chests:
      raise ValueError(f"depth {self.depth} needs as many chests.")


class Vault(environments.Environment):
  """A room: one key fits in a hand, and a chest that is open stays so."""

  def __init__(self, split: str, config: VaultConfig):
    super().__init__(config.max_steps, config.reward)
    self._split, self._config = split, config

  def _start(self, seed: int) -> str:
    config, draws = self._config, Draws("vault", self._split, seed)
    self.room = draws.choice(_WORDS["rooms"][: config.rooms])
    chests = _WORDS["chests"][: config.chests]
    own = (self._split, seed) if config.rule_per_episode else ()
    rule = Draws("vault rule", config.seed, self.room, *own)
    keys = rule.sample(_WORDS["keys"][: config.chests], config.chests)
    self.key_of = dict(zip(chests, keys, strict=True))
    chain = draws.sample(chests, config.depth)
    self.wanted, self.goal = draws.choice(_WORDS["things"]), chain[0]
    # Chest -> what is in it, while it is closed.
    self.closed = dict.fromkeys(draws.sample(chests, config.chests), "")
    self.closed[self.goal] = self.wanted
    for inner, outer in zip(chain, chain[1:], strict=False):
      self.closed[outer] = self.key_of[inner]
    inside = set(self.closed.values())
    self.floor = [key for key in sorted(keys) if key not in inside]
    self.hand = ""
    told = (f" {chest} {x}".rstrip() for chest, x in self.closed.items())
    self.task = f"get {self.wanted} in {self.room}:{','.join(told)}"
    return self._seen("you come in")

  def _act(self, action: str) -> tuple[str, float, bool]:
    verb, _, name = action.strip().partition(" ")
    if verb == "take" and name in self.floor:
      self.floor = sorted({*self.floor, self.hand} - {name, ""})
      self.hand = name
      return self._seen(f"you have {name}"), 0.0, False
    if verb != "open" or name not in self.closed or not self.hand:
      return self._seen(_NOTHING), 0.0, False
    if self.key_of[name] != self.hand:
      owner = next(c for c, key in self.key_of.items() if key == self.hand)
      return self._seen(f"key of {owner}"), 0.0, False
    found = self.closed.pop(name)
    is_won = name == self.goal
    self.floor = sorted({*self.floor, found} - {"", self.wanted})
    said = f"open {name}, you have {found}" if is_won else f"open {name}"
    return self._seen(said), self.max_return * is_won, is_won

  @property
  def admissible_actions(self) -> list[str]:
    takes = [f"take {key}" for key in self.floor]
    return takes + [f"open {chest}" for chest in self.closed if self.hand]

  def _seen(self, said: str) -> str:
    hand = f"hand {self.hand}" if self.hand else "hand"
    return " ".join([f"{said}; {hand}, floor", *self.floor])


def _expert(env: Vault, draws: Draws) -> Iterator[str]:
  """Yields what to do next, whoever took the last step; it never ends."""
  while True:
    chest = env.goal
    while (key := env.key_of[chest]) not in (env.hand, *env.floor):
      chest = next(c for c, inside in env.closed.items() if inside == key)
    yield f"open {chest}" if key == env.hand else f"take {key}"


class VaultTask(environments.FormTask):
  """Rooms whose rules are those of all their episodes, and told nowhere."""

  name = "vault"
  Config = VaultConfig
  expert = staticmethod(_expert)
  panel = panels.walked
  _role = "looks for a thing in a room of locked chests"
  _subject = "which key is of which chest"

  def demonstrations(
    self,
    count: int,
    *,
    seed: int,
    wrong_rate: float = 0.0,
    rule_per_episode: bool = False,
  ) -> list[Transition]:
    """Steps of an expert who errs, by the rooms' rules or an episode's own."""
    rule = self.config.rule_per_episode or rule_per_episode
    there = type(self)(dataclasses.replace(self.config, rule_per_episode=rule))
    return there._play("train", count, seed, wrong_rate)

  def _make(self, split: str) -> Vault:
    return Vault(split, self.config)

  def _english(self, situation: Situation, history: History, shown: int) -> str:
    # What can be done is not listed.
    forms = situation._replace(actions=("take KEY", "open CHEST"))
    return super()._english(forms, history, shown)

  def _is_action(self, text: str) -> bool:
    return text.startswith(("take ", "open ")) and len(text) <= 40
