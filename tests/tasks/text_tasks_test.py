"""What every task of text episodes promises, in each of its forms."""

import hashlib
import pickle

import hypothesis
import pytest
from hypothesis import strategies as st

from saw_jax.run import registry
from saw_jax.tasks import base, environments
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.environments import Situation
from saw_jax.tasks.household.alfworld_task import AlfworldConfig
from saw_jax.tasks.household.task import HouseholdConfig, HouseholdTask
from saw_jax.tasks.search.task import SearchConfig, SearchTask
from saw_jax.tasks.shop.task import ShopConfig, ShopTask
from saw_jax.tasks.vault.task import VaultConfig, VaultTask
from saw_jax.tasks.workers.environment_pool import EnvironmentPool

SMALL = {"form": "compact", "num_train": 50, "num_test": 40}
ROOM = {"receptacles": 5, "objects": 6, "max_steps": 12, "shown": 3}
SITE = {"num_products": 60, "per_page": 4, "max_steps": 6, "shown": 4}
SITE |= {"shows_instruction": False}
TASKS = {
  "household": HouseholdTask(HouseholdConfig(num_train=90)),
  "household, compact": HouseholdTask(HouseholdConfig(**ROOM, **SMALL)),
  "shop": ShopTask(ShopConfig(pays="score")),
  "shop, compact": ShopTask(ShopConfig(**SITE, **SMALL)),
  "search": SearchTask(),
  "search, compact": SearchTask(
    SearchConfig(num_people=60, num_passages=2, form="compact")
  ),
  "vault": VaultTask(),
  "vault, compact": VaultTask(VaultConfig(shown=0, **SMALL)),
}
# Of demonstrations and prompts: what a seed means, and every word, stays.
DIGESTS = {
  "household": "fcaf5f26ec575e91",
  "household, compact": "3812add3c16ea93e",
  "shop": "80c10c647e813b10",
  "shop, compact": "30a7eaebd12e514e",
  "search": "84e4b07203a4cc61",
  "search, compact": "8086b3fc1c31be69",
  "vault": "36247a40458fef7e",
  "vault, compact": "9f69edf148782be2",
}
# Texts that no environment may stumble over.
HOSTILE = st.one_of(
  st.text(),
  st.text(max_size=9).map("search[{}]".format),
  st.text().map("<search>{}</search>".format),
  st.binary().map(lambda b: b.decode("latin-1")),
  st.sampled_from(
    ["take  from ", "go to \x00", "take a 1 from  b 1", "\ud800", "use", ""]
    + ["examine", "open " * 99, "x" * 10**5, "clean 1 1 with -1", "İ" * 9]
    + ["click[]", "search[a", "_do look", "search[" + "word " * 10**5 + "]"]
  ),
)


@pytest.fixture(params=TASKS)
def task(request):
  return TASKS[request.param]


def walk(task, seed, *, moves=(), env=None):
  """Plays moves, and then at random: texts and steps as they come."""
  env, draws = env or task.make("train"), Draws("walk", seed)
  seen, moves = [(env.reset(seed), env.task)], list(moves)
  while not env.done:
    actions = env.admissible_actions
    action = moves.pop(0) if moves else draws.choice(actions)
    seen.append((actions, action, env.step(action)))
  return seen


@pytest.mark.parametrize("name", TASKS)
def test_worlds_and_wording_are_what_results_were_made_with(name):
  task = TASKS[name]
  steps = task.demonstrations(400, seed=5, wrong_rate=0.3) + task.held_out(400)
  prompts = [list(task.prompts(one.before, one.history)) for one in steps]
  content = repr([tuple(one) for one in steps] + prompts)
  digest = hashlib.sha256(content.encode()).hexdigest()
  assert digest.startswith(DIGESTS[name])


