"""Models: text encoders (bert, hf, hf_flax), the teacher and the students built on them."""
