"""Pretrained models: where their parts are, how they are loaded, and which token vector a head reads."""
