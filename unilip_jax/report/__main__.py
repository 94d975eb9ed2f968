"""`python -m unilip_jax.report`."""

from unilip_jax.common import errors
from unilip_jax.report import page

errors.run_command(page.main)
