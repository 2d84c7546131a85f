"""A fake accelerate: put tests/fakes first on PYTHONPATH and `train` launches this one."""
