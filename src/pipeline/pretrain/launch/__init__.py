"""How a cell's training is started: in this process on a laptop, by SLURM through submitit on a cluster.

`client` asks the `broker` for a cell and waits as a shell of 1 MB; the broker, one light process for all waiting cells,
watches the queue, and lets `submit`, short-lived, put jobs into it; `job` is what runs on the nodes.
"""
