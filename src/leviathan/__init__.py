"""Leviathan: config-driven LoRA fine-tuning on Axolotl."""

__version__ = "0.1.0"
