"""Configs: their arguments, their keys, and the tables' rows and scales."""

import dataclasses
import json
import pathlib

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from saw_jax import algorithms
from saw_jax.models import decoder
from saw_jax.run import build, registry, rollouts, run_directory, warm_start
from saw_jax.run import config as config_lib
from saw_jax.run.config import load, module, typed
from saw_jax.run.sections import RunConfig
from saw_jax.tasks.household import alfworld_task

TABLES = {name: module(name) for name in config_lib.names()}
asympo_math, household = TABLES["asympo/math"], TABLES["paw/household"]
composed, summaries = TABLES["composed/tool_calling"], TABLES["saw/summaries"]
CASES = [
  f"{name}:row={row},scale={scale}"
  for name, table in TABLES.items()
  for row in table.ROWS
  for scale in table.SCALES
  # Numbers are no words to judge.
  if (name, row, scale) != ("care/math", "self_verification", "tiny")
]


# What the papers print: a row, and its settings at the scale `paper`.
PUBLISHED = pathlib.Path(__file__).parent / "data/published_settings.txt"


def at(values, path):
  for name in path.split("."):
    values = values[name] if hasattr(values, "keys") else getattr(values, name)
  return values


def put(values, path, value):
  section, _, key = path.rpartition(".")
  (at(values, section) if section else values)[key] = value
  return values


def as_json(run):
  return json.loads(json.dumps(dataclasses.asdict(run)))


def unwrap(fn):
  """The function under a `functools.partial`."""
  return getattr(fn, "func", fn)


def is_from(fn, entry):
  """Whether a function is what a table has, with options or without."""
  options = getattr(fn, "keywords", {})
  wanted = getattr(entry, "keywords", {})
  return unwrap(fn) is unwrap(entry) and wanted.items() <= options.items()


@pytest.fixture
def built(monkeypatch):
  """Builds all but parameters, of a config or of what `load` takes."""
  monkeypatch.setattr(build, "make_params", lambda *_: None)
  return lambda config: build.build(
    load(config) if isinstance(config, str) else config
  )


CHOICES = {"row": ("gdpo_saw", "grpo"), "scale": ("tiny", "paper")}


@pytest.mark.parametrize(
  ("argument", "row", "scale"),
  [(empty, "gdpo_saw", "tiny") for empty in ("", None, " , ")]
  + [
    (pair, "grpo", "paper")
    for pair in ("row=grpo,scale=paper", "scale=paper,row=grpo", "paper, grpo ")
  ],
)
def test_arguments_are_pairs_and_bare_words_in_any_order(argument, row, scale):
  assert config_lib.arguments(argument, **CHOICES) == {
    "row": row,
    "scale": scale,
  }


@pytest.mark.parametrize(
  ("argument", "nearest"),
  [
    ("row=grpoo", "row 'grpoo': did you mean 'grpo'"),
    ("scael=tiny", "'scael': did you mean 'scale'"),
    ("papre", "'papre': did you mean 'paper'"),
    ("row=paper", "unknown row 'paper'"),
    ("row=", "unknown row ''"),
    ("both", "unknown argument 'both'"),  # a word of two keys is not guessed
  ],
)
def test_a_mistake_in_an_argument_names_the_nearest(argument, nearest):
  choices = CHOICES | {"kl": ("none", "both"), "writer": ("none", "both")}
  with pytest.raises(ValueError, match=nearest):
    config_lib.arguments(argument, **choices)


