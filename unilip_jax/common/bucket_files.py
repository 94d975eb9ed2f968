"""The file system class of gs://; buckets.py says how it differs from gcsfs' own."""

from typing import Any

import aiohttp
from gcsfs import core, retry

from unilip_jax.common import buckets, errors


class FileSystem(core.GCSFileSystem):
  """gcsfs with bounded waits, named errors and no cached listings."""

  def __init__(self, *args: Any, **kwargs: Any):
    kwargs.setdefault("use_listings_cache", False)
    kwargs.setdefault("requests_timeout", aiohttp.ClientTimeout(
        sock_connect=buckets.CONNECT_SECONDS, sock_read=buckets.SILENCE_SECONDS))
    super().__init__(*args, **kwargs)

  async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
    """Sends a request.

    Raises:
      TryAgainError: if the storage does not answer, or refuses for the moment, in every try.
    """
    try:
      return await super()._call(method, path, *args, **kwargs)
    except Exception as error:
      if not retry.is_retriable(error):
        raise
      name = buckets.object_name(path, args)
      raise errors.TryAgainError(
          f"{name}: the storage failed in all of {self.retries} tries, the last time with "
          f"{type(error).__name__}: {str(error) or 'no answer'}. Check the network and the status of the "
          "storage, then run the same command again") from error

  async def _isfile(self, path: str) -> bool:
    """Returns whether an object exists; a failure of the storage is an error, not False."""
    try:
      return (await self._info(path))["type"] == "file"
    except FileNotFoundError:
      return False
