"""A fake accelerate: its launcher asks the fork server for a trainer."""