class TestKeys:
  """That a config has what the dataclasses have, and nothing else."""

  def test_defaults_come_back_as_they_are(self):
    config = config_lib.get_config()
    assert typed(config) == RunConfig()
    document = json.loads(json.dumps(config.to_dict()))
    assert typed(document) == RunConfig()

  def test_a_key_reaches_its_field(self):
    others = {
      "labels.method": "vote",
      "model.remat": "full",
      "model.dtype": "bfloat16",
      "model.param_dtype": "bfloat16",
      "sampling.top_p": 0.5,
      "evaluation.top_p": 0.5,
      "rollout.engine_options": {"attempts": 2},
    }
    paths = traverse_util.flatten_dict(
      config_lib.get_config().to_dict(), sep=".", keep_empty_nodes=True
    )
    assert len(paths) == 100
    for path in paths:
      config = config_lib.get_config()
      value = at(config, path)
      if isinstance(value, ml_collections.ConfigDict):
        value = {"new": 1}
      elif isinstance(value, bool | tuple):
        value = not value if isinstance(value, bool) else value[:1] or ("a",)
      elif not isinstance(value, str):
        value = type(value)(value * 2 or 1)
      value = others.get(path, value)
      put(config, path, value)
      assert at(typed(config), path) == value, path

  @pytest.mark.parametrize(
    ("path", "word"),
    [("loop.num_stpes", "'num_steps'"), ("warm_start.dead", "warm_start.dead")]
    + [("labels.probe.lenght_scale", "'length_scale'"), ("lop", "'loop'")],
  )
  def test_a_key_that_nothing_reads_is_refused(self, path, word):
    with pytest.raises(TypeError, match=word):
      build.build(put(config_lib.get_config(), path, 1))

  @pytest.mark.parametrize(
    ("path", "value"),
    [("loop.num_steps", 2.5), ("loop.num_steps", True), ("checkpoint", None)]
    + [("loop.skip_nonfinite", 1), ("optimizer.learning_rate", "fast")]
    + [("rollout.stops", "query"), ("task.options", 3), ("labels", "vote")],
  )
  def test_a_wrong_type_names_its_key(self, path, value):
    with pytest.raises(TypeError, match=path):
      typed(put(config_lib.get_config().to_dict(), path, value))

  def test_python_reaches_what_has_no_key(self):
    run = RunConfig()
    changed = config_lib.replace(run, "labels.probe.clip_norm", 0.8)
    changed = config_lib.replace(changed, "task.options.seed", 3)
    assert changed.labels.probe.clip_norm == 0.8
    assert changed.task.options == {"seed": 3}
    assert "clip_norm" not in config_lib.to_config(changed).labels.probe
    assert run == RunConfig()


OLDER = "paw/household:row=ppo_paw,scale=tiny"


@pytest.fixture
def older():
  """A run.json from when there were 161 keys, as it was written."""
  path = pathlib.Path(__file__).parent / "data" / "older_run.json"
  return json.loads(path.read_text())["config"]


@pytest.mark.parametrize(
  ("path", "value"),
  [("labels.price", 2.0), ("optimizer.b1", 0.8), ("model.windows", [4, 0])],
)
def test_a_key_that_is_gone_is_named(older, path, value):
  del older["seeds"]
  put(older, "parallel.data", 1)  # which was said beside fsdp=-1
  assert as_json(typed(older)) == as_json(typed(load(OLDER)))
  with pytest.raises(ValueError, match=path):
    typed(put(older, path, value))
  assert not config_lib.is_gone(path, value)


def test_an_older_run_goes_on_with_the_same_config_alone(older, tmp_path):
  now = {**load(OLDER).to_dict(), "seeds": [0, 1]}
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)

  def check(path, value):
    changed = put(json.loads(json.dumps(older)), path, value)
    (tmp_path / "run.json").write_text(json.dumps({"config": changed}))
    run_directory.check_run(tmp_path, now)

  check("seeds", [0, 1])
  run, seeds = run_directory.read_config(tmp_path)
  assert as_json(run) == as_json(typed(load(OLDER))) and seeds == [0, 1]
  for path, value in (("loop.num_steps", 7), ("optimizer.b1", 0.8)):
    with pytest.raises(run_directory.RunError, match=path):
      check(path, value)


def test_a_name_a_path_and_a_file_of_ones_own_are_loaded(tmp_path):
  path = config_lib.FOLDER / "saw" / "tool_calling.py"
  for argument in ("row=grpo", ""):
    assert load(f"{path}:{argument}") == load(f"saw/tool_calling:{argument}")
  assert load("saw/tool_calling") == load("saw/tool_calling:row=gdpo_saw")
  path = tmp_path / "mine.py"
  path.write_text(
    "from saw_jax.run import config\n"
    "def get_config(argument):\n"
    "  mine = config.module('saw/tool_calling').get_config(argument)\n"
    "  mine.loop.num_steps = 3\n"
    "  return mine\n"
  )
  mine = load(f"{path}:row=grpo")
  assert mine.loop.num_steps == 3 and mine.algorithm.advantage == "grpo"


@pytest.mark.parametrize("argument", ["", ":row=grpo"])
def test_what_a_config_of_ones_own_raises_names_its_file(tmp_path, argument):
  path = tmp_path / "mine.py"
  path.write_text("def get_config(): return 1 / 0")
  with pytest.raises(ValueError, match=f"{path}: get_config: ") as raised:
    load(f"{path}{argument}")
  error = TypeError if argument else ZeroDivisionError
  assert isinstance(raised.value.__cause__, error)