class TestEpisodes:
  @hypothesis.given(st.integers(0, 39), st.lists(HOSTILE, max_size=8))
  @hypothesis.settings(
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
  )
  def test_any_text_is_an_action_and_a_seed_an_episode(self, task, seed, texts):
    env = task.make("train")
    walk(task, seed + 1, env=env)  # what came before leaves nothing behind
    seen = walk(task, seed, moves=texts, env=env)
    assert seen == walk(task, seed, moves=texts)
    assert 0 < len(seen) - 1 <= task.max_steps
    for actions, _, step in seen[1:]:
      assert len(set(actions)) == len(actions)
      assert isinstance(step.observation, str)
      assert len(step.observation) < 20_000
      assert 0 <= step.reward <= task.max_return

  def test_they_end_and_have_to_be_reset(self, task):
    env = task.make("test")
    with pytest.raises(RuntimeError, match="reset"):
      env.step("")
    env.reset(0)
    ends = [env.step("")[1:] for _ in range(task.max_steps)]
    assert ends == [(0.0, False)] * (task.max_steps - 1) + [(0.0, True)]
    with pytest.raises(RuntimeError, match="reset"):
      env.step("")
    env.reset(1)
    assert not env.done

  def test_splits_are_named_and_apart(self, task):
    seeds = range(40)
    starts = {}
    for split in ("train", "test"):
      assert task.num_episodes(split) >= len(seeds)
      env = task.make(split)
      starts[split] = {env.reset(seed) + env.task for seed in seeds}
      assert len(starts[split]) > 30
    assert not starts["train"] & starts["test"]
    for ask in (task.num_episodes, task.make):
      with pytest.raises(ValueError, match="'test'"):
        ask("tests")
    # The one reward is the return.
    most = task.config.reward
    assert task.max_return == task.make("train").max_return == most
    assert task.components == (base.Component("return", 0.0, most),)

  @pytest.mark.parametrize("num_workers", [0, 1])
  def test_a_process_plays_the_same(self, task, num_workers):
    sent = pickle.dumps(task)
    assert len(sent) < 1000  # what is large is made again from the config
    assert isinstance(pickle.loads(sent), environments.AgentTask)
    seen = walk(task, 3)
    with EnvironmentPool(task, num_workers=num_workers, limit_s=30.0) as pool:
      (found,) = pool.start([("train", 3)])
      assert (found.observation, found.task) == seen[0]
      for actions, action, step in seen[1:]:
        assert found.actions == tuple(actions)
        found = pool.step({0: action})[0]
        assert (found.observation, found.reward, found.done) == step


class TestExperts:
  @pytest.mark.parametrize(
    "task",
    [
      HouseholdTask(HouseholdConfig(max_steps=90)),
      HouseholdTask(HouseholdConfig(receptacles=4, objects=3)),
      ShopTask(ShopConfig(num_products=20, per_page=4, reward=3.0)),
      ShopTask(ShopConfig(num_products=150)),
      TASKS["shop, compact"],
      TASKS["search"],
      TASKS["search, compact"],
    ],
  )
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_they_win_by_admissible_actions(self, task, split):
    env = task.make(split)
    for seed in range(min(100, task.num_episodes(split))):
      env.reset(seed)
      expert, total = task.expert(env, Draws("test", seed)), 0.0
      while not env.done:
        action = next(expert)
        if "search" not in action:
          assert task.name == "search" or action in env.admissible_actions
        total += env.step(action).reward
      assert total == task.max_return, (split, seed)

  @pytest.mark.parametrize("rate", [0.0, 0.4])
  def test_demonstrations_are_what_playing_them_gives(self, task, rate):
    env = task.make("train")
    starts = {
      (env.reset(seed), env.task): seed
      for seed in range(min(task.num_episodes("train"), 400))
    }
    wrong, episode = 0, -1
    for step in task.demonstrations(60, seed=3, wrong_rate=rate):
      if not step.history:
        history, episode = (), episode + 1
        seed = starts[step.before.observation, step.before.task]
        observation = env.reset(seed)
        draws = Draws(f"{task.name} expert", "train", 3, episode)
        expert = task.expert(env, draws)
      assert step.before == Situation(
        env.task, observation, tuple(env.admissible_actions), 0.0, False
      )
      assert step.history == history
      wrong += step.action != next(expert)
      history = (*history, (observation, step.action))
      observation = env.step(step.action).observation
      assert step.observation == observation
    assert rate * 20 <= wrong <= rate * 90

  def test_the_seed_counts_and_held_out_ones_are_of_test_episodes(self, task):
    def show(seed):
      return task.demonstrations(40, seed=seed, wrong_rate=0.3)

    assert show(0) == show(0) != show(1)
    with pytest.raises(ValueError, match="rate"):
      task.demonstrations(1, seed=0, wrong_rate=1.0)
    env = task.make("test")
    seeds = range(task.num_episodes("test"))
    tests = {env.reset(seed) + env.task for seed in seeds}
    held = task.held_out(40)
    assert len(held) == 40
    starts = [step.before for step in held if not step.history]
    assert {one.observation + one.task for one in starts} <= tests

  def test_no_expert_or_one_that_never_knows(self, monkeypatch):
    made = HouseholdTask(HouseholdConfig(num_train=3))
    monkeypatch.setattr(HouseholdTask, "expert", lambda *_: iter(()))
    with pytest.raises(ValueError, match="walkthrough"):
      made.demonstrations(1, seed=0)
    monkeypatch.setattr(HouseholdTask, "expert", None)
    assert made.held_out(3) == []
    with pytest.raises(NotImplementedError):
      made.demonstrations(3, seed=0)


