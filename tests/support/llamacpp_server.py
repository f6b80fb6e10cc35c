"""llama.cpp's own server as a program, out of the wheel that holds it, with the options of
``llama-server`` that hubkit uses. Run by a Python of another environment, without hubkit."""

from __future__ import annotations

import argparse
import os
import time

import xllamacpp


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser()
    for name in ("model", "host", "alias"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("port", 0), ("parallel", 1), ("ctx-size", 0), ("cache-ram", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--lora", action="append", default=[])
    parser.add_argument("--lora-init-without-apply", action="store_true")
    parser.add_argument("--no-webui", action="store_true")
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.model_alias = {given.alias}
    params.hostnames, params.port = [given.host], given.port
    params.n_parallel, params.n_ctx = given.parallel, given.ctx_size
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.cache_ram_mib, params.ctx_shift, params.fit_params = given.cache_ram, False, False
    params.lora_init_without_apply = given.lora_init_without_apply
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in given.lora]
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
