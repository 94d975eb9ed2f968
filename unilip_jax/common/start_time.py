"""When this process imported the package, before it read the code of which programs are made."""

import time

SECONDS = time.time()  # since 1970