class TestWords:
  def test_replies_are_read_and_prompts_drop_history_oldest_first(self, task):
    steps = task.demonstrations(200, seed=1, wrong_rate=0.3)
    shown = getattr(task.config, "shown", 99)
    for step in steps:
      reply = task.write_reply(step.action)
      assert task.read_reply(reply) == (step.action, True)
      assert ("<think>" in reply) == (task.config.form == "english")
      texts = list(task.prompts(step.before, step.history))
      assert len(texts) == min(shown, len(step.history)) + 1
      assert all(step.before.task in text for text in texts)
      sizes = list(map(len, texts))
      assert sizes == sorted(set(sizes), reverse=True)
      for k, text in enumerate(reversed(texts)):
        actions = [action for _, action in step.history]
        assert all(action in text for action in actions[len(actions) - k :])
      assert ("<think>" in texts[0]) == (task.config.form == "english")

  @pytest.mark.parametrize(
    ("name", "action", "observation", "prompt"),
    [("household", 6, 24, 56), ("shop", 6, 48, 94), ("search", 5, 24, 84)],
  )
  def test_compact_ones_are_few_tokens(self, name, action, observation, prompt):
    encode = registry.make_tokenizer(name).encode
    task = TASKS[f"{name}, compact"]
    for step in task.demonstrations(400, seed=0, wrong_rate=0.5):
      assert len(encode(step.action)) <= action
      assert len(encode(step.observation)) <= observation
      text = next(task.prompts(step.before, step.history))
      assert len(encode(text)) <= prompt

  def test_a_walk_is_known_to_the_tokenizer(self, task):
    tokenizer = registry.make_tokenizer(task.name)
    for seed in range(25):
      start, *steps = walk(task, seed)
      texts = [*start, *(text for step in steps for text in step[1:2])]
      for text in [*texts, *(step[2].observation for step in steps)]:
        if "<your query>" not in text:
          assert tokenizer.decode(tokenizer.encode(text)) == text

  @pytest.mark.parametrize(
    ("name", "texts"),
    [
      ("household", ["", " ", "mug 1", "look" * 100, "1 look"]),
      ("shop", ["", "search", "search[]", "buy[x]", "click[a]b"]),
      ("shop", ["search[a[b]]", "search[" + "a" * 400 + "]"]),
      ("vault", ["", "take", "look", "take " + "a" * 40]),
    ],
  )
  def test_what_is_no_action_is_invalid(self, name, texts):
    for text in texts:
      assert TASKS[f"{name}, compact"].read_reply(text) == ("", False)

  @hypothesis.given(st.text())
  def test_any_text_is_a_reply(self, text):
    for task in TASKS.values():
      assert isinstance(task.read_reply(text).action, str)


@pytest.mark.parametrize("end", ["", "</action></search></answer>]"])
@pytest.mark.parametrize(
  "part",
  "<action> <search> <answer> <search></answer> <action search[ []".split(),
)
def test_a_million_letters_are_read_at_once(task, part, end):
  # A reader of quadratic time would take hours; a linear one takes a blink.
  text, env = part * (10**6 // len(part)) + end, task.make("train")
  for action in (text, task.read_reply(text).action):
    env.reset(0)
    assert env.step(action).reward == 0


@pytest.mark.parametrize(
  ("config", "field", "word"),
  [
    (HouseholdConfig, {"form": "compcat"}, "'compact'"),
    (HouseholdConfig, {"kinds": ("pikc",)}, "'pick'"),
    (HouseholdConfig, {"max_steps": 0}, "max_steps"),
    (AlfworldConfig, {"evaluate_on": "valid_unsen"}, "'valid_unseen'"),
    (AlfworldConfig, {"kinds": ("pikc",)}, "'pick'"),
    (ShopConfig, {"form": "compcat"}, "'compact'"),
    (ShopConfig, {"pays": "sucess"}, "'success'"),
    (ShopConfig, {"per_page": 0}, "per_page"),
    (ShopConfig, {"products": "a.json"}, "together"),
    (SearchConfig, {"form": "compcat"}, "'compact'"),
    (SearchConfig, {"kinds": ("jbo",)}, "'job'"),
    (SearchConfig, {"num_passages": 0}, "num_passages"),
    (SearchConfig, {"corpus": "a.jsonl"}, "together"),
    (VaultConfig, {"form": "compcat"}, "'compact'"),
    (VaultConfig, {"rooms": 17}, "rooms are at most 16"),
    (VaultConfig, {"chests": 9}, "chests are at most 8"),
    (VaultConfig, {"chests": 0}, "chests"),
    (VaultConfig, {"depth": 6}, "depth 6"),
  ],
)
def test_a_mistake_in_a_config_is_named(config, field, word):
  with pytest.raises(ValueError, match=word):
    config(**field)
