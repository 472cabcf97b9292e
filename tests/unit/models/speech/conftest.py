"""Hypothesis without deadlines and with fixed examples: a result must not depend on the load of the machine."""

from hypothesis import settings

settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")
