"""Configs: their arguments, and that every key of them is read."""

import dataclasses
import re

import ml_collections
import numpy as np
import pytest

from configs.asympo import benchmarks as asympo_benchmarks
from configs.asympo import math as asympo_math
from configs.care import knights as care_knights
from configs.care import math as care_math
from configs.composed import tool_calling as composed
from configs.gdpo import math as gdpo_math
from configs.paw import household, search, shop
from configs.saw import summaries, tool_calling
from saw_jax import algorithms
from saw_jax.labels import care
from saw_jax.models import lora
from saw_jax.models.config import DecoderConfig
from saw_jax.rollout.sampling import SamplingConfig
from saw_jax.run import (
  agents,
  arguments,
  build,
  evaluation,
  labelling,
  rollouts,
  warm_start,
)
from saw_jax.run import config as base
from saw_jax.run import experiment as experiment_lib
from saw_jax.tasks.household import alfworld_task
from saw_jax.training import optimizer, parallel

# Each section of a config, with the dataclass that it is spread into.
SECTIONS = {
  "model": DecoderConfig,
  "lora": lora.LoraConfig,
  "rollout": rollouts.RolloutConfig,
  "sampling": SamplingConfig,
  "grading": experiment_lib.GradingConfig,
  "algorithm": algorithms.AlgorithmConfig,
  "algorithm.kl": algorithms.KLConfig,
  "algorithm.world_model": algorithms.WorldModelConfig,
  "optimizer": optimizer.OptimizerConfig,
  "loop": experiment_lib.LoopConfig,
  "episodes": agents.EpisodeConfig,
  "evaluation": evaluation.EvaluationConfig,
  "asynchronous": experiment_lib.AsyncConfig,
  "labels": labelling.LabelConfig,
  "labels.probe": care.CareSettings,
  "parallel": parallel.ParallelConfig,
  "warm_start": warm_start.WarmStartConfig,
}
# Fields that a config does not set, and keys that go elsewhere.
SET_ELSEWHERE = {
  "model": {"vocab_size"},  # the tokenizer's
  "sampling": {"greedy"},  # the evaluation's
  "warm_start": {"optimizer"},
  # Those of `labels`, of which CARE's selection has some too.
  "labels.probe": {"label_fraction", "gate_fraction", "warm_up", "soft_adv"},
}
READ_ELSEWHERE = {"warm_start": {"learning_rate", "options"}}
OTHERS = {"task", "tokenizer", "checkpoint"}

CASES = [
  f"row={row},scale={scale}"
  for row in tool_calling.ROWS
  for scale in tool_calling.SCALES
]


def at(config, path):
  for name in path.split("."):
    config = config[name]
  return config


class TestParse:
  CHOICES = {"row": ("gdpo_saw", "grpo"), "scale": ("tiny", "paper")}

  def parse(self, argument):
    return arguments.parse(argument, **self.CHOICES)

  @pytest.mark.parametrize("argument", ["", None, " , "])
  def test_the_first_choice_is_the_default(self, argument):
    assert self.parse(argument) == {"row": "gdpo_saw", "scale": "tiny"}

  @pytest.mark.parametrize(
    "argument",
    [
      "row=grpo,scale=paper",
      "scale=paper,row=grpo",
      "grpo,paper",
      " row=grpo , paper ",
    ],
  )
  def test_pairs_and_bare_words_in_any_order(self, argument):
    assert self.parse(argument) == {"row": "grpo", "scale": "paper"}

  @pytest.mark.parametrize(
    ("argument", "message"),
    [
      ("row=grpoo", "unknown row 'grpoo': did you mean 'grpo'?"),
      ("scael=tiny", "unknown argument 'scael': did you mean 'scale'?"),
      ("papre", "unknown argument 'papre': did you mean 'paper'?"),
      ("scal", "unknown argument 'scal': did you mean 'scale'?"),
      ("row=", "unknown row '': did you mean"),
      ("row=paper", "unknown row 'paper': did you mean"),
    ],
  )
  def test_a_mistake_names_the_nearest(self, argument, message):
    with pytest.raises(ValueError, match=re.escape(message)):
      self.parse(argument)

  def test_all_choices_are_listed(self):
    with pytest.raises(ValueError, match="There are gdpo_saw, grpo$"):
      self.parse("row=x")

  def test_a_word_of_two_keys_is_not_guessed(self):
    with pytest.raises(ValueError, match="unknown argument 'none'"):
      arguments.parse("none", kl=("none",), writer=("none", "wandb"))