@pytest.mark.parametrize(
  ("name", "error", "word"),
  [
    ("saw/tool_caling", ValueError, "'saw/tool_calling'"),
    ("configs/none.py", FileNotFoundError, "none.py"),
    (__file__, TypeError, "get_config"),
  ],
)
def test_a_config_that_is_not_there_is_named(name, error, word):
  with pytest.raises(error, match=word):
    load(name)


class TestEveryTable:
  @pytest.mark.parametrize("case", CASES)
  def test_its_sizes_go_together(self, case):
    config = load(case)
    run = typed(config)
    assert config_lib.to_config(run).to_dict() == config.to_dict()
    loop = run.loop
    assert loop.prompts_per_step % loop.num_minibatches == 0
    if not case.startswith("paw"):  # whose rows are counted as they come
      rows = loop.prompts_per_step * loop.group_size // loop.num_minibatches
      assert rows % loop.num_microbatches == 0
    if run.checkpoint:  # Sizes and tokenizer are the checkpoint's.
      how = {name: getattr(run.model, name) for name in build.COMPUTED}
      defaults = RunConfig().model
      assert run.model == dataclasses.replace(defaults, **how)
      assert run.tokenizer.name in registry.TOKENIZERS

  @pytest.mark.parametrize(
    "case", [case for case in CASES if case.endswith("scale=tiny")]
  )
  def test_a_tiny_row_builds_the_method_that_it_names(self, case, built):
    pytest.importorskip("tokenizers")
    algorithm = typed(load(case)).algorithm
    made = built(case)
    method = made.method
    table = algorithms.ADVANTAGES | algorithms.STEP_ADVANTAGES
    assert is_from(method.advantage, table[algorithm.advantage])
    assert method.per_step == (algorithm.advantage not in algorithms.ADVANTAGES)
    assert is_from(method.weights, algorithms.WEIGHTS[algorithm.weights])
    has_world = algorithm.world_model.loss != "none"
    assert (method.world is not None) == has_world
    assert set(method.terms) - {"entropy", "value"} == (
      {"policy", "world_model"} if has_world else {"policy"}
    )
    kl = algorithm.kl
    assert (method.kl_in_reward is not None) == (kl.placement == "reward")
    assert method.needs_reference == (kl.placement != "none")
    assert made.decoder.vocab_size == made.tokenizer.vocab_size
    reads_values = algorithm.advantage in ("step_gae", "brace")
    assert made.decoder.value_head == reads_values

  @pytest.mark.parametrize("line", PUBLISHED.read_text().splitlines())
  def test_the_paper_scale_is_the_published_setting(self, line):
    case, *settings = line.split()
    run = typed(load(case if "scale" in case else f"{case},scale=paper"))
    for setting in settings:
      path, _, value = setting.partition("=")
      assert str(at(run, path)) == value, path


# Rows of a table, and all that they may differ in.
DIFFERENCES = """
saw/tool_calling | all | algorithm.advantage algorithm.advantage_options \
algorithm.weights algorithm.weights_options
saw/summaries | all | algorithm.advantage algorithm.weights \
algorithm.weights_options
gdpo/math | all | algorithm.advantage algorithm.weights task.options.conditioned
asympo/math | all | algorithm asynchronous.dynamic_sampling
care/knights | all | labels
care/knights | care care_no_gate | labels.gate
care/knights | random random_gate | labels.gate
care/knights | random random_votes | labels.unlabelled
care/knights | care care_votes | labels.unlabelled
care/knights | random_gate entropy_gate | labels.method
paw/household | grpo grpo_paw | algorithm.world_model
paw/household | gigpo gigpo_paw | algorithm.world_model
paw/household | ppo ppo_paw | algorithm.world_model
paw/shop | gigpo gigpo_paw | algorithm.world_model
paw/search | gigpo gigpo_paw | algorithm.world_model
"""


@pytest.mark.parametrize("line", DIFFERENCES.strip().splitlines())
def test_rows_differ_in_what_they_are_named_for_alone(line):
  table, rows, keys = (part.split() for part in line.split("|"))
  rows = TABLES[table[0]].ROWS if rows == ["all"] else rows
  first, *others = (typed(load(f"{table[0]}:row={row}")) for row in rows)
  for other in others:
    assert other != first
    for key in keys:
      other = config_lib.replace(other, key, at(first, key))
    assert other == first


def test_the_form_of_the_released_code_is_an_argument(built):
  def options(row, **form):
    name = f"saw/tool_calling:row={row}" + ",form=code" * bool(form)
    found = dict(getattr(built(name).method.weights, "keywords", {}))
    return {name: x for name, x in found.items() if name != "minima"}

  released = {"delta": 0.0, "sum_eps": 1e-8, "flat_weight": 0.0}
  paper, code = options("gdpo_saw"), options("gdpo_saw", form=True)
  assert code == paper | released and not paper.keys() & released
  assert options("gdpo", form=True) == options("gdpo")


