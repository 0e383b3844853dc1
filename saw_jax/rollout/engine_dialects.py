# SPDX-License-Identifier: Apache-2.0
"""What the servers of vLLM and of SGLang are asked, and how they answer.

vLLM's was tried with 0.32; SGLang's is written from its documentation alone.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from saw_jax import asking
from saw_jax.rollout.engine import EngineError
from saw_jax.rollout.generate import GenerateConfig

# (path, document to post; None: get) -> what the server says
Ask = Callable[..., Any]
Document = dict[str, Any]
# What reading an answer of another form raises.
ODD = (AttributeError, LookupError, TypeError, ValueError)


class Facts(NamedTuple):
  """What a server says of itself."""

  version: str
  model: str  # its path, or its name
  max_length: int | None  # of a prompt and its response
  seeded: bool


class Answer(NamedTuple):
  """A response as it came."""

  tokens: list[int]
  log_probs: list[float] | None
  top: list[float]  # log-probs of the first token's likeliest, if asked for
  versions: frozenset[str]  # of the weights; empty: it does not say
  reason: str  # why it ended: "stop", "length" or another


def _how(config: GenerateConfig, whole: int) -> Document:
  """What both name alike; `whole` is the top_k that keeps all tokens."""
  sampling = config.sampling
  if sampling.greedy:
    chosen = {"temperature": 0.0}
  else:
    chosen = {
      "temperature": sampling.temperature,
      "top_k": sampling.top_k or whole,
      "top_p": sampling.top_p,
      "min_p": sampling.min_p,
    }
  # Our end tokens end a row, and no others.
  return {**chosen, "stop_token_ids": [*config.eos_ids], "ignore_eos": True}


class VLLM:
  """vLLM from 0.32 on, by tokens in and tokens out."""

  name, generate = "vllm", "/inference/v1/generate"

  def facts(self, ask: Ask) -> Facts:
    version = ask("/version")["version"]
    model = ask("/v1/models")["data"][0]
    try:
      self.held(ask)
    except asking.Refusal:
      raise EngineError(
        "it takes no weights: start it with VLLM_SERVER_DEV_MODE=1 in its "
        "environment, on a private network"
      ) from None
    return Facts(version, model["root"], model["max_model_len"], True)

  def body(
    self,
    prompt: list[int],
    config: GenerateConfig,
    seed: int,
    log_probs: int | None,
    name: str = "",
  ) -> Document:
    """Asks for one row; `log_probs` of how many tokens beside the sampled."""
    how = _how(config, 0) | {
      "max_tokens": config.max_new_tokens,
      "seed": seed,
      "detokenize": False,
      "logprobs": log_probs,
    }
    named = {"request_id": name} if name else {}
    return {"token_ids": prompt, "sampling_params": how, **named}

  def read(self, document: Document) -> Answer:
    (choice,) = document["choices"]
    found, top = choice["logprobs"], []
    if found is not None:
      found = found["content"]
      first = found[0]["top_logprobs"] if found else []
      top = sorted(x["logprob"] for x in first)[::-1]
      if [x["token_id"] for x in found] != choice["token_ids"]:
        raise ValueError("log-probs of other tokens")
      found = [x["logprob"] for x in found]
    spans = choice.get("weight_versions") or ()
    versions = frozenset(span["version"] for span in spans)
    reason = choice["finish_reason"]
    return Answer(choice["token_ids"], found, top, versions, reason)

  def held(self, ask: Ask) -> str:
    """The version of the weights that the server has now."""
    return ask("/weight_info")["weight_version"]

  def load(self, ask: Ask, folder: str, version: str) -> None:
    how = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
    ask("/collective_rpc", how)
    # Drops prefixes that the old weights have read. It fails while blocks are
    # held, which takes a moment after the last row.
    for pause_s in (0.0, 0.1, 1.0, 10.0):
      time.sleep(pause_s)
      if ask("/reset_prefix_cache", {})["success"]:
        break
    else:
      raise asking.Failure("its prefix cache is in use by others")
    ask("/update_weight_version", {"new_version": version})

  def abort(self, ask: Ask, names: list[str]) -> None:
    """Ends rows that were asked for by these names, as they are."""
    whole = [f"generate-tokens-{name}" for name in names]
    ask("/abort_requests", {"request_ids": whole})


class SGLang:
  """SGLang's own routes, for what `VLLM` asks."""

  name, generate = "sglang", "/generate"

  def facts(self, ask: Ask) -> Facts:
    info, model = ask("/get_server_info"), ask("/get_model_info")
    return Facts(
      str(info.get("version", "")),
      model["model_path"],
      info.get("context_length"),
      bool(info.get("enable_deterministic_inference")),
    )

  def body(self, prompt, config, seed, log_probs, name="") -> Document:
    how = _how(config, -1) | {
      "max_new_tokens": config.max_new_tokens,
      "sampling_seed": seed % 2**31,
      "skip_special_tokens": False,
    }
    named = {"rid": name} if name else {}
    return named | {
      "input_ids": prompt,
      "sampling_params": how,
      "return_logprob": log_probs is not None,
      "top_logprobs_num": log_probs or 0,
    }

  def read(self, document) -> Answer:
    about, tokens = document["meta_info"], document["output_ids"]
    found = about.get("output_token_logprobs")
    if found is not None:
      if [x[1] for x in found] != tokens:
        raise ValueError("log-probs of other tokens")
      found = [x[0] for x in found]
    first = (about.get("output_top_logprobs") or [[]])[0] or []
    version = about.get("weight_version")
    return Answer(
      tokens,
      found,
      sorted((x[0] for x in first), reverse=True),
      frozenset([] if version is None else [str(version)]),
      about["finish_reason"]["type"],
    )

  def held(self, ask: Ask) -> str:
    return str(ask("/get_model_info").get("weight_version"))

  def load(self, ask, folder, version) -> None:
    how = {"model_path": folder, "weight_version": version, "flush_cache": True}
    found = ask("/update_weights_from_disk", how)
    if not found["success"]:
      raise asking.Failure(found["message"])

  def abort(self, ask, names) -> None:
    for name in names:
      ask("/abort_request", {"rid": name})


Dialect = VLLM | SGLang
# The first path of each tells which one a server is of.
DIALECTS = (VLLM(), SGLang())
