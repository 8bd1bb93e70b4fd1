"""The model on torch, with Kyutai's own classes. Needs the extra ``moshi``."""

import os

from pipecat_duplex.session import MissingExtra

_no_compile = os.environ.get("NO_TORCH_COMPILE")
try:
    import torch

    # moshi decides while it is being imported whether to compile a few small functions. On a CPU
    # that costs the first caller a minute and saves nothing, so it is declined, unless the user
    # has said otherwise. The variable is put back at once: nothing else in the process sees it.
    if _no_compile is None and not torch.cuda.is_available():
        os.environ["NO_TORCH_COMPILE"] = "1"
    import moshi.models  # noqa: F401

    from pipecat_duplex.engine.torch.model import load_model
except ModuleNotFoundError as error:
    if error.name is not None and error.name.startswith("pipecat_duplex"):
        raise
    raise MissingExtra(
        f"running this model in this process needs {error.name}, which is not installed: "
        "pip install 'pipecat-duplex[moshi]'"
    ) from error
finally:
    if _no_compile is None:
        os.environ.pop("NO_TORCH_COMPILE", None)

__all__ = ["load_model"]
