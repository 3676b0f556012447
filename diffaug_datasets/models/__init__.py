"""The only door to diffusers, transformers and peft: diffusion backbones, learned concepts, encoders and judges."""
