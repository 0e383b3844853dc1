"""A decoder's sizes that no transposition can mistake for one another."""

from saw_jax.models.config import DecoderConfig

ODD = DecoderConfig(
  vocab_size=29,
  width=22,
  num_layers=3,
  num_heads=6,
  num_kv_heads=2,
  head_size=10,
  mlp_size=31,
)
