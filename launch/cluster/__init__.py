"""How a run starts: on this machine, on several over ssh or MPI, under a cluster's scheduler."""
