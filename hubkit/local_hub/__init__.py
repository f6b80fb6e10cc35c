"""The embedded Hub: a server on this machine that the stock Hub clients cannot tell from the real
one.

Runs as its own process (`python -m hubkit.local_hub --root DIR`) and is seen by everything else
only as a URL. Imports nothing of hubkit but `errors`. One word of the Hub's contract, one file:

    server      the process: lock, port, signals, idle exit
    app         routes, on the raw path
    wire        requests, refusals, pagination
    state       the folder: what is kept where
    accounts    users, organisations, tokens: who may read and write
    repos       create, delete, move, settings
    git trees   bare git repositories; one ref update is the commit point
    objects     large files, addressed by their sha256
    commits     preupload and commit
    lfs xet     the two ways in which clients upload large files
    resolve     downloads
    info files  what is in a repository
    inference   endpoints: the wire; fleet: their states; engines: what runs behind each
    jobs        commands that run here when that is allowed; guard: what watches over one
    children    processes that must not outlive this one
    upkeep      sweep after a crash, collect garbage, verify
    pages       the same for people
"""