def test_the_released_kl_is_of_one_row(built):
  for row in TABLES["saw/tool_calling"].ROWS:
    found = built(f"saw/tool_calling:row={row},kl=released").method.kl_in_reward
    released = (algorithms.KL_ESTIMATORS["k1"], 0.001)
    assert found == (released if row == "grpo" else None)


@pytest.mark.parametrize(
  ("case", "name", "value"),
  [
    ("saw/tool_calling:gdpo_saw", "minima", [-3.0, 0.0]),
    ("saw/summaries:gdpo_saw", "minima", [0, 0]),
    ("saw/summaries:gdpo_static", "values", [1.5, 0.5]),
  ],
)
def test_weights_know_their_numbers(case, name, value, built):
  weights = built(case).method.weights
  np.testing.assert_array_equal(weights.keywords[name], value)


def test_summaries_fit_and_their_judge_may_answer(built):
  pytest.importorskip("tokenizers")
  made = built("saw/summaries")
  encoder = rollouts.Encoder(made.tokenizer, made.rollout)
  for split in ("train", "test"):
    for example in made.task.examples(split):
      encoder.tokens(example)  # raises where it is too long
  config = load("saw/summaries:scale=paper")
  assert config.grading.limit_s > config.task.options.judge.limit_s


@pytest.mark.parametrize("row", asympo_math.ROWS)
def test_a_row_says_which_log_probs_it_needs(row, built):
  method = built(f"asympo/math:row={row},lag=4").method
  none = ("naive", "spo", "gpg", "gpg_nonzero", "opmd")
  is_current = row in none or row.startswith("asympo")
  assert method.needs_behave == (not is_current)
  old = ("tis", "decoupled_ppo", "icepop", "sequence_mask", "m2po_all")
  assert method.needs_old == (row in old)
  decides = row.startswith("m2po") or row == "off_policy_sequence"
  assert (method.keep is not None) == decides
  assert (method.step_size is not None) == (row == "vcpo")


@pytest.mark.parametrize("scale", TABLES["asympo/benchmarks"].SCALES)
@pytest.mark.parametrize("row", TABLES["asympo/benchmarks"].METHODS)
def test_rows_of_benchmarks_are_the_losses_on_two_data_sets(row, scale):
  one, other = (
    load(f"asympo/benchmarks:row={name},scale={scale}").to_dict()
    for name in (row, f"{row}_dapo")
  )
  by_lag = load(f"asympo/math:row={row}").to_dict()
  assert one["algorithm"] == by_lag["algorithm"]
  # Where they differ is what they train on, and nowhere else.
  trained = "train_path" if scale == "paper" else "levels"
  ours = one["task"]["options"].pop(trained)
  assert ours != other["task"]["options"].pop(trained)
  assert one == other


@pytest.mark.parametrize("row", household.ROWS)
def test_a_row_has_the_loss_of_its_name(row, built):
  method = built(f"paw/household:row={row}").method
  assert (method.world is None) == (
    row.removesuffix("_actobs") in (*household.BASES, "brace")
  )
  assert method.reads_values == row.startswith(("ppo", "brace"))
  assert method.reads_ratios == (row == "brace")
  if method.world is not None:
    loss = method.world.token_loss
    rho = getattr(loss, "keywords", {}).get("rho")
    clipped = ("clipped_absolute_error", "reversed_absolute_error")
    assert (rho == 0.2) == (unwrap(loss).__name__ in clipped)


def test_a_control_is_one_change_of_paw():
  first = typed(load("paw/household:row=grpo_paw"))
  world = first.algorithm.world_model
  for row in ("paw_lambda_one", "paw_cross_entropy", *household.CONTROLS):
    other = typed(load(f"paw/household:row={row}"))
    theirs = vars(other.algorithm.world_model)
    changed = {key for key, own in vars(world).items() if theirs[key] != own}
    changed -= {"loss_options", "coefficient_options"}
    assert len(changed) == (4 if row.startswith("echo") else 1), row
    assert config_lib.replace(other, "algorithm.world_model", world) == first
  # And of ECHO: its divisor, and for prime-rl's its coefficient.
  echo = load("paw/household:row=echo").algorithm.world_model.to_dict()
  for name, value in (("rows", 0.05), ("tokens", 0.1)):
    theirs = load(f"paw/household:row=echo_{name}").algorithm.world_model
    assert theirs.to_dict() == echo | {
      "aggregate": f"flat_{name}",
      "coefficient_options": {"value": value},
    }


