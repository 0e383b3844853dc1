"""Environments of OpenEnv as a task: in a worker's process, or on a server."""

import dataclasses
import json
import typing
import urllib.request
from collections.abc import Mapping
from typing import Any

from saw_jax import naming
from saw_jax.contrib import worlds
from saw_jax.tasks import base

_NO_PART = ("done", "reward", "metadata")  # of what a policy sees and says
_OF_TOOLS = ("Action", "CallToolAction", "ListToolsAction")  # titles of schemas
_FETCH_S = 10.0


@dataclasses.dataclass(frozen=True)
class OpenEnvConfig(worlds.AskedConfig):
  """Which environment, and how its actions and observations are text.

  `env` is the address of a server, or "module:Class" of an environment, which
  then runs in the worker's process with `kwargs`.
  """

  # The field of observations that is shown; empty: all of them, as JSON.
  observation: str = ""
  # What an episode is reset by: its seed, or "task", its index in the split, of
  # an environment that provides tasks.
  reset: str = "seed"

  def __post_init__(self):
    super().__post_init__()
    base.check_choice("reset", self.reset, ("seed", "task"))


class _Local:
  """An environment in this process, which says what its server would say."""

  def __init__(self, config: OpenEnvConfig):
    from openenv.core.env_server import serialization, types

    made = naming.load(config.env)
    self._env, self._wire = made(**config.kwargs), serialization
    self._kind = typing.get_type_hints(made.step).get("action", types.Action)
    self.schema = self._kind.model_json_schema()
    self.about = self._env.get_metadata().description

  def reset(self, **options: Any) -> Mapping[str, Any]:
    return self._wire.serialize_observation(self._env.reset(**options))

  def step(self, action: Mapping[str, Any]) -> Mapping[str, Any]:
    typed = self._wire.deserialize_action(action, self._kind)
    return self._wire.serialize_observation(self._env.step(typed))


class _Served:
  def __init__(self, config: OpenEnvConfig):
    from openenv.core.generic_client import GenericEnvClient

    place = config.env.rstrip("/")
    self.schema = _fetch(f"{place}/schema")["action"]
    self.about = _fetch(f"{place}/metadata")["description"]
    self._client = GenericEnvClient(base_url=place).sync()

  def reset(self, **options: Any) -> Mapping[str, Any]:
    return vars(self._client.reset(**options))

  def step(self, action: Mapping[str, Any]) -> Mapping[str, Any]:
    return vars(self._client.step(action))


class Session(worlds.World):
  """One environment of OpenEnv, played with words.

  An action is a JSON object, or the text of the one field that actions must
  have. What does not fit the environment's schema changes nothing and takes a
  step. An environment of tools (MCP) has them listed in its task.
  """

  admissible_actions: list[str] = []  # any text may be one

  def __init__(self, config: OpenEnvConfig, split: str):
    super().__init__(config, split)
    is_served = config.env.startswith(("http://", "https://"))
    self._wire = (_Served if is_served else _Local)(config)
    self._schema = self._wire.schema
    is_of_tools = self._schema.get("title") in _OF_TOOLS
    self._always = {"type": "call_tool"} if is_of_tools else {}

  def _start(self, seed: int) -> str:
    by = {"seed": {"seed": self._first + seed}}
    by["task"] = {"split": self._split, "index": seed}
    found = self._wire.reset(**by[self._config.reset])
    about = self._config.goal or self._wire.about
    self.task = f"{about}\n{self._explain()}"
    return self._see(found)[0]

  def _explain(self) -> str:
    """What an action may be, in words."""
    if self._always:
      from openenv.core.env_server import mcp_types

      self._schema = mcp_types.CallToolAction.model_json_schema()
      tools = self._wire.step({"type": "list_tools"})["observation"]["tools"]
      return (
        'An action calls a tool: {"tool_name": ..., "arguments": {...}}. '
        f"The tools are: {_write(tools)}"
      )
    fields = self._schema.get("properties", {})
    fields = {k: one for k, one in fields.items() if k not in _NO_PART}
    return f"An action is a JSON object with these fields: {_write(fields)}"

  def _act(self, action: str) -> tuple[str, float, bool]:
    import jsonschema

    try:
      said = json.loads(action)
    except ValueError:
      said = action
    if isinstance(said, dict):
      said = {**self._always, **said}
    elif len(self._schema.get("required", ())) == 1 and not self._always:
      said = {self._schema["required"][0]: action}
    if not jsonschema.Draft202012Validator(self._schema).is_valid(said):
      return self._seen, 0.0, False
    return self._see(self._wire.step(said))

  def _see(self, found: Mapping[str, Any]) -> tuple[str, float, bool]:
    fields = found["observation"]
    if self._config.observation:
      self._seen = fields[self._config.observation]
    else:
      fields = {k: one for k, one in fields.items() if k not in _NO_PART}
      self._seen = _write(fields)
    return self._seen, found["reward"] or 0.0, found["done"]


class OpenEnvTask(worlds.WorldTask):
  """Episodes of one environment; a server needs room for them all at once."""

  name, _module, _world = "openenv", "openenv.core", Session


def _fetch(place: str) -> Mapping[str, Any]:
  try:
    with urllib.request.urlopen(place, timeout=_FETCH_S) as page:
      return json.load(page)
  except OSError as error:
    raise ConnectionError(f"no OpenEnv server at {place}: {error}") from error


def _write(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False, default=str)
