"""OpenEnv's own echo environment, in a process and on a server, and tools."""

import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("openenv")

from openenv.core.env_server import mcp_environment
from openenv.core.env_server.types import Observation, State

from saw_jax import tokenizer
from saw_jax.run import registry
from tests import agent_helpers
from tests.agent_helpers import play

ECHO = "echo_world.server.echo_world_environment:EchoWorldEnvironment"
APP = """
from openenv.core.env_server.http_server import create_app
from echo_world import models
from echo_world.server.echo_world_environment import EchoWorldEnvironment
app = create_app(
  EchoWorldEnvironment, models.EchoWorldAction, models.EchoWorldObservation,
  max_concurrent_envs=64,
)
"""


class Counter(mcp_environment.MCPEnvironment):
  """Has one tool, which counts; a count of 3 pays."""

  def __init__(self):
    from fastmcp import FastMCP

    server = FastMCP("counter")

    @server.tool
    def add(amount: int) -> int:
      """Adds to the count."""
      self.count += amount
      return self.count

    super().__init__(server)

  def reset(self, seed=None, episode_id=None, **options):
    self.count, self.started = 0, {"seed": seed, **options}
    return Observation()

  def step(self, action, **options):
    found = super().step(action, **options)
    found.reward, found.done = float(self.count == 3), self.count == 3
    return found

  def _step_impl(self, action, **options):
    raise ValueError("tools only")

  @property
  def state(self):
    return State()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the library's own command has written its echo environment."""
  place = tmp_path_factory.mktemp("openenv")
  command = pathlib.Path(sys.executable).with_name("openenv")
  done = subprocess.run(
    [command, "init", "echo_world"], cwd=place, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  (place / "serve_echo.py").write_text(APP)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(place)
    yield place


@pytest.fixture(scope="module")
def server(folder):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "uvicorn", "serve_echo:app"]
  command += ["--port", str(port), "--log-level", "error"]
  with subprocess.Popen(command, cwd=folder) as process:
    until = time.monotonic() + 120
    while time.monotonic() < until:
      with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
          break
      time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.kill()


def make(**options):
  return registry.make_task("openenv", {"max_steps": 3, **options})


@pytest.mark.parametrize("where", ["in the process", "in a worker", "served"])
def test_the_echo_answers(folder, request, where):
  env = request.getfixturevalue("server") if where == "served" else ECHO
  task = make(env=env, observation="echoed_message")
  said = ["Hello", json.dumps({"message": "abc"}), json.dumps({"massage": ""})]
  start, *steps = play(task, said, num_workers=where == "in a worker")
  assert start.observation == "Echo World environment ready!"
  assert '"message"' in start.task and not start.actions
  assert [step.observation for step in steps] == ["Hello", "abc", "abc"]
  assert [step.reward for step in steps] == pytest.approx([0.5, 0.3, 0])
  assert [step.done for step in steps] == [False, False, True]


def test_without_a_field_all_is_shown(folder):
  *_, last = play(make(env=ECHO), ["Hello"])
  shown = {"echoed_message": "Hello", "message_length": 5}
  assert json.loads(last.observation) == shown


def test_tools_are_listed_and_called():
  task = make(env=f"{__name__}:Counter", max_steps=4)
  call = '{"tool_name": "add", "arguments": {"amount": %d}}'
  start, *steps = play(task, [call % 1, "add 1", call % 2])
  assert "Adds to the count" in start.task and "tool_name" in start.task
  assert "1" in steps[0].observation
  assert steps[1].observation == steps[0].observation
  assert (steps[2].reward, steps[2].done) == (1, True)


@pytest.mark.parametrize(
  ("reset", "started"),
  [
    ("seed", {"seed": 2**30 + 3}),
    ("task", {"seed": None, "split": "test", "index": 3}),
  ],
)
def test_an_episode_is_that_of_its_seed_or_task(reset, started):
  env = make(env=f"{__name__}:Counter", reset=reset).make("test")
  env.reset(3)
  assert env._wire._env.started == started


def test_a_server_that_is_gone_fails_episodes(folder):
  with pytest.raises(OSError, match="no OpenEnv server"):
    make(env="http://127.0.0.1:9")


def test_a_policy_learns_what_the_echo_pays(folder, server, tmp_path):
  options = {"observation": "echoed_message", "form": "compact"}
  options |= {"max_steps": 2, "reward": 2.0, "shown": 0}
  pieces = tokenizer.PieceTokenizer([*"ab", "abcdefgh"])
  found = [
    agent_helpers.train(
      "openenv",
      options | {"env": env},
      pieces,
      tmp_path / name,
      rollout=dict(max_prompt_tokens=48, prompt_multiple=48),
    )
    for name, env in (("local", ECHO), ("served", server))
  ]
  returns = found[0]["reward/return"]
  assert 0 < returns[0, 0] < returns[0, -1] < 2
  assert not found[0]["failed"].any()
  assert returns.tolist() == found[1]["reward/return"].tolist()
