"""How much of a checkpoint is reused: strategies, rates of the layers, ensembles, direct use."""