class TestBase:
  @pytest.mark.parametrize("name", SECTIONS)
  def test_a_section_has_exactly_the_fields_of_its_dataclass(self, name):
    keys = set(at(base.get_config(), name)) - READ_ELSEWHERE.get(name, set())
    fields = {field.name for field in dataclasses.fields(SECTIONS[name])}
    assert keys == fields - SET_ELSEWHERE.get(name, set())

  def test_there_is_no_other_section(self):
    tops = {name.partition(".")[0] for name in SECTIONS}
    assert set(base.get_config()) == tops | OTHERS

  def test_the_task_has_to_be_named(self):
    with pytest.raises(ml_collections.config_dict.RequiredValueError):
      base.get_config().task.name  # noqa: B018

  def test_unlocked_options_are_refused_by_who_reads_them(self):
    config = tool_calling.get_config()
    config.task.options.num_trian = 7
    with pytest.raises(TypeError, match="'num_trian': did you mean 'num_tra"):
      build.build(config.lock())

  @pytest.mark.parametrize(
    "section", [name for name in SECTIONS if name != "warm_start"]
  )
  def test_a_key_that_nothing_reads_is_refused(self, section):
    config = tool_calling.get_config()
    with config.unlocked():
      at(config, section).dead_key = 1
    with pytest.raises(TypeError, match="has no field 'dead_key'"):
      build.build(config)

  def test_a_dead_key_of_the_warm_start_is_refused(self):
    config = tool_calling.get_config()
    config.warm_start.dead_key = 1
    with pytest.raises(TypeError, match="has no field 'dead_key'"):
      build.build(config)


