"""Start the stock ``moshi.server`` on a CPU.

Its warm-up ends with ``torch.cuda.synchronize()``, which raises where there is no GPU.
"""

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    torch.cuda.synchronize = lambda device=None: None

import moshi.server  # noqa: E402, F401  (serves while it is being imported)