@pytest.mark.parametrize("row", TABLES["care/confident"].ROWS)
def test_a_row_of_confident_has_the_gate_of_its_name(row):
  config = load(f"care/confident:row={row},fraction=0.02")
  has_gate = row.endswith("_gate") and row != "care_no_gate" or row == "care"
  assert config.labels.gate == ("probe" if has_gate else "none")
  if row == "trapo":  # As many labels in all as one a step.
    pool = config.task.options.num_train
    assert pool * config.labels.label_fraction == config.loop.num_steps == 100


@pytest.mark.parametrize("table", ["household", "hidden"])
def test_actobs_is_another_start_of_the_same(table):
  for row in ("grpo", "echo", "grpo_paw"):
    ours = load(f"paw/{table}:row={row}")
    theirs = load(f"paw/{table}:row={row}_actobs")
    assert theirs.warm_start.observation_coefficient == 1
    assert ours.warm_start.observation_coefficient < 0.1
    theirs.warm_start.observation_coefficient = (
      ours.warm_start.observation_coefficient
    )
    assert theirs.to_dict() == ours.to_dict()


@pytest.mark.parametrize("scale", household.SCALES)
def test_an_engine_is_another_player_of_the_same(scale):
  ours = load(f"paw/household:row=grpo,scale={scale}")
  theirs = load(f"paw/household:row=grpo,scale={scale},engine=alfworld")
  assert (ours.task.name, theirs.task.name) == ("household", "alfworld")
  assert theirs.grading.limit_s > ours.grading.limit_s
  options = theirs.task.options.to_dict()
  read = alfworld_task.AlfworldConfig(**options)
  # The games of files at the paper's scale, and the same worlds elsewhere.
  assert read.folder == options.pop("folder", "")
  assert bool(read.folder) == (scale == "paper")
  assert options == ours.task.options.to_dict()
  theirs.task, theirs.grading = ours.task, ours.grading
  assert theirs.to_dict() == ours.to_dict()


@pytest.mark.parametrize("table", ["shop", "search"])
@pytest.mark.parametrize("scale", TABLES["paw/shop"].SCALES)
def test_shop_and_search_are_trained_as_the_household(table, scale):
  for row in household.ROWS:
    config = load(f"paw/{table}:row={row},scale={scale}")
    theirs = config.algorithm
    ours = load(f"paw/household:row={row},scale={scale}").algorithm
    if (table, scale) == ("search", "paper"):
      # The one published difference, and verl-agent's.
      assert (theirs.kl.coefficient, theirs.entropy_coefficient) == (0.001, 0.0)
      theirs.kl.coefficient = ours.kl.coefficient
      theirs.entropy_coefficient = ours.entropy_coefficient
    assert theirs == ours
  task = registry.make_task(table, config.task.options.to_dict())
  assert task.num_episodes("train") >= config.loop.prompts_per_step
  assert task.num_episodes("test") >= config.evaluation.num_examples
  if scale == "tiny":  # No token is outside of the short vocabulary.
    tokenizer = registry.make_tokenizer(config.tokenizer.name)
    text = task.held_out(1)[0].before.task
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_math_cannot_judge_itself_at_tiny():
  with pytest.raises(ValueError, match="words to judge"):
    load("care/math:row=self_verification")
  load("care/math:row=self_verification,scale=small")


@pytest.mark.parametrize("row", composed.ROWS)
def test_a_row_has_its_methods_and_no_other(row, built):
  made = built(f"composed/tool_calling:row={row}")
  methods, method = composed.methods_of(row), made.method
  is_saw = unwrap(method.weights) is algorithms.WEIGHTS["saw"]
  assert is_saw == ("saw" in methods)
  assert (method.world is not None) == ("paw" in methods)
  # ASymPO needs nothing of the sampler's.
  assert method.needs_behave == ("asympo" not in methods)
  assert not method.needs_old
  assert (made.labels.method == "care") == ("care" in methods)
  assert (made.labels.label_fraction, made.asynchronous.lag) == (0.2, 4)


def test_the_start_of_a_table_comes_with_the_configs(monkeypatch):
  monkeypatch.setattr(warm_start.update, "make_update", None)  # none is made
  made = build.build(load("asympo/math:row=naive,scale=tiny").lock())
  scratch = decoder.init_params(made.decoder, jax.random.key(0))
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), made.params, scratch)
  assert max(jax.tree.leaves(moved)) > 0.1
  for file in (config_lib.FOLDER / "starts").glob("*.npz"):
    assert file.stat().st_size < 1e6