class TestToolCalling:
  @pytest.mark.parametrize("case", CASES)
  def test_loads_with_the_keys_of_the_base_alone(self, case):
    config = tool_calling.get_config(case)
    defaults = base.get_config()
    for name in SECTIONS:
      assert set(at(config, name)) == set(at(defaults, name)), name
    assert set(config) == set(defaults)

  @pytest.mark.parametrize("case", CASES)
  def test_a_locked_config_names_the_nearest_key(self, case):
    config = tool_calling.get_config(case).lock()
    with pytest.raises(AttributeError, match="learning_rate"):
      config.optimizer.lerning_rate = 1.0

  @pytest.mark.parametrize("case", CASES)
  def test_every_section_becomes_its_dataclass(self, case):
    values = tool_calling.get_config(case).to_dict()
    for name, cls in SECTIONS.items():
      if name in ("warm_start", "algorithm", "algorithm.kl", "labels"):
        continue
      extra = {"vocab_size": 512} if name == "model" else {}
      made = build.section(cls, at(values, name), **extra)
      for key, value in at(values, name).items():
        assert getattr(made, key) == value, f"{name}.{key}"

  @pytest.mark.parametrize("row", tool_calling.ROWS)
  @pytest.mark.parametrize("kl", ["none", "released"])
  def test_every_tiny_row_builds_its_method(self, row, kl, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    config = tool_calling.get_config(f"row={row},scale=tiny,kl={kl}").lock()
    experiment = build.build(config)
    method = experiment.method
    advantage, _, weights = row.partition("_")
    assert unwrap(method.advantage) is algorithms.ADVANTAGES[advantage]
    expected = algorithms.WEIGHTS[weights or "equal"]
    assert unwrap(method.weights) is expected
    assert set(method.terms) == {"policy", "entropy"}
    # The released code has a KL in one row, and so does `kl=released`.
    has_kl = (row, kl) == ("grpo", "released")
    assert (method.kl_in_reward is not None) == has_kl
    assert method.needs_reference == has_kl
    if has_kl:
      estimator, coefficient = method.kl_in_reward
      assert estimator is algorithms.KL_ESTIMATORS["k1"]
      assert coefficient == 0.001
    assert experiment.decoder.vocab_size == experiment.tokenizer.vocab_size

  def test_the_rewards_minima_reach_saw(self, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    experiment = build.build(tool_calling.get_config("gdpo_saw").lock())
    np.testing.assert_array_equal(
      experiment.method.weights.keywords["minima"], [-3.0, 0.0]
    )

  def test_rows_differ_in_their_algorithm_alone(self):
    first = tool_calling.get_config("row=gdpo_saw").to_dict()
    for row in tool_calling.ROWS:
      other = tool_calling.get_config(f"row={row}").to_dict()
      other["algorithm"]["advantage"] = first["algorithm"]["advantage"]
      other["algorithm"]["weights"] = first["algorithm"]["weights"]
      assert other == first, row

  @pytest.mark.parametrize("scale", tool_calling.SCALES)
  def test_the_sizes_of_a_step_divide(self, scale):
    loop = tool_calling.get_config(f"scale={scale}").loop
    assert loop.prompts_per_step % loop.num_minibatches == 0
    rows = loop.prompts_per_step * loop.group_size // loop.num_minibatches
    assert rows % loop.num_microbatches == 0

  def test_the_paper_scale_names_the_model_that_it_needs(self):
    config = tool_calling.get_config("scale=paper").lock()
    with pytest.raises(
      FileNotFoundError,
      match="--config.checkpoint: there is no 'checkpoints/Qwen2.5-1.5B-Instr",
    ):
      build.build(config)


class TestSummaries:
  """SAW's second task: configs/saw/summaries.py."""

  CASES = [
    f"row={row},scale={scale}"
    for row in summaries.ROWS
    for scale in summaries.SCALES
  ]

  @pytest.mark.parametrize("case", CASES)
  def test_loads_with_the_keys_of_the_base_alone(self, case):
    config = summaries.get_config(case)
    defaults = base.get_config()
    for name in SECTIONS:
      assert set(at(config, name)) == set(at(defaults, name)), name
    assert set(config) == set(defaults)
    loop = config.loop
    assert loop.prompts_per_step % loop.num_minibatches == 0
    rows = loop.prompts_per_step * loop.group_size // loop.num_minibatches
    assert rows % loop.num_microbatches == 0

  @pytest.mark.parametrize("row", summaries.ROWS)
  def test_every_tiny_row_builds_its_method(self, row, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    experiment = build.build(summaries.get_config(row).lock())
    method = experiment.method
    advantage, _, weights = row.partition("_")
    assert unwrap(method.advantage) is algorithms.ADVANTAGES[advantage]
    expected = algorithms.WEIGHTS[weights or "equal"]
    assert unwrap(method.weights) is expected
    if weights == "saw":
      np.testing.assert_array_equal(method.weights.keywords["minima"], [0, 0])
    if weights == "static":
      np.testing.assert_array_equal(
        method.weights.keywords["values"], [1.5, 0.5]
      )

  def test_no_prompt_of_tiny_is_too_long(self, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    experiment = build.build(summaries.get_config().lock())
    encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
    for split in ("train", "test"):
      for example in experiment.task.examples(split):
        encoder.tokens(example)

  def test_rows_differ_in_their_algorithm_alone(self):
    first = summaries.get_config("row=gdpo_saw").to_dict()
    for row in summaries.ROWS:
      other = summaries.get_config(f"row={row}").to_dict()
      for name in ("advantage", "weights", "weights_options"):
        other["algorithm"][name] = first["algorithm"][name]
      assert other == first, row

  def test_numbers_of_rules_are_labelled(self):
    for scale in summaries.SCALES:
      options = summaries.get_config(f"scale={scale}").task.options
      by_rules = options.reward == "rules"
      assert (scale in summaries.TABLE.stand_ins) == by_rules
      if by_rules:
        task = algorithms.make_task("summaries", options.to_dict())
        assert summaries.TABLE.stand_ins[scale] == task.stand_in != ""

  def test_the_paper_scale_is_the_published_setting(self):
    options = summaries.get_config("scale=paper").task.options
    assert (options.num_train, options.num_test) == (2560, 256)
    assert options.reward == "judge" and options.judge.temperature == 0.1
    config = summaries.get_config("scale=paper")
    # A worker is not killed while its judge may still answer.
    assert config.grading.limit_s > options.judge.limit_s
    with pytest.raises(ValueError, match="judge.url is ''"):
      build.build(config.lock())


class TestCheckpoints:
  """A scale with a checkpoint leaves it the sizes and the tokenizer."""

  TABLES = {
    "saw": (tool_calling, tool_calling.ROWS, tool_calling.SCALES),
    "summaries": (summaries, summaries.ROWS, summaries.SCALES),
    "asympo": (asympo_math, asympo_math.ROWS, asympo_math.SCALES),
    "care_math": (care_math, care_math.ROWS, care_math.SCALES),
    "care_knights": (care_knights, care_knights.ROWS, care_knights.SCALES),
    "household": (household, household.ROWS, household.SCALES),
    "shop": (shop, household.ROWS, shop.SCALES),
    "search": (search, household.ROWS, search.SCALES),
  }
  # What a model's directory does not say.
  FREE = (*build.COMPUTED, "value_head")

  @pytest.mark.parametrize("table", TABLES)
  def test_sizes_and_tokenizer_are_the_checkpoints(self, table):
    module, rows, scales = self.TABLES[table]
    defaults = base.get_config()
    seen = 0
    for row in rows:
      for scale in scales:
        if scale == "tiny":
          continue
        config = module.get_config(f"row={row},scale={scale}")
        if not config.checkpoint:
          continue
        seen += 1
        for key, value in defaults.model.items():
          if key not in self.FREE:
            assert config.model[key] == value, (row, scale, key)
        assert config.tokenizer.name in algorithms.TOKENIZERS, (row, scale)
    assert seen


class TestAsympo:
  """Losses by lag: configs/asympo/math.py."""

  @pytest.mark.parametrize("row", asympo_math.ROWS)
  def test_every_row_builds_and_says_which_log_probs_it_needs(
    self, row, monkeypatch
  ):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    config = asympo_math.get_config(f"row={row},lag=4").lock()
    method = build.build(config).method
    none = ("naive", "spo", "gpg", "gpg_nonzero")
    if row in none or row.startswith("asympo"):
      assert not (method.needs_behave or method.needs_old)
    else:
      assert method.needs_behave
      assert method.needs_old == (row in ("tis", "decoupled_ppo"))

  @pytest.mark.parametrize("row", ("naive", "spo", "asympo", "asympo_stable"))
  def test_the_balance_has_the_aggregate_that_it_needs(self, row):
    algorithm = asympo_math.get_config(f"row={row}").algorithm
    assert algorithm.advantage == "dr_grpo"  # no deviation: eq. (9)
    assert algorithm.aggregate == "sequence_mean_token_mean"

  def test_the_paper_scale_is_the_published_setting(self):
    config = asympo_benchmarks.get_config("row=asympo,scale=paper")
    loop, run = config.loop, config.asynchronous
    assert (run.protocol, run.threshold) == ("quota", 0.5)
    assert loop.prompts_per_step * loop.num_steps == 3 * 4000
    assert loop.group_size == 8
    assert config.optimizer.learning_rate == 2e-6
    assert config.rollout.max_prompt_tokens == 1024
    assert config.rollout.max_new_tokens == 4096
    assert config.task.options.num_train == 4000
    assert len(config.task.options.benchmarks) == 6
    assert set(asympo_benchmarks.TABLE.benchmarks["paper"].values()) == {8}

  @pytest.mark.parametrize("scale", asympo_benchmarks.SCALES)
  @pytest.mark.parametrize("row", asympo_benchmarks.METHODS)
  def test_rows_of_benchmarks_are_the_losses_on_two_data_sets(self, row, scale):
    def get(name):
      return asympo_benchmarks.get_config(f"row={name},scale={scale}")

    one, other = get(row).to_dict(), get(f"{row}_dapo").to_dict()
    by_lag = asympo_math.get_config(f"row={row}").to_dict()
    assert one["algorithm"] == other["algorithm"] == by_lag["algorithm"]
    # Where they differ is what they train on, and nowhere else.
    trained = "train_path" if scale == "paper" else "levels"
    ours = one["task"]["options"].pop(trained)
    assert ours != other["task"]["options"].pop(trained)
    assert one == other

  @pytest.mark.parametrize("protocol", asympo_math.PROTOCOLS)
  def test_a_protocol_can_be_chosen(self, protocol, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    config = asympo_math.get_config(f"lag=2,protocol={protocol}").lock()
    made = build.build(config)
    assert made.asynchronous.protocol == protocol
    assert made.asynchronous.lag == 2

  def test_rows_differ_in_their_algorithm_alone(self):
    first = asympo_math.get_config("row=asympo").to_dict()
    for row in asympo_math.ROWS:
      other = asympo_math.get_config(f"row={row}").to_dict()
      other["algorithm"] = first["algorithm"]
      if row == "dapo":  # its sampling is part of the method
        other["asynchronous"]["dynamic_sampling"] = False
      assert other == first, row

  def test_the_table_is_made_of_its_own_runs(self):
    runs = asympo_math.TABLE.runs
    for row in asympo_math.PAPER_ROWS:
      assert {f"{row}_lag{lag}" for lag in (0, 4, 16, 32)} <= set(runs)
    for name, (row, lag, argument) in runs.items():
      config = asympo_math.get_config(argument)
      assert name == f"{row}_lag{lag}"
      assert config.asynchronous.lag == lag


class TestGdpoMath:
  """Right and short answers: configs/gdpo/math.py."""

  @pytest.mark.parametrize("row", gdpo_math.ROWS)
  def test_every_row_builds(self, row, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    made = build.build(gdpo_math.get_config(f"row={row}").lock())
    assert [c.name for c in made.task.components] == ["correct", "length"]
    assert made.task.config.conditioned == row.endswith("_conditioned")
    config = gdpo_math.get_config(f"row={row}")
    assert config.algorithm.advantage == row[:4]
    assert config.algorithm.weights == ("saw" if "saw" in row else "equal")

  def test_the_paper_scale_is_the_published_setting(self):
    config = gdpo_math.get_config("row=gdpo,scale=paper")
    assert config.task.options.length_limit == 4000
    assert config.rollout.max_new_tokens == 8000
    assert (config.loop.prompts_per_step, config.loop.group_size) == (512, 16)
    assert config.loop.num_steps == 500
    assert config.asynchronous.lag == 0
    assert config.asynchronous.dynamic_sampling
    options = config.algorithm.loss_options
    assert options.clip_high > options.clip_low
    assert config.algorithm.aggregate == "token_mean"


class TestPaw:
  """Policy and world model on the household: configs/paw/household.py."""

  @pytest.mark.parametrize("row", household.ROWS)
  def test_every_row_builds_its_method(self, row, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    made = build.build(household.get_config(f"row={row}").lock())
    method = made.method
    assert method.per_step
    assert (method.world is None) == (row in household.BASES)
    assert ("world_model" in method.terms) == (row not in household.BASES)
    assert method.reads_values == row.startswith("ppo")
    assert made.decoder.value_head == row.startswith("ppo")
    assert not method.needs_reference
    if method.world is not None:
      rho = getattr(method.world.token_loss, "keywords", {}).get("rho")
      assert (rho == 0.2) == (
        unwrap(method.world.token_loss).__name__
        in ("clipped_absolute_error", "reversed_absolute_error")
      )

  def test_a_control_is_one_change_of_paw(self):
    first = household.get_config("row=grpo_paw").to_dict()
    for row in ("paw_lambda_one", "paw_cross_entropy", *household.CONTROLS):
      other = household.get_config(f"row={row}").to_dict()
      ours, theirs = (
        c["algorithm"].pop("world_model") for c in (dict(first), other)
      )
      first["algorithm"]["world_model"] = ours
      changed = {key for key in ours if ours[key] != theirs[key]}
      changed -= {"loss_options", "coefficient_options"}
      assert len(changed) == (4 if row.startswith("echo") else 1), row
      other["algorithm"]["world_model"] = ours
      assert other == first, row

  @pytest.mark.parametrize("base_row", household.BASES)
  def test_paw_changes_the_world_model_alone(self, base_row):
    base = household.get_config(f"row={base_row}").to_dict()
    paw = household.get_config(f"row={base_row}_paw").to_dict()
    paw["algorithm"]["world_model"] = base["algorithm"]["world_model"]
    assert paw == base

  @pytest.mark.parametrize("scale", household.SCALES)
  def test_an_engine_is_another_player_of_the_same(self, scale):
    ours = household.get_config(f"row=grpo,scale={scale}")
    theirs = household.get_config(f"row=grpo,scale={scale},engine=alfworld")
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

  def test_an_unknown_engine_is_named(self):
    with pytest.raises(ValueError, match="did you mean 'alfworld'"):
      household.get_config("engine=alfword")

  def test_the_paper_scale_is_the_published_setting(self):
    config = household.get_config("row=gigpo_paw,scale=paper")
    loop, world = config.loop, config.algorithm.world_model
    assert (loop.prompts_per_step, loop.group_size) == (16, 8)
    assert loop.num_steps == 150
    assert (config.task.options.max_steps, config.task.options.shown) == (50, 2)
    assert config.rollout.max_prompt_tokens == 2048
    assert config.rollout.max_new_tokens == 512
    assert config.optimizer.learning_rate == 1e-6
    assert config.episodes.invalid_penalty == 0.1
    assert (world.alpha, world.loss_options.rho) == (0.75, 0.2)
    options = config.algorithm.advantage_options
    assert (options.gamma, options.omega) == (0.95, 1.0)

  @pytest.mark.parametrize(
    ("path", "value", "words"),
    [
      ("algorithm.advantage", "grpo", "has episodes, and the advantage"),
      ("asynchronous.protocol", "fixed_lag", "must be 'none'"),
      ("rollout.length_groups", 2, "are sorted by length anyway: it must be 1"),
      ("algorithm.world_model.alpha", 0.0, r"a share in \(0, 1\], not 0"),
      ("algorithm.world_model.loss", "huber", "unknown world-model loss"),
      ("algorithm.world_model.selection", "rnadom", "did you mean 'random'"),
      ("algorithm.kl.placement", "reward", "no place in advantages of steps"),
      ("model.value_head", False, "set config.model.value_head=True"),
    ],
  )
  def test_what_does_not_go_together_is_refused(self, path, value, words):
    row = "ppo_paw" if path.startswith("model") else "grpo_paw"
    config = household.get_config(f"row={row}")
    if path == "algorithm.advantage":
      config.algorithm.world_model.loss = "none"
    section, _, key = path.rpartition(".")
    at(config, section)[key] = value
    with pytest.raises((ValueError, KeyError), match=words):
      build.build(config.lock())

  def test_episodes_and_answers_do_not_mix(self):
    config = tool_calling.get_config("row=grpo")
    config.algorithm.advantage = "gigpo"
    with pytest.raises(ValueError, match="has single answers"):
      build.build(config.lock())


class TestPawElsewhere:
  """The same rows in other environments: configs/paw/shop.py, search.py."""

  TABLES = (shop, search)

  @pytest.mark.parametrize("table", TABLES)
  @pytest.mark.parametrize("row", household.ROWS)
  def test_every_row_builds_its_method(self, table, row, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    made = build.build(table.get_config(f"row={row}").lock())
    assert made.task.name == table.__name__.rpartition(".")[2]
    assert (made.method.world is None) == (row in household.BASES)
    # No token is outside of the short vocabulary.
    text = made.task.held_out(1)[0].before.task
    assert made.tokenizer.decode(made.tokenizer.encode(text)) == text

  @pytest.mark.parametrize("table", TABLES)
  @pytest.mark.parametrize("scale", shop.SCALES)
  @pytest.mark.parametrize("row", household.ROWS)
  def test_the_algorithms_are_those_of_the_household(self, table, scale, row):
    theirs = table.get_config(f"row={row},scale={scale}").to_dict()
    ours = household.get_config(f"row={row},scale={scale}").to_dict()
    if table is search and scale == "paper":
      # The one published difference, and verl-agent's.
      assert theirs["algorithm"]["kl"].pop("coefficient") == 0.001
      assert theirs["algorithm"].pop("entropy_coefficient") == 0.0
      del ours["algorithm"]["kl"]["coefficient"]
      del ours["algorithm"]["entropy_coefficient"]
    assert theirs["algorithm"] == ours["algorithm"]

  @pytest.mark.parametrize("table", TABLES)
  @pytest.mark.parametrize("base_row", household.BASES)
  def test_paw_changes_the_world_model_alone(self, table, base_row):
    base = table.get_config(f"row={base_row}").to_dict()
    paw = table.get_config(f"row={base_row}_paw").to_dict()
    paw["algorithm"]["world_model"] = base["algorithm"]["world_model"]
    assert paw == base

  @pytest.mark.parametrize("table", TABLES)
  @pytest.mark.parametrize("scale", shop.SCALES)
  def test_options_are_those_of_the_task(self, table, scale):
    config = table.get_config(f"scale={scale}")
    options = config.task.options.to_dict()
    task = algorithms.make_task(config.task.name, options)
    assert task.num_episodes("train") >= config.loop.prompts_per_step
    assert task.num_episodes("test") >= config.evaluation.num_examples

  def test_the_paper_scales_are_the_published_settings(self):
    config = shop.get_config("row=gigpo_paw,scale=paper")
    assert config.task.options.max_steps == 15
    assert (config.loop.prompts_per_step, config.loop.group_size) == (16, 8)
    assert config.rollout.max_prompt_tokens == 4096
    assert config.rollout.max_new_tokens == 512
    assert config.episodes.invalid_penalty == 0.1
    assert config.episodes.max_observation_tokens == 1024
    config = search.get_config("row=gigpo_paw,scale=paper")
    assert config.task.options.max_steps == 4
    assert config.task.options.num_passages == 3
    assert (config.loop.prompts_per_step, config.loop.group_size) == (256, 5)
    assert config.episodes.invalid_penalty == 0.01
    assert config.episodes.similarity == 0.9
    assert config.optimizer.learning_rate == 1e-6


def unwrap(fn):
  """The function under a `functools.partial`."""
  return getattr(fn, "func", fn)


class TestCare:
  """Labels by budget: configs/care/knights.py and math.py."""

  @pytest.mark.parametrize("table", [care_knights, care_math])
  def test_every_run_of_the_table_builds(self, table, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    for name, (row, fraction, argument) in table.TABLE.runs.items():
      config = table.get_config(argument).lock()
      labels = build.build(config).labels
      buys = labels.method in labelling.BUYING
      assert buys == (fraction is not None), name
      if buys:
        assert labels.label_fraction == fraction
        assert name == f"{row}_{fraction:g}"
      assert row.startswith(labels.method)
    if table is care_knights:
      for row in ("random", "entropy", "care", "oracle"):
        assert len(table.TABLE.runs_of(row)) == len(table.FRACTIONS)

  def test_rows_differ_in_their_labels_alone(self):
    first = care_knights.get_config("row=care").to_dict()
    for row in care_knights.ROWS:
      other = care_knights.get_config(f"row={row}").to_dict()
      other["labels"] = first["labels"]
      assert other == first, row

  def test_controls_change_one_thing(self):
    def labels(row):
      return care_knights.get_config(f"row={row}").labels.to_dict()

    def difference(a, b):
      a, b = labels(a), labels(b)
      return {key for key in a if a[key] != b[key]}

    assert difference("care", "care_no_gate") == {"gate"}
    assert difference("random", "random_gate") == {"gate"}
    assert difference("random", "random_votes") == {"unlabelled"}
    assert difference("care", "care_votes") == {"unlabelled"}
    assert difference("random_gate", "entropy_gate") == {"method"}

  @pytest.mark.parametrize("table", [care_knights, care_math])
  def test_the_paper_scale_is_the_published_setting(self, table):
    config = table.get_config("row=care,scale=paper")
    assert config.loop.prompts_per_step == 64
    assert config.loop.group_size == 8
    assert config.optimizer.learning_rate == 1e-6
    assert config.algorithm.loss_options.dual_clip == 3.0
    assert config.rollout.max_new_tokens == 4000
    labels = config.labels
    assert (labels.label_fraction, labels.gate_fraction) == (0.2, 0.25)
    assert labels.warm_up == 20 and labels.soft_adv == 1.0
    assert labels.probe == base.get_config().labels.probe

  def test_the_defaults_are_those_of_the_dataclasses(self):
    labels = base.get_config().labels.to_dict()
    probe = labels.pop("probe")
    for made, values in (
      (labelling.LabelConfig(), labels),
      (care.CareSettings(), probe),
    ):
      for key, value in values.items():
        assert getattr(made, key) == value, key

  def test_groups_are_not_dropped_by_rewards_that_come_later(self):
    config = care_knights.get_config()
    config.asynchronous.protocol = "fixed_lag"
    config.asynchronous.dynamic_sampling = True
    with pytest.raises(ValueError, match="one of the two has to go"):
      build.build(config.lock())

  def test_math_cannot_judge_itself_at_tiny(self):
    with pytest.raises(ValueError, match="needs words to judge"):
      care_math.get_config("row=self_verification")
    care_math.get_config("row=self_verification,scale=small")


class TestComposed:
  """All methods, and each taken away: configs/composed/tool_calling.py."""

  @pytest.mark.parametrize("row", composed.ROWS)
  def test_a_row_has_its_methods_and_no_other(self, row, monkeypatch):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    config = composed.get_config(f"row={row}").lock()
    made, methods = build.build(config), composed.methods_of(row)
    method = made.method
    has_saw = unwrap(method.weights) is algorithms.WEIGHTS["saw"]
    assert has_saw == ("saw" in methods)
    assert (method.world is not None) == ("paw" in methods)
    assert ("world_model" in method.terms) == ("paw" in methods)
    # ASymPO needs nothing of the sampler's.
    assert method.needs_behave == ("asympo" not in methods)
    assert not method.needs_old
    assert (made.labels.method == "care") == ("care" in methods)
    assert made.labels.label_fraction == 0.2
    assert made.asynchronous.lag == 4

  def test_rows_take_one_away_or_leave_one(self):
    assert composed.methods_of("all") == composed.METHODS
    for method in composed.METHODS:
      without = set(composed.methods_of(f"without_{method}"))
      assert without == set(composed.METHODS) - {method}
      assert composed.methods_of(f"only_{method}") == (method,)
    assert composed.methods_of("none") == ()

  @pytest.mark.parametrize(
    ("path", "value", "words"),
    [
      ("task.name", "knights", "does not say what the world answers"),
      ("loop.pack_length", 160, "what is observed may have"),
    ],
  )
  def test_what_does_not_go_together_is_refused(
    self, path, value, words, monkeypatch
  ):
    monkeypatch.setattr(build, "make_params", lambda *_: None)
    config = composed.get_config()
    if path == "task.name":
      config.tokenizer.name = "knights"
    section, _, key = path.rpartition(".")
    at(config, section)[key] = value
    with pytest.raises(ValueError, match=words):
      build.build(config.lock())
