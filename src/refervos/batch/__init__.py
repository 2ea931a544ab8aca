"""Segment many videos: a manifest in, Parquet files of run lengths out, on any number of processes and machines.

A folder of results (on a disk or an object store) holds all state, and any process that can reach it may work on it:

    job.json                  the stamp: model fingerprint, version, options (``job.py``)
    _plan/<number>.parquet    units and their shards, written once (``units.py``, ``job.py``)
    data/<shard>.parquet      masks of a finished shard, the commit (``shard_files.py``, ``storage.py``)
    _units/<shard>.parquet    one row per unit of a finished shard
    _leases/<shard>.json      which worker is at work on a shard (``leases.py``)
    _state/<unit>.state       a unit that was interrupted, to be continued by any worker (``states.py``)
    _log/<worker>.jsonl       heartbeats and events of each worker (``log.py``)

A unit is one video with all its sentences; a shard is a few units, about two minutes of work. ``worker.py`` processes
shards; ``run_local.py``, ``run_slurm.py`` and ``run_ray.py`` only start workers. Correctness rests on exclusive commits
of deterministic files alone: leases merely avoid double work.
"""
