"""Every key that a config has, with its default.

A section is spread into the frozen dataclass named beside it, so that a key
that nothing reads cannot exist. Sections called `options` hold the arguments of
the function or task named above them; they are checked against it.
"""

import ml_collections
from ml_collections import config_dict

Section = ml_collections.ConfigDict


def get_config() -> ml_collections.ConfigDict:
  """Returns a config that is complete but for its task.

  Returns:
    An unlocked config; `experiments` locks it.
  """
  config = Section()

  # What is learned. saw_jax.algorithms.TASKS
  config.task = Section()
  config.task.name = config_dict.required_placeholder(str)
  # Arguments of the task, e.g. its seed, sizes, and a path for real files.
  config.task.options = Section(allow_dotted_keys=False)

  # How text becomes tokens.
  config.tokenizer = Section()
  # "bytes"; "tool_calling", "math", "knights", "household", "shop", "search" or
  # "summaries" for the short vocabulary of that task at `tiny`; or the path of
  # a tokenizer.json. With a checkpoint, those names stand for the checkpoint's
  # own tokenizer.
  config.tokenizer.name = "bytes"

  # The decoder. saw_jax.models.config.DecoderConfig; the vocabulary is the
  # tokenizer's.
  config.model = Section()
  config.model.width = 64
  config.model.num_layers = 2
  config.model.num_heads = 4
  config.model.num_kv_heads = 2
  config.model.head_size = 16
  config.model.mlp_size = 192
  config.model.rope_theta = 10_000.0
  config.model.norm_eps = 1e-6
  config.model.tied_head = True
  config.model.value_head = False  # for an advantage that reads values
  config.model.qkv_bias = False
  config.model.qk_norm = False
  config.model.rotary_size = 0  # entries of a head that rotate; 0: all
  config.model.rope_factors = ()  # divide the frequencies; empty: none
  config.model.rope_scale = 1.0  # of sines and cosines
  config.model.windows = ()  # tokens that each layer sees; empty or 0: all
  config.model.scan_layers = False  # True for deep models: flat compile time
  # What the backward pass recomputes beside norms and gates.
  config.model.remat = "none"
  config.model.dtype = "float32"
  config.model.param_dtype = "float32"
  # A pretrained model: a Hugging Face directory, a .gguf file, or "smollm2";
  # empty: start from nothing. Of config.model it leaves how it is computed
  # (scan_layers, remat, dtype, param_dtype); the rest is its own. There is no
  # warm start then. See docs/checkpoints.md.
  config.checkpoint = ""

  # Adapters that are trained in place of the model.
  # saw_jax.models.lora.LoraConfig
  config.lora = Section()
  config.lora.rank = 0  # 0: no adapters, the whole model is trained
  config.lora.alpha = 16.0  # their product is multiplied by alpha / rank
  # In every layer; see saw_jax.models.lora.TARGETS.
  config.lora.targets = (
    "query",
    "key",
    "value",
    "out",
    "gate",
    "up",
    "down",
  )
  config.lora.seed = 0  # of the first of the two matrices

  # A supervised start for models without a checkpoint.
  # saw_jax.run.warm_start.WarmStartConfig
  config.warm_start = Section()
  config.warm_start.num_steps = 0  # 0: none
  config.warm_start.batch_size = 64
  config.warm_start.num_demonstrations = 8192
  config.warm_start.seed = 0
  config.warm_start.learning_rate = 3e-3
  config.warm_start.log_interval = 100
  # Of what followed a demonstrated action, in the loss; 0: not learned.
  config.warm_start.observation_coefficient = 0.0
  # Arguments of the task's `demonstrations`, e.g. how many are wrong.
  config.warm_start.options = Section()

  # Sampling. saw_jax.run.rollouts.RolloutConfig
  config.rollout = Section()
  config.rollout.max_prompt_tokens = 128
  config.rollout.max_new_tokens = 64
  config.rollout.prompt_multiple = 128  # prompt sizes are rounded up to it
  config.rollout.completion_multiple = 16  # completion sizes in the update
  config.rollout.long_prompts = "error"  # or "truncate", which keeps the end
  # A step's prompts are sampled in so many parts, sorted by length.
  config.rollout.length_groups = 1
  # Strings that end an answer and do not belong to it, beside the end tokens.
  config.rollout.stops = ()
  # saw_jax.rollout.sampling.SamplingConfig
  config.sampling = Section()
  config.sampling.temperature = 1.0
  config.sampling.top_k = 0  # 0: all tokens
  config.sampling.top_p = 1.0
  config.sampling.min_p = (
    0.0  # least share of the likeliest token's probability
  )

  # Episodes, where the task is one of environments.
  # saw_jax.run.agents.EpisodeConfig
  config.episodes = Section()
  config.episodes.rows_per_call = 64  # prompts of a seed per sampler call
  config.episodes.row_parts = 4  # of an update's rows; so many shapes
  config.episodes.invalid_penalty = 0.1  # of a reply that does not parse
  config.episodes.similarity = 1.0  # of observations that are one anchor
  config.episodes.max_observation_tokens = 512  # that are predicted
  config.episodes.max_observation_chars = 20_000  # that are passed on at all
  config.episodes.num_transitions = 256  # of the expert, to score predictions

  # The worker processes of rewards or environments.
  # saw_jax.run.experiment.GradingConfig
  config.grading = Section()
  config.grading.num_workers = 2  # 0: in this process, without a time limit
  config.grading.limit_s = 5.0  # per response, or step of an episode
  config.grading.crash_tolerance = 0.1  # share of a step that may crash

  # The method. saw_jax.algorithms.AlgorithmConfig
  config.algorithm = Section()
  # algorithms.ADVANTAGES; STEP_ADVANTAGES where the task is of episodes.
  config.algorithm.advantage = "grpo"
  config.algorithm.advantage_options = Section()
  config.algorithm.weights = "equal"  # algorithms.WEIGHTS
  config.algorithm.weights_options = Section()
  config.algorithm.loss = "clipped_surrogate"  # algorithms.LOSSES
  # Arguments of the loss. The default has clip_low, clip_high and dual_clip;
  # ratio_of, where a loss has it, is one of algorithms.RATIOS.
  config.algorithm.loss_options = Section()
  # A clipped ratio is to the policy that the update starts from (old), or to
  # the sampler's own log-probs (behave).
  config.algorithm.ratio_to = "old"
  # algorithms.AGGREGATES. Whatever the loss: spo and asympo are defined with
  # sequence_mean_token_mean, topr with sequence_mean_token_sum.
  config.algorithm.aggregate = "token_mean"
  config.algorithm.aggregate_options = Section()
  config.algorithm.entropy_coefficient = 0.0
  # Where the advantage reads values: half the squared error, times this.
  config.algorithm.value_coefficient = 0.5
  # To predict what an action brings about. algorithms.WorldModelConfig
  config.algorithm.world_model = Section()
  config.algorithm.world_model.loss = "none"  # algorithms.TOKEN_LOSSES
  config.algorithm.world_model.loss_options = Section()  # e.g. rho
  config.algorithm.world_model.entropy = "entropy"  # algorithms.MEASURES
  # algorithms.SELECTIONS
  config.algorithm.world_model.selection = "highest_entropy"
  config.algorithm.world_model.alpha = 0.75  # share that is selected; 1: all
  config.algorithm.world_model.coefficients = "adaptive"  # or constant
  config.algorithm.world_model.coefficient_options = Section()  # e.g. value
  config.algorithm.world_model.aggregate = "group_mean"  # or flat_selected
  config.algorithm.world_model.shuffled = False  # the placebo
  config.algorithm.kl = Section()
  config.algorithm.kl.placement = "none"  # none, loss or reward
  config.algorithm.kl.estimator = "k3"  # algorithms.KL_ESTIMATORS
  config.algorithm.kl.coefficient = 0.0
  config.algorithm.kl.force = False  # allow k1 in the loss

  # saw_jax.training.optimizer.OptimizerConfig
  config.optimizer = Section()
  config.optimizer.learning_rate = 1e-6
  config.optimizer.schedule = "constant"  # constant, linear or cosine
  config.optimizer.warmup_steps = 0  # updates
  config.optimizer.decay_steps = 0  # updates; 0: all of the run's
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  config.optimizer.weight_decay = 0.01
  config.optimizer.clip_norm = 1.0

  # saw_jax.run.experiment.LoopConfig
  config.loop = Section()
  config.loop.num_steps = 100  # rollouts
  config.loop.prompts_per_step = 16
  config.loop.group_size = 8  # responses per prompt
  config.loop.num_minibatches = 1  # updates per rollout
  config.loop.num_microbatches = 1  # parts of an update, one after the other
  config.loop.chunk_size = 1024  # tokens whose logits exist at one time
  # Tokens of a packed row, at least the longest prompt and response; 0: do not
  # pack. Worth it where responses differ much in length.
  config.loop.pack_length = 0
  config.loop.checkpoint_interval = 25  # steps; 0: only at the end
  config.loop.skip_nonfinite = False  # True: count such updates and go on
  config.loop.writers = ()  # beside the files: tensorboard, wandb

  # Sampling ahead of the updates. saw_jax.run.experiment.AsyncConfig
  config.asynchronous = Section()
  config.asynchronous.protocol = "none"  # fixed_lag, max_lag, quota
  config.asynchronous.lag = 0  # optimizer steps (fixed_lag), versions (max_lag)
  config.asynchronous.threshold = 0.5  # quota: share of a window ahead of it
  config.asynchronous.require = 4  # quota: updates of a learner batch
  config.asynchronous.trigger = 4  # quota: learner batches per publication
  config.asynchronous.actors = 0  # 0: sample between the updates
  config.asynchronous.actor_kind = "thread"  # or process, on the CPU
  config.asynchronous.actor_devices = 0  # the last ones, for actors alone
  config.asynchronous.max_deaths = 3  # actors restarted in a run
  config.asynchronous.partial_tokens = 0  # > 0: long responses change weights
  config.asynchronous.dynamic_sampling = False  # replace constant groups
  config.asynchronous.max_attempts = 10  # filtered per group wanted
  config.asynchronous.carry_log_probs = True  # False: tokens and rewards only

  # What responses are scored against. saw_jax.run.labelling.LabelConfig
  config.labels = Section()
  # truth; vote (TTRL), filtered_vote (by an oracle: a released script of TTRL);
  # random, entropy, mean_probability, oracle or care buy labels; certainty and
  # self_verification need none.
  config.labels.method = "truth"
  config.labels.label_fraction = 0.2  # of the prompts of a step
  config.labels.gate = "none"  # whose votes are trusted: majority, probe
  config.labels.gate_fraction = 0.25  # of the prompts of a step
  config.labels.warm_up = 20  # steps before the gate opens
  config.labels.soft_adv = 1.0  # times the expected gap, of a trusted prompt
  config.labels.unlabelled = "drop"  # or vote: train on it
  # self_certainty, token_entropy, trajectory_entropy, probability
  config.labels.certainty = "token_entropy"
  config.labels.verify_temperature = 0.5
  config.labels.verify_prompt_tokens = 8192
  config.labels.verify_new_tokens = 4096
  config.labels.source = "truth"  # or annotator: experiments/annotate.py
  config.labels.price = 1.0  # of a label
  config.labels.total = 0.0  # most that a run may spend; 0: no limit
  config.labels.again = False  # pay again for what was bought before
  config.labels.timeout_s = 3600.0  # the annotator's
  config.labels.audit = True  # log what the true references say
  # saw_jax.labels.care.CareSettings, but for the shares above
  config.labels.probe = Section()
  config.labels.probe.length_scale = 4000.0  # tokens
  config.labels.probe.learning_rate = 1e-4
  config.labels.probe.train_steps = 3  # updates of each probe in a step
  config.labels.probe.replay_size = 2048  # prompts
  config.labels.probe.replay_batch = 16  # prompts beside those just bought
  config.labels.probe.prompt_width = 128
  config.labels.probe.joint_width = 256
  config.labels.probe.response_hidden_width = 64
  config.labels.probe.response_width = 512
  config.labels.probe.activation = "relu"
  config.labels.probe.b1 = 0.9
  config.labels.probe.b2 = 0.999
  config.labels.probe.eps = 1e-8
  config.labels.probe.weight_decay = 0.0
  config.labels.probe.clip_norm = 1.0
  config.labels.probe.response_weight = 1.5
  config.labels.probe.balance_power = 0.5
  config.labels.probe.balance_minimum = 0.25
  config.labels.probe.balance_maximum = 4.0

  # saw_jax.run.evaluation.EvaluationConfig
  config.evaluation = Section()
  config.evaluation.split = "test"
  config.evaluation.num_examples = 128
  config.evaluation.batch_size = 128  # prompts at a time
  config.evaluation.samples = 4  # per prompt, at the end
  config.evaluation.temperature = 1.0  # of those samples
  config.evaluation.top_p = 1.0  # likewise
  config.evaluation.interval = 10  # steps; 0: only at the end
  # Splits that the finished policies are scored on, whole -> samples an
  # example; 0: greedily alone.
  config.evaluation.benchmarks = Section()

  # saw_jax.training.parallel.ParallelConfig
  config.parallel = Section()
  config.parallel.lift = "seeded"  # seeded, meshed or pmapped
  config.parallel.data = -1  # mesh axes; -1: what is left
  config.parallel.fsdp = 1
  config.parallel.tensor = 1

  return config
