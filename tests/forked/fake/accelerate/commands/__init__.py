"""The commands of the fake accelerate."""
