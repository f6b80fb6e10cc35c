"""The embedded Hub: a server on this machine that stock Hub clients use like the real one.

It runs as a process of its own (`python -m hubkit.local_hub --root DIR`), and everything else knows
it only by its URL. It imports nothing of hubkit but `errors`. Each layer imports only those above:

    storage     a folder: git repositories, large files by their sha256, settings in SQLite
    apps        processes: apps of Spaces, jobs, inference endpoints
    hub         a store together with those processes
    api         the HTTP API that clients of the Hub use, one file for each part of it
    pages       the same for people
    app         routes, on the raw path
    server      the process: lock, port, signals, idle exit
"""
